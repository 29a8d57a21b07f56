"""Configs from Python files, command-line overrides and JSON, and back."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgesam_jax.config.schema import Config
from edgesam_jax.portable.errors import UsageError

T = TypeVar("T")


def load_config(path: str | Path) -> Config:
    """Load ``get_config()`` of a Python file, or a config saved as JSON.

    Raises:
      UsageError: no such file, or a Python file without ``get_config`` returning a ``Config``.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--config {path}: no such file")
    if path.suffix == ".json":
        return from_json(Config, path.read_text(), str(path))
    spec = importlib.util.spec_from_file_location(f"edgesam_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except UsageError:  # from a config that this one is derived from
        raise
    except Exception as error:
        raise UsageError(f"--config {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UsageError(f"--config {path}: it must define get_config() returning an edgesam_jax.config.Config")
    return config


def apply_overrides(config: T, overrides: typing.Sequence[str]) -> T:
    """Apply ``a.b=c`` texts to a nested dataclass; each value is read as its field's type.

    Raises:
      UsageError: an unknown field, or a value that is not of the field's type.
    """
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: write it as a.b=value")
        config = _set(config, name.strip().split("."), value.strip(), f"--set {text}")
    return config


def _set(config: Any, path: list[str], value: str, where: str) -> Any:
    if config is None:
        raise UsageError(f"{where}: there is none yet; set it as a whole before, to {{}} for its defaults")
    names = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if path[0] not in names:
        raise UsageError(f"{where}: no field {path[0]!r} in {type(config).__name__}; it has {', '.join(names)}")
    if len(path) > 1:
        changed = _set(getattr(config, path[0]), path[1:], value, where)
    else:
        hint = typing.get_type_hints(type(config))[path[0]]
        changed = _decode(hint, _literal(hint, value, where), where)
    return dataclasses.replace(config, **{path[0]: changed})


def _literal(hint: Any, text: str, where: str) -> Any:
    """The plain value that a command-line text stands for."""
    if hint is str or (typing.get_origin(hint) is Literal and all(isinstance(v, str) for v in typing.get_args(hint))):
        return text
    if hint == tuple[str, ...] and text[:1] not in ("(", "["):  # a list of texts needs no quotes
        return [part for part in text.split(",") if part]
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        raise UsageError(f"{where}: cannot read {text!r} as {hint}") from None


def to_json(config: Any) -> str:
    """A config as JSON text; ``from_json`` gives an equal object back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(cls: type[T], text: str, where: str = "config") -> T:
    """Inverse of ``to_json``, checking every name and type.

    Raises:
      UsageError: damaged JSON, an unknown field, or a value of the wrong type.
    """
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not valid JSON ({error})") from None
    return _decode(cls, plain, where)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: {hint.__name__} wants named fields, got {value!r}")
        hints = typing.get_type_hints(hint)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise UsageError(f"{where}: {hint.__name__} has no field {', '.join(unknown)}")
        return hint(**{k: _decode(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if origin in (typing.Union, types.UnionType) and type(None) in args:
        (inside,) = (arg for arg in args if arg is not type(None))
        return None if value is None else _decode(inside, value, where)
    if origin in (typing.Union, types.UnionType):
        kinds = {typing.get_args(typing.get_type_hints(a)["kind"])[0]: a for a in args}
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind not in kinds:
            raise UsageError(f"{where}: kind must be one of {', '.join(kinds)}, got {kind!r}")
        return _decode(kinds[kind], value, where)
    if origin is Literal:
        if value not in args:
            raise UsageError(f"{where}: must be one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: wants a list, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise UsageError(f"{where}: wants {len(inner)} values, got {value!r}")
        return tuple(_decode(h, v, where) for h, v in zip(inner, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where}: wants {hint.__name__}, got {value!r}")
    return value
