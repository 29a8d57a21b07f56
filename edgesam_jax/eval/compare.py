"""``python -m edgesam_jax.eval compare A.json B.json``: is the difference between two systems significant?

Both must be scored on the same instances, so that their IoUs can be compared pair by pair.  Instances in one photo are
not independent (one blurred or dark photo affects all of them), so the bootstrap resamples photos instead of instances:
a cluster bootstrap after Davison and Hinkley, Bootstrap Methods and their Application (1997), chapter 3, with
percentile intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax import files
from edgesam_jax.cli.flags import count
from edgesam_jax.config import UsageError
from edgesam_jax.eval.report.load import load_system
from edgesam_jax.portable.errors import one_line
from edgesam_jax.reporting.tables import aligned_table

MUST_MATCH = ("dataset", "prompt", "refine", "protocol")
NOTED = (
    "seed", "refine_point", "num_masks", "select", "box_noise", "priors", "center", "resize", "pixel_range",
    "points_per_side", "pred_iou_thresh", "stability_score_thresh", "coarse_to_fine", "data_root", "annotations",
)  # fmt: skip
# With fewer photos, intervals are far too narrow: all of 5 photos have the same sign by chance in 1 of 16 cases.
FEW_PHOTOS = 10
NAMED = 5  # unpaired instances named in the text; the JSON lists all
MOST_SAMPLES = 10_000_000  # their means are kept in memory
CELLS = 1_000_000  # photos times resamples in memory at a time: limits memory to about 40 MB
SIGNIFICANT, NOT_SIGNIFICANT = "real", "can't be told apart"  # values in JSON, which programs read
PRINTED = {SIGNIFICANT: "significant", NOT_SIGNIFICANT: "not significant"}

Key = tuple[Any, Any, int]  # image id, annotation id, and a counter for rows with equal ids


@dataclass(frozen=True)
class Column:
    """One row of the comparison; all values are fractions.

    Attributes:
      measure: ``iou`` or ``boundary_iou``.
      prompt: the round: box (or another first prompt), +1, +2, ...
      instances, photos: number of pairs, and of photos that they are on.
      a, b: means over the pairs.
      difference: B - A, with its 95 % interval ``low`` to ``high``.
      p: two-sided, from the fraction of resamples on the other side of 0.
      verdict: ``SIGNIFICANT`` if the interval excludes 0 and there are enough photos, else ``NOT_SIGNIFICANT``.
    """

    measure: str
    prompt: str
    instances: int
    photos: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """B compared with A; ``unpaired_a``, ``unpaired_b``: [image_id, annotation_id] of instances in only one of them."""

    file_a: str
    file_b: str
    system_a: str
    system_b: str
    settings: dict[str, Any]
    samples: int
    seed: int
    columns: list[Column]
    unpaired_a: list[list[Any]]
    unpaired_b: list[list[Any]]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The comparison as text: a Markdown table with an explanation."""
        settings = ", ".join(f"{key} {one_line(value)}" for key, value in self.settings.items() if value is not None)
        lines = [
            f"A: {one_line(self.system_a)} ({self.file_a})",
            f"B: {one_line(self.system_b)} ({self.file_b})",
            f"Both: {settings}",
        ]
        everything = self.settings.get("prompt") == "everything"
        names = {"iou": "mean best IoU" if everything else "mIoU", "boundary_iou": "boundary IoU"}
        rows = [
            [
                f"{names[c.measure]}, {one_line(c.prompt)}",
                f"{c.instances:,}",
                f"{c.photos:,}",
                f"{100 * c.a:.2f}",
                f"{100 * c.b:.2f}",
                f"{100 * c.difference:+.2f}",
                f"{100 * c.low:+.2f} to {100 * c.high:+.2f}",
                f"{c.p:.4f}",
                PRINTED[c.verdict],
            ]
            for c in self.columns
        ]
        header = ("in %", "instances", "photos", "A", "B", "B - A", "95 % interval", "p", "verdict")
        lines += ["", aligned_table(header, rows), ""]
        lines.append(
            f"Means are over paired instances. Interval and p: bootstrap with {self.samples:,} resamples of "
            f"entire photos (seed {self.seed}), because instances in one photo are not independent. p: twice the "
            f'fraction of resamples on the other side of 0. "{SIGNIFICANT}": the interval excludes 0; for equally '
            "good systems, about 1 row in 20 is called significant by chance."
        )
        for name, ids in (("A", self.unpaired_a), ("B", self.unpaired_b)):
            if ids:
                some = ", ".join(f"{one_line(image)}/{one_line(annotation)}" for image, annotation in ids[:NAMED])
                more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
                lines.append(f"Only in {name}, not compared: {len(ids):,} instances (photo/annotation {some}{more}).")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def compare(a: str | Path, b: str | Path, samples: int = 10_000, seed: int = 0, force: bool = False) -> Comparison:
    """Compare two reports instance by instance.

    Instances are paired by image id and annotation id; rows with equal ids are paired in their order.  A pair with a
    null IoU is skipped in that column.

    Args:
      a, b: report files of ``python -m edgesam_jax.eval``; ``FILE:NAME`` selects one of several systems, by name or by
        number from 1.
      samples: number of bootstrap resamples.
      seed: of the resamples; the result doesn't depend on the order of the instances.
      force: compare even if the data or the protocol differ.

    Raises:
      UsageError: a file doesn't exist or is not a report with instances; a system's name is missing or ambiguous; the
        reports can't be compared; or they have no instances in common.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise UsageError(f"--samples {samples}: must be from 1 to {MOST_SAMPLES}")
    (file_a, name_a, report_a), (file_b, name_b, report_b) = load_system(a), load_system(b)
    settings = {
        key: _setting(report_a, key) for key in MUST_MATCH if _setting(report_a, key) == _setting(report_b, key)
    }
    notes = _differing(file_a, file_b, report_a, report_b, force)
    rows_a, rows_b = _by_key(report_a), _by_key(report_b)
    paired = sorted(rows_a.keys() & rows_b.keys(), key=_order)
    if not paired:
        raise UsageError(f"{a}, {b}: no instances in common; score both on the same photos")
    photos = list(dict.fromkeys(key[0] for key in paired))
    if len(photos) < FEW_PHOTOS:
        notes.append(
            f"fewer than {FEW_PHOTOS} photos: intervals are unreliable, so no difference is called significant"
        )
    columns: list[Column] = []
    for measure in ("iou", "boundary_iou"):
        if all(measure in rows[key] for key in paired for rows in (rows_a, rows_b)):
            values_a, values_b = ([rows[key][measure] for key in paired] for rows in (rows_a, rows_b))
            columns += _columns(measure, settings, [key[0] for key in paired], values_a, values_b, samples, seed)
    if not columns:
        raise UsageError(f"{a}, {b}: every pair of instances has a null IoU, so there is nothing to compare")
    if null := len(paired) - min(column.instances for column in columns):
        notes.append(f"{null:,} pairs were skipped because an IoU is null (prediction and annotation are both empty)")
    only_a, only_b = (
        [[key[0], key[1]] for key in sorted(rows.keys() - other.keys(), key=_order)]
        for rows, other in ((rows_a, rows_b), (rows_b, rows_a))
    )
    return Comparison(file_a, file_b, name_a, name_b, settings, samples, seed, columns, only_a, only_b, notes)


def bootstrap_means(sums: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means of resampled clusters: (samples c) float64, from sums (g c) and counts (g c) of g clusters and c columns.

    Each resample draws g clusters with replacement, the same for all columns, and divides the total of their sums by
    the total of their counts; NaN where the latter is 0.
    """
    groups, columns = sums.shape
    both = np.concatenate([sums, counts], axis=1).astype(np.float64)
    random = np.random.default_rng(seed)
    means = np.empty((samples, columns))
    chunk = max(1, CELLS // groups)
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn = random.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)
        # einsum, not matmul: the order of summation in BLAS may depend on the number of threads.
        totals = np.einsum("sg,gc->sc", times.astype(np.float64), both)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + size] = totals[:, :columns] / totals[:, columns:]
    return means


def _columns(
    measure: str,
    settings: Mapping[str, Any],
    images: Sequence[Any],
    values_a: Sequence[Sequence[float | None]],
    values_b: Sequence[Sequence[float | None]],
    samples: int,
    seed: int,
) -> list[Column]:
    """A row for each round that both reports have; in ``images`` (n), equal ids are adjacent."""
    rounds = min(len(values_a[0]), len(values_b[0]))
    first, second = (np.array([row[:rounds] for row in v], np.float64) for v in (values_a, values_b))  # None is NaN
    known = ~(np.isnan(first) | np.isnan(second))
    difference = np.where(known, second - first, 0.0)
    starts = [i for i, image in enumerate(images) if i == 0 or image != images[i - 1]]
    sums, counts = np.add.reduceat(difference, starts), np.add.reduceat(known.astype(np.int64), starts)
    means = bootstrap_means(sums, counts, samples, seed)
    columns = []
    for k in range(rounds):
        kept = known[:, k]
        n, photos = int(kept.sum()), int((counts[:, k] > 0).sum())
        if not n:
            continue
        drawn = means[:, k][~np.isnan(means[:, k])]
        low, high = (float(v) for v in np.quantile(drawn, (0.025, 0.975)))
        # The 1 stands for the original sample: no finite number of resamples can show that p is 0.
        other = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p = min(1.0, 2 * (1 + other) / (1 + len(drawn)))
        significant = photos >= FEW_PHOTOS and (low > 0 or high < 0)
        columns.append(
            Column(
                measure=measure,
                prompt=f"+{k}" if k else settings.get("prompt", "first"),
                instances=n,
                photos=photos,
                a=math.fsum(first[kept, k]) / n,
                b=math.fsum(second[kept, k]) / n,
                difference=math.fsum(difference[kept, k]) / n,
                low=low,
                high=high,
                p=p,
                verdict=SIGNIFICANT if significant else NOT_SIGNIFICANT,
            )
        )
    return columns


# ------------------------------------------------------------------------------------------------ settings, pairs


def _setting(report: Mapping[str, Any], key: str) -> Any:
    if key == "refine":  # missing in older reports
        return report.get("refine", len(report["instances"][0]["iou"]) - 1)
    if key == "resize":  # missing in older reports, whose photos Pillow resized
        return report.get("resize", "pillow")
    if key == "pixel_range":  # missing for auto
        return report.get("pixel_range", "auto")
    if key == "center" and report.get("prompt") == "center":
        return report.get("center", report.get("protocol"))
    return report.get(key)


def _differing(file_a: str, file_b: str, a: Mapping[str, Any], b: Mapping[str, Any], force: bool) -> list[str]:
    """Notes on settings that differ.

    Raises:
      UsageError: a setting of ``MUST_MATCH`` differs and ``force`` is not set.
    """
    notes = []
    for key in (*MUST_MATCH, *NOTED):
        value_a, value_b = _setting(a, key), _setting(b, key)
        if value_a == value_b:
            continue
        if key in MUST_MATCH and not force:
            raise UsageError(
                f"{file_a}, {file_b}: {key} differs ({one_line(value_a)} and {one_line(value_b)}), so a difference"
                " would say little about the systems; score both with the same settings, or pass --force to compare"
                " anyway"
            )
        if key in MUST_MATCH or None not in (value_a, value_b):
            notes.append(f"{key} differs: A {one_line(value_a)}, B {one_line(value_b)}")
    return notes


def _by_key(report: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
    """A report's instances by their ids."""
    rows: dict[Key, dict[str, Any]] = {}
    seen: Counter[tuple[Any, Any]] = Counter()
    for row in report["instances"]:
        ids = row["image_id"], row["annotation_id"]
        rows[(*ids, seen[ids])] = row
        seen[ids] += 1
    return rows


def _order(key: Key) -> tuple[Any, ...]:
    """A sort key for ids, which may be numbers or strings."""
    return tuple((isinstance(part, str), part) for part in key)


# ------------------------------------------------------------------------------------------------ command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``compare``."""
    parser.add_argument("a", metavar="A.json", help="a report; A.json:NAME selects one of several systems")
    parser.add_argument("b", metavar="B.json", help="the report to compare with A")
    parser.add_argument("--samples", type=count, default=10_000, metavar="N", help="number of bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples")
    parser.add_argument("--force", action="store_true", help="compare even if data set, prompts or protocol differ")
    parser.add_argument("--output", default="", metavar="compare.json", help="also write the comparison as JSON")


def run(arguments: argparse.Namespace) -> str:
    """Compare two reports as requested; returns the text to print.

    Raises:
      UsageError: see ``compare``; or ``--output`` can't be written.
    """
    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.is_dir():
        raise UsageError(f"--output {output}: is a folder; pass a file name for the comparison")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: must be at least 0")
    result = compare(arguments.a, arguments.b, arguments.samples, arguments.seed, arguments.force)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(output, json.dumps(dataclasses.asdict(result), indent=1))
        except OSError as error:
            raise UsageError(f"--output {output}: cannot write ({error.strerror})") from None
    return result.text()
