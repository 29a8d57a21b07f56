"""Reports of ``python -m edgesam_jax.eval`` as a Markdown page: what was done, all systems in one table, the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgesam_jax.eval.report import published_numbers
from edgesam_jax.eval.report.settings import names_of, rounds_of, settings
from edgesam_jax.reporting.tables import aligned_table

Report = Mapping[str, Any]

CATEGORIES = 80  # rows of the table by category
ALL_ROUNDS = 6  # up to so many prompts each has a column; of more, these are shown (counted from 0), and the last
SOME_ROUNDS = (0, 1, 2, 4, 9, 19)
AVERAGE_PRECISIONS = ("AP", "AP50", "AP75", "APS", "APM", "APL", "APr", "APc", "APf")


def markdown(reports: Sequence[Report]) -> str:
    """One page for one or more systems: settings, results, the paper's numbers, categories, time.

    Args:
      reports: reports as ``python -m edgesam_jax.eval`` writes them; what one lacks is left out or shown as "-".

    Raises:
      ValueError: no report.
    """
    if not reports:
        raise ValueError("no report to write about")
    names = names_of(reports)
    parts = [
        f"# Evaluation: {_all(reports, 'prompt')} prompts on {_all(reports, 'dataset')}",
        f"## What was done\n\n{settings(reports, names)}",
        f"## Results\n\n{_results(reports, names)}",
        *([f"## Beside the paper\n\n{text}"] if (text := _beside(reports, names)) else []),
        *([f"## By category\n\n{text}"] if (text := _categories(reports, names)) else []),
        *([f"## Time\n\n{text}"] if (text := _time(reports, names)) else []),
    ]
    return "\n\n".join(parts) + "\n"


def terminal(reports: Sequence[Report]) -> str:
    """The results in a few lines: one table of all systems, and what it stands on."""
    names = names_of(reports)
    lines = [_results(reports, names).split("\n\n")[0]]
    for report, name in zip(reports, names, strict=True):
        counted = [(report.get("num_instances"), "instances"), (report.get("num_detections"), "detections")]
        scored = ", ".join(f"{count} {what}" for count, what in counted if count is not None)
        left = sum(report.get("skipped", {}).get("counts", {}).values())
        lines.append(
            f"{name}: {scored} on {report['num_images']} photos, {report['seconds']:.0f} s,"
            f" {report['compilations']} programs compiled{f'; {left} entries left out' if left else ''}"
        )
    return "\n".join(lines)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; "-" where it is not known."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _all(reports: Sequence[Report], key: str) -> str:
    return " / ".join(dict.fromkeys(str(report.get(key, "?")) for report in reports))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return aligned_table([_cell(c) for c in header], [[_cell(c) for c in row] for row in rows])


# ------------------------------------------------------------------------------------------------ results


def _results(reports: Sequence[Report], names: Sequence[str]) -> str:
    """The one table of all systems; a column appears where at least one system has it."""
    heads: list[str] = []
    cells: list[dict[str, str]] = [{} for _ in reports]
    for group in (_overlaps, _boundary, _sizes, _clicks, _precisions):
        found = [group(report) for report in reports]
        for own, new in zip(cells, found, strict=True):
            own.update(new)
        heads += sorted(dict.fromkeys(head for new in found for head in new), key=_round_of)
    rows = [[name, *(own.get(head, "-") for head in heads)] for name, own in zip(names, cells, strict=True)]
    table = _table(["system", *heads], rows)
    notes = []
    if any(report.get("miou") for report in reports):
        notes.append("mIoU in percent, the mean over all instances; +1, +2 ...: after so many refinement points")
    if any(head.startswith("B ") for head in heads):
        notes.append("B: with boundary IoU")
    if "by photo" in heads:
        notes.append(
            "small, medium, large: mIoU by COCO's sizes (limits 32² and 96² pixels) after the last prompt; "
            "by photo: the mean over photos of each photo's mean, after the last prompt"
        )
    if any(head.startswith("NoC") for head in heads):
        most = _all([report["noc"] for report in reports if report.get("noc")], "max_clicks")
        notes.append(
            f"NoC80: mean number of prompts until the IoU is 80 %, the first included, {most} where it never is; "
            "in brackets the share of instances where it never is"
        )
    if any("AP" in head for head in heads):
        notes.append("AP in percent, official definition")
    return f"{table}\n\n{'. '.join(notes)}." if notes else table


def _round_of(head: str) -> int:
    """2 of "+2" and "B +2", 0 of any other: systems with other prompts or rounds share columns in order."""
    return int(head.rpartition("+")[2]) if "+" in head else 0


def _rounds(report: Report, key: str, prefix: str) -> dict[str, str]:
    names, values = rounds_of(report), report.get(key) or ()
    last = len(values) - 1
    shown = [i for i in range(len(values)) if last < ALL_ROUNDS or i in SOME_ROUNDS or i == last]
    return {prefix + names[i]: percent(values[i]) for i in shown}


def _overlaps(report: Report) -> dict[str, str]:
    return _rounds(report, "miou", "")


def _boundary(report: Report) -> dict[str, str]:
    return _rounds(report, "boundary_iou", "B ")


def _sizes(report: Report) -> dict[str, str]:
    groups = report.get("miou_by_size") or {}
    found = {size: percent(groups[size]["miou"][-1]) for size in ("small", "medium", "large") if size in groups}
    return found | ({"by photo": percent(report["miou_over_photos"][-1])} if report.get("miou_over_photos") else {})


def _clicks(report: Report) -> dict[str, str]:
    found, noc = {}, report.get("noc") or {}
    for threshold in (key for key in noc if key not in ("max_clicks", "failed")):
        share = noc.get("failed", {}).get(threshold)
        never = "" if share is None else f" ({percent(share, 0)} %)"
        found[f"NoC{threshold}"] = "-" if noc[threshold] is None else f"{noc[threshold]:.2f}{never}"
    return found


def _precisions(report: Report) -> dict[str, str]:
    both = (("", report.get("ap") or {}), ("B ", report.get("boundary_ap") or {}))
    return {prefix + name: percent(ap[name]) for prefix, ap in both for name in AVERAGE_PRECISIONS if name in ap}


# ------------------------------------------------------------------------------------------------ the paper


def _beside(reports: Sequence[Report], names: Sequence[str]) -> str:
    """The paper's rows, and for each system ours minus the paper's in percentage points; one table a kind of data."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, report in enumerate(reports):
        groups.setdefault((*published_numbers.rows_beside(report), *published_numbers.warnings(report)), []).append(i)
    parts = []
    for chosen in groups.values():
        rows = published_numbers.rows_beside(reports[chosen[0]])
        ours = [_as_paper(reports[i]) for i in chosen]
        heads = list(dict.fromkeys(h for row in rows for h in _published(row) if any(h in own for own in ours)))
        if not heads:
            continue
        body = []
        for row in rows:
            theirs = _published(row)
            detector = f", {row.detector}" if isinstance(row, published_numbers.Precision) else ""
            differences = [" / ".join(_difference(own.get(h), theirs.get(h)) for h in heads) for own in ours]
            published = ["-" if theirs.get(h) is None else f"{theirs[h]:.1f}" for h in heads]
            body.append([f"{row.model}{detector} ({row.source})", *published, *differences])
        table = _table(["the paper", *heads, *(f"{names[i]} - paper" for i in chosen)], body)
        notes = "\n".join(f"- {warning}" for warning in published_numbers.warnings(reports[chosen[0]]))
        parts.append(f"{notes}\n\n{table}\n\nDifferences in percentage points, in the order {' / '.join(heads)}.")
    return "\n\n".join(parts)


def _as_paper(report: Report) -> dict[str, float | None]:
    """A report's numbers in percent by the names of ``_published``."""
    found = dict(zip(rounds_of(report), report.get("miou", ()), strict=False))
    if report.get("prompt") == "detections":
        found = {name: (report.get("ap") or {}).get(name) for name in ("AP", "APS", "APM", "APL")}
        found["B AP"] = (report.get("boundary_ap") or {}).get("AP")
    return {name: None if value is None else 100 * value for name, value in found.items()}


def _published(row: published_numbers.Overlap | published_numbers.Precision) -> dict[str, float | None]:
    if isinstance(row, published_numbers.Overlap):
        return dict(zip((row.prompt, "+1", "+2"), row.miou, strict=False))
    sizes = row.sizes or (None, None, None)
    return {"AP": row.ap, **dict(zip(("APS", "APM", "APL"), sizes, strict=True)), "B AP": row.boundary}


def _difference(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or theirs is None else f"{ours - theirs:+.1f}"


# ------------------------------------------------------------------------------------------------ categories, time


def _categories(reports: Sequence[Report], names: Sequence[str]) -> str:
    tables = [report.get("miou_by_category") or {} for report in reports]
    counts: dict[str, int] = {}
    for table in tables:
        for category, group in table.items():
            counts[category] = max(counts.get(category, 0), group["count"])
    order = sorted((c for c in counts if counts[c] > 0), key=lambda c: (-counts[c], c))
    if not order:
        return ""
    refined = any(len(report.get("miou", ())) > 1 for report in reports)
    header, alone = ["category", "instances"], len(reports) == 1
    for report, name in zip(reports, names, strict=True):
        before = "" if alone else f"{name}: "
        rounds = rounds_of(report)
        header += [before + rounds[0], *([before + rounds[-1]] if refined else [])]
    rows = []
    for category in order[:CATEGORIES]:
        row = [category, f"{counts[category]:,}"]
        for table in tables:
            means = table.get(category, {}).get("miou")
            row += [percent(means[i]) if means else "-" for i in ((0, -1) if refined else (0,))]
        rows.append(row)
    left = len(order) - len(rows)
    note = "mIoU in percent, most frequent first"
    return f"{_table(header, rows)}\n\n{note}{f'; {left:,} rarer categories are not shown' if left else ''}."


def _time(reports: Sequence[Report], names: Sequence[str]) -> str:
    stages = list(dict.fromkeys(stage for report in reports for stage in report.get("stage_seconds", {})))
    if not stages and not any(report.get("seconds") for report in reports):
        return ""
    rows = []
    for report, name in zip(reports, names, strict=True):
        spent, whole = report.get("stage_seconds", {}), report.get("seconds")
        total = sum(spent.values())
        cells = [
            f"{spent[stage]:.1f} ({100 * spent[stage] / total:.0f} %)" if stage in spent and total else "-"
            for stage in stages
        ]
        pace = f"{report['num_instances'] / whole:.1f}" if whole and report.get("num_instances") else "-"
        rows.append([name, *cells, "-" if whole is None else f"{whole:.1f}", pace])
    table = _table(["system", *stages, "whole run", "instances/s"], rows)
    note = (
        "Seconds, in brackets the share of the stages' sum; stages may run at the same time." if stages else "Seconds."
    )
    return f"{table}\n\n{note}"
