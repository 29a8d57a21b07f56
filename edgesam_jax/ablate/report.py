"""A table as Markdown and as a picture, with a verdict on each of the paper's conclusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgesam_jax.ablate.grid import Outcome, Outcomes
from edgesam_jax.ablate.tables import SHOWN, Claim, Column, Row, Table
from edgesam_jax.files import atomic_file
from edgesam_jax.reporting.tables import aligned_table

NEAR = 0.35  # rows of the paper within this many points of mIoU count as level


def values(outcomes: Sequence[Outcome], dataset: str, column: Column) -> list[float]:
    """Return the mIoU of a column in percent, seed by seed."""
    prompt, points = column
    return [100 * o.scores[dataset][prompt][points] for o in outcomes]


def spread(numbers: Sequence[float], digits: int = 1) -> str:
    """Format numbers as ``mean (smallest to largest)``; as the mean alone where these round to the same value."""
    mean = f"{np.mean(numbers):.{digits}f}"
    if max(numbers) - min(numbers) < 0.5 * 10.0**-digits:
        return mean
    return f"{mean} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def markdown(
    table: Table, titles: Mapping[str, str], outcomes: Outcomes, costs: Mapping[str, tuple[float, float]]
) -> str:
    """Format a table: mean and range over the seeds, the paper's numbers, and a verdict on each of its conclusions.

    Args:
      titles: titles of the runs, for rows without a title.
      outcomes: results of the runs, by name.
      costs: parameters (M) and multiply-accumulates (G) by run; shown in tables with ``cost``.
    """
    first = outcomes[table.rows[0].arm]
    paper = [column for column in SHOWN if any(column in row.paper for row in table.rows)]
    several = len(first[0].scores) > 1
    names = list(first[0].scores)
    columns = [(name, column) for name in names for column in _columns(first)]
    header = [
        "", "steps", "seconds", *(["M params", "GMAC"] if table.cost else []),
        *(f"{name}: {head(c)}" if several else head(c) for name, c in columns),
        *(["r of IoU head", "r of stability"] if table.scores else []), *(f"paper: {head(c)}" for c in paper),
    ]  # fmt: skip
    body = []
    for row in table.rows:
        results = outcomes[row.arm]
        cells = [spread([float(o.steps) for o in results], 0), spread([o.seconds for o in results], 0)]
        cells += [f"{v:.2f}" for v in costs[row.arm]] if table.cost else []
        cells += [spread(values(results, name, column)) for name, column in columns]
        cells += [_correlation(results, kind) for kind in ("iou", "stability")] if table.scores else []
        cells += [f"{row.paper[c]:.1f}" if c in row.paper else "-" for c in paper]
        body.append([row.title or titles[row.arm], *cells])
    seeds = len(first)
    notes = [f"mIoU in percent: mean (smallest to largest) of {seeds} seed{'s' if seeds > 1 else ''}."]
    if table.scores:
        notes.append("r: Pearson's correlation of a score with the mask's true IoU (box and point prompts together).")
    lines = [f"## Table {table.letter}: {table.title}", "", aligned_table(header, body), "", " ".join(notes)]
    if table.claims:
        lines += ["", *(verdict(claim, table, titles, outcomes, name) for name in names for claim in table.claims)]
    return "\n".join(lines)


def head(column: Column) -> str:
    """Return a column's heading: ``box``, ``box +2``, ``centre``, ..."""
    prompt, points = column
    return ("box" if prompt == "box" else "centre") + (f" +{points}" if points else "")


def _columns(outcomes: Sequence[Outcome]) -> list[Column]:
    scores = next(iter(outcomes[0].scores.values()))
    return [(prompt, i) for prompt in ("box", "center") for i in range(len(scores.get(prompt, ())))]


def _correlation(outcomes: Sequence[Outcome], kind: str) -> str:
    return spread([o.correlations[kind]["pearson"] for o in outcomes if o.correlations], 2)


def verdict(claim: Claim, table: Table, titles: Mapping[str, str], outcomes: Outcomes, dataset: str) -> str:
    """Compare a difference of the paper with ours, seed by seed, in one line.

    A difference counts if all seeds have the same sign; fewer than three seeds allow no verdict.  Rows that are level
    in the paper are level here if the mean of the differences is at most twice ``NEAR``.
    """
    name = {row.arm: row.title or titles[row.arm] for row in table.rows}
    pairs = zip(*(values(outcomes[arm], dataset, claim.column) for arm in (claim.first, claim.second)), strict=True)
    differences = [a - b for a, b in pairs]
    listed = " ".join(f"{d:+.1f}" for d in differences)
    paper = "better" if claim.difference is None else f"{claim.difference:+.1f}"
    text = f'- {head(claim.column)}, "{name[claim.first]}" minus "{name[claim.second]}": paper {paper}, here {listed}'
    return f"{text}: **{_agreement(claim.difference, differences)}**"


def _agreement(paper: float | None, differences: Sequence[float]) -> str:
    level = paper is not None and abs(paper) <= NEAR
    one_sign = all(d > 0 for d in differences) or all(d < 0 for d in differences)
    if len(differences) < 3:
        return "inconclusive: fewer than three seeds"
    if level and abs(float(np.mean(differences))) <= 2 * NEAR:
        return "agrees: nearly level" if one_sign else "agrees: level"
    if not one_sign:
        return "inconclusive: the seeds differ in sign"
    if level:
        return "disagrees"
    return "agrees" if (differences[0] > 0) == (paper is None or paper > 0) else "disagrees"


def save_plot(path: Path, table: Table, titles: Mapping[str, str], outcomes: Outcomes) -> None:
    """Write a PNG with a panel for each column in ``SHOWN``: a dot per seed and a bar for the mean of every row."""
    from matplotlib.figure import Figure  # a second to import: only when a chart is drawn

    first = outcomes[table.rows[0].arm]
    dataset = next(iter(first[0].scores))
    columns = [column for column in SHOWN if column in _columns(first)]
    figure = Figure(figsize=(3 * len(columns) + 2, 0.45 * len(table.rows) + 1.2), layout="constrained")
    figure.suptitle(f"Table {table.letter}: {table.title}", fontsize=10)
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for y, row in enumerate(table.rows):
            numbers = values(outcomes[row.arm], dataset, column)
            axis.plot(numbers, [y] * len(numbers), "o", color="tab:blue", alpha=0.6)
            axis.plot([np.mean(numbers)], [y], "|", color="black", markersize=16)
        axis.set_title(head(column), fontsize=9)
        axis.grid(alpha=0.3)
        axis.set_xlabel("mIoU, %", fontsize=8)
    axes[0].set_yticks(range(len(table.rows)), [_title(row, titles) for row in table.rows], fontsize=8)
    axes[0].invert_yaxis()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _title(row: Row, titles: Mapping[str, str]) -> str:
    return row.title or titles[row.arm]
