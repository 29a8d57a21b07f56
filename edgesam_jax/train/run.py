"""The training run: wires start, data, loop and checkpoints, and leaves the model behind.

Folder of a run: ``config.json``, ``checkpoints/`` and ``best.json``, ``metrics.jsonl``, ``tensorboard/``,
``pictures/``, ``skipped.jsonl`` and ``nonfinite.jsonl`` where there was something to list, and at the end ``model/``
(the inference checkpoint), ``curves.png`` and ``run.json`` (steps and seconds; its presence means done).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from edgesam_jax import files
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.checkpoints.training import TrainCheckpointer
from edgesam_jax.config import Config, UsageError, to_json
from edgesam_jax.learning.checks import check_distillation
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.train import log, parallel
from edgesam_jax.train.initialization import begin
from edgesam_jax.train.inputs import check_store, load_teacher, open_data
from edgesam_jax.train.loop import Loop, model_of
from edgesam_jax.train.watchers import Position
from edgesam_jax.train.workdir import RunResult, claim_workdir, finished_run
from edgesam_jax.types import Batch, TrainState


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
            log.save_curves(workdir / "curves.png", {config.name: workdir / "metrics.jsonl"})
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
