"""A training run from start to finish: prepare or resume, train, and write the trained model.

Files of a run: ``config.json``, ``provenance.json`` (for the model card), ``checkpoints/`` and ``best.json``,
``metrics.jsonl``, ``tensorboard/``, ``pictures/``, ``skipped.jsonl`` and ``nonfinite.jsonl`` if there was anything to
list, and at the end ``model/`` (the inference checkpoint), ``curves.png`` and ``run.json`` (steps and seconds; it marks
the run as finished).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgesam_jax import files
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.checkpoints.training import TrainCheckpointer
from edgesam_jax.config import Config, UsageError, to_json
from edgesam_jax.data.opening import open_parts
from edgesam_jax.data.source import Part
from edgesam_jax.learning.checks import check_distillation
from edgesam_jax.portable.errors import one_line
from edgesam_jax.train import card, log, parallel
from edgesam_jax.train.initialization import InitialState, initial_state
from edgesam_jax.train.inputs import check_store, load_teacher, open_data
from edgesam_jax.train.loop import Loop
from edgesam_jax.train.setup import TrainSetup
from edgesam_jax.train.state import model_of
from edgesam_jax.train.workdir import RunResult, claim_workdir, finished_run
from edgesam_jax.types import Batch

DataFrom = Callable[[int], Iterator[Batch]]
"""First step -> iterator of batches (numpy arrays)."""


def fit(
    config: Config,
    workdir: Path,
    *,
    initial: Model | None = None,
    data: DataFrom | None = None,
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> RunResult:
    """Train to ``config.train.steps``, resuming from the last checkpoint in ``workdir`` if there is one.

    Args:
      initial: weights to start from, instead of those of ``train.init_from``.
      data: batches to train on, instead of those of ``config.data``.
      stop: called after every step; True saves and stops, as SIGTERM and SIGINT do for the command.
      quiet: no progress bar.

    Raises:
      UsageError: the config, folder, teacher or data set does not fit, or the disk is full.
      FloatingPointError: the loss or gradient norm was NaN or infinite; the last good checkpoint is kept.
    """
    check_distillation(config)
    devices = parallel.request_devices(config.train.devices)
    parallel.check_batch(config.data.batch_size, devices, config.train.accumulate)
    if (finished := finished_run(config, workdir)) is not None:
        return finished
    try:
        with claim_workdir(config, workdir):
            teacher = load_teacher(config)
            check_store(config, teacher)
            start = initial_state(config, workdir, teacher, initial)
            parallel.check_same_start(start.step, to_json(config))
            parts = [] if data else open_parts(config.data, config.model.image_size)
            metadata = card.metadata_of(config, workdir, start.origin, teacher, parts)
            with _open(config, start, data, parts, quiet) as batches:
                setup = TrainSetup(config, teacher, start.state.params, devices)
                result = _train(setup, workdir, start, batches, stop, quiet)
        result = dataclasses.replace(result, model=card.with_metadata(result, metadata))
        if result.finished and parallel.is_first():
            save_model(workdir / "model", result.model)
            log.save_curves(workdir / "curves.png", {config.name: workdir / "metrics.jsonl"})
            summary = {"steps": result.step, "seconds": result.seconds}
            files.write_atomically(workdir / "run.json", json.dumps(summary))
    except OSError as error:
        raise UsageError(
            f"{error.filename or workdir}: {error.strerror or error}; the checkpoints in {workdir} are intact: free"
            " disk space, then run the same command again to resume"
        ) from error
    return result


@contextlib.contextmanager
def _open(
    config: Config, start: InitialState, data: DataFrom | None, parts: Sequence[Part], quiet: bool
) -> Iterator[Iterator[Batch]]:
    """The batches from the first step on.  Prints how the run starts, unless the data set can't be used."""
    notes = list(start.notes)
    batches = data(start.step) if data else open_data(config, start.step, parts, notes)
    try:
        if parallel.is_first() and not quiet:
            lines = (f"start: {start.description}", *notes)
            print("\n".join(map(one_line, lines)), file=sys.stderr, flush=True)
        yield batches
    finally:
        getattr(batches, "close", lambda: None)()  # ends a generator's workers


def _train(
    setup: TrainSetup,
    workdir: Path,
    start: InitialState,
    batches: Iterator[Batch],
    stop: Callable[[], bool],
    quiet: bool,
) -> RunResult:
    """Take the run's steps and save checkpoints."""
    config = setup.config
    kept = config.train.keep_checkpoints, config.train.keep_best
    with TrainCheckpointer(workdir, *kept, writes=parallel.is_first()) as checkpointer:
        loop = Loop(setup, workdir, checkpointer, start.position, start.step, quiet)
        state = loop.run(setup.replicate(start.state), batches, stop)
    step = int(state.step)
    # Nobody leaves before the last checkpoint is written: JAX aborts a job whose processes leave five minutes apart.
    seconds = parallel.of_first(loop.position.seconds)
    return RunResult(model_of(config, state), step, seconds, step >= config.train.steps)
