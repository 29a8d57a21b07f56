"""The log of a run: means over the steps between two rows, speed, and the progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from edgesam_jax.config import Config
from edgesam_jax.planning.accelerators import peak_flops, peak_memory
from edgesam_jax.train import log, parallel
from edgesam_jax.train.setup import TrainSetup
from edgesam_jax.train.state import Position


class Progress:
    """Collects the metrics of steps, and writes rows to ``metrics.jsonl`` and TensorBoard (in the first process only).

    Args:
      start: finished steps at the start.
      position: the run's position then.
      quiet: no progress bar.

    Attributes:
      seconds: time spent in steps, over all resumptions of the run.
      window: the metrics of the finite steps since the last row.
    """

    def __init__(self, setup: TrainSetup, workdir: Path, start: int, position: Position, quiet: bool) -> None:
        first = parallel.is_first()
        self._setup, self._config = setup, setup.config
        self._log = log.MetricsLog(workdir, start) if first else None
        self._bar = tqdm(
            total=self._config.train.steps, initial=start, unit="step", desc=f"{self._config.name} (compiling)",
            smoothing=0.05, dynamic_ncols=True, disable=quiet or not first,
        )  # fmt: skip
        self.seconds = position.seconds
        self.window = list(position.window)
        peak_of_one = peak_flops(self._config, setup.devices[0].device_kind)
        self._peak = peak_of_one * len(setup.devices) * jax.process_count()  # FLOP/s of all devices
        self._flops = 0.0  # of one step; 0 where the MFU is unknown

    def compiling(self, phase: Config) -> None:
        """Note that a new phase of the run starts, with compilation."""
        if self._peak and self._log:
            from edgesam_jax.planning.plan import flops_per_step  # traces the step to count them

            self._flops = flops_per_step(phase, self._setup.teacher_config)
        self._bar.set_description(f"{self._config.name} (compiling)")

    def finished(self, done: int, times: Mapping[str, float] | None) -> None:
        """Note that step ``done`` ended; ``times`` as ``StepTimer.track`` returns them."""
        if times is None:
            self._bar.set_description(self._config.name)
            self._bar.unpause()
        else:
            self.seconds += times["step_seconds"]
        self._bar.update(done - self._bar.n)

    def due(self, done: int) -> bool:
        """Whether a row is due after ``done`` steps."""
        return done % self._config.train.log_every == 0 or done == self._config.train.steps

    def write_row(self, done: int, skipped: int, nonfinite: int) -> None:
        """Write the means over the steps since the last row.

        Args:
          skipped: number of photos skipped up to the batch of this step.
          nonfinite: number of the run's steps that were not finite.
        """
        window, self.window = self.window, []
        names = dict.fromkeys(name for row in window for name in row)  # phases differ in their metrics
        row = {name: float(np.mean([v[name] for v in window if name in v])) for name in names}
        row["learning_rate"] = float(self._setup.schedule(done - 1))
        if "step_seconds" in row:
            row["photos_per_second"] = self._config.data.batch_size / row["step_seconds"]
            if self._flops:
                row["mfu"] = self._flops / row["step_seconds"] / self._peak
        row["seconds"] = self.seconds
        row["memory_bytes"] = peak_memory(self._setup.devices)
        row["skipped"] = skipped
        row["nonfinite"] = nonfinite
        self.write(done, row)
        if window:
            self._bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{row['learning_rate']:.2g}")

    def write(self, done: int, values: Mapping[str, float]) -> None:
        """Write a row of other values, such as an evaluation's."""
        if self._log:
            self._log.write(done, values)

    def show(self, done: int, picture: np.ndarray) -> None:
        """Show a picture (h w 3) uint8 in TensorBoard."""
        if self._log:
            self._log.picture(done, picture)

    def close(self) -> None:
        """Close the bar and the files."""
        self._bar.close()
        if self._log:
            self._log.close()
