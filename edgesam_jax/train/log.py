"""The log of a run: rows on disk, TensorBoard, and the curves drawn from them."""

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
    """A file of rows, one JSON object a line, each with its ``step``; rows beyond ``last`` are dropped at the start.

    The file appears with its first row.
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
    """TensorBoard's event file, written by the thread that asks for it.

    tensorboardX's own writer has a thread; a full disk ends that one with a trace, and a run may wait for it for ever.
    Here a full disk is an ``OSError`` of the call.

    Args:
      purge: from this step on, what files of earlier starts hold is not shown.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._flushed = EventsWriter(str(folder / "events")), time.monotonic()
        self._add(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)

    def write(self, step: int, content: Any) -> None:
        """Add a summary; it is on disk within half a minute or with the next one."""
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
      folder: the run's work folder.
      start: finished steps at the start; what an interrupted run logged beyond its checkpoint is dropped.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        self._rows = RowLog(self.path, start)
        self._board = Board(folder / "tensorboard", start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row; ``step`` counts finished steps from 0.

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
        """Flush and close; what can't be flushed any more is let go."""
        with contextlib.suppress(OSError):
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a torn last line is left out, a missing file is empty."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def save_curves(path: Path, runs: Mapping[str, Path], name: str = "loss") -> None:
    """One chart of a metric over steps, a line for each run (title -> its ``metrics.jsonl``)."""
    from matplotlib.figure import Figure  # a second to import: only when a chart is drawn

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for title, metrics in runs.items():
        rows = [row for row in read_metrics(metrics) if name in row]
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=title)
    axes.set(xlabel="step", ylabel=name, yscale="log")
    axes.grid(alpha=0.3)
    if runs:
        axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
