"""Mean and range of a study over several seeds: ``python benchmarks/seeds.py runs/q0 runs/q1 runs/q2``.

Each folder contains the ``table.json`` of a finished study (``python -m edgesam_jax.train --config
configs/quickstart.py --workdir runs/q1 --set train.seed=1 data.seed=1``).  The evaluation scenes are the same for
every seed.  Prints a Markdown table of means (minimum to maximum) and the paired differences of every pair of trained
arms: a claim needs the same sign for all seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = [("box", 0), ("box", 1), ("box", 2), ("center", 0), ("center", 1), ("center", 2)]
HEADS = ["box", "+1", "+2", "centre", "+1", "+2"]
Row = dict[str, Any]


def percent(row: Row, column: tuple[str, int], against: str) -> float | None:
    """One cell of a study's table in percent; None if it was not measured."""
    values = row["scores"].get(column[0] + against, [])
    return 100 * values[column[1]] if column[1] < len(values) else None


def spread(values: list[float | None], digits: int = 1) -> str:
    """Mean, with the minimum and maximum in brackets if they differ by 0.05 or more; "-" without values."""
    measured = [v for v in values if v is not None]
    if not measured:
        return "-"
    mean = sum(measured) / len(measured)
    if max(measured) - min(measured) < 0.05:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(measured):.{digits}f} to {max(measured):.{digits}f})"


def summary(tables: list[list[Row]], against: str) -> str:
    """Combine the tables of all seeds into one Markdown table."""
    lines = ["| | steps | s | " + " | ".join(HEADS) + " |", "|" + "---|" * (3 + len(HEADS))]
    for rows in zip(*tables, strict=True):
        cells = [spread([percent(row, column, against) for row in rows]) for column in COLUMNS]
        if all(cell == "-" for cell in cells):
            continue
        cost = [spread([row[key] for row in rows], 0) for key in ("steps", "seconds")]
        lines.append(f"| {rows[0]['title']} | {' | '.join(cost + cells)} |")
    return "\n".join(lines)


def differences(tables: list[list[Row]], against: str) -> str:
    """Paired differences between arms for each seed, bold where all seeds have the same sign."""
    arms = [row["name"] for row in tables[0] if row["name"]]
    lines = ["| | " + " | ".join(HEADS) + " |", "|" + "---|" * (1 + len(HEADS))]
    for a, b in itertools.combinations(sorted(arms, reverse=True), 2):
        cells = []
        for column in COLUMNS:
            deltas = []
            for table in tables:
                rows = {row["name"]: row for row in table}
                left, right = percent(rows[a], column, against), percent(rows[b], column, against)
                if left is not None and right is not None:
                    deltas.append(left - right)
            text = " ".join(f"{d:+.1f}" for d in deltas)
            agree = all(d > 0 for d in deltas) or all(d < 0 for d in deltas)
            cells.append(f"**{text}**" if agree and deltas else text)
        lines.append(f"| {a} - {b} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="one folder per seed")
    folders = parser.parse_args().folders
    missing = [str(f) for f in folders if not (f / "table.json").is_file()]
    if missing:
        print(f"error: {', '.join(missing)}: no table.json; finish the study first", file=sys.stderr)
        return 2
    tables = [json.loads((f / "table.json").read_text()) for f in folders]
    for title, against in (("Against ground truth", ""), ("Against the teacher's masks", "_teacher")):
        print(f"\n{title}, {len(tables)} seeds\n\n{summary(tables, against)}\n\n{differences(tables, against)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
