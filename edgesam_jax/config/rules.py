"""Rules on values: lower bounds of counts, and the fields that may change when a run is resumed."""

from __future__ import annotations

import json
from typing import Any

from edgesam_jax.config.parse import to_json
from edgesam_jax.config.schema import Config
from edgesam_jax.portable.errors import UsageError


def check_counts(config: Config) -> None:
    """Check the lower bounds of all counts.

    Raises:
      UsageError: a count is too small; the field, its value and the bound are named.
    """
    least = {
        "train.steps": 1, "train.log_every": 1, "train.checkpoint_every": 1, "train.keep_checkpoints": 1,
        "train.accumulate": 1, "train.keep_best": 0, "train.picture_every": 0, "train.prompt_chunk": 0,
        "train.profile_steps": 0, "train.devices": 0, "data.batch_size": 1, "data.max_prompts": 1, "data.workers": 0,
        "data.limit": 0, "data.shuffle_window": 0, "eval.every": 0, "eval.images": 0, "eval.batch_size": 1,
        "eval.refine": 0,
    }  # fmt: skip
    for name, value in least.items():
        part, field = name.split(".")
        if (count := getattr(getattr(config, part), field)) < value:
            raise UsageError(f"{name}={count}: must be at least {value}")


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
