"""The log of a run: rows on disk, TensorBoard event files, and loss curves."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from edgesam_jax.files import atomic_file, write_atomically


class RowLog:
    """A file of rows, one JSON object a line, each with a ``step``.  It is created with its first row.

    Args:
      last: rows of an existing file beyond this step are dropped.

    Attributes:
      count: number of rows in the file.
    """

    def __init__(self, path: Path, last: int) -> None:
        self.path, self.count = path, 0
        if path.exists():
            kept = [row for row in read_metrics(path) if row["step"] <= last]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
            self.count = len(kept)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.count += 1


class Board:
    """A TensorBoard event file, written in the calling thread.

    tensorboardX's writer uses a separate thread; a full disk kills that thread with a traceback, and the run may
    then wait for it forever.  Here a full disk raises ``OSError`` in the caller.

    Args:
      purge: TensorBoard hides events of earlier files from this step on.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._flushed = EventsWriter(str(folder / "events")), time.monotonic()
        self._add(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)

    def write(self, step: int, content: Any) -> None:
        """Add a summary.  The file is flushed by the first summary that comes more than 30 s after the last flush."""
        self._add(Event(step=step, summary=content))
        if time.monotonic() - self._flushed > 30:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


class MetricsLog:
    """``metrics.jsonl`` (one JSON object a line) and TensorBoard event files in a folder.

    Args:
      folder: the run's folder.
      start: finished steps at the start; rows that an interrupted run logged beyond its checkpoint are dropped.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        self._rows = RowLog(self.path, start)
        self._board = Board(folder / "tensorboard", start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row for the state after ``step`` steps.

        Raises:
          OSError: the disk is full.
        """
        self._rows.write({"step": step, **values})
        for name, value in values.items():
            self._board.write(step, summary.scalar(name, value))

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Show a picture (h w 3) uint8 in TensorBoard."""
        self._board.write(step, summary.image("prompt loop", picture, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close; events that can't be flushed are lost."""
        with contextlib.suppress(OSError):
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``.  Incomplete and damaged lines are skipped; a missing file has no rows."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def save_curves(path: Path, runs: Mapping[str, Path]) -> None:
    """Save a chart of the loss over steps, with one line for each run (title -> its ``metrics.jsonl``)."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for title, metrics in runs.items():
        rows = [row for row in read_metrics(metrics) if "loss" in row]
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=title)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    if runs:
        axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
