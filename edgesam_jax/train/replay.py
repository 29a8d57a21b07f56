"""Repeat one batch of a run, to find the photo that made the loss or a gradient infinite or NaN."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import phase
from edgesam_jax.data.opening import open_parts
from edgesam_jax.learning.step import total_loss
from edgesam_jax.train import parallel
from edgesam_jax.train.initialization import initial_state
from edgesam_jax.train.inputs import load_teacher, open_data
from edgesam_jax.train.setup import TrainSetup
from edgesam_jax.train.workdir import check_workdir
from edgesam_jax.types import Batch, TrainState


@dataclasses.dataclass(frozen=True)
class ReplayedStep:
    """A repeated step: the state before it, on the host, its batch with the photos' ids, and its metrics."""

    before: TrainState
    batch: Batch
    ids: list[int | str]
    metrics: dict[str, float]


def replay(config: Config, workdir: Path, step: int) -> str:
    """Resume from the newest checkpoint before a batch, repeat the step on that batch, and check each of its photos.

    Nothing is written.  On the same hardware, the steps up to the batch give the same numbers as in the run.

    Args:
      step: number of the batch, from 0, as in ``nonfinite.jsonl``.

    Returns:
      A report: the metrics of the step, then a line for each photo with its loss as a batch of one, and the names of
      its arrays that are not finite.

    Raises:
      UsageError: the folder has no run, or one of another config, or the run has no such step.
    """
    if not (workdir / "config.json").exists():
        raise UsageError(f"--workdir {workdir}: no run found, so there is no step to replay")
    if not 0 <= step < config.train.steps:
        raise UsageError(f"--replay {step}: must be from 0 to {config.train.steps - 1}, the steps of this run")
    check_workdir(config, workdir)
    devices = parallel.request_devices(config.train.devices)
    parallel.check_batch(config.data.batch_size, devices, config.train.accumulate)
    teacher = load_teacher(config)
    start = initial_state(config, workdir, teacher, at_most=step)
    print(f"replay: {start.description}", file=sys.stderr, flush=True)
    setup = TrainSetup(config, teacher, start.state.params, devices)
    replayed = _repeat(setup, start.state, step)
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in replayed.metrics.items())
    lines = [f"step {step} of {workdir}: {metrics}"]
    losses = _losses_alone(setup, phase(config, step), replayed)
    for k, (name, loss) in enumerate(zip(replayed.ids, losses, strict=True)):
        bad = _not_finite(replayed.batch, k)
        lines.append(f"photo {name}: loss alone {loss:.6g}" + (f"; not finite: {', '.join(bad)}" if bad else ""))
    return "\n".join(lines)


def _repeat(setup: TrainSetup, start: TrainState, step: int) -> ReplayedStep:
    """Take the steps from a state to the end of step ``step`` (numbered from 0)."""
    state, done = setup.replicate(start), int(start.step)
    data = open_data(setup.config, done, open_parts(setup.config.data, setup.config.model.image_size))
    try:
        for number in tqdm(range(done, step + 1), unit="step", desc="replay", leave=False):
            batch = next(data)
            before = parallel.to_host(state, copy=True) if number == step else None
            state, metrics = setup.step_for(phase(setup.config, number))(*setup.arguments(state, batch))
    finally:
        data.close()
    assert before is not None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return ReplayedStep(before, batch, data.ids, values)


def _not_finite(batch: Batch, k: int) -> list[str]:
    """Names of the arrays of photo ``k`` that have NaN or infinite values."""
    arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return [
        name
        for name, array in arrays.items()
        if array is not None and not np.isfinite(np.asarray(array[k], float)).all()
    ]


def _losses_alone(setup: TrainSetup, config: Config, replayed: ReplayedStep) -> list[float]:
    """The loss of each photo as a batch of one; ``config`` is the phase's."""
    state, batch = replayed.before, replayed.batch
    variables = setup.teacher.variables if setup.teacher else None

    @jax.jit
    def loss(photo: Batch) -> jax.Array:
        teacher_config = setup.teacher_config
        return total_loss(
            state.params, state, variables, photo, setup.key, config=config, teacher_config=teacher_config
        )[0]

    photos = [jax.tree.map(lambda x, k=k: x[k : k + 1], batch) for k in range(len(batch.image))]
    return [float(loss(photo)) for photo in photos]
