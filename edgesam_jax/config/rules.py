"""Rules on values: the range of every number, and the fields that may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Annotated, Any

from edgesam_jax.config.parse import shown, to_json
from edgesam_jax.config.ranges import Range
from edgesam_jax.config.schema import Config
from edgesam_jax.portable.errors import UsageError


def check_values(config: Any, where: str = "") -> None:
    """Check the values of all fields of a config or of a part of it, nested ones included.

    A number must be in the range that the schema gives its field, and a text must have no control characters.

    Args:
      where: begins the message, before the field's name.

    Raises:
      UsageError: a value can't be used; the field, its value and the range are named.
    """
    _check(type(config), config, "", where)


def _check(hint: Any, value: Any, name: str, where: str) -> None:
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value), include_extras=True)
        for field, inner in hints.items():
            _check(inner, getattr(value, field), f"{name}.{field}".lstrip("."), where)
    elif isinstance(value, tuple):
        args = typing.get_args(hint)
        for i, item in enumerate(value):
            _check(args[0] if args[-1] is Ellipsis else args[i], item, f"{name}[{i}]", where)
    elif isinstance(value, str):
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise UsageError(f"{where}{name}={shown(value)}: must not contain line breaks or control characters")
    elif typing.get_origin(hint) is Annotated:
        for allowed in typing.get_args(hint)[1:]:
            if isinstance(allowed, Range) and value not in allowed:
                raise UsageError(f"{where}{name}={shown(value)}: {allowed.fault(value)}")


# Fields that change how a run is monitored or where it runs, but not its result.
FREE_FIELDS = {
    "train.devices",
    "model.encoder.remat",
    "train.log_every",
    "train.picture_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.profile_steps",
    "train.peak_tflops",
    "data.workers",
    "data.max_bad_share",
    "eval.every",
    "eval.images",
    "eval.batch_size",
    "eval.refine",
    "eval.seed",
    "eval.ids",
}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: value}


def differing_fields(a: Config, b: Config) -> list[str]:
    """``field (value in a, value in b)`` for every field that changes the result of a run."""
    left, right = (_flat(json.loads(to_json(config))) for config in (a, b))
    names = sorted(set(left) | set(right))
    return [
        f"{name} ({left.get(name)!r} there, {right.get(name)!r} here)"
        for name in names
        if left.get(name) != right.get(name) and name not in FREE_FIELDS
    ]
