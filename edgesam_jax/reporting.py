"""What a run leaves behind for people: metric logs, pictures of the prompt loop, curves, tables."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from edgesam_jax.files import write_atomically
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE

GREEN, RED, BLUE, YELLOW = (60, 200, 90), (230, 60, 60), (70, 130, 240), (250, 210, 50)
GAP = 4  # pixels between the panels of a picture


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


# -------------------------------------------------------------------------------------------------- pictures


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], strength: float = 0.55) -> np.ndarray:
    """The photo (h w 3) uint8 with a mask (s s) bool of the same frame laid over it."""
    size = (image.shape[1], image.shape[0])
    alpha = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 127
    out = image.astype(np.float32)
    out[alpha] = (1 - strength) * out[alpha] + strength * np.asarray(colour, np.float32)
    return out.astype(np.uint8)


def draw_prompt(image: np.ndarray, coords: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The photo (h w 3) with one prompt's box and points (n 2), green for inside and red for outside."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    radius = max(2, image.shape[0] // 64)
    first, last = (np.flatnonzero(valid & (labels == corner)) for corner in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT))
    if first.size and last.size:
        a, b = coords[first[0]], coords[last[0]]
        pen.rectangle(
            (*np.minimum(a, b).tolist(), *np.maximum(a, b).tolist()), outline=YELLOW, width=max(1, radius // 2)
        )
    for (x, y), label, real in zip(coords, labels, valid, strict=True):
        if real and label in (POSITIVE, NEGATIVE):
            colour = GREEN if label == POSITIVE else RED
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(255, 255, 255))
    return np.asarray(picture)


def side_by_side(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = ()) -> np.ndarray:
    """Panels (h w 3), all of one size, as one picture, with an optional line of titles above the columns."""
    h, w = rows[0][0].shape[:2]
    head = 16 if titles else 0
    sheet = np.full((head + len(rows) * (h + GAP) - GAP, max(map(len, rows)) * (w + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            sheet[head + i * (h + GAP) :, j * (w + GAP) :][:h, :w] = panel
    if titles:
        picture = Image.fromarray(sheet)
        pen = ImageDraw.Draw(picture)
        for j, title in enumerate(titles):
            pen.text((j * (w + GAP) + 2, 2), title, fill=(0, 0, 0))
        sheet = np.asarray(picture)
    return sheet


def loop_picture(
    image: np.ndarray, trace: Any, prompt_valid: np.ndarray, most: int = 4, photo: tuple[int, int] | None = None
) -> np.ndarray:
    """One row per prompt: photo with box and points, target mask, student mask, and where they disagree.

    Args:
      image: (h w 3) uint8.
      trace: a ``distill.Trace`` of this image alone (no leading b), as numpy arrays.
      prompt_valid: (p) which prompts are real; at most ``most`` of them are drawn.
      photo: rows and columns of the image that hold the photo; the rest is cut off.
    """
    h, w = photo or image.shape[:2]
    rows = []
    for i in np.flatnonzero(prompt_valid)[:most]:
        student, target, differ = trace.student[i], trace.target[i], trace.disagreement[i]
        prompts = trace.prompts
        panels = [
            draw_prompt(image, prompts.coords[i], prompts.labels[i], prompts.valid[i]),
            tint(image, target, BLUE),
            tint(image, student, BLUE),
            tint(tint(image, differ & target, GREEN, 0.8), differ & student, RED, 0.8),
        ]
        rows.append([panel[:h, :w] for panel in panels])
    return side_by_side(rows, ("prompt", "target", "student", "green missing, red extra"))


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write (h w 3) uint8 as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    Image.fromarray(picture).save(beside, format="PNG")
    os.replace(beside, path)


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
    beside = path.with_name(path.name + ".part")
    figure.savefig(beside, format="png", dpi=120)
    os.replace(beside, path)


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table that is also Markdown: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
