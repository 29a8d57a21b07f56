"""The training run: wires start, data, loop and checkpoints, and leaves the model behind.

Folder of a run: ``config.json``, ``checkpoints/`` and ``best.json``, ``metrics.jsonl``, ``tensorboard/``,
``pictures/``, ``skipped.jsonl`` and ``nonfinite.jsonl`` where there was something to list, and at the end ``model/``
(the inference checkpoint), ``curves.png`` and ``run.json`` (steps and seconds; its presence means done).
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from edgesam_jax import files, parallel, train_log
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.checkpoints.training import TrainCheckpointer
from edgesam_jax.config import Config, UsageError, to_json
from edgesam_jax.config.rules import check_distillation, check_teacher
from edgesam_jax.data.opening import open_parts
from edgesam_jax.data.pipeline import Batches, batches
from edgesam_jax.data.source import left_out
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.loop import Loop, Position, model_of
from edgesam_jax.start import begin, check_data, check_store, claim_workdir
from edgesam_jax.types import Batch, TrainState


@dataclass
class StopSignal:
    """SIGTERM and SIGINT ask the loop to save and leave; a second one has its usual effect.

    A job of several processes leaves them to JAX: see ``parallel.agree_to_stop``.
    """

    received: int = 0
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopSignal:
        for number in () if jax.distributed.is_initialized() else (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    ``model`` holds host arrays; ``seconds`` is the time spent in steps, over all resumptions, without compilation,
    pictures and checkpoints; ``finished`` is False if the run was asked to stop before its last step.
    """

    model: Model
    step: int
    seconds: float
    finished: bool


def load_teacher(config: Config) -> Model | None:
    """The teacher that the config names, checked against the student.

    Raises:
      UsageError: no such checkpoint, or one of other sizes.
    """
    if not config.teacher:
        return None
    teacher = load_model(config.teacher)
    check_teacher(config, teacher.config)
    return teacher


def finished_run(config: Config, workdir: Path) -> RunResult | None:
    """The result of a run that this folder already holds complete, else None.

    Raises:
      UsageError: the folder holds a run of another config.
    """
    note = workdir / "run.json"
    if not note.exists():
        return None
    with claim_workdir(config, workdir):  # refuses another config
        values = json.loads(note.read_text())
    return RunResult(load_model(str(workdir / "model")), values["steps"], values["seconds"], True)


def fit(
    config: Config,
    workdir: Path,
    *,
    initial: Model | None = None,
    data: Callable[[int], Iterator[Batch]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> RunResult:
    """Train to ``config.train.steps``, going on from the last checkpoint in ``workdir`` if there is one.

    Args:
      initial: weights to start from, in place of those that ``train.init_from`` names.
      data: first step -> iterator of batches (numpy); the pipeline of ``config.data`` if None.
      stop: asked after every step; True saves and leaves, as SIGTERM and SIGINT do elsewhere.
      quiet: no progress bar.

    Raises:
      UsageError: a config, folder, teacher or data set that does not fit.
      FloatingPointError: the loss or gradient norm was NaN or infinite; the last good checkpoint is kept.
    """
    check_distillation(config)
    devices = parallel.request_devices(config.train.devices)
    parallel.check_batch(config.data.batch_size, devices, config.train.accumulate)
    if (done := finished_run(config, workdir)) is not None:
        return done
    try:
        with claim_workdir(config, workdir):
            state, seconds = _run(config, workdir, devices, initial, data, stop, quiet)
        step = int(state.step)
        model = model_of(config, state)
        finished = step >= config.train.steps
        if finished and parallel.is_first():
            save_model(workdir / "model", model)
            train_log.save_curves(workdir / "curves.png", {config.name: workdir / "metrics.jsonl"})
            files.write_atomically(workdir / "run.json", json.dumps({"steps": step, "seconds": seconds}))
    except OSError as error:
        raise UsageError(
            f"{error.filename or workdir}: {error.strerror or error}; the checkpoints of {workdir} stay good: make room"
            ", then the same command goes on"
        ) from error
    return RunResult(model, step, seconds, finished)


def _run(
    config: Config,
    workdir: Path,
    devices: list[jax.Device],
    initial: Model | None,
    data: Callable[[int], Iterator[Batch]] | None,
    stop: Callable[[], bool],
    quiet: bool,
) -> tuple[TrainState, float]:
    """Start or resume, and step; the last state and the seconds spent in steps."""
    teacher = load_teacher(config)
    check_store(config, teacher)
    start = begin(config, workdir, teacher, initial)
    tx, schedule = make_optimizer(config, start.state.params)
    step = int(start.state.step)
    parallel.check_same_start(step, to_json(config))
    # What is wrong with the data shows here, before anything is written.
    notes = list(start.notes)
    iterator = data(step) if data else open_data(config, step, notes)
    try:
        if parallel.is_first() and not quiet:
            print("\n".join([f"start: {start.how}", *notes]), file=sys.stderr, flush=True)
        kept = config.train.keep_checkpoints, config.train.keep_best
        with TrainCheckpointer(workdir, *kept, writes=parallel.is_first()) as checkpoints:
            loop = Loop(config, workdir, checkpoints, schedule, step, Position(**start.position), quiet)
            loop.wire(teacher, tx, devices)
            return loop.run(parallel.replicate(start.state, devices), iterator, stop), loop.position.seconds
    finally:
        getattr(iterator, "close", lambda: None)()  # a generator's workers end with it


def open_data(config: Config, step: int, notes: list[str] | None = None) -> Batches:
    """This process's share of the batches that the config names; what it left out is added to ``notes``.

    Raises:
      UsageError: a data set that can't be opened, or does not fit what is to be learnt.
    """
    parts = open_parts(config.data, config.model.image_size)
    check_data(config, parts)
    for part in parts if step == 0 else ():
        if notes is not None and (found := left_out(part.source)).rows:
            notes.append(f"note: {found.note}; skipped.jsonl lists them")
    shard = jax.process_index(), jax.process_count()
    return batches(config.data, config.model, step, parts=parts, shard=shard)
