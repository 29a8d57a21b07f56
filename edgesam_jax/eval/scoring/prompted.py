"""Ground-truth prompts: the overlap of every instance, after the first prompt and after each refinement point.

EdgeSAM, section 4.2, Tables 2 and 3.  Each instance has its own random stream and each photo is scored independently,
so the results don't depend on the order of the photos or on the number of threads, devices and hosts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.threads import in_threads
from edgesam_jax.eval.scoring import protocol
from edgesam_jax.eval.scoring.boundary import boundary_iou
from edgesam_jax.eval.scoring.device import Bits
from edgesam_jax.eval.scoring.photos import Photo, choose_instances
from edgesam_jax.eval.scoring.protocol import HEAD, Settings, Slots
from edgesam_jax.eval.scoring.systems import Answer, System, input_size
from edgesam_jax.reporting.rows import Row, Rows


@dataclass(frozen=True, eq=False)
class Scored:
    """The results of one photo, in the order of its instances.

    Attributes:
      iou: (n 1+refine) float64; NaN where both prediction and annotation are empty.
      boundary_iou: the same for boundaries, or None if not measured.
      teacher_iou: the same against the masks that a teacher predicts for the same prompts, or None without a teacher.
      last: the masks of the last round.
      slots: the prompts of the last round.
      seconds: by stage.
    """

    iou: np.ndarray
    boundary_iou: np.ndarray | None
    teacher_iou: np.ndarray | None
    last: list[Bits]
    slots: Slots
    seconds: dict[str, float]


def score_photo(
    system: System,
    photo: Photo,
    settings: Settings,
    boundary: bool = False,
    teacher: System | None = None,
) -> Scored:
    """Prompt every instance of a photo, refine, and measure the overlap with its mask.

    Args:
      boundary: also measure boundary IoU.
      teacher: also measure the agreement with this system's masks for the same prompts.  The errors of ``system``
        determine the refinement points.
    """
    timer = StageTimer()
    n, rounds = len(photo), 1 + settings.refine
    frame = input_size(photo, system)
    slots = protocol.start(photo, frame, settings)
    truth = protocol.truth(photo, frame, system.image_size, system.mask_size, settings.truth or settings.protocol)
    refinement = Refinement.of(system, photo, settings, truth)
    iou, boundary_ious, teacher_iou = (np.full((n, rounds), np.nan) for _ in range(3))
    timer.lap("prompts")
    state = system.start(photo, settings.resize) if n else None
    timer.lap("encode")
    if settings.priors != "off" and n:
        slots = protocol.with_priors(slots, system.proposals(state), settings.priors)
        timer.lap("prompts")
    teacher_state = teacher.start(photo, settings.resize) if teacher and n else None
    last: list[Bits] = []
    for number in range(rounds if n else 0):
        answer = system.masks(state, photo, slots)
        timer.lap("decode")
        selected = _selected(answer, truth.full)
        last = [masks[k] for masks, k in zip(answer.full, selected, strict=True)]
        iou[:, number] = [overlap(bits, window) for bits, window in zip(last, truth.full, strict=True)]
        timer.lap("score")
        if boundary:
            boundary_ious[:, number] = [boundary_iou(b.mask, w) for b, w in zip(last, truth.full, strict=True)]
            timer.lap("boundary")
        if teacher is not None:
            targets = teacher.masks(teacher_state, photo, slots).full
            teacher_iou[:, number] = [bits.overlap(target[0]) for bits, target in zip(last, targets, strict=True)]
            timer.lap("teacher")
        if number < settings.refine:
            low = answer.low[np.arange(n), selected]
            slots = replace(slots, coords=slots.coords.copy(), labels=slots.labels.copy(), valid=slots.valid.copy())
            for i in range(n):
                refinement.add_point(slots, i, number, low[i], last[i])
            timer.lap("refine")
    return Scored(
        iou=iou, boundary_iou=boundary_ious if boundary else None,
        teacher_iou=teacher_iou if teacher is not None else None, last=last, slots=slots, seconds=timer.rounded,
    )  # fmt: skip


def _selected(answer: Answer, true: list[Window]) -> np.ndarray:
    """Index of each prompt's mask to score: the only one, or (``oracle``) the one with the highest overlap."""
    if answer.low.shape[1] == 1:
        return np.zeros(len(answer.full), np.int64)
    best = [
        [np.nan_to_num(overlap(bits, window), nan=1.0) for bits in masks]
        for masks, window in zip(answer.full, true, strict=True)
    ]
    return np.asarray(np.argmax(best, axis=1))


def overlap(bits: Bits, window: Window) -> float:
    """Intersection over union of a predicted mask and an annotation; NaN if both are empty."""
    inside = np.count_nonzero(bits.inside(window.top, window.left, *window.pixels.shape) & window.pixels)
    union = bits.area + np.count_nonzero(window.pixels) - inside
    return inside / union if union else float("nan")


@dataclass(frozen=True, eq=False)
class Refinement:
    """How refinement points are placed on one photo.

    Attributes:
      photo, truth, settings: the photo, the masks that predictions are compared with, and the evaluation's settings.
      points: the protocol that places the points.
      scale: (2) from pixels (x, y) of the photo to the frame.
      cell: side of a low-resolution pixel, in pixels of the frame.
      cells: rows and columns of the low-resolution grid where points may lie.
    """

    photo: Photo
    truth: protocol.Truth
    settings: Settings
    points: protocol.ProtocolName
    scale: np.ndarray
    cell: float
    cells: tuple[int, int]

    @classmethod
    def of(cls, system: System, photo: Photo, settings: Settings, truth: protocol.Truth) -> Refinement:
        """The refinement of a system's masks of a photo."""
        points, frame = settings.points or settings.protocol, input_size(photo, system)
        return cls(
            photo, truth, settings, points,
            scale=np.array(frame[::-1]) / photo.size[::-1],
            cell=system.image_size / system.mask_size,
            cells=protocol.photo_cells(frame, system.image_size, system.mask_size, points),
        )  # fmt: skip

    def add_point(self, slots: Slots, instance: int, number: int, low: np.ndarray, full: Bits) -> None:
        """Put refinement point ``number`` (from 0) of an instance where its mask is wrong.

        Args:
          low: (s s) bool, the mask at low resolution.
          full: the same mask at the photo's size.
        """
        slot = HEAD + number
        if self.settings.refine_point == "largest":
            largest = protocol.largest_point(full.mask, self.truth.full[instance])
            if largest is not None:
                x, y, label = largest
                slots.put(instance, slot, x * self.scale[0], y * self.scale[1], label)
                return
        else:
            seeds = [self.settings.seed, number, *self.photo.stream(instance)]
            point = protocol.random_point(low, self.truth.low[instance], self.cells, seeds, self.cell, self.points)
            if point is not None:
                slots.put(instance, slot, *point)
                return
        protocol.skip_point(slots, instance, slot, self.points)


class StageTimer:
    """Seconds by stage of one thread's work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def skip(self) -> None:
        """Leave out the time since the last lap."""
        self._last = time.perf_counter()

    @property
    def rounded(self) -> dict[str, float]:
        """The seconds rounded to microseconds, for a row."""
        return {stage: round(value, 6) for stage, value in self.seconds.items()}


def run_prompted(
    system: System,
    photos: Iterable[tuple[int, Photo | BadExample]],
    settings: Settings,
    rows: Rows,
    at_once: int = 2,
    boundary: bool = True,
    on_photo: Callable[[], object] | None = None,
) -> None:
    """Score photos and add a row for each.

    Args:
      photos: index in the data set and photo, without those that already have a row.
      at_once: photos in flight; affects speed, not results.
      boundary: also measure boundary IoU.
      on_photo: called after each photo.

    Raises:
      UsageError: a row can't be written.
    """

    def work(item: tuple[int, Photo | BadExample]) -> Row:
        index, photo = item
        if isinstance(photo, BadExample):
            return {"photo": index, "skipped": [photo.kind, str(photo)]}
        photo = choose_instances(photo, settings.max_instances, settings.seed)
        return row_of(photo, score_photo(system, photo, settings, boundary))

    for row in in_threads(work, photos, at_once, at_once, "scoring"):
        rows.add(row)
        if on_photo is not None:
            on_photo()


def row_of(photo: Photo, scored: Scored) -> Row:
    """The results of one photo as a JSON row, with None for an undefined overlap; ``unused`` lists annotations."""
    instances = []
    for i in range(len(photo)):
        instance = description(photo, i) | {"iou": _nan_to_none(scored.iou[i])}
        if scored.boundary_iou is not None:
            instance["boundary_iou"] = _nan_to_none(scored.boundary_iou[i])
        instances.append(instance)
    row: Row = {"photo": photo.index, "instances": instances, "seconds": scored.seconds}
    return row | ({"unused": [list(unused) for unused in photo.skipped]} if photo.skipped else {})


def description(photo: Photo, instance: int) -> dict[str, Any]:
    """An instance's ids, category if known, and area, for a row."""
    known = {"category_id": int(photo.categories[instance])} if photo.categories[instance] >= 0 else {}
    ids = {"image_id": photo.image_id, "annotation_id": int(photo.ids[instance])}
    return {**ids, **known, "area": float(photo.areas[instance])}


def _nan_to_none(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
