"""The steps of a run between its start and its end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import jax

from edgesam_jax.checkpoints.training import TrainCheckpointer
from edgesam_jax.config import Config
from edgesam_jax.config.derive import phase
from edgesam_jax.data.pipeline import Batches
from edgesam_jax.learning.device_step import TrainStep
from edgesam_jax.train import parallel
from edgesam_jax.train.setup import StepArguments, TrainSetup
from edgesam_jax.train.state import Position
from edgesam_jax.train.timing import StepTimer
from edgesam_jax.train.watchers.evaluation import BEST_BY, PeriodicEvaluation
from edgesam_jax.train.watchers.nonfinite import NonfinitePolicy
from edgesam_jax.train.watchers.pictures import Pictures
from edgesam_jax.train.watchers.profile import Profile
from edgesam_jax.train.watchers.progress import Progress
from edgesam_jax.train.watchers.saves import Saves
from edgesam_jax.train.watchers.skipped import SkippedPhotos
from edgesam_jax.types import Batch, TrainState


@dataclass(frozen=True)
class PendingStep:
    """A step that was dispatched and whose metrics have not been read yet.

    ``done`` counts finished steps, this one included.  ``ids`` are the photos of its batch.  ``skipped`` counts the
    photos skipped up to that batch: when the step is logged, the next one may have been drawn.  ``batch`` is kept where
    steps may be skipped, to check weights with it.
    """

    done: int
    metrics: dict[str, jax.Array]
    ids: list[int | str]
    skipped: int
    batch: Batch | None
    times: Future[dict[str, float] | None]


class Loop:
    """Draws batches, dispatches their steps, and calls the watchers when they are due.

    Steps run asynchronously: while a step runs, the metrics of the one before are read and the next batch is drawn.

    Args:
      checkpointer: writes the checkpoints.
      position: the run's position at the start.
      start: finished steps at the start.
      quiet: no progress bar.
    """

    def __init__(
        self,
        setup: TrainSetup,
        workdir: Path,
        checkpointer: TrainCheckpointer,
        position: Position,
        start: int,
        quiet: bool = False,
    ) -> None:
        config, first = setup.config, parallel.is_first()
        self.setup, self.start, self.first = setup, start, first
        self.timer = StepTimer()
        self.pending: deque[PendingStep] = deque()
        self.phase: Config | None = None  # of the last step
        self.finite: Batch | None = None  # the last one whose step was finite, where steps may be skipped
        self.progress = Progress(setup, workdir, start, position, quiet)
        self.skipped = SkippedPhotos(workdir, start, position, config.data.max_bad_share)
        self.saves = Saves(checkpointer, config)
        self.nonfinite = NonfinitePolicy(workdir, start, position, config.train.nonfinite, self.saves)
        self.evaluation = PeriodicEvaluation(config, setup.teacher, position.evaluated)
        self.pictures = Pictures(setup, workdir)
        self.profile = Profile(workdir, start + 2, config.train.profile_steps if first else 0)  # after compilation

    def run(self, state: TrainState, data: Iterator[Batch], stop: Callable[[], bool]) -> TrainState:
        """Train to the last step, or until ``stop`` returns True; saves the returned state.

        Args:
          state: on every device; it is donated.
          stop: called before the first step and after every step.
        """
        done, steps = self.start, self.setup.config.train.steps
        leaving = parallel.agree_to_stop(done, stop)
        try:
            if not leaving and self.evaluation.overdue(done):
                self._evaluate(done, state)
            while done < steps and not leaving:
                batch, ids, waited = self._draw(data)
                arguments = self.setup.arguments(state, batch)
                step = self._step_of(done, arguments)
                self._profile(done)
                state, metrics = step(*arguments)
                done += 1
                times = self.timer.track(metrics, waited)
                kept = batch if self.nonfinite.skips else None
                self.pending.append(PendingStep(done, metrics, ids, self.skipped.counts.total(), kept, times))
                self._read_metrics(keep=1)  # of the step before: the device always has a step to work on
                leaving = parallel.agree_to_stop(done, stop)
                if self.evaluation.due(done) and not leaving:
                    self._evaluate(done, state)
                if self.saves.due(done) or leaving:
                    self._save(done, state)
                if self.pictures.due(done):
                    self._draw_picture(done, state, batch)
            self.saves.wait()
            return state
        finally:
            self.profile.stop([step.metrics for step in self.pending])
            self.timer.close()
            self.progress.close()
            self.skipped.report()

    def _draw(self, data: Iterator[Batch]) -> tuple[Batch, list[int | str], float]:
        """The next batch, the ids of its photos (empty where ``data`` has none), and the seconds waited for it."""
        begin = time.perf_counter()
        batch = next(data)
        waited = time.perf_counter() - begin
        if isinstance(data, Batches):
            self.skipped.update(data)
        return batch, getattr(data, "ids", []), waited

    def _step_of(self, done: int, arguments: StepArguments) -> TrainStep:
        """The step to take after ``done`` steps; a new phase of the run needs a new one, which has to be compiled."""
        current = phase(self.setup.config, done)
        step = self.setup.step_for(current)
        if current != self.phase:
            self._read_metrics(keep=0)
            self.phase = current
            self.progress.compiling(current)
            self.timer.restart()
            parallel.compile_together(step, arguments, f"step {done}")
        return step

    def _profile(self, done: int) -> None:
        if self.profile.starts(done):
            self._read_metrics(keep=0)
            self.profile.start()
        elif self.profile.ends(done):
            self.profile.stop([step.metrics for step in self.pending])

    def _read_metrics(self, keep: int) -> None:
        """Wait for all but the last ``keep`` pending steps, check their metrics, and log them."""
        while len(self.pending) > keep:
            step = self.pending.popleft()
            metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
            times = step.times.result()
            self.progress.finished(step.done, times)
            if self.nonfinite.accept(step.done, metrics, step.ids):
                self.finite = step.batch
                self.progress.window.append(metrics | (times or {}))
                self.saves.losses.append(metrics["loss"])
            if self.progress.due(step.done):
                self.progress.write_row(step.done, step.skipped, self.nonfinite.count)

    def _evaluate(self, done: int, state: TrainState) -> None:
        self._read_metrics(keep=0)
        if self.first and (scores := self.evaluation.run(done, state)):
            self.saves.score = scores[BEST_BY]
            self.progress.write(done, scores)
        # It would be the same in every process; and slower in those whose programs are not in the compilation cache,
        # to which only the first one writes.
        parallel.meet(f"evaluation {done}")
        self.timer.discard_elapsed()

    def _save(self, done: int, state: TrainState) -> None:
        self._read_metrics(keep=0)
        if self.finite is not None and self.phase is not None:
            self.nonfinite.check_weights(done, self._repeat(self.finite, self.setup.step_for(self.phase), state))
            self.timer.discard_elapsed()
        if self.first:
            self.saves.save(done, state, self.position, by_loss=self.evaluation.impossible)
            self.timer.discard_elapsed()

    def _repeat(self, batch: Batch, step: TrainStep, state: TrainState) -> dict[str, float]:
        """The metrics of a step on a batch; the state stays as it is."""
        copy = self.setup.replicate(parallel.to_host(state, copy=True))  # a step overwrites its state
        _, metrics = step(*self.setup.arguments(copy, batch))
        return {name: float(value) for name, value in jax.device_get(metrics).items()}

    def _draw_picture(self, done: int, state: TrainState, batch: Batch) -> None:
        if self.first:
            self._read_metrics(keep=0)
            self.progress.show(done, self.pictures.draw(done, state, batch))
            self.timer.discard_elapsed()
        # The first picture takes a compilation, longer than the other processes may wait inside the next step's sum.
        parallel.meet(f"picture {done}")

    @property
    def position(self) -> Position:
        """The run's position, as of the last step whose metrics have been read."""
        return Position(
            seconds=self.progress.seconds,
            window=self.progress.window,
            skipped=dict(self.skipped.counts),
            used=self.skipped.used,
            nonfinite_in_a_row=self.nonfinite.in_a_row,
            evaluated=self.evaluation.last,
        )
