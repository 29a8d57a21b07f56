"""What the end of a study says: a table, the comparison of two arms in words, and commands to try next."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesam_jax.config import Config
from edgesam_jax.eval import heldout
from edgesam_jax.reporting import tables

LEVEL = 0.5  # percentage points; smaller differences change sign with the seed (docs/results.md)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table; ``steps`` and ``seconds`` are None if nothing was trained for it."""

    name: str
    title: str
    scores: heldout.Scores
    steps: int | None = None
    seconds: float | None = None


def table(config: Config, rows: Sequence[Row], images: int, instances: int) -> str:
    """The rows as an aligned Markdown table, followed by a line that explains the numbers.

    Args:
      images, instances: numbers of held-out images and of the masks in them.
    """
    refine = config.eval.refine
    against_teacher = any("box_teacher" in row.scores for row in rows)
    heads = heldout.headings(refine)
    header = ["", "steps", "seconds", *heads, *([f"T {h}" for h in heads] if against_teacher else [])]
    body = [
        [
            row.title,
            "-" if row.steps is None else str(row.steps),
            "-" if row.seconds is None else f"{row.seconds:.0f}",
            *heldout.cells(row.scores, "", refine),
            *(heldout.cells(row.scores, "_teacher", refine) if against_teacher else []),
        ]
        for row in rows
    ]
    kind = "held-out scenes" if config.data.source == "scenes" else "photos"
    note = f"mIoU in percent, {instances} masks in {images} {kind}, against ground truth"
    if against_teacher:
        note += "; T: against the teacher's masks for the same prompts"
    return f"{tables.aligned_table(header, body)}\n\n{note}."


def in_words(rows: Sequence[Row], name: str, other: str) -> str:
    """Say in two lines how an arm compares with another: on the true masks, and on the teacher's."""
    by_name = {row.name: row for row in rows}
    arm, against = by_name[name], by_name[other]
    lines = [f"{_described(arm)} against {_described(against)}:"]
    for suffix, target in (("", "the true masks"), ("_teacher", "the teacher's masks")):
        parts = []
        for prompt, given in (("box", "from a box"), ("center", "from one click")):
            value, reference = (100 * row.scores.get(prompt + suffix, [np.nan])[0] for row in (arm, against))
            if not np.isnan(value + reference):
                parts.append(f"{given} {value:.1f} % ({other} {reference:.1f}: {_verdict(value - reference)})")
        if parts:
            lines.append(f"overlap of {name}'s masks with {target}: {', '.join(parts)}.")
    return "\n".join(lines)


def _described(row: Row) -> str:
    text = row.title.removeprefix(row.name).strip()
    return f"{row.name} ({text}{'' if row.seconds is None else f', {row.seconds:.0f} s'})"


def _verdict(difference: float) -> str:
    if abs(difference) < LEVEL:
        return "level"
    return f"{'better' if difference > 0 else 'WORSE'} by {abs(difference):.1f}"


def next_commands(run: Path, photo: Path, box: np.ndarray) -> str:
    """Return three commands to try with a run: predict, everything mode, and the page.

    Args:
      box: (4) XYXY on the photo.
    """
    checkpoint, output = shlex.quote(str(run)), shlex.quote(str(run.parent / "try"))
    corners = ",".join(f"{value:g}" for value in np.round(box).tolist())
    predict = f"python -m edgesam_jax.predict --checkpoint {checkpoint} --image {shlex.quote(str(photo))}"
    return "\n".join(
        (
            "Try next:",
            f"  {predict} --box {corners} --output {output}",
            f"  {predict} --everything --output {output}_all",
            f"  python -m convert.to_web {checkpoint} --output {output}_page --serve",
        )
    )
