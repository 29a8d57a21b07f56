"""Pictures of the prompt loop on a photo of the batch."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import Config, LossConfig, SamConfig
from edgesam_jax.learning.step import total_loss
from edgesam_jax.reporting import pictures
from edgesam_jax.train import parallel
from edgesam_jax.train.setup import TrainSetup
from edgesam_jax.types import Batch, TrainState


def picture_trace(
    state: TrainState, teacher: Any, batch: Batch, key: jax.Array, config: Config, teacher_config: SamConfig | None
) -> Any:
    """The last decode round of the prompt loop on a batch, with running batch statistics; a ``prompt_loop.Trace``."""
    distill = dataclasses.replace(
        config.distill, mode="prompt_in_the_loop", freeze_image_encoder=True, loss=LossConfig()
    )
    if config.data.source == "images" or config.data.mixture:  # may lack points and masks: see with_prompts
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
    changed: dict[str, Any] = {"points": points, "boxes": boxes, "prompt_valid": valid}  # NumPy instead of JAX
    return dataclasses.replace(batch, **changed)


class Pictures:
    """Draws masks of the student and of its target, for a batch's first photo, into ``pictures/``."""

    def __init__(self, setup: TrainSetup, workdir: Path) -> None:
        self._setup, self._folder = setup, workdir / "pictures"
        self._trace = jax.jit(
            functools.partial(picture_trace, config=setup.config, teacher_config=setup.teacher_config)
        )

    def due(self, done: int) -> bool:
        """Whether a picture is due after ``done`` steps."""
        train = self._setup.config.train
        return train.picture_every > 0 and (done % train.picture_every == 0 or done == train.steps)

    def draw(self, done: int, state: TrainState, batch: Batch) -> np.ndarray:
        """Draw and save a picture; returns it, (h w 3) uint8.  ``batch`` is this process's, on the host."""
        first = with_prompts(jax.tree.map(lambda x: x[:1], batch))
        host = parallel.to_host(state)  # one device computes the masks
        trace = self._trace(host, self._setup.teacher_variables, first, self._setup.key)
        trace = jax.tree.map(lambda x: np.asarray(x)[0], trace)
        rows, columns = first.valid_size[0].tolist()
        image = np.rint(np.asarray(first.image[0], np.float32)).astype(np.uint8)
        valid = np.asarray(first.prompt_valid[0])
        picture = pictures.loop_picture(image, trace, valid, photo=(rows, columns))
        pictures.save_picture(self._folder / f"{done:07d}.png", picture)
        return picture
