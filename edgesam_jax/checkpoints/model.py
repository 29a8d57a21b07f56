"""A model: its config, weights and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgesam_jax.config import Config, SamConfig

BACKBONE = "backbone"  # metadata["holds"] of an encoder's ImageNet weights: a start for stage 1, not a complete model


@dataclass(frozen=True, eq=False)
class Model:
    """A model's weights with its config and metadata.

    ``variables`` has the collections ``params``, ``batch_stats`` and ``constants``. ``metadata``: ``source`` (text),
    ``score`` ("iou": the IoU head was trained; "stability": it was not, so masks are rated by their stability score),
    and anything that a converter needs to convert the model back.
    """

    config: SamConfig
    variables: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


def with_compute_dtype(config: SamConfig, dtype: Literal["checkpoint", "float32", "bfloat16"]) -> SamConfig:
    """Return the config with activations of another dtype; ``checkpoint`` leaves them as they are."""
    return config if dtype == "checkpoint" else replace(config, compute_dtype=dtype)


def score_kind(config: Config) -> str:
    """Return the ``score`` metadata of a model trained with this config: "iou" only if the IoU head was trained."""
    return "iou" if config.distill.loss.iou > 0 else "stability"
