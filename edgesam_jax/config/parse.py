"""Load configs from Python files and JSON, apply command-line overrides, and save configs as JSON."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgesam_jax import files
from edgesam_jax.config.schema import Config
from edgesam_jax.portable.errors import UsageError

T = TypeVar("T")
SUFFIXES = (".py", ".json")
SHOWN = 200  # characters of a value or of another's message that are quoted in an error


def load_config(path: str | Path, **arguments: Any) -> Config:
    """Load the config that a Python file's ``get_config`` returns, or a config saved as JSON.

    ``get_config`` may take keyword arguments with defaults.  They follow the file's name after a colon, as in
    ``configs/edgesam_stage1.py:percent=3`` or ``configs/table5c.py:encoder=tinyvit,neck=fpn``, or are passed here as
    keywords.  Each is read as the type of its annotation.  An existing file whose name contains a colon is that file.

    Args:
      path: the file, optionally with arguments after a colon; values can't contain commas.
      arguments: arguments of ``get_config``, in place of or in addition to those in ``path``.

    Raises:
      UsageError: a missing file, an unknown argument or bad value, or a Python file that fails or exits, or whose
        ``get_config`` doesn't return a ``Config`` with values of the right types.
    """
    where = f"--config {files.short(path)}"
    file, texts = _split_arguments(str(path), where)
    if not files.is_file(file, "--config"):
        raise UsageError(f"--config {files.short(file)}: no such file")
    if file.suffix not in SUFFIXES:
        raise UsageError(f"--config {file}: expected a {' or '.join(SUFFIXES)} file")
    if file.suffix == ".json":
        if texts or arguments:
            raise UsageError(f"{where}: a saved config takes no arguments; change its fields with --set")
        return from_plain(Config, files.read_json(file, "--config"), str(file))
    spec = importlib.util.spec_from_file_location(f"edgesam_jax_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # there is a loader for .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config(**_typed_arguments(get_config, texts, arguments, where)) if callable(get_config) else None
    except UsageError:  # from the arguments, or from a config that this one is derived from
        raise
    except SystemExit as error:
        raise UsageError(
            f"--config {file}: exits (sys.exit({shown(error.code)})) instead of defining get_config(); remove that call"
        ) from error
    except Exception as error:
        raise UsageError(f"--config {file}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, Config):
        raise UsageError(f"--config {file}: must define get_config() returning an edgesam_jax.config.Config")
    return from_plain(Config, _plain(config), str(file))


def _plain(value: Any) -> Any:
    """Return nested dataclasses as dicts, without copying other values as ``dataclasses.asdict`` does."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value


def _split_arguments(text: str, where: str) -> tuple[Path, dict[str, str]]:
    """Split ``FILE:name=value,name=value`` into the file and the texts of its arguments."""
    colons = [match.end() for match in re.finditer(r"\.(?:py|json)(?=:)", text)]
    if not colons or os.path.isfile(text):
        return Path(text), {}
    colon = next((i for i in colons if os.path.isfile(text[:i])), colons[0])
    texts: dict[str, str] = {}
    for part in text[colon + 1 :].split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise UsageError(f"{where}: write the arguments as FILE:name=value,name=value")
        if name in texts:
            raise UsageError(f"{where}: argument {name!r} is given twice")
        texts[name] = value
    return Path(text[:colon]), texts


def _typed_arguments(
    get_config: Callable[..., Any], texts: dict[str, str], arguments: dict[str, Any], where: str
) -> dict[str, Any]:
    """Check the arguments of a ``get_config`` against its signature, and read texts as the annotated types."""
    known = inspect.signature(get_config).parameters
    for name in (*texts, *arguments):
        if name not in known:
            valid = f"valid arguments: {', '.join(known)}" if known else "this config takes none"
            raise UsageError(f"{where}: unknown argument {name!r}; {valid}")
    hints = dict.fromkeys(known, str) | typing.get_type_hints(get_config)
    values = {name: _literal(hints[name], text, f"{where}: {name}") for name, text in texts.items()} | arguments
    return {name: _decode(hints[name], value, f"{where}: {name}") for name, value in values.items()}


def apply_overrides(config: T, overrides: typing.Sequence[str]) -> T:
    """Apply overrides ``a.b=c`` to a nested dataclass, in order; each value is read as its field's type.

    Raises:
      UsageError: an unknown field, or a value that doesn't have the field's type.
    """
    for text in overrides:
        name, equals, value = text.partition("=")
        where = f"--set {files.short(text)}"
        if not equals:
            raise UsageError(f"{where}: write it as a.b=value")
        config = _set(config, name.strip().split("."), value.strip(), where)
    return config


def _set(config: Any, path: list[str], value: str, where: str) -> Any:
    if config is None:
        raise UsageError(f"{where}: this group is unset; set it to {{}} first to get its defaults")
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
    """Read a command-line text as a Python value."""
    if hint is str or (typing.get_origin(hint) is Literal and all(isinstance(v, str) for v in typing.get_args(hint))):
        return text
    if hint == tuple[str, ...] and text[:1] not in ("(", "["):  # a list of strings needs no quotes
        return [part for part in text.split(",") if part]
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: nested too deeply
        if typing.get_origin(hint) is Literal:
            return text  # _decode lists the choices
        raise UsageError(f"{where}: cannot read {shown(text)} as {_type_name(hint)}") from None


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def shown(value: Any) -> str:
    """Return a value as it is quoted in an error message: on one line, and cut if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python limits the digits of an integer that it prints
        text = f"a {type(value).__name__} that is too long to print"
    return files.short(text, SHOWN)


def one_line(error: BaseException) -> str:
    """Return the text of an exception on one line."""
    return files.short(" ".join(str(error).split()), 2 * SHOWN)


def to_json(config: Any) -> str:
    """Return a config as JSON text; ``from_json`` restores an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(cls: type[T], text: str, where: str = "config") -> T:
    """Restore an object of class ``cls`` from ``to_json``'s text, checking every name and type.

    Args:
      where: names the text in an error.

    Raises:
      UsageError: damaged JSON, an unknown field, or a value of the wrong type.
    """
    return from_plain(cls, files.parse_json(text, where), where)


def from_plain(cls: type[T], plain: Any, where: str = "config") -> T:
    """Do the same from parsed JSON.

    Raises:
      UsageError: an unknown field, or a value of the wrong type.
    """
    return typing.cast(T, _decode(cls, plain, where))


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: {hint.__name__} expected named fields, got {shown(value)}")
        hints = typing.get_type_hints(hint)
        unknown = sorted(str(name) for name in set(value) - set(hints))
        if unknown:
            names = files.short(", ".join(unknown), SHOWN)
            raise UsageError(f"{where}: {hint.__name__} has no field {names}")
        return hint(**{k: _decode(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if origin in (typing.Union, types.UnionType) and type(None) in args:
        (inside,) = (arg for arg in args if arg is not type(None))
        return None if value is None else _decode(inside, value, where)
    if origin in (typing.Union, types.UnionType):
        kinds = {typing.get_args(typing.get_type_hints(a)["kind"])[0]: a for a in args}
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise UsageError(f"{where}: kind must be one of {', '.join(kinds)}, got {shown(kind)}")
        return _decode(kinds[kind], value, where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):  # True == 1
            raise UsageError(f"{where}: must be one of {', '.join(map(str, args))}, got {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, got {shown(value)}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise UsageError(f"{where}: expected {len(inner)} values, got {shown(value)}")
        return tuple(_decode(h, v, where) for h, v in zip(inner, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{where}: {shown(value)} is too large") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where}: expected {_type_name(hint)}, got {shown(value)}")
    return value
