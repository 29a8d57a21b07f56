"""Saves a run's checkpoints when they are due, rates them, and refuses parameters that are not finite."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np

from edgesam_jax.checkpoints.training import TrainCheckpointer
from edgesam_jax.config import Config, UsageError
from edgesam_jax.train import parallel
from edgesam_jax.train.state import Position
from edgesam_jax.types import TrainState


class Saves:
    """Saves checkpoints and rates them: by the evaluation, or by the loss where nothing can be evaluated.

    Attributes:
      score: the evaluation of the state as it is now; None if it wasn't evaluated since the last save.
      losses: the finite losses of the steps since the last save.
    """

    def __init__(self, checkpointer: TrainCheckpointer, config: Config) -> None:
        self._checkpointer, self._config = checkpointer, config
        self.score: float | None = None
        self.losses: list[float] = []

    def due(self, done: int) -> bool:
        """Whether to save after ``done`` steps."""
        return done == self._config.train.steps or done % self._config.train.checkpoint_every == 0

    def save(self, done: int, state: TrainState, position: Position, by_loss: bool) -> None:
        """Start to save a state as step ``done``; only the first process writes it.

        Args:
          by_loss: rate the checkpoint by its negative mean loss, as there is no evaluation.

        Raises:
          FloatingPointError: the state is not finite.
          UsageError: the save before this one failed.
        """
        host = parallel.to_host(state, copy=True)  # the next step may overwrite the state's buffers
        floats = (leaf for leaf in jax.tree.leaves(host) if np.issubdtype(leaf.dtype, np.floating))
        if not all(np.isfinite(leaf).all() for leaf in floats):
            raise FloatingPointError(f"step {done}: the parameters are no longer finite; {self.last_good()}")
        score = -float(np.mean(self.losses)) if by_loss and self.losses else self.score
        self.score, self.losses = None, []
        self._checkpointer.save(done, host, self._config, dataclasses.asdict(position), score)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
          UsageError: the last save failed.
        """
        self._checkpointer.wait()

    def last_good(self) -> str:
        """Name the last good checkpoint and a remedy, for the message of a run that stops at non-finite numbers."""
        with contextlib.suppress(UsageError):
            self._checkpointer.wait()
        last = self._checkpointer.latest_step()
        return (
            f"training stopped; the last good checkpoint is {'none' if last is None else last} in"
            f" {self._checkpointer.directory}; lower optim.learning_rate or set optim.clip_norm"
        )
