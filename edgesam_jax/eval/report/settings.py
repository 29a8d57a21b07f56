"""What an evaluation did, in words: the settings of its report."""

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
}
PROTOCOLS = {
    "exact": "exact (masks compared with the annotation at the photo's own size, every pixel)",
    "published": "published (the procedure of the published evaluation as it stands, its rounding included)",
}
PRIORS = {
    "nearest": "with a box averaged from the five nearest proposals (granularity priors, the paper's rule)",
    "published": "with the best of the five nearest proposals around it (granularity priors, the published rule)",
}
SELECTIONS = {
    "first": "the first mask",
    "score": "the mask that the model scores highest",
    "stability": "the most stable mask",
    "area": "the largest mask",
    "oracle": "the best mask against the annotation: an upper bound, which no user can choose",
}


def names_of(reports: Sequence[Report]) -> list[str]:
    """A name for each system, all different: what the report says, else its checkpoint's file name."""
    names: list[str] = []
    for number, report in enumerate(reports, 1):
        name = str(report.get("system") or PurePath(str(report.get("checkpoint") or "")).name or f"system {number}")
        names.append(name if name not in names else f"{name} ({number})")
    return names


def rounds_of(report: Report) -> list[str]:
    """Names of the prompts one after another: ``box``, ``+1``, ``+2`` ..."""
    count = max(len(report.get(key) or ()) for key in ("miou", "boundary_iou"))
    return [report.get("prompt", "first"), *(f"+{i}" for i in range(1, count))]


def settings(reports: Sequence[Report], names: Sequence[str]) -> str:
    """A Markdown list, one line a setting; where systems differ, what each of them had.

    Args:
      reports: reports as ``python -m edgesam_jax.eval`` writes them; settings that they don't name are left out.
      names: of the systems, as many.
    """
    lines = []
    for label, describe in _SETTINGS.items():
        texts = [describe(report) for report in reports]
        if len(set(texts)) == 1:
            if texts[0]:
                lines.append(f"- {label}: {texts[0]}")
        else:
            pairs = zip(names, texts, strict=True)
            lines.append(f"- {label}: " + "; ".join(f"{name}: {text or 'not known'}" for name, text in pairs))
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
    text += f", {PRIORS[report['priors']]}" if report.get("priors", "off") != "off" else ""
    return text + (f", moved by noise (`--box-noise {report['box_noise']:g}`)" if report.get("box_noise") else "")


def _refined(report: Report) -> str:
    count = report.get("refine", len(report.get("miou", ())) - 1)
    if count <= 0:
        return "" if report.get("prompt") == "detections" else "none"
    points = "1 point" if count == 1 else f"{count} points, one after another"
    if report.get("refine_point", "random") == "largest":
        return f"{points}, at the centre of the largest wrong area"
    return f"{points}, each a random pixel of the wrong area (seed {report.get('seed', 0)})"


def _selected(report: Report) -> str:
    if "num_masks" not in report and "select" not in report:
        return ""
    count, select = report.get("num_masks", 1), report.get("select", "first")
    return "the first mask" if count == 1 else f"{count} masks, of them {SELECTIONS.get(select, select)}"


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
    "Masks per prompt": _selected,
    "Seed": lambda report: str(report.get("seed", "")),
    "Checkpoint": lambda report: f"`{report['checkpoint']}`" if report.get("checkpoint") else "",
    "Compiled programs": lambda report: str(report.get("compilations", "")),
}
