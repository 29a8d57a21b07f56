"""A model: a config, its weights, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgesam_jax.config import Config, SamConfig

BACKBONE = "backbone"  # metadata["holds"] of ImageNet weights of an encoder: a start for stage 1, and no model yet


@dataclass(frozen=True, eq=False)
class Model:
    """Weights with what is needed to use them.

    ``variables`` has the collections ``params``, ``batch_stats`` and ``constants``.  ``metadata``: ``source`` (text),
    ``score`` ("iou": the IoU head was trained; "stability": it was not, rate masks by their stability), and whatever a
    converter needs for the way back.
    """

    config: SamConfig
    variables: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


def score_kind(config: Config) -> str:
    """Which score fits a model trained so: the IoU head's only where that head was trained."""
    return "iou" if config.distill.loss.iou > 0 else "stability"
