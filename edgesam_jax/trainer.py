"""The training run: wires data, step, checkpoints and reports; resumes what its folder holds.

Folder of a run: ``config.json``, ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``pictures/``, and at the end
``model/`` (the inference checkpoint), ``curves.png`` and ``run.json`` (steps and seconds; its presence means done).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from edgesam_jax import files, heldout, parallel, reporting
from edgesam_jax.checkpoint import Model, TrainCheckpointer, load_model, save_model, score_kind
from edgesam_jax.config import Config, LossConfig, SamConfig, UsageError
from edgesam_jax.data.pipeline import Batches, batches
from edgesam_jax.data.schema import Example
from edgesam_jax.data.sources import open_parts
from edgesam_jax.optim import make_optimizer
from edgesam_jax.start import (
    check_data,
    check_distillation,
    check_store,
    check_teacher,
    claim_workdir,
    initial_variables,
)
from edgesam_jax.train_step import total_loss
from edgesam_jax.types import Batch, TrainState

ENOUGH_TO_JUDGE = 1000  # photos drawn before data.max_bad_share is asked


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


def model_of(config: Config, state: TrainState) -> Model:
    """The model inside a training state, on the host."""
    variables = {"params": state.params, "batch_stats": state.batch_stats, "constants": state.constants}
    return Model(config.model, parallel.to_host(variables), {"source": config.name, "score": score_kind(config)})


def phase(config: Config, step: int) -> Config:
    """The config as it stands at a step: the prompt loop may start late, the grouping loss may stop early.

    The loop's number of rounds is part of the compiled program, so each phase is compiled once.
    """
    distill, share = config.distill, step / config.train.steps
    if share < distill.rounds_from:
        distill = dataclasses.replace(distill, rounds=0, mask_feedback=0.0)
    if share >= distill.loss.grouping_until:
        distill = dataclasses.replace(distill, loss=dataclasses.replace(distill.loss, grouping=0.0))
    return dataclasses.replace(config, distill=distill)


def picture_trace(
    state: TrainState, teacher: Any, batch: Batch, key: jax.Array, config: Config, teacher_config: SamConfig | None
) -> Any:
    """The last decode round of the prompt loop on a batch, with running batch statistics; a ``distill.Trace``."""
    distill = dataclasses.replace(
        config.distill, mode="prompt_in_the_loop", freeze_image_encoder=True, loss=LossConfig()
    )
    if config.data.source == "images" or config.data.mixture:  # maybe no points and masks of its own: see with_prompts
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
    changed: dict[str, Any] = {"points": points, "boxes": boxes, "prompt_valid": valid}  # numpy stands for jax here
    return dataclasses.replace(batch, **changed)


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
    parallel.check_batch(config.data.batch_size, devices)
    if (done := finished_run(config, workdir)) is not None:
        return done
    with claim_workdir(config, workdir):
        state, seconds = _run(config, workdir, devices, initial, data, stop, quiet)
    step = int(state.step)
    model = model_of(config, state)
    finished = step >= config.train.steps
    if finished and parallel.is_first():
        save_model(workdir / "model", model)
        reporting.save_curves(workdir / "curves.png", {config.name: workdir / "metrics.jsonl"})
        files.write_atomically(workdir / "run.json", json.dumps({"steps": step, "seconds": seconds}))
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
    with TrainCheckpointer(workdir, keep=config.train.keep_checkpoints) as checkpoints:
        latest = checkpoints.latest_step()
        if initial is None and config.train.init_from and latest is None:
            initial = load_model(config.train.init_from)
        variables = initial_variables(config, teacher, initial if latest is None else None)
        tx, schedule = make_optimizer(config, variables["params"])
        state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
        seconds = 0.0
        if latest is not None:
            state, extra, _ = checkpoints.restore(state)
            seconds = float(extra["seconds"])
        # What is wrong with the data shows here, before anything is logged.
        iterator = data(int(state.step)) if data else _open_data(config, int(state.step))
        try:
            loop = _Loop(config, workdir, checkpoints, schedule, seconds, int(state.step), quiet)
            loop.wire(teacher, tx, devices)
            return loop.run(parallel.replicate(state, devices), iterator, stop), loop.seconds
        finally:
            getattr(iterator, "close", lambda: None)()  # a generator's workers end with it


def _open_data(config: Config, step: int) -> Batches:
    """This process's share of the batches that the config names.

    Raises:
      UsageError: a data set that can't be opened, or does not fit what is to be learnt.
    """
    parts = open_parts(config.data, config.model.image_size)
    check_data(config, parts)
    shard = jax.process_index(), jax.process_count()
    return batches(config.data, config.model, step, parts=parts, shard=shard)


class _Loop:
    """The steps between start and end, with everything that looks on."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        checkpoints: TrainCheckpointer,
        schedule: Callable[[Any], Any],
        seconds: float,
        start: int,
        quiet: bool,
    ) -> None:
        self.config, self.workdir, self.checkpoints, self.schedule = config, workdir, checkpoints, schedule
        self.seconds = seconds
        self.first = parallel.is_first()
        self.log = reporting.MetricsLog(workdir, start) if self.first else None
        own = f".{jax.process_index()}" if jax.process_index() else ""
        self.skipped_log = reporting.RowLog(workdir / f"skipped{own}.jsonl", start - 1)
        self.skipped: Counter[str] = Counter()
        self.bar = tqdm(
            total=config.train.steps, initial=start, unit="step", desc=f"{config.name} (compiling)",
            smoothing=0.05, dynamic_ncols=True, disable=quiet or not self.first,
        )  # fmt: skip
        self.pending: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.window: list[dict[str, float]] = []
        self.examples: list[Example] | None = None  # of the evaluation, once it is due
        self.now: Config | None = None
        self.clock: float | None = None  # None until the first step after a compilation has come back

    def wire(self, teacher: Model | None, tx: Any, devices: list[jax.Device]) -> None:
        """Compile-time things: the step, and the arguments that stay the same."""
        self.devices, self.teacher_model = devices, teacher
        self.teacher_config = teacher.config if teacher else None
        self.step_for = functools.cache(lambda now: parallel.make_train_step(now, self.teacher_config, tx, devices))
        self.host_key = jax.random.key(self.config.train.seed)
        self.host_teacher = teacher.variables if teacher else None
        self.key, self.teacher = parallel.replicate((self.host_key, self.host_teacher), devices)
        self.trace = jax.jit(functools.partial(picture_trace, config=self.config, teacher_config=self.teacher_config))

    def run(self, state: TrainState, data: Iterator[Batch], stop: Callable[[], bool]) -> TrainState:
        """Step until the end or until asked to stop; the state returned is saved."""
        train, every = self.config.train, self.config.eval.every
        done = int(state.step)
        leaving = parallel.agree_to_stop(done, stop)
        try:
            while done < train.steps and not leaving:
                batch = next(data)
                if isinstance(data, Batches):
                    self._note_skipped(data)
                now = phase(self.config, done)
                if now != self.now:
                    self._read(keep=0)
                    self.now, self.clock = now, None  # a phase begins with compilation, which is not counted
                    self.bar.set_description(f"{self.config.name} (compiling)")
                step = self.step_for(now)
                state, metrics = step(state, self.teacher, parallel.shard_batch(batch, self.devices), self.key)
                done += 1
                self.pending.append((done, metrics))
                # Reading the metrics of the step before the last leaves the device one step of work ahead.
                self._read(keep=1)
                leaving = parallel.agree_to_stop(done, stop)
                if leaving or done == train.steps or done % train.checkpoint_every == 0:
                    self._save(done, state)
                if self.first and train.picture_every and (done % train.picture_every == 0 or done == train.steps):
                    self._picture(done, state, batch)
                if every and done % every == 0 and done < train.steps:
                    self._evaluate(done, state)
            return state
        finally:
            self.bar.close()
            if self.log:
                self.log.close()
            if self.skipped:
                kinds = ", ".join(f"{kind} {count}" for kind, count in self.skipped.most_common())
                note = f"note: {self.skipped.total()} photos were skipped ({kinds}); {self.skipped_log.path} lists them"
                print(note, file=sys.stderr, flush=True)

    def _note_skipped(self, data: Batches) -> None:
        """List what was skipped for the batch at hand; too much of it ends the run."""
        for skipped in data.take_skipped():
            self.skipped_log.write(dataclasses.asdict(skipped))
        self.skipped = data.counts
        most = self.config.data.max_bad_share
        if data.counts.total() + data.used >= ENOUGH_TO_JUDGE and data.bad_share > most:
            raise UsageError(
                f"{data.bad_share:.1%} of the photos can't be used, more than data.max_bad_share={most}:"
                f" see {self.skipped_log.path}, mend the data set or raise the share"
            )

    def _read(self, keep: int) -> None:
        """Wait for all but the last ``keep`` steps, check them, and log."""
        train = self.config.train
        while len(self.pending) > keep:
            done, metrics = self.pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            for name in ("loss", "grad_norm"):
                if not math.isfinite(values[name]):
                    raise FloatingPointError(
                        f"step {done}: {name} is {values[name]}; the run is stopped, its last good checkpoint is"
                        f" {self.checkpoints.latest_step() or 'none'} in {self.workdir / 'checkpoints'}."
                        " Lower optim.learning_rate or set optim.clip_norm"
                    )
            now = time.perf_counter()
            elapsed = 0.0
            if self.clock is None:
                self.bar.set_description(self.config.name)
                self.bar.unpause()
            else:
                elapsed = now - self.clock
                values["step_seconds"] = elapsed
            self.seconds, self.clock = self.seconds + elapsed, now
            self.window.append(values)
            self.bar.update(done - self.bar.n)
            if done % train.log_every == 0 or done == train.steps:
                names = dict.fromkeys(name for row in self.window for name in row)  # phases differ in their metrics
                row = {name: float(np.mean([v[name] for v in self.window if name in v])) for name in names}
                row["learning_rate"] = float(self.schedule(done - 1))
                row["seconds"] = self.seconds
                row["skipped"] = self.skipped.total()
                if self.log:
                    self.log.write(done, row)
                self.bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{row['learning_rate']:.2g}")
                self.window = []

    def _pause(self) -> None:
        """Time from here to the next step does not count as training."""
        if self.clock is not None:
            self.clock = time.perf_counter()

    def _save(self, done: int, state: TrainState) -> None:
        self._read(keep=0)
        host = parallel.to_host(state)
        bad = [
            leaf
            for leaf in jax.tree.leaves(host)
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all()
        ]
        if bad:
            raise FloatingPointError(
                f"step {done}: the parameters are no longer finite; the run is stopped, its last good checkpoint is"
                f" {self.checkpoints.latest_step() or 'none'} in {self.workdir / 'checkpoints'}."
                " Lower optim.learning_rate or set optim.clip_norm"
            )
        self.checkpoints.save(done, state, self.config, {"seconds": self.seconds})
        self._pause()

    def _picture(self, done: int, state: TrainState, batch: Batch) -> None:
        self._read(keep=0)
        first = with_prompts(jax.tree.map(lambda x: x[:1], batch))
        host = parallel.to_host(state)  # one device draws
        trace = jax.tree.map(lambda x: np.asarray(x)[0], self.trace(host, self.host_teacher, first, self.host_key))
        rows, columns = first.valid_size[0].tolist()
        picture = reporting.loop_picture(
            np.asarray(first.image[0]), trace, np.asarray(first.prompt_valid[0]), photo=(rows, columns)
        )
        reporting.save_picture(self.workdir / "pictures" / f"{done:07d}.png", picture)
        self._pause()

    def _evaluate(self, done: int, state: TrainState) -> None:
        self._read(keep=0)
        if self.examples is None:
            self.examples = heldout.heldout_examples(self.config)
        if self.examples:
            model = model_of(self.config, state)
            title = f"step {done}"
            scores = heldout.measure(
                self.config, model.config, model.variables, self.examples, self.teacher_model, title
            )
            named = {f"eval/{prompt}+{i}": v for prompt, values in scores.items() for i, v in enumerate(values)}
            if self.log:
                self.log.write(done, named)
        self._pause()
