"""The parts of a run that stay the same from its first step to its last."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config
from edgesam_jax.learning.device_step import TrainStep, make_train_step
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.learning.step import needed_teacher_variables
from edgesam_jax.train import parallel
from edgesam_jax.types import Batch, TrainState


class StepArguments(NamedTuple):
    """The arguments of a compiled train step, on its devices; ``state`` is donated."""

    state: TrainState
    teacher: Any | None
    batch: Batch
    key: jax.Array


class TrainSetup:
    """Optimiser, schedule, teacher, random key and devices of a run, and its compiled train step.

    Args:
      teacher: the teacher's checkpoint; None where the targets need none.
      params: the student's parameters, whose names decide how each is optimised.
      devices: the local devices to train on.

    Attributes:
      schedule: the learning rate by step.
      teacher_variables: the part of the teacher's variables that the step reads.
      key: the run's only random key; the step number is folded into it.  Both lie on the host, as ``arguments`` has
        copies of them on every device.
    """

    def __init__(self, config: Config, teacher: Model | None, params: Any, devices: list[jax.Device]) -> None:
        self.config, self.teacher, self.devices = config, teacher, devices
        self.teacher_config = teacher.config if teacher else None
        self._optimizer, self.schedule = make_optimizer(config, params)
        self.teacher_variables = needed_teacher_variables(config, teacher.variables) if teacher else None
        self.key = jax.random.key(config.train.seed)
        self._everywhere = parallel.replicate((self.teacher_variables, self.key), devices)
        self._compiled = functools.cache(self._make_step)

    def step_for(self, phase: Config) -> TrainStep:
        """The train step for a phase of the run (``config.derive.phase``); made once, compiled by its first call."""
        return self._compiled(phase)

    def _make_step(self, phase: Config) -> TrainStep:
        return make_train_step(phase, self.teacher_config, self._optimizer, self.devices)

    def replicate(self, state: TrainState) -> TrainState:
        """A copy of a train state on every device, as ``arguments`` takes it."""
        copies: TrainState = parallel.replicate(state, self.devices)
        return copies

    def arguments(self, state: TrainState, batch: Batch) -> StepArguments:
        """The arguments of a step on this process's share of a batch (numpy arrays)."""
        teacher, key = self._everywhere
        return StepArguments(state, teacher, parallel.shard_batch(batch, self.devices), key)
