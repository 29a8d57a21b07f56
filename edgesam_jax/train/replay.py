"""One batch of a run again: which photo made the loss or a gradient infinite?"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import phase
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.learning.step import of_teacher_needed, total_loss
from edgesam_jax.train import parallel
from edgesam_jax.train.initialization import begin
from edgesam_jax.train.inputs import load_teacher, open_data
from edgesam_jax.train.workdir import check_workdir
from edgesam_jax.types import Batch, TrainState


def replay(config: Config, workdir: Path, step: int) -> str:
    """Go on from the newest checkpoint before a step's batch, run that step, and look at each of its photos alone.

    Nothing is written.  On the same hardware the steps in between give the same numbers as in the run.

    Args:
      step: which batch, from 0, as ``nonfinite.jsonl`` numbers them.

    Returns:
      A report: the step's metrics, then a line for each photo with its loss alone and what in it is not finite.

    Raises:
      UsageError: no run there, one of another config, or a step that it doesn't have.
    """
    if not (workdir / "config.json").exists():
        raise UsageError(f"--workdir {workdir}: no run there to replay a step of")
    if not 0 <= step < config.train.steps:
        raise UsageError(f"--replay {step}: the run's steps count from 0 to {config.train.steps - 1}")
    check_workdir(config, workdir)
    devices = parallel.request_devices(config.train.devices)
    parallel.check_batch(config.data.batch_size, devices, config.train.accumulate)
    teacher = load_teacher(config)
    start = begin(config, workdir, teacher, at_most=step)
    print(f"replay: {start.how}", file=sys.stderr, flush=True)
    tx, _ = make_optimizer(config, start.state.params)
    teacher_config = teacher.config if teacher else None
    step_for = functools.cache(lambda now: parallel.make_train_step(now, teacher_config, tx, devices))
    key = jax.random.key(config.train.seed)
    needed = of_teacher_needed(config, teacher.variables) if teacher else None
    everywhere = parallel.replicate((needed, key), devices)
    state, done = parallel.replicate(start.state, devices), int(start.state.step)
    data = open_data(config, done)
    try:
        for number in tqdm(range(done, step + 1), unit="step", desc="replay", leave=False):
            batch = next(data)
            now = phase(config, number)
            before = parallel.to_host(state, copy=True) if number == step else None
            state, metrics = step_for(now)(state, everywhere[0], parallel.shard_batch(batch, devices), everywhere[1])
    finally:
        data.close()
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    lines = [f"step {step} of {workdir}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items())]
    assert before is not None
    alone = _losses_alone(now, before, teacher, batch, key)
    for k, (name, loss) in enumerate(zip(data.ids, alone, strict=True)):
        bad = [
            f.name
            for f in dataclasses.fields(batch)
            if (array := getattr(batch, f.name)) is not None and not np.isfinite(np.asarray(array[k], float)).all()
        ]
        odd = f"; not finite: {', '.join(bad)}" if bad else ""
        lines.append(f"photo {name}: loss alone {loss:.6g}{odd}")
    return "\n".join(lines)


def _losses_alone(config: Config, state: TrainState, teacher: Model | None, batch: Batch, key: Any) -> list[float]:
    """The loss of each photo as a batch of its own."""

    @jax.jit
    def loss(photo: Batch) -> jax.Array:
        teacher_config, variables = (teacher.config, teacher.variables) if teacher else (None, None)
        return total_loss(state.params, state, variables, photo, key, config=config, teacher_config=teacher_config)[0]

    photos = [jax.tree.map(lambda x, k=k: x[k : k + 1], batch) for k in range(len(batch.image))]
    return [float(loss(photo)) for photo in photos]
