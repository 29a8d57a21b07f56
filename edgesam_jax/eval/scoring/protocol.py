"""The two evaluation protocols: first prompts, refinement points, and the mask to compare with.  Runs on the host.

``exact``      Predictions are compared with the annotation at the photo's own resolution.  The centre point is the
               deepest pixel of the mask by Euclidean distance.  Refinement points are centres of wrong mask pixels.
``published``  The procedure behind the paper's numbers (docs/published_code.md, "Evaluation", and defects B8, B10,
               B11).  The annotation is resized to the model's frame and back, and thresholded at > 0 after bilinear
               resizing, which enlarges it.  The centre comes from an approximate distance transform in the frame.
               Refinement points lie half a cell too far up and left.  Where no point is drawn, a zero token takes part
               in the attention.  Photos are resized as in ``torch`` frames (``portable.frame``).

``docs/evaluation.md`` lists the effect of each difference on mIoU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgesam_jax.data.mask_window import EMPTY_WINDOW, Window, crop
from edgesam_jax.data.transforms import center_point, jitter_boxes, low_res_windows
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.portable.frame import Resize, scale_coords
from edgesam_jax.portable.priors import Rule, merge
from edgesam_jax.portable.resizing import bilinear_taps, nearest_taps
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, IGNORED, NEGATIVE, NOT_A_POINT, POSITIVE

ProtocolName = Literal["exact", "published"]
PromptKind = Literal["box", "center", "point"]
RefinePoint = Literal["random", "largest"]
Select = Literal["first", "score", "stability", "area", "oracle"]
# Wrong pixels of the low-resolution grid below which no random point is drawn
# (docs/published_code.md, "Sampling of prompts").
MIN_ERROR = 10
HEAD = 2  # slots before the refinement points: a box's corners, or a point and the padding token


@dataclass(frozen=True)
class Settings:
    """The settings that determine an evaluation's numbers, apart from the data and the system.

    Attributes:
      prompt: the first prompt of each instance.
      refine: number of refinement points.
      refine_point: a random wrong pixel, or the centre of the largest error region.
      num_masks, select: masks decoded per prompt, and which of them is scored.
      seed: of refinement points, box noise and sampled instances.
      box_noise: standard deviation of each corner, as a fraction of the box's side.
      max_instances: instances sampled per photo; 0 uses all.
      priors: how a click gets a box from proposals.
      protocol: the protocol of the four parts below, unless one is set.
      truth, center, points, photos: take one part from the other protocol, to measure the effect of each difference
        (``benchmarks/protocols.py``); None uses ``protocol``.
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
    photos: ProtocolName | None = None

    @property
    def resize(self) -> Resize:
        """How photos are resized to the model's frame."""
        return "torch" if (self.photos or self.protocol) == "published" else "pillow"


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

    A point is followed by SAM's padding token (label -1), a box is not (docs/published_code.md, "Architecture").
    """
    n, slots = len(photo), HEAD + settings.refine
    prompts = Slots(
        np.zeros((n, slots, 2), np.float32), np.full((n, slots), NOT_A_POINT, np.int32), np.zeros((n, slots), bool)
    )
    if not n:
        return prompts
    prompts.valid[:, :HEAD] = True
    if settings.prompt == "box":
        boxes = photo.boxes
        if settings.box_noise:
            noise = [np.random.default_rng([settings.seed, 4, *photo.stream(i)]) for i in range(n)]
            boxes = np.concatenate(
                [jitter_boxes(r, boxes[i : i + 1], photo.size, settings.box_noise) for i, r in enumerate(noise)]
            )
        prompts.coords[:, :HEAD] = scale_coords(boxes, photo.size, input_size).reshape(n, 2, 2)
        prompts.labels[:, :HEAD] = BOX_TOP_LEFT, BOX_BOTTOM_RIGHT
        return prompts
    if settings.prompt == "point":
        points = scale_coords(photo.points, photo.size, input_size)
    elif (settings.center or settings.protocol) == "exact":
        points = scale_coords(np.array([deepest(mask)[0] for mask in photo.masks]), photo.size, input_size)
    else:
        points = np.array([center_in_frame(mask, photo.size, input_size) for mask in photo.masks], np.float32)
    prompts.coords[:, 0] = points
    prompts.labels[:, 0] = POSITIVE
    return prompts


def with_priors(slots: Slots, proposals: tuple[np.ndarray, np.ndarray], rule: Rule) -> Slots:
    """Add to each click of ``start`` the box that granularity priors give it, if any.

    The box's first corner replaces the padding token, its second takes a new slot at the end.

    Args:
      proposals: boxes (n 4) in the frame and scores (n).
      rule: how proposals are merged into a box.
    """
    boxes = merge(slots.coords[:, 0], *proposals, rule)
    coords = np.pad(slots.coords, ((0, 0), (0, 1), (0, 0)))
    labels = np.pad(slots.labels, ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
    prompts = Slots(coords, labels, np.pad(slots.valid, ((0, 0), (0, 1))))
    for instance in np.flatnonzero(~np.isnan(boxes[:, 0])).tolist():
        x0, y0, x1, y1 = boxes[instance].tolist()
        prompts.put(instance, 1, x0, y0, BOX_TOP_LEFT)
        prompts.put(instance, coords.shape[1] - 1, x1, y1, BOX_BOTTOM_RIGHT)
    return prompts


def deepest(mask: Window) -> tuple[tuple[float, float], float]:
    """The pixel (x, y) of a mask that is farthest from the background, and its distance.

    Everything outside the photo counts as background.  Ties go to the first pixel in row-major order.
    """
    from scipy import ndimage

    if not mask:
        return (0.0, 0.0), 0.0
    depth = ndimage.distance_transform_edt(np.pad(mask.pixels, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return (float(mask.left + column), float(mask.top + row)), float(depth[row, column])


def center_in_frame(mask: Window, size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
    """The published centre (x, y) of a mask: its deepest pixel after nearest-neighbour resizing to the frame."""
    frame = in_frame(mask, size, input_size)
    x, y = center_point(frame.pixels, "published")
    return x + frame.left, y + frame.top


def in_frame(mask: Window, size: tuple[int, int], input_size: tuple[int, int]) -> Window:
    """Resize a mask to the frame by nearest neighbour as torch does."""
    if not mask:
        return mask
    rows, columns = (nearest_taps(old, new) for old, new in zip(size, input_size, strict=True))
    y0, y1 = np.searchsorted(rows, [mask.top, mask.top + mask.pixels.shape[0]])
    x0, x1 = np.searchsorted(columns, [mask.left, mask.left + mask.pixels.shape[1]])
    resized = crop(mask.pixels[rows[y0:y1] - mask.top][:, columns[x0:x1] - mask.left])
    return Window(resized.pixels, resized.top + int(y0), resized.left + int(x0)) if resized else resized


def resize_enlarged(mask: Window, old: tuple[int, int], new: tuple[int, int]) -> Window:
    """Resize a mask from ``old`` to ``new`` bilinearly (no antialiasing) and threshold at > 0, which enlarges it."""
    if not mask:
        return mask
    low, high = mask.top, mask.top + mask.pixels.shape[0]
    rows = [np.flatnonzero((tap >= low) & (tap < high)) for tap in bilinear_taps(old[0], new[0])]
    left, right = mask.left, mask.left + mask.pixels.shape[1]
    columns = [np.flatnonzero((tap >= left) & (tap < right)) for tap in bilinear_taps(old[1], new[1])]
    if not any(map(len, rows)) or not any(map(len, columns)):  # too thin: no target pixel reads it
        return EMPTY_WINDOW
    y0, y1 = min(r[0] for r in rows if len(r)), max(r[-1] for r in rows if len(r)) + 1
    x0, x1 = min(c[0] for c in columns if len(c)), max(c[-1] for c in columns if len(c)) + 1
    out = np.zeros((y1 - y0, x1 - x0), bool)
    for row_tap, ys in zip(bilinear_taps(old[0], new[0]), rows, strict=True):
        for column_tap, xs in zip(bilinear_taps(old[1], new[1]), columns, strict=True):
            out[np.ix_(ys - y0, xs - x0)] |= mask.pixels[np.ix_(row_tap[ys] - low, column_tap[xs] - left)]
    resized = crop(out)
    return Window(resized.pixels, resized.top + int(y0), resized.left + int(x0)) if resized else resized


@dataclass(frozen=True)
class Truth:
    """The masks to compare with: ``full``, windows at the photo's size; ``low`` (n s s) bool, low resolution."""

    full: list[Window]
    low: np.ndarray


def truth(photo: Photo, input_size: tuple[int, int], image_size: int, mask_size: int, protocol: ProtocolName) -> Truth:
    """A photo's annotations as a protocol compares them, at the photo's size and on the low-resolution grid."""
    if protocol == "exact":
        low = low_res_windows(photo.masks, photo.size, input_size, image_size, mask_size)
        return Truth(list(photo.masks), low)
    framed = [in_frame(mask, photo.size, input_size) for mask in photo.masks]
    low = np.zeros((len(photo), mask_size, mask_size), bool)
    for target, mask in zip(low, framed, strict=True):
        small = resize_enlarged(mask, (image_size, image_size), (mask_size, mask_size))
        if small:
            small.paste(target)
    return Truth([resize_enlarged(mask, input_size, photo.size) for mask in framed], low)


def photo_cells(
    input_size: tuple[int, int], image_size: int, mask_size: int, protocol: ProtocolName
) -> tuple[int, int]:
    """Rows and columns of the low-resolution grid where points may lie.

    ``exact``: pixels that lie entirely inside the photo; ``published``: also those that lie half inside it.
    """
    cell = image_size // mask_size
    # Resizing computes row r of the grid from rows cell * r + cell / 2 - 1 and cell * r + cell / 2 of the frame.
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
    """Draw a point (x, y, label), in the frame, uniformly from the wrong pixels of the low-resolution grid.

    Its label is the truth's value at that pixel.

    Args:
      prediction, truth_low: (s s) bool.
      cells: rows and columns where points may lie (``photo_cells``).
      seeds: of the random generator.
      cell: side of a low-resolution pixel, in pixels of the frame.

    Returns:
      None if fewer than ``MIN_ERROR`` pixels are wrong.
    """
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
    """The deepest pixel (x, y, label) of the false negatives or false positives, whichever is deeper, in the photo.

    This is the click of interactive segmentation: the centre of the largest error region.  None without errors.
    """
    truth = np.zeros_like(prediction)
    if true:
        true.paste(truth)
    missed, missed_depth = deepest(crop(truth & ~prediction))
    surplus, surplus_depth = deepest(crop(prediction & ~truth))
    if not missed_depth and not surplus_depth:
        return None
    return (*missed, POSITIVE) if missed_depth >= surplus_depth else (*surplus, NEGATIVE)


def skip_point(slots: Slots, instance: int, slot: int, protocol: ProtocolName) -> None:
    """Leave a slot empty; ``published`` puts a zero token there, which takes part in every attention (B8)."""
    if protocol == "published":
        slots.put(instance, slot, 0.0, 0.0, IGNORED)
