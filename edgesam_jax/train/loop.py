"""The steps of a run between its start and its end, with everything that looks on: log, pictures, saves, evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.model import Model, score_kind
from edgesam_jax.checkpoints.training import TrainCheckpointer
from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import phase
from edgesam_jax.data.pipeline import Batches
from edgesam_jax.data.schema import Example
from edgesam_jax.data.source import ENOUGH_TO_JUDGE
from edgesam_jax.eval import heldout
from edgesam_jax.learning.step import of_teacher_needed
from edgesam_jax.planning.accelerators import peak_flops, peak_memory
from edgesam_jax.reporting import pictures
from edgesam_jax.train import log, parallel
from edgesam_jax.train.timing import Meter
from edgesam_jax.train.watchers import BEST_BY, HOPELESS, Position, picture_trace, with_prompts
from edgesam_jax.types import Batch, TrainState


def model_of(config: Config, state: TrainState) -> Model:
    """The model inside a training state, on the host."""
    variables = {"params": state.params, "batch_stats": state.batch_stats, "constants": state.constants}
    return Model(config.model, parallel.to_host(variables), {"source": config.name, "score": score_kind(config)})


@dataclasses.dataclass
class _Sent:
    """A step under way."""

    done: int
    metrics: dict[str, jax.Array]
    ids: list[int | str]
    skipped: int  # photos up to its batch; the next one may be drawn when it is logged
    times: Future[dict[str, float] | None]


class Loop:
    """The steps of one run.

    Args:
      start: finished steps at the start.
      position: what a resumed run goes on from.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        checkpoints: TrainCheckpointer,
        schedule: Callable[[Any], Any],
        start: int,
        position: Position,
        quiet: bool,
    ) -> None:
        self.config, self.workdir, self.checkpoints, self.schedule = config, workdir, checkpoints, schedule
        self.position = position
        self.first = parallel.is_first()
        self.log = log.MetricsLog(workdir, start) if self.first else None
        own = f".{jax.process_index()}" if jax.process_index() else ""
        self.skipped_log = log.RowLog(workdir / f"skipped{own}.jsonl", start - 1)
        self.nonfinite_log = log.RowLog(workdir / f"nonfinite{own}.jsonl", start - 1)
        self.skipped = self.skipped_before = Counter(position.skipped)
        self.used = self.used_before = position.used
        self.bar = tqdm(
            total=config.train.steps, initial=start, unit="step", desc=f"{config.name} (compiling)",
            smoothing=0.05, dynamic_ncols=True, disable=quiet or not self.first,
        )  # fmt: skip
        self.meter = Meter()
        self.pending: deque[_Sent] = deque()
        self.score: float | None = None  # of the state as it is now
        self.losses: list[float] = []  # since the last save
        self.examples: list[Example] | None = None  # of the evaluation, once it is due
        self.now: Config | None = None
        self.flops = self.peak = 0.0  # of a step; of all devices in a second
        self.traced = 0  # steps in the profile so far
        self.tracing = False

    def wire(self, teacher: Model | None, tx: Any, devices: list[jax.Device]) -> None:
        """Compile-time things: the step, and the arguments that stay the same."""
        self.devices, self.teacher_model = devices, teacher
        self.peak = peak_flops(self.config, devices[0].device_kind) * len(devices) * jax.process_count()
        self.teacher_config = teacher.config if teacher else None
        self.step_for = functools.cache(lambda now: parallel.make_train_step(now, self.teacher_config, tx, devices))
        self.host_key = jax.random.key(self.config.train.seed)
        self.host_teacher = of_teacher_needed(self.config, teacher.variables) if teacher else None
        self.key, self.teacher = parallel.replicate((self.host_key, self.host_teacher), devices)
        self.trace = jax.jit(functools.partial(picture_trace, config=self.config, teacher_config=self.teacher_config))

    def run(self, state: TrainState, data: Iterator[Batch], stop: Callable[[], bool]) -> TrainState:
        """Step until the end or until asked to stop; the state returned is saved."""
        train, every = self.config.train, self.config.eval.every
        done = begin = int(state.step)
        leaving = parallel.agree_to_stop(done, stop)
        try:
            if not leaving and done and every and done % every == 0 and self.position.evaluated != done:
                self._evaluate(done, state)  # a run that had to leave put it off
            while done < train.steps and not leaving:
                asked = time.perf_counter()
                batch = next(data)
                waited = time.perf_counter() - asked
                if isinstance(data, Batches):
                    self._note_skipped(data)
                given = (state, self.teacher, parallel.shard_batch(batch, self.devices), self.key)
                now = phase(self.config, done)
                if now != self.now:
                    self._read(keep=0)
                    self.now, self.flops = now, self._flops(now)
                    self.meter.restart()  # a phase begins with compilation, which is not counted
                    self.bar.set_description(f"{self.config.name} (compiling)")
                    step = self.step_for(now)
                    parallel.compile_together(step, given, f"step {done}")
                self._profile(more=done >= begin + 2)  # what is compiled at the start is not in it
                state, metrics = step(*given)
                done += 1
                times = self.meter.sent(metrics, waited)
                self.pending.append(_Sent(done, metrics, getattr(data, "ids", []), self.skipped.total(), times))
                # Reading the metrics of the step before the last leaves the device one step of work ahead.
                self._read(keep=1)
                leaving = parallel.agree_to_stop(done, stop)
                if every and done % every == 0 and done < train.steps and not leaving:
                    self._evaluate(done, state)
                if leaving or done == train.steps or done % train.checkpoint_every == 0:
                    self._save(done, state)
                if train.picture_every and (done % train.picture_every == 0 or done == train.steps):
                    if self.first:
                        self._picture(done, state, batch)
                    # The first picture is compiled: longer than the others may be let wait in the next step's sum.
                    parallel.meet(f"picture {done}")
            self.checkpoints.wait()
            return state
        finally:
            self._profile(more=False)
            self.meter.close()
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
        self.skipped = self.skipped_before + data.counts
        self.used = self.used_before + data.used
        bad, most = self.skipped.total(), self.config.data.max_bad_share
        drawn = bad + self.used
        if drawn >= ENOUGH_TO_JUDGE and bad > most * drawn:
            raise UsageError(
                f"{bad / drawn:.1%} of the photos can't be used, more than data.max_bad_share={most}:"
                f" see {self.skipped_log.path}, mend the data set or raise the share"
            )

    def _read(self, keep: int) -> None:
        """Wait for all but the last ``keep`` steps, check them, and log."""
        while len(self.pending) > keep:
            sent = self.pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(sent.metrics).items()}
            times = sent.times.result()
            if times is None:
                self.bar.set_description(self.config.name)
                self.bar.unpause()
            else:
                values |= times
                self.position.seconds += times["step_seconds"]
            self.bar.update(sent.done - self.bar.n)
            if all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
                self.position.nonfinite_in_a_row = 0
                self.position.window.append(values)
                self.losses.append(values["loss"])
            else:
                self._nonfinite(sent, values)
            if sent.done % self.config.train.log_every == 0 or sent.done == self.config.train.steps:
                self._log(sent.done, sent.skipped)

    def _log(self, done: int, skipped: int) -> None:
        """One row: the means over the steps since the last one."""
        window, self.position.window = self.position.window, []
        names = dict.fromkeys(name for row in window for name in row)  # phases differ in their metrics
        row = {name: float(np.mean([v[name] for v in window if name in v])) for name in names}
        row["learning_rate"] = float(self.schedule(done - 1))
        if "step_seconds" in row:
            row["photos_per_second"] = self.config.data.batch_size / row["step_seconds"]
            if self.flops:
                row["mfu"] = self.flops / row["step_seconds"] / self.peak
        row["seconds"] = self.position.seconds
        row["memory_bytes"] = peak_memory(self.devices)
        row["skipped"] = skipped
        row["nonfinite"] = self.nonfinite_log.count
        if self.log:
            self.log.write(done, row)
        if window:
            self.bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{row['learning_rate']:.2g}")

    def _flops(self, now: Config) -> float:
        """Of one step, where the MFU can be told: counting them takes a trace of the step."""
        if not (self.peak and self.first):
            return 0.0
        from edgesam_jax.planning.plan import flops_per_step

        return flops_per_step(now, self.teacher_config)

    def _nonfinite(self, sent: _Sent, values: dict[str, float]) -> None:
        """List the batch; raise unless such steps are to be skipped."""
        batch = sent.done - 1
        found = {name: str(values[name]) for name in ("loss", "grad_norm")}
        self.nonfinite_log.write({"step": batch, **found, "ids": [str(name) for name in sent.ids]})
        self.position.nonfinite_in_a_row += 1
        name = next(name for name, value in found.items() if not math.isfinite(float(value)))
        replay = f"{self.nonfinite_log.path} lists its photos, --replay {batch} runs it again"
        if self.config.train.nonfinite == "stop":
            raise FloatingPointError(f"step {sent.done}: {name} is {found[name]}; {self._stopped()}; {replay}")
        if self.position.nonfinite_in_a_row >= HOPELESS:
            raise FloatingPointError(
                f"step {sent.done}: {HOPELESS} steps in a row not finite; {self._stopped()}; {replay}"
            )

    def _stopped(self) -> str:
        with contextlib.suppress(UsageError):
            self.checkpoints.wait()
        last = self.checkpoints.latest_step()
        return (
            f"the run is stopped, its last good checkpoint is {'none' if last is None else last} in"
            f" {self.checkpoints.directory}. Lower optim.learning_rate or set optim.clip_norm"
        )

    def _profile(self, more: bool) -> None:
        """Have one more step traced, up to ``train.profile_steps`` of them, or end the trace."""
        more = more and self.first and self.traced < self.config.train.profile_steps
        if more and not self.tracing:
            self._read(keep=0)
            jax.profiler.start_trace(str(self.workdir / "profile"))
        elif self.tracing and not more:
            jax.block_until_ready([sent.metrics for sent in self.pending])
            jax.profiler.stop_trace()
        self.tracing = more
        self.traced += more

    def _save(self, done: int, state: TrainState) -> None:
        self._read(keep=0)
        if not self.first:
            return
        host = parallel.to_host(state, copy=True)  # the next step may write where the state lies
        bad = [
            leaf
            for leaf in jax.tree.leaves(host)
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all()
        ]
        if bad:
            raise FloatingPointError(f"step {done}: the parameters are no longer finite; {self._stopped()}")
        position = dataclasses.replace(self.position, skipped=dict(self.skipped), used=self.used)
        score = self.score
        if self.losses and (not self.config.eval.every or self.examples == []):  # nothing to evaluate on
            score = -float(np.mean(self.losses))
        self.score, self.losses = None, []
        self.checkpoints.save(done, host, self.config, dataclasses.asdict(position), score)
        self.meter.pause()

    def _picture(self, done: int, state: TrainState, batch: Batch) -> None:
        self._read(keep=0)
        first = with_prompts(jax.tree.map(lambda x: x[:1], batch))
        host = parallel.to_host(state)  # one device draws
        trace = jax.tree.map(lambda x: np.asarray(x)[0], self.trace(host, self.host_teacher, first, self.host_key))
        rows, columns = first.valid_size[0].tolist()
        picture = pictures.loop_picture(
            np.asarray(first.image[0]), trace, np.asarray(first.prompt_valid[0]), photo=(rows, columns)
        )
        pictures.save_picture(self.workdir / "pictures" / f"{done:07d}.png", picture)
        if self.log:
            self.log.picture(done, picture)
        self.meter.pause()

    def _evaluate(self, done: int, state: TrainState) -> None:
        self._read(keep=0)
        if self.examples is None:
            self.examples = heldout.heldout_examples(self.config)
        self.position.evaluated = done
        if self.examples:
            model = model_of(self.config, state)
            title = f"step {done}"
            scores = heldout.measure(
                self.config, model.config, model.variables, self.examples, self.teacher_model, title
            )
            named = {f"eval/{prompt}+{i}": v for prompt, values in scores.items() for i, v in enumerate(values)}
            self.score = named[BEST_BY]
            if self.log:
                self.log.write(done, named)
        self.meter.pause()
