"""A model: its config, weights and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


def score_kind(config: Config) -> str:
    """Return the ``score`` metadata of a model trained with this config: "iou" only if the IoU head was trained."""
    return "iou" if config.distill.loss.iou > 0 else "stability"
