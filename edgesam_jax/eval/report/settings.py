"""The settings of an evaluation, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

Report = Mapping[str, Any]

PROMPTS = {
    "box": "the annotation's box",
    "center": "the centre of the annotation's mask, one foreground point",
    "point": "the annotation's point, one foreground point",
    "detections": "a detector's boxes",
    "everything": "none (everything mode: all masks of a photo are matched with its instances, of any category)",
}
PROTOCOLS = {
    "exact": "exact (masks are compared with the annotation pixel by pixel at the photo's own resolution)",
    "published": "published (the procedure of the published evaluation, including its rounding)",
}
PRIORS = {
    "nearest": "with a box averaged over the five nearest proposals (granularity priors, the paper's rule)",
    "published": "with the best of the five nearest proposals as a box (granularity priors, the published rule)",
}
SELECTIONS = {
    "first": "the first one is scored",
    "score": "the one with the highest predicted score is scored",
    "stability": "the most stable one is scored",
    "area": "the largest one is scored",
    "oracle": "the one closest to the annotation is scored (an upper bound: users can't select it)",
}


def names_of(reports: Sequence[Report]) -> list[str]:
    """A unique name for each system: the report's ``system``, else the file name of its checkpoint."""
    names: list[str] = []
    for number, report in enumerate(reports, 1):
        name = str(report.get("system") or PurePath(str(report.get("checkpoint") or "")).name or f"system {number}")
        names.append(name if name not in names else f"{name} ({number})")
    return names


def rounds_of(report: Report) -> list[str]:
    """Names of the rounds: ``box`` (or another first prompt), ``+1``, ``+2``, ..."""
    count = max(len(report.get(key) or ()) for key in ("miou", "boundary_iou"))
    return [report.get("prompt", "first"), *(f"+{i}" for i in range(1, count))]


def settings(reports: Sequence[Report], names: Sequence[str]) -> str:
    """A Markdown list with one line per setting, and each system's value where systems differ.

    Args:
      reports: as written by ``python -m edgesam_jax.eval``; settings that they don't have are omitted.
      names: of the systems, in the same order.
    """
    lines = []
    for label, describe in _SETTINGS.items():
        texts = [describe(report) for report in reports]
        if len(set(texts)) == 1:
            if texts[0]:
                lines.append(f"- {label}: {texts[0]}")
        else:
            pairs = zip(names, texts, strict=True)
            lines.append(f"- {label}: " + "; ".join(f"{name}: {text or 'unknown'}" for name, text in pairs))
    return "\n".join(lines)


def _data(report: Report) -> str:
    text = str(report.get("dataset", "?"))
    text += f", photos in `{report['data_root']}`" if report.get("data_root") else ""
    return text + (f", annotations `{report['annotations']}`" if report.get("annotations") else "")


def _counted(report: Report) -> str:
    counts = [(report.get("num_images"), "photos"), (report.get("num_instances"), "instances")]
    return ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)


def _prompted(report: Report) -> str:
    text = PROMPTS.get(report.get("prompt", ""), str(report.get("prompt", "")))
    if report.get("center"):
        text += f", found by the rule of the {report['center']} protocol (`--center {report['center']}`)"
    text += f", {PRIORS[report['priors']]}" if report.get("priors", "off") != "off" else ""
    return text + (f", with noise added (`--box-noise {report['box_noise']:g}`)" if report.get("box_noise") else "")


def _generated(report: Report) -> str:
    if report.get("prompt") != "everything":
        return ""
    if "points_per_side" not in report:
        return "those of the file"
    text = f"from a grid of {report['points_per_side']} x {report['points_per_side']} points"
    text += f", score above {report['pred_iou_thresh']:g}, stability score at least"
    text += f" {report['stability_score_thresh']:g}"
    return text + (", coarse to fine" if report.get("coarse_to_fine") else "")


def _refined(report: Report) -> str:
    count = report.get("refine", len(report.get("miou", ())) - 1)
    if count <= 0:
        return "" if report.get("prompt") in ("detections", "everything") else "none"
    points = "1 point" if count == 1 else f"{count} points added one at a time, each"
    if report.get("refine_point", "random") == "largest":
        return f"{points} at the centre of the largest error region"
    return f"{points} at a random wrong pixel (seed {report.get('seed', 0)})"


def _selected(report: Report) -> str:
    if "num_masks" not in report and "select" not in report:
        return ""
    count, select = report.get("num_masks", 1), report.get("select", "first")
    return "1 (the first mask token)" if count == 1 else f"{count}, of which {SELECTIONS.get(select, select)}"


def _skipped(report: Report) -> str:
    if "skipped" not in report:
        return ""
    counts = report["skipped"].get("counts", {})
    return ", ".join(f"{kind}: {counts[kind]:,}" for kind in sorted(counts) if counts[kind]) or "nothing"


_SETTINGS: dict[str, Callable[[Report], str]] = {
    "Data": _data,
    "Scored": _counted,
    "Skipped": _skipped,
    "Protocol": lambda report: PROTOCOLS.get(report.get("protocol", ""), str(report.get("protocol", ""))),
    "Prompt": _prompted,
    "Refinement": _refined,
    "Masks": _generated,
    "Masks per prompt": _selected,
    "Seed": lambda report: str(report.get("seed", "")),
    "Checkpoint": lambda report: f"`{report['checkpoint']}`" if report.get("checkpoint") else "",
    "Compiled programs": lambda report: str(report.get("compilations", "")),
}
