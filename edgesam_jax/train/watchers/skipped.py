"""The list of skipped photos and unused annotations, and the end of a run that skips too many photos."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import jax

from edgesam_jax.config import UsageError
from edgesam_jax.data.pipeline import Batches
from edgesam_jax.data.source import ENOUGH_TO_JUDGE
from edgesam_jax.train import log
from edgesam_jax.train.state import Position


def rows_of_process(workdir: Path, name: str, start: int) -> log.RowLog:
    """``name.jsonl`` of the first process, ``name.1.jsonl`` of the second; its rows number batches from 0.

    Args:
      start: finished steps at the start; rows of later batches are dropped.
    """
    suffix = f".{jax.process_index()}" if jax.process_index() else ""
    return log.RowLog(workdir / f"{name}{suffix}.jsonl", start - 1)


class SkippedPhotos:
    """Lists skipped photos in ``skipped.jsonl`` and counts them by kind, over all resumptions of the run.

    The annotations of other photos that can't be used are listed once, and counted since the last resumption.

    Args:
      start: finished steps at the start.
      position: the run's position then.
      max_share: fraction of the photos that may be skipped.
    """

    def __init__(self, workdir: Path, start: int, position: Position, max_share: float) -> None:
        self._rows = rows_of_process(workdir, "skipped", start)
        self._max_share = max_share
        self.counts = self._counts_before = Counter(position.skipped)
        self.used = self._used_before = position.used
        self._unused: Counter[str] = Counter()
        self._listed = {row.get("message") for row in log.read_metrics(self._rows.path)}

    def update(self, data: Batches) -> None:
        """List the photos that were skipped for the last batch.

        Raises:
          UsageError: too large a fraction of all photos drawn was skipped.
        """
        for skipped in data.take_skipped():
            self._rows.write(dataclasses.asdict(skipped))
        for unused in data.take_unused():
            if unused.message not in self._listed:
                self._listed.add(unused.message)
                self._unused[unused.kind] += 1
                self._rows.write(dataclasses.asdict(unused))
        self.counts = self._counts_before + data.counts
        self.used = self._used_before + data.used
        bad = self.counts.total()
        drawn = bad + self.used
        if drawn >= ENOUGH_TO_JUDGE and bad > self._max_share * drawn:
            raise UsageError(
                f"{bad / drawn:.1%} of the photos can't be used, more than data.max_bad_share={self._max_share}:"
                f" see {self._rows.path}; fix the data set or raise data.max_bad_share"
            )

    def report(self) -> None:
        """Print how many photos were skipped, and how many annotations were not used, if any."""
        for counts, what in ((self.counts, "photos were skipped"), (self._unused, "annotations were not used")):
            if counts:
                kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
                note = f"note: {counts.total()} {what} ({kinds}); {self._rows.path} lists them"
                print(note, file=sys.stderr, flush=True)
