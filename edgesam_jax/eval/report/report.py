"""Format reports as a Markdown page: settings, all systems in one table, comparison with the paper, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgesam_jax.data.source import ASSUMED
from edgesam_jax.eval.report import published_numbers
from edgesam_jax.eval.report.settings import names_of, rounds_of, settings
from edgesam_jax.reporting.tables import aligned_table

Report = Mapping[str, Any]

CATEGORIES = 80  # maximum rows in the table by category
ALL_ROUNDS = 6  # with at most this many rounds, each has a column; with more, SOME_ROUNDS (from 0) and the last
SOME_ROUNDS = (0, 1, 2, 4, 9, 19)
AVERAGE_PRECISIONS = ("AP", "AP50", "AP75", "APS", "APM", "APL", "APr", "APc", "APf")


def markdown(reports: Sequence[Report]) -> str:
    """One page for one or more systems: settings, results, the paper's numbers, categories, time.

    Args:
      reports: as written by ``python -m edgesam_jax.eval``; missing values are omitted or shown as "-".

    Raises:
      ValueError: ``reports`` is empty.
    """
    if not reports:
        raise ValueError("no reports: pass at least one")
    names = names_of(reports)
    kind = "mode" if reports[0].get("prompt") == "everything" else "prompts"
    parts = [
        f"# Evaluation: {_all(reports, 'prompt')} {kind} on {_all(reports, 'dataset')}",
        f"## Setup\n\n{settings(reports, names)}",
        f"## Results\n\n{_results(reports, names)}",
        *([f"## Comparison with the paper\n\n{text}"] if (text := _paper(reports, names)) else []),
        *([f"## By category\n\n{text}"] if (text := _categories(reports, names)) else []),
        *([f"## Time\n\n{text}"] if (text := _time(reports, names)) else []),
    ]
    return "\n\n".join(parts) + "\n"


def terminal(reports: Sequence[Report]) -> str:
    """The results in a few lines: one table of all systems, and the number of instances, photos and seconds."""
    names = names_of(reports)
    lines = [_results(reports, names).split("\n\n")[0]]
    for report, name in zip(reports, names, strict=True):
        counted = [(report.get("num_instances"), "instances"), (report.get("num_detections"), "detections")]
        scored = ", ".join(f"{count} {noun}" for count, noun in counted if count is not None)
        counts = Counter(report.get("skipped", {}).get("counts", {}))
        assumed = counts.pop(ASSUMED, 0)
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
        skipped = f"; {counts.total()} entries skipped ({kinds})" if counts else ""
        skipped += f"; {assumed} masks read under an assumption" if assumed else ""
        lines.append(
            f"{name}: {scored} on {report['num_images']} photos, {report['seconds']:.0f} s,"
            f" {report['compilations']} programs compiled{skipped}"
        )
    return "\n".join(lines)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; "-" for None."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _all(reports: Sequence[Report], key: str) -> str:
    return " / ".join(dict.fromkeys(str(report.get(key, "?")) for report in reports))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return aligned_table([_cell(c) for c in header], [[_cell(c) for c in row] for row in rows])


# ------------------------------------------------------------------------------------------------ results


def _results(reports: Sequence[Report], names: Sequence[str]) -> str:
    """One table of all systems, with every column that at least one of them has."""
    heads: list[str] = []
    cells: list[dict[str, str]] = [{} for _ in reports]
    for group in (_overlaps, _boundary, _sizes, _clicks, _precisions, _everything):
        columns = [group(report) for report in reports]
        for row, new in zip(cells, columns, strict=True):
            row.update(new)
        heads += sorted(dict.fromkeys(head for new in columns for head in new), key=_round_of)
    rows = [[name, *(row.get(head, "-") for head in heads)] for name, row in zip(names, cells, strict=True)]
    table = _table(["system", *heads], rows)
    notes = []
    if any(report.get("miou") for report in reports):
        notes.append("mIoU in percent, averaged over all instances; +N: after N refinement points")
    if any(head.startswith("B ") for head in heads):
        notes.append("B: based on boundary IoU")
    if "by photo" in heads:
        notes.append(
            "small, medium, large: mIoU by COCO object size (limits at 32² and 96² pixels) after the last prompt; "
            "by photo: mean of the photos' mean IoUs after the last prompt"
        )
    if any(head.startswith("NoC") for head in heads):
        most = _all([report["noc"] for report in reports if report.get("noc")], "max_clicks")
        notes.append(
            f"NoC80: mean number of prompts, including the first, to reach an IoU of 80 %; instances that never reach "
            f"it count as {most}, and their percentage is in brackets"
        )
    if any("AP" in head for head in heads):
        notes.append("AP in percent, by the official definition")
    if any("AR" in head for head in heads):
        notes.append(
            "AR@k in percent: recall of the k masks of highest score per photo, of any category, averaged over IoU 0.50"
            " to 0.95. Best IoU: mean over instances of the best IoU of any mask, in percent. s/photo: median seconds"
            " in which a photo's masks were generated, beside the other photos in flight"
        )
    return f"{table}\n\n{'. '.join(notes)}." if notes else table


def _round_of(head: str) -> int:
    """2 for "+2" and "B +2", 0 for other headings: orders the columns of systems with different prompts or rounds."""
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
    cells = {size: percent(groups[size]["miou"][-1]) for size in ("small", "medium", "large") if size in groups}
    return cells | ({"by photo": percent(report["miou_over_photos"][-1])} if report.get("miou_over_photos") else {})


def _clicks(report: Report) -> dict[str, str]:
    cells, noc = {}, report.get("noc") or {}
    for threshold in (key for key in noc if key not in ("max_clicks", "failed")):
        failed = noc.get("failed", {}).get(threshold)
        suffix = "" if failed is None else f" ({percent(failed, 0)} %)"
        cells[f"NoC{threshold}"] = "-" if noc[threshold] is None else f"{noc[threshold]:.2f}{suffix}"
    return cells


def _precisions(report: Report) -> dict[str, str]:
    both = (("", report.get("ap") or {}), ("B ", report.get("boundary_ap") or {}))
    return {prefix + name: percent(ap[name]) for prefix, ap in both for name in AVERAGE_PRECISIONS if name in ap}


def _everything(report: Report) -> dict[str, str]:
    found = report.get("everything") or {}
    if not found:
        return {}
    cells = {f"AR@{count}": percent(value) for count, value in found["ar"].items()}
    cells |= {"best IoU": percent(found["mean_best_iou"]), "masks/photo": f"{found['masks_per_photo']:.1f}"}
    seconds = report.get("seconds_per_photo")
    return cells | ({} if seconds is None else {"s/photo": f"{seconds:.2f}"})


# ------------------------------------------------------------------------------------------------ the paper


def _paper(reports: Sequence[Report], names: Sequence[str]) -> str:
    """The paper's rows with each system's difference in percentage points; one table per data set and prompt."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, report in enumerate(reports):
        groups.setdefault((*published_numbers.matching_rows(report), *published_numbers.warnings(report)), []).append(i)
    parts = []
    for members in groups.values():
        rows = published_numbers.matching_rows(reports[members[0]])
        ours = [_in_paper_units(reports[i]) for i in members]
        heads = list(dict.fromkeys(h for row in rows for h in _published(row) if any(h in report for report in ours)))
        if not heads:
            continue
        body = []
        for row in rows:
            paper = _published(row)
            detector = f", {row.detector}" if isinstance(row, published_numbers.Precision) else ""
            differences = [" / ".join(_difference(report.get(h), paper.get(h)) for h in heads) for report in ours]
            published = ["-" if paper.get(h) is None else f"{paper[h]:.1f}" for h in heads]
            body.append([f"{row.model}{detector} ({row.source})", *published, *differences])
        table = _table(["paper", *heads, *(f"{names[i]} - paper" for i in members)], body)
        notes = "\n".join(f"- {warning}" for warning in published_numbers.warnings(reports[members[0]]))
        parts.append(f"{notes}\n\n{table}\n\nDifferences are in percentage points, in the order {' / '.join(heads)}.")
    return "\n\n".join(parts)


def _in_paper_units(report: Report) -> dict[str, float | None]:
    """A report's numbers in percent, by the column names of ``_published``."""
    values = dict(zip(rounds_of(report), report.get("miou", ()), strict=False))
    if report.get("prompt") == "detections":
        values = {name: (report.get("ap") or {}).get(name) for name in ("AP", "APS", "APM", "APL")}
        values["B AP"] = (report.get("boundary_ap") or {}).get("AP")
    return {name: None if value is None else 100 * value for name, value in values.items()}


def _published(row: published_numbers.Overlap | published_numbers.Precision) -> dict[str, float | None]:
    """A row's numbers in percent, by column name."""
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
    hidden = len(order) - len(rows)
    note = "mIoU in percent, most frequent categories first"
    return f"{_table(header, rows)}\n\n{note}{f'; {hidden:,} rarer categories are not shown' if hidden else ''}."


def _time(reports: Sequence[Report], names: Sequence[str]) -> str:
    stages = list(dict.fromkeys(stage for report in reports for stage in report.get("stage_seconds", {})))
    if not stages and not any(report.get("seconds") for report in reports):
        return ""
    rows = []
    for report, name in zip(reports, names, strict=True):
        spent, elapsed = report.get("stage_seconds", {}), report.get("seconds")
        total = sum(spent.values())
        cells = [
            f"{spent[stage]:.1f} ({100 * spent[stage] / total:.0f} %)" if stage in spent and total else "-"
            for stage in stages
        ]
        rate = f"{report['num_instances'] / elapsed:.1f}" if elapsed and report.get("num_instances") else "-"
        rows.append([name, *cells, "-" if elapsed is None else f"{elapsed:.1f}", rate])
    table = _table(["system", *stages, "elapsed", "instances/s"], rows)
    note = "Times in seconds; in brackets, the percentage of the sum over stages. Stages may overlap."
    note = note if stages else "Times in seconds."
    return f"{table}\n\n{note}"
