"""What looks on while a run steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import Config, LossConfig, SamConfig
from edgesam_jax.learning.step import total_loss
from edgesam_jax.types import Batch, TrainState

HOPELESS = 10  # steps in a row that are not finite end a run that skips them
BEST_BY = "eval/box+0"  # the metric that rates checkpoints where there is an evaluation


def picture_trace(
    state: TrainState, teacher: Any, batch: Batch, key: jax.Array, config: Config, teacher_config: SamConfig | None
) -> Any:
    """The last decode round of the prompt loop on a batch, with running batch statistics; a ``distill.Trace``."""
    distill = dataclasses.replace(
        config.distill, mode="prompt_in_the_loop", freeze_image_encoder=True, loss=LossConfig()
    )
    if config.data.source == "images" or config.data.mixture:  # maybe no points and masks of its own: see with_prompts
        distill = dataclasses.replace(distill, start="box")
    config = dataclasses.replace(config, distill=distill)
    return total_loss(state.params, state, teacher, batch, key, config=config, teacher_config=teacher_config)[3]


def with_prompts(batch: Batch) -> Batch:
    """The batch itself, or with a box in each quarter of every photo where the data set has no prompts (b = 1)."""
    if batch.prompt_valid.any():
        return batch
    rows, columns = batch.valid_size[0]
    x, y = np.meshgrid(columns * np.array([0.25, 0.75]), rows * np.array([0.25, 0.75]))
    centre = np.stack([x.ravel(), y.ravel()], -1)[: batch.points.shape[1]].astype(np.float32)
    half = np.array([columns, rows], np.float32) / 6
    points, boxes, valid = (np.array(v) for v in (batch.points, batch.boxes, batch.prompt_valid))
    points[0, : len(centre)], valid[0, : len(centre)] = centre, True
    boxes[0, : len(centre)] = np.concatenate([centre - half, centre + half], -1)
    changed: dict[str, Any] = {"points": points, "boxes": boxes, "prompt_valid": valid}  # numpy stands for jax here
    return dataclasses.replace(batch, **changed)


@dataclasses.dataclass
class Position:
    """Where a run stands beside its state; saved with it, so that a resumed run's log is the uninterrupted one's.

    ``seconds`` spent in steps; ``window`` the metrics of steps that no row of the log covers yet; ``skipped`` and
    ``used`` count the first process's photos; ``evaluated`` is the step of the last evaluation.
    """

    seconds: float = 0.0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    used: int = 0
    nonfinite_in_a_row: int = 0
    evaluated: int = 0
