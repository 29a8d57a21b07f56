"""What is asked and what is compared: the two named protocols.  All of it on the host.

``exact``      a prediction is compared with the annotation at the photo's own resolution; the centre point is the
               deepest pixel of the mask by Euclidean distance; refinement points are centres of wrong mask pixels.
``published``  the procedure behind the paper's numbers as it stands (facts, section 7 and defects B8, B10, B11): the
               annotation goes through the model's frame and is cut at > 0 after bilinear resizing, which enlarges it;
               the centre is the approximate distance transform's in the frame; refinement points lie half a cell too
               far up and left; where nothing is drawn a zero token takes part in the attention.

``docs/evaluation.md`` tells what each difference is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgesam_jax.data.mask_window import EMPTY_WINDOW, Window, crop
from edgesam_jax.data.transforms import center_point, jitter_boxes, low_res_windows
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.portable.frame import scale_coords
from edgesam_jax.portable.priors import Rule, merge
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, IGNORED, NEGATIVE, NOT_A_POINT, POSITIVE

ProtocolName = Literal["exact", "published"]
PromptKind = Literal["box", "center", "point"]
RefinePoint = Literal["random", "largest"]
Select = Literal["first", "score", "stability", "area", "oracle"]
MIN_ERROR = 10  # pixels of the low-resolution grid; below it no random point is drawn (facts, section 6.1)
HEAD = 2  # slots before the refinement points: a box's corners, or a point and the padding token


@dataclass(frozen=True)
class Settings:
    """Everything that decides an evaluation's numbers, beside the data and the system.

    ``truth``, ``center`` and ``points`` take one part of the other protocol; None: ``protocol``'s.  They tell what each
    difference is worth (``benchmarks/protocols.py``).  ``box_noise`` is the standard deviation of each corner as a
    share of the box's side; ``max_instances`` of a photo, 0 for all; ``priors``: how a click gets a box from proposals.
    """

    prompt: PromptKind = "box"
    refine: int = 0
    refine_point: RefinePoint = "random"
    protocol: ProtocolName = "exact"
    num_masks: int = 1
    select: Select = "first"
    seed: int = 0
    box_noise: float = 0.0
    max_instances: int = 0
    priors: Rule = "off"
    truth: ProtocolName | None = None
    center: ProtocolName | None = None
    points: ProtocolName | None = None


@dataclass
class Slots:
    """The prompts of a photo: ``coords`` (n s 2) float32 in the frame, ``labels`` (n s) int32, ``valid`` (n s) bool."""

    coords: np.ndarray
    labels: np.ndarray
    valid: np.ndarray

    def put(self, instance: int, slot: int, x: float, y: float, label: int) -> None:
        """Fill one slot."""
        self.coords[instance, slot] = x, y
        self.labels[instance, slot] = label
        self.valid[instance, slot] = True


def start(photo: Photo, input_size: tuple[int, int], settings: Settings) -> Slots:
    """The first prompts of all instances, with empty slots for the refinement points.

    A point is followed by SAM's padding token (label -1), a box is not (facts, section 2).
    """
    n, slots = len(photo), HEAD + settings.refine
    found = Slots(
        np.zeros((n, slots, 2), np.float32), np.full((n, slots), NOT_A_POINT, np.int32), np.zeros((n, slots), bool)
    )
    if not n:
        return found
    found.valid[:, :HEAD] = True
    if settings.prompt == "box":
        boxes = photo.boxes
        if settings.box_noise:
            noise = [np.random.default_rng([settings.seed, 4, *photo.stream(i)]) for i in range(n)]
            boxes = np.concatenate(
                [jitter_boxes(r, boxes[i : i + 1], photo.size, settings.box_noise) for i, r in enumerate(noise)]
            )
        found.coords[:, :HEAD] = scale_coords(boxes, photo.size, input_size).reshape(n, 2, 2)
        found.labels[:, :HEAD] = BOX_TOP_LEFT, BOX_BOTTOM_RIGHT
        return found
    if settings.prompt == "point":
        points = scale_coords(photo.points, photo.size, input_size)
    elif (settings.center or settings.protocol) == "exact":
        points = scale_coords(np.array([deepest(mask)[0] for mask in photo.masks]), photo.size, input_size)
    else:
        points = np.array([center_in_frame(mask, photo.size, input_size) for mask in photo.masks], np.float32)
    found.coords[:, 0] = points
    found.labels[:, 0] = POSITIVE
    return found


def with_priors(slots: Slots, proposals: tuple[np.ndarray, np.ndarray], rule: Rule) -> Slots:
    """The clicks of ``start`` with a box where proposals (boxes in the frame, scores) have one: its corners' slots are
    the padding token's, and a new one at the end."""
    boxes = merge(slots.coords[:, 0], *proposals, rule)
    coords = np.pad(slots.coords, ((0, 0), (0, 1), (0, 0)))
    labels = np.pad(slots.labels, ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
    found = Slots(coords, labels, np.pad(slots.valid, ((0, 0), (0, 1))))
    for instance in np.flatnonzero(~np.isnan(boxes[:, 0])).tolist():
        x0, y0, x1, y1 = boxes[instance].tolist()
        found.put(instance, 1, x0, y0, BOX_TOP_LEFT)
        found.put(instance, coords.shape[1] - 1, x1, y1, BOX_BOTTOM_RIGHT)
    return found


def deepest(mask: Window) -> tuple[tuple[float, float], float]:
    """The pixel (x, y) of a mask farthest from what is not mask, the photo's outside included, and that distance.

    Within its window, since whatever surrounds that is not mask; ties go to the first in row-major order.
    """
    from scipy import ndimage

    if not mask:
        return (0.0, 0.0), 0.0
    depth = ndimage.distance_transform_edt(np.pad(mask.pixels, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return (float(mask.left + column), float(mask.top + row)), float(depth[row, column])


def center_in_frame(mask: Window, size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
    """The published centre (x, y) of a mask: brought to the frame by nearest neighbour, the deepest pixel there."""
    frame = in_frame(mask, size, input_size)
    x, y = center_point(frame.pixels, "published")
    return x + frame.left, y + frame.top


def in_frame(mask: Window, size: tuple[int, int], input_size: tuple[int, int]) -> Window:
    """A mask in the frame by nearest neighbour, as torch takes it: pixel ``floor(i * old / new)``."""
    if not mask:
        return mask
    rows, columns = (
        np.minimum((np.arange(new) * (old / new)).astype(int), old - 1)
        for old, new in zip(size, input_size, strict=True)
    )
    y0, y1 = np.searchsorted(rows, [mask.top, mask.top + mask.pixels.shape[0]])
    x0, x1 = np.searchsorted(columns, [mask.left, mask.left + mask.pixels.shape[1]])
    found = crop(mask.pixels[rows[y0:y1] - mask.top][:, columns[x0:x1] - mask.left])
    return Window(found.pixels, found.top + int(y0), found.left + int(x0)) if found else found


def touched(mask: Window, old: tuple[int, int], new: tuple[int, int]) -> Window:
    """A mask after bilinear resizing (no antialiasing) from ``old`` to ``new`` and cutting at > 0: enlarged."""
    if not mask:
        return mask
    low, high = mask.top, mask.top + mask.pixels.shape[0]
    rows = [np.flatnonzero((tap >= low) & (tap < high)) for tap in _taps(old[0], new[0])]
    left, right = mask.left, mask.left + mask.pixels.shape[1]
    columns = [np.flatnonzero((tap >= left) & (tap < right)) for tap in _taps(old[1], new[1])]
    if not any(map(len, rows)) or not any(map(len, columns)):  # thin, and between the pixels that are read
        return EMPTY_WINDOW
    y0, y1 = min(r[0] for r in rows if len(r)), max(r[-1] for r in rows if len(r)) + 1
    x0, x1 = min(c[0] for c in columns if len(c)), max(c[-1] for c in columns if len(c)) + 1
    out = np.zeros((y1 - y0, x1 - x0), bool)
    for row_tap, ys in zip(_taps(old[0], new[0]), rows, strict=True):
        for column_tap, xs in zip(_taps(old[1], new[1]), columns, strict=True):
            out[np.ix_(ys - y0, xs - x0)] |= mask.pixels[np.ix_(row_tap[ys] - low, column_tap[xs] - left)]
    found = crop(out)
    return Window(found.pixels, found.top + int(y0), found.left + int(x0)) if found else found


def _taps(old: int, new: int) -> list[np.ndarray]:
    """The one or two source pixels that each target pixel reads with a weight above 0; -1 where there is no second."""
    source = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0.0)
    low = np.minimum(source.astype(np.int64), old - 1)
    second = np.where((source > low) & (low + 1 < old), low + 1, -1)
    return [low, second]


@dataclass(frozen=True)
class Truth:
    """What the masks of a photo are compared with: ``full`` windows at the photo's size, ``low`` (n s s) bool."""

    full: list[Window]
    low: np.ndarray


def truth(photo: Photo, input_size: tuple[int, int], image_size: int, mask_size: int, protocol: ProtocolName) -> Truth:
    """The annotations as a protocol compares them, at the photo's size and on the low-resolution grid."""
    if protocol == "exact":
        low = low_res_windows(photo.masks, photo.size, input_size, image_size, mask_size)
        return Truth(list(photo.masks), low)
    framed = [in_frame(mask, photo.size, input_size) for mask in photo.masks]
    low = np.zeros((len(photo), mask_size, mask_size), bool)
    for target, mask in zip(low, framed, strict=True):
        small = touched(mask, (image_size, image_size), (mask_size, mask_size))
        if small:
            small.paste(target)
    return Truth([touched(mask, input_size, photo.size) for mask in framed], low)


def photo_cells(
    input_size: tuple[int, int], image_size: int, mask_size: int, protocol: ProtocolName
) -> tuple[int, int]:
    """Rows and columns of the low-resolution grid where points may lie.

    ``exact``: pixels that lie in the photo as a whole; ``published``: also those of which half does.
    """
    cell = image_size // mask_size
    # Resizing reads row r of the grid from pixels cell * r + cell / 2 - 1 and the next one.
    shift = cell // 2 - (protocol == "exact" and cell > 1)
    rows, columns = ((side + shift) // cell for side in input_size)
    return rows, columns


def random_point(
    prediction: np.ndarray,
    truth_low: np.ndarray,
    cells: tuple[int, int],
    seeds: list[int],
    cell: float,
    protocol: ProtocolName,
) -> tuple[float, float, int] | None:
    """A point (x, y, label) drawn uniformly from the wrong pixels of the low-resolution grid (s s), in the frame.

    Its label is the truth's value there.  None where fewer than ``MIN_ERROR`` pixels are wrong.
    """  # fmt: skip
    wrong = prediction != truth_low
    wrong[cells[0] :] = False
    wrong[:, cells[1] :] = False
    places = np.flatnonzero(wrong)
    if len(places) < MIN_ERROR:
        return None
    row, column = divmod(int(places[np.random.default_rng(seeds).integers(len(places))]), wrong.shape[1])
    shift = (cell - 1) / 2 if protocol == "exact" else 0.0
    return column * cell + shift, row * cell + shift, POSITIVE if truth_low[row, column] else NEGATIVE


def largest_point(prediction: np.ndarray, true: Window) -> tuple[float, float, int] | None:
    """The deepest pixel (x, y, label) of what is missed or surplus, whichever is deeper, in pixels of the photo.

    The interactive-segmentation field's click: the centre of the largest error region.  None where nothing is wrong.
    """
    whole = np.zeros_like(prediction)
    if true:
        true.paste(whole)
    missed, miss_depth = deepest(crop(whole & ~prediction))
    surplus, surplus_depth = deepest(crop(prediction & ~whole))
    if not miss_depth and not surplus_depth:
        return None
    return (*missed, POSITIVE) if miss_depth >= surplus_depth else (*surplus, NEGATIVE)


def nothing_drawn(slots: Slots, instance: int, slot: int, protocol: ProtocolName) -> None:
    """Leave a slot empty; the published procedure has a zero token there, which takes part in every attention (B8)."""
    if protocol == "published":
        slots.put(instance, slot, 0.0, 0.0, IGNORED)
