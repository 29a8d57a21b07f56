"""Charts of evaluation reports: IoU by object size, IoU by number of clicks, and a histogram of IoU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.eval.report.settings import Report, names_of, rounds_of
from edgesam_jax.eval.report.summary import LARGE, SMALL
from edgesam_jax.files import atomic_file

# Okabe and Ito's colour-blind-safe palette, without its yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
BANDS = 3  # maximum number of systems with shaded quartiles: more bands can't be distinguished
SIZE_BINS, PER_BIN, FEWEST = 12, 15, 5  # maximum bins of object size; target and minimum number of objects per bin
INSIDE = 4  # legends with more entries are placed outside the chart
HISTOGRAM_BINS = 25
NAME_LENGTH = 40  # characters of a system's name in a legend


@dataclass(frozen=True)
class _Series:
    """One line of a chart: IoU (n) and area in pixels (n, NaN if unknown) of the instances with an IoU."""

    name: str
    iou: np.ndarray
    area: np.ndarray


def plots(reports: Sequence[Report], path_prefix: str | Path) -> list[Path]:
    """Draw the charts that the reports have data for, each with all systems.

    ``PREFIX_size.png``: medians and quartiles of IoU by the square root of the object's area; ``PREFIX_clicks.png``:
    mean IoU by number of prompts, for reports with refinement points; ``PREFIX_histogram.png``: IoU of all instances.
    The first and the last show the IoU after the last prompt and, for a single system with refinement points, after
    the first prompt too.

    Args:
      reports: as written by ``python -m edgesam_jax.eval``.
      path_prefix: folder and beginning of the file names; the folder is created.

    Returns:
      The files written; each is written atomically.

    Raises:
      OSError: a file can't be written.
    """
    prefix = Path(path_prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    series = _series(reports)
    charts: list[tuple[str, Callable[[Any], None]]] = []
    sized = [s for s in series if np.any(s.area > 0)]
    if sized:
        charts.append(("size", lambda figure: _size(figure, sized)))
    if any(len(report.get("miou") or ()) > 1 for report in reports):
        charts.append(("clicks", lambda figure: _clicks(figure, reports)))
    if series:
        charts.append(("histogram", lambda figure: _histogram(figure, series)))
    return [_save(prefix.with_name(f"{prefix.name}_{name}.png"), draw) for name, draw in charts]


def _series(reports: Sequence[Report]) -> list[_Series]:
    series = []
    for report, name in zip(reports, names_of(reports), strict=True):
        instances, rounds = report.get("instances") or [], rounds_of(report)
        shown = {-1: rounds[-1]}
        if len(reports) == 1 and len(rounds) > 1:
            shown = {0: rounds[0], **shown}
        for index, title in shown.items():
            rows = [row for row in instances if row.get("iou") and row["iou"][index] is not None]
            iou = np.array([row["iou"][index] for row in rows], np.float64)
            area = np.array([row.get("area", np.nan) for row in rows], np.float64)
            if rows:
                series.append(_Series(f"{name}, {title}" if len(rounds) > 1 else name, iou, area))
    return series


def _save(path: Path, draw: Callable[[Any], None]) -> Path:
    from matplotlib.figure import Figure  # takes a second to import: only when a chart is drawn

    figure = Figure(figsize=(8, 5), layout="constrained")
    draw(figure)
    with atomic_file(path) as temporary, warnings.catch_warnings():
        # A system may be named in letters that the font lacks: it is drawn as boxes, which is no reason to fail.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _style(number: int) -> dict[str, Any]:
    """Colour, marker and line style; distinct for the first 28 lines."""
    stroke = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": stroke}


def _label(name: str) -> str:
    """A name for a legend: shortened, without math mode, and not hidden by a leading underscore."""
    half = NAME_LENGTH // 2
    short = name if len(name) <= NAME_LENGTH else f"{name[:half]}…{name[-half:]}"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


def _finish(figure: Any, axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) <= INSIDE:
        axes.legend(fontsize="small", framealpha=0.85)
    else:
        figure.legend(loc="outside right upper", fontsize="small")


# -------------------------------------------------------------------------------------------------- the charts


def _size(figure: Any, series: Sequence[_Series]) -> None:
    sides = [np.sqrt(s.area[s.area > 0]) for s in series]
    low, high = min(float(x.min()) for x in sides), max(float(x.max()) for x in sides)
    count = min(SIZE_BINS, max(1, max(map(len, sides)) // PER_BIN))
    edges = np.geomspace(low * 0.999, high * 1.001, count + 1)  # widened, so that rounding excludes no object
    middle = np.sqrt(edges[:-1] * edges[1:])
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bands = len(series) <= BANDS
    for number, (s, side) in enumerate(zip(series, sides, strict=True)):
        iou, place = 100 * s.iou[s.area > 0], np.digitize(side, edges) - 1
        kept = [k for k in range(count) if np.count_nonzero(place == k) >= min(FEWEST, len(side))]
        if not kept:
            continue
        quartiles = np.array([np.percentile(iou[place == k], (25, 50, 75)) for k in kept])
        style = _style(number)
        top.plot(middle[kept], quartiles[:, 1], label=_label(s.name), markersize=5, **style)
        if bands:
            top.fill_between(middle[kept], quartiles[:, 0], quartiles[:, 2], color=style["color"], alpha=0.15, lw=0)
    bottom.bar(
        edges[:-1], np.histogram(sides[0], edges)[0], np.diff(edges), align="edge", color="#bbbbbb", edgecolor="white"
    )
    for axes in (top, bottom):
        for limit in (SMALL, LARGE):
            axes.axvline(limit**0.5, color="#888888", lw=1, linestyle=":")
    top.set(
        title="IoU by object size: median" + (" and quartiles (shaded)" if bands else ""),
        ylabel="IoU in %",
        xscale="log",
        xlim=(edges[0], edges[-1]),
        ylim=(max(0, top.get_ylim()[0] - 5), 100.5),
    )
    bottom.set(xlabel="square root of object area in pixels (dotted: COCO limits, 32 and 96)", ylabel="objects")
    ticks = [2**k for k in range(16) if edges[0] <= 2**k <= edges[-1]]
    bottom.set_xticks(ticks, [str(tick) for tick in ticks])
    bottom.minorticks_off()
    bottom.spines[["top", "right"]].set_visible(False)
    _finish(figure, top)


def _clicks(figure: Any, reports: Sequence[Report]) -> None:
    axes = figure.subplots()
    longest = max(reports, key=lambda report: len(report.get("miou") or ()))
    for number, (report, name) in enumerate(zip(reports, names_of(reports), strict=True)):
        for key, style in (
            ("miou", {"label": _label(name)}),
            ("boundary_iou", {"fillstyle": "none", "linewidth": 1}),
        ):
            values = [np.nan if value is None else 100 * value for value in report.get(key) or ()]
            if values:
                axes.plot(range(1, len(values) + 1), values, **_style(number), **style)
    heads = rounds_of(longest)
    if len({report.get("prompt") for report in reports}) > 1:
        heads[0] = "first"
    step = max(1, -(-len(heads) // 12))  # at most 12 labels
    axes.set_xticks(range(1, len(heads) + 1, step), heads[::step])
    both = any(report.get("boundary_iou") for report in reports)
    axes.set(
        title="Mean IoU by number of prompts" + (" (hollow: boundary IoU)" if both else ""),
        xlabel="number of prompts (first prompt, then refinement points)",
        ylabel="mean IoU in %",
    )
    axes.margins(y=0.1)
    _finish(figure, axes)


def _histogram(figure: Any, series: Sequence[_Series]) -> None:
    axes = figure.subplots()
    edges = np.linspace(0, 100, HISTOGRAM_BINS + 1)
    for number, s in enumerate(series):
        share = 100 * np.histogram(100 * s.iou, edges)[0] / len(s.iou)
        style = _style(number)
        label = f"{_label(s.name)} (mean {100 * s.iou.mean():.1f}, median {100 * np.median(s.iou):.1f})"
        axes.stairs(share, edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.8, label=label)
        if len(series) <= BANDS:
            axes.stairs(share, edges, color=style["color"], fill=True, alpha=0.12)
    axes.set(
        title="Distribution of IoU",
        xlabel=f"IoU in % (bin width {100 / HISTOGRAM_BINS:g})",
        ylabel="percentage of instances",
        xlim=(-1, 101),
        ylim=(0, None),
    )
    _finish(figure, axes)
