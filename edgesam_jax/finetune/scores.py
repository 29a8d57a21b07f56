"""Before and after: the same photos and prompts, scored by ``edgesam_jax.eval`` and compared with its intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.source import Source
from edgesam_jax.eval.compare import SIGNIFICANT, Column, compare
from edgesam_jax.eval.job import Job, case_of
from edgesam_jax.eval.report.contact_sheet import sheet
from edgesam_jax.eval.scoring.photos import load
from edgesam_jax.eval.scoring.prompted import score_photo
from edgesam_jax.eval.scoring.protocol import PromptKind, Settings
from edgesam_jax.eval.scoring.systems import JaxSystem
from edgesam_jax.reporting.tables import aligned_table

REFINE: Mapping[PromptKind, int] = {"box": 2, "center": 9}  # ten clicks, for the number of clicks to an IoU of 0.9
SHOWN = 2  # corrections in the table
SHEET = 4  # cases of each kind
NAMES = {"box": "box", "center": "centre click"}


@dataclass(frozen=True)
class Gain:
    """A row of the comparison: a name, the values before and after, and (low, high) of the difference; fractions."""

    name: str
    before: float
    after: float
    interval: tuple[float, float] | None = None
    significant: bool = False


def measure(before: Model, after: Model, source: Source, where: str, folder: Path, pictures: bool = True) -> list[Gain]:
    """Score both models with box and centre prompts; write reports, plots and a sheet of cases; return the comparison.

    Args:
      source: the photos to score on.
      where: the data set's folder, for reports.
      folder: for the files.

    Raises:
      UsageError: a file can't be written, or no photo can be scored.
    """
    gains: list[Gain] = []
    systems = [JaxSystem("before", before), JaxSystem("after", after)]
    for prompt, refine in REFINE.items():
        job = Job(Settings(prompt, refine), "folder", where, prompt)
        job.open(source)
        output = folder / f"{prompt}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        reports = [job.score(system, output.with_name(f"{prompt}.{system.name}")) for system in systems]
        kept = [report for report in reports if report is not None]
        job.write(output, systems, kept, pictures=False)
        comparison = compare(f"{output}:before", f"{output}:after")
        gains += [_gain(column, prompt) for column in comparison.columns if _is_shown(column)]
        if prompt != "box" and all((report["noc"] or {}).get("90") for report in kept):
            gains.append(Gain("clicks to an IoU of 0.9 (NoC@90)", *(report["noc"]["90"] for report in kept)))
        if prompt == "box" and pictures:
            draw(systems, source, kept, job.indices, folder / "cases.png")
    return gains


def _is_shown(column: Column) -> bool:
    number = int(column.prompt) if column.prompt.startswith("+") else 0
    return number <= SHOWN if column.measure == "iou" else number == 0


def _gain(column: Column, prompt: PromptKind) -> Gain:
    name = f"{NAMES[prompt]} {column.prompt}" if column.prompt.startswith("+") else NAMES[prompt]
    if column.measure != "iou":
        name = f"boundary IoU, {name}"
    return Gain(name, column.a, column.b, (column.low, column.high), column.verdict == SIGNIFICANT)


def table(gains: list[Gain]) -> str:
    """Return the comparison as a Markdown table, in percent; clicks as they are."""
    rows = []
    for gain in gains:
        scale = 100 if gain.interval else 1
        interval, judged = "", ""
        if gain.interval:
            interval = f"{scale * gain.interval[0]:+.1f} to {scale * gain.interval[1]:+.1f}"
            judged = ("gain" if gain.after > gain.before else "LOSS") if gain.significant else "no gain shown"
        rows.append(
            [
                gain.name, f"{scale * gain.before:.1f}", f"{scale * gain.after:.1f}",
                f"{scale * (gain.after - gain.before):+.1f}", interval, judged,
            ]
        )  # fmt: skip
    return aligned_table(["IoU in percent", "before", "after", "difference", "95 % interval", ""], rows)


def verdict(gains: list[Gain], photos: int) -> str:
    """Say in a line whether box and click prompts have become better."""
    found = {gain.name: gain for gain in gains if gain.name in NAMES.values()}
    parts = []
    for name, gain in found.items():
        difference = 100 * (gain.after - gain.before)
        if gain.significant:
            parts.append(f"{'a gain' if difference > 0 else 'A LOSS'} of {abs(difference):.1f} with a {name}")
        else:
            parts.append(f"no gain that {photos} photos could show with a {name} ({difference:+.1f})")
    return f"On the held-out photos: {', '.join(parts)}."


# --------------------------------------------------------------------------------------------------------- the sheet


def draw(
    systems: list[JaxSystem], source: Source, reports: list[dict[str, Any]], indices: Mapping[Any, int], path: Path
) -> None:
    """Draw the worst, the median and the most improved objects, before and after, from box prompts."""
    before, after = (
        {(row["image_id"], row["annotation_id"]): row["iou"][0] for row in report["instances"]} for report in reports
    )
    keys = [key for key in after if after[key] is not None and before.get(key) is not None]
    by_score = sorted(keys, key=lambda key: (after[key], key[1]))
    middle = max(0, len(by_score) // 2 - SHEET // 2)
    improved = sorted(keys, key=lambda key: (before[key] - after[key], key[1]))
    groups = {"worst": by_score[:SHEET], "median": by_score[middle : middle + SHEET], "most improved": improved[:SHEET]}
    cases = []
    for kind, chosen in groups.items():
        for image_id, annotation_id in chosen:
            photo = load(source, indices[image_id])
            i = photo.ids.tolist().index(annotation_id)
            for system in systems:
                scored = score_photo(system, photo, Settings("box", 0))
                title = f"{kind}, {system.name}: IoU {scored.iou[i, 0]:.2f}, photo {image_id}"
                cases.append(case_of(system, photo, scored, i, title))
    sheet(cases, path)
