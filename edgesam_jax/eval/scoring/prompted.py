"""Ground-truth prompts: the overlap of every instance, after the first prompt and after each refinement point.

EdgeSAM section 4.2, Tables 2 and 3.  Each instance has its own random stream, and each photo is worked on alone, so the
numbers do not depend on how many are under way, on how many devices or hosts there are, or on the order.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.schema import BadExample
from edgesam_jax.eval.scoring import protocol
from edgesam_jax.eval.scoring.boundary import boundary_iou
from edgesam_jax.eval.scoring.device import Bits
from edgesam_jax.eval.scoring.photos import Photo, choose_instances
from edgesam_jax.eval.scoring.protocol import HEAD, Settings, Slots
from edgesam_jax.eval.scoring.rows import Row, Rows
from edgesam_jax.eval.scoring.systems import Answer, System, input_size

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Scored:
    """One photo's results, in the order of its instances.

    ``iou`` (n 1+refine) float64, NaN where prediction and annotation are empty; ``boundary_iou`` the same of the
    boundaries, or None; ``teacher_iou`` against the masks that a teacher gives for the same prompts, or None;
    ``last`` the final masks, and ``slots`` the prompts that led to them; ``seconds`` by stage.
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
      teacher: decodes the same prompts; the student's errors decide where points go.
    """
    watch = Watch()
    n, rounds = len(photo), 1 + settings.refine
    frame = input_size(photo, system)
    slots = protocol.start(photo, frame, settings)
    truth = protocol.truth(photo, frame, system.image_size, system.mask_size, settings.truth or settings.protocol)
    points = settings.points or settings.protocol
    cells = protocol.photo_cells(frame, system.image_size, system.mask_size, points)
    iou, borders, agreement = (np.full((n, rounds), np.nan) for _ in range(3))
    watch.lap("prompts")
    state = system.start(photo) if n else None
    watch.lap("encode")
    if settings.priors != "off" and n:
        slots = protocol.with_priors(slots, system.proposals(state), settings.priors)
        watch.lap("prompts")
    other = teacher.start(photo) if teacher and n else None
    last: list[Bits] = []
    for number in range(rounds if n else 0):
        answer = system.masks(state, photo, slots)
        watch.lap("decode")
        chosen = _choose(answer, truth.full)
        last = [masks[k] for masks, k in zip(answer.full, chosen, strict=True)]
        iou[:, number] = [overlap(bits, window) for bits, window in zip(last, truth.full, strict=True)]
        watch.lap("score")
        if boundary:
            borders[:, number] = [boundary_iou(b.mask, w) for b, w in zip(last, truth.full, strict=True)]
            watch.lap("boundary")
        if teacher is not None:
            theirs = teacher.masks(other, photo, slots).full
            agreement[:, number] = [mine.overlap(its[0]) for mine, its in zip(last, theirs, strict=True)]
            watch.lap("teacher")
        if number < settings.refine:
            low = answer.low[np.arange(n), chosen]
            slots = replace(slots, coords=slots.coords.copy(), labels=slots.labels.copy(), valid=slots.valid.copy())
            for i in range(n):
                _refine(system, photo, frame, settings, slots, i, number, low[i], last[i], truth, cells)
            watch.lap("refine")
    return Scored(
        iou, borders if boundary else None, agreement if teacher is not None else None, last, slots, watch.rounded
    )


def _choose(answer: Answer, true: list[Window]) -> np.ndarray:
    """Which of each prompt's masks counts: the only one, or (``oracle``) the one of the best overlap."""
    if answer.low.shape[1] == 1:
        return np.zeros(len(answer.full), np.int64)
    best = [
        [np.nan_to_num(overlap(bits, window), nan=1.0) for bits in masks]
        for masks, window in zip(answer.full, true, strict=True)
    ]
    return np.asarray(np.argmax(best, axis=1))


def overlap(bits: Bits, window: Window) -> float:
    """Intersection over union of a predicted mask and an annotation; NaN where both are empty."""
    inside = np.count_nonzero(bits.inside(window.top, window.left, *window.pixels.shape) & window.pixels)
    union = bits.area + np.count_nonzero(window.pixels) - inside
    return inside / union if union else float("nan")


def _refine(
    system: System,
    photo: Photo,
    frame: tuple[int, int],
    settings: Settings,
    slots: Slots,
    i: int,
    number: int,
    low: np.ndarray,
    full: Bits,
    truth: protocol.Truth,
    cells: tuple[int, int],
) -> None:
    """Give an instance its next point, by what is wrong with its mask."""
    slot, points = HEAD + number, settings.points or settings.protocol
    if settings.refine_point == "largest":
        found = protocol.largest_point(full.mask, truth.full[i])
        if found is not None:
            scale = np.array(frame[::-1]) / photo.size[::-1]
            slots.put(i, slot, found[0] * scale[0], found[1] * scale[1], found[2])
            return
    else:
        seeds = [settings.seed, number, *photo.stream(i)]
        cell = system.image_size / system.mask_size
        point = protocol.random_point(low, truth.low[i], cells, seeds, cell, points)
        if point is not None:
            slots.put(i, slot, *point)
            return
    protocol.nothing_drawn(slots, i, slot, points)


class Watch:
    """Seconds by stage of one thread's work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What passed since the last lap was this stage's."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    @property
    def rounded(self) -> dict[str, float]:
        """To microseconds, for a row."""
        return {stage: round(value, 6) for stage, value in self.seconds.items()}


def in_parallel(work: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """``map`` with so many threads, in the order of the items; few items are taken ahead of the results."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="scoring") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def run_prompted(
    system: System,
    photos: Iterable[tuple[int, Photo | BadExample]],
    settings: Settings,
    rows: Rows,
    at_once: int = 2,
    boundary: bool = True,
    on_photo: Callable[[], object] | None = None,
) -> None:
    """Score photos and keep a row for each; those whose rows are there already must not be among them.

    Raises:
      UsageError: a row can't be written.
    """

    def work(item: tuple[int, Photo | BadExample]) -> Row:
        index, photo = item
        if isinstance(photo, BadExample):
            return {"photo": index, "skipped": [photo.kind, str(photo)]}
        photo = choose_instances(photo, settings.max_instances, settings.seed)
        return row_of(photo, score_photo(system, photo, settings, boundary))

    for row in in_parallel(work, photos, at_once):
        rows.add(row)
        if on_photo is not None:
            on_photo()


def row_of(photo: Photo, scored: Scored) -> Row:
    """One photo's results as JSON has them: None where an overlap is not defined."""
    instances = []
    for i in range(len(photo)):
        instance: dict[str, Any] = {"image_id": photo.image_id, "annotation_id": int(photo.ids[i])}
        if photo.categories[i] >= 0:
            instance["category_id"] = int(photo.categories[i])
        instance |= {"area": float(photo.areas[i]), "iou": _known(scored.iou[i])}
        if scored.boundary_iou is not None:
            instance["boundary_iou"] = _known(scored.boundary_iou[i])
        instances.append(instance)
    return {"photo": photo.index, "instances": instances, "seconds": scored.seconds}


def _known(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
