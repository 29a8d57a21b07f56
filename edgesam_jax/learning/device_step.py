"""The training step on one device (``jit``) or mapped over several: the project's only ``jax.pmap``.

Both forms take and return an unstacked state, and give the same numbers for the same global batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from edgesam_jax.config import Config, SamConfig
from edgesam_jax.learning.step import AXIS, train_step
from edgesam_jax.types import Batch, TrainState

TrainStep = Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    config: Config,
    teacher_config: SamConfig | None,
    tx: optax.GradientTransformation,
    devices: Sequence[jax.Device],
) -> TrainStep:
    """The compiled step ``(state, teacher, batch, key) -> (state, metrics)``.

    The state is donated.  ``state``, ``teacher`` and ``key`` come from ``train.parallel.replicate``, the batch from
    ``shard_batch`` there: (b ...) on one device, (d b/d ...) on several.  ``devices`` may be described ones
    (``planning.topology``), which can be compiled for.
    """
    alone = len(devices) == 1 and jax.process_count() == 1
    body = functools.partial(
        train_step, config=config, teacher_config=teacher_config, tx=tx, axis_name=None if alone else AXIS
    )
    if alone:
        return jax.jit(body, donate_argnums=0)
    chosen = None if jax.process_count() > 1 else list(devices)
    return jax.pmap(
        body, axis_name=AXIS, in_axes=(None, None, 0, None), out_axes=None, donate_argnums=0, devices=chosen
    )
