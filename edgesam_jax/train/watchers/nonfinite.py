"""The policy for steps whose loss or gradient is not finite: stop, or skip a few of them (``train.nonfinite``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from edgesam_jax.train.state import Position
from edgesam_jax.train.watchers.saves import Saves
from edgesam_jax.train.watchers.skipped import rows_of_process

MAX_IN_A_ROW = 10  # this many steps in a row that are not finite end a run that skips them


CHECKED = ("loss", "grad_norm")


class NonfinitePolicy:
    """Lists batches whose loss or gradient was not finite in ``nonfinite.jsonl``, and stops the run if required.

    Args:
      start: finished steps at the start.
      position: the run's position then.
      action: "stop" at the first step that is not finite, or "skip" it.
      saves: for the message, which names the last good checkpoint.
    """

    def __init__(
        self, workdir: Path, start: int, position: Position, action: Literal["stop", "skip"], saves: Saves
    ) -> None:
        self._rows = rows_of_process(workdir, "nonfinite", start)
        self._action, self._saves = action, saves
        self.in_a_row = position.nonfinite_in_a_row

    @property
    def count(self) -> int:
        """How many steps of the run were not finite."""
        return self._rows.count

    @property
    def skips(self) -> bool:
        """Whether steps that are not finite are skipped."""
        return self._action == "skip"

    def check_weights(self, done: int, metrics: Mapping[str, float]) -> None:
        """Refuse to save weights that an update has ruined: every later step is skipped, and they never recover.

        Args:
          metrics: of a step with these weights, on a batch that was finite with earlier ones.

        Raises:
          FloatingPointError: loss or gradient is not finite.
        """
        wrong = [f"{name} is {metrics[name]}" for name in CHECKED if not math.isfinite(metrics[name])]
        if wrong:
            raise FloatingPointError(
                f"step {done}: {wrong[0]} even on a batch that was finite before, so the weights are ruined and not"
                f" saved; {self._saves.last_good()}"
            )

    def accept(self, done: int, metrics: Mapping[str, float], ids: Sequence[int | str]) -> bool:
        """Whether the step that ended as number ``done`` was finite; if not, list its batch.

        Args:
          ids: the photos of its batch.

        Raises:
          FloatingPointError: the step was not finite, and such steps are not skipped or there were too many in a row.
        """
        values = {name: metrics[name] for name in CHECKED}
        if all(map(math.isfinite, values.values())):
            self.in_a_row = 0
            return True
        batch = done - 1
        texts = {name: str(value) for name, value in values.items()}
        self._rows.write({"step": batch, **texts, "ids": [str(name) for name in ids]})
        self.in_a_row += 1
        name = next(name for name, value in values.items() if not math.isfinite(value))
        reason = ""
        if self._action == "stop":
            reason = f"{name} is {texts[name]}"
        elif self.in_a_row >= MAX_IN_A_ROW:
            reason = f"{MAX_IN_A_ROW} steps in a row were not finite"
        if reason:
            raise FloatingPointError(
                f"step {done}: {reason}; {self._saves.last_good()}; {self._rows.path} lists its photos,"
                f" --replay {batch} runs it again"
            )
        return False
