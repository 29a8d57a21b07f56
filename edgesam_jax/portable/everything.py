"""Everything mode: masks of all objects of a photo, from a grid of points (SAM, appendix B).

Options, filters, order and records are those of SAM's automatic mask generator, for any predictor: this package's,
ONNX pairs and bundles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesam_jax.portable import crops, run_lengths
from edgesam_jax.portable.errors import UsageError, type_text
from edgesam_jax.portable.frame import scale_coords
from edgesam_jax.portable.predictor import BasePredictor, read_photo
from edgesam_jax.portable.regions import drop_islands, fill_holes
from edgesam_jax.portable.scanning import Limits, Measured
from edgesam_jax.portable.suppression import suppress

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
MEMORY = 256 << 20  # bytes for the masks that are measured at once
PASSES = (4, 2, 1)  # coarse to fine: every 4th point of a grid along each side, every 2nd, all

Progress = Callable[[int, int, int], None]
"""Called with the number of points done, of all points, and of the masks found so far."""


@dataclass(eq=False)
class _Masks:
    """n masks of a photo.

    ``boxes`` (n 4): x0, y0, x1, y1 of the outermost pixels; ``points`` (n 2); ``crop`` (n 4), ends excluded; ``runs``:
    their run lengths, in the whole photo.
    """

    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    stability: np.ndarray = field(default_factory=lambda: np.zeros(0))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    crop: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    runs: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.runs)

    def __add__(self, other: _Masks) -> _Masks:
        return _Masks(
            np.concatenate([self.scores, other.scores]), np.concatenate([self.stability, other.stability]),
            np.concatenate([self.boxes, other.boxes]), np.concatenate([self.points, other.points]),
            np.concatenate([self.crop, other.crop]), self.runs + other.runs,
        )  # fmt: skip

    def take(self, indices: np.ndarray) -> _Masks:
        return _Masks(
            self.scores[indices], self.stability[indices], self.boxes[indices], self.points[indices],
            self.crop[indices], [self.runs[i] for i in indices.tolist()],
        )  # fmt: skip


class EverythingGenerator:
    """Finds masks of everything on a photo. Arguments have SAM's names, order and defaults.

    ``predicted_iou`` of a record is the predictor's score. For EdgeSAM, whose IoU head was not distilled, that is the
    stability score of the low-resolution mask, and ``pred_iou_thresh`` then limits it as well.

    Args:
      predictor: encodes the photo and its crops.
      points_per_side: the grid has the square of this many points; None if ``point_grids`` is given.
      points_per_batch: points decoded at once.
      pred_iou_thresh: masks with a score up to this are dropped; 0 keeps all.
      stability_score_thresh: masks with a lower stability score are dropped; 0 keeps all.
      stability_score_offset: how far the threshold of the logits moves for the stability score.
      box_nms_thresh: of two masks of a crop whose boxes have a larger IoU, the one with the lower score is dropped.
      crop_n_layers: layers of crops that are searched as well; layer i has 2^i x 2^i crops.
      crop_nms_thresh: the same between crops; the mask of the smaller crop stays.
      crop_overlap_ratio: overlap of crops, as a fraction of the photo's shorter side in layer 1.
      crop_n_points_downscale_factor: the grid of layer i has so many times fewer points per side, to the power of i.
      point_grids: for the photo and each layer, points (n 2) x, y from 0 to 1; in place of ``points_per_side``.
      min_mask_region_area: holes and separate parts of masks with fewer pixels are filled and dropped.
      output_mode: form of ``segmentation``: ``binary_mask`` (h w) bool, ``uncompressed_rle`` or ``coco_rle``.
      coarse_to_fine: decode every 4th point of a grid first, then every 2nd, then all, without the points inside the
        smallest mask of a point before. Less work; finds fewer parts of objects. Not in SAM.
      min_area: masks of fewer pixels are dropped. Not in SAM.
      max_masks: only so many masks, those of the highest score; 0 keeps all. Not in SAM.
      memory: bytes for the masks that are measured at once. Not in SAM.

    Raises:
      UsageError: an option out of range.
    """

    def __init__(
        self,
        predictor: BasePredictor,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        *,
        coarse_to_fine: bool = False,
        min_area: int = 0,
        max_masks: int = 0,
        memory: int = MEMORY,
    ) -> None:
        _check_number("points_per_batch", points_per_batch, 1, 1 << 16, whole=True)
        _check_number("crop_n_layers", crop_n_layers, 0, 6, whole=True)
        _check_number("min_mask_region_area", min_mask_region_area, 0, math.inf, whole=True)
        _check_number("min_area", min_area, 0, math.inf, whole=True)
        _check_number("max_masks", max_masks, 0, math.inf, whole=True)
        _check_number("memory", memory, 1 << 20, math.inf, whole=True)
        _check_number("pred_iou_thresh", pred_iou_thresh, 0, 1)
        _check_number("stability_score_thresh", stability_score_thresh, 0, 1)
        _check_number("stability_score_offset", stability_score_offset, 0, math.inf)
        _check_number("box_nms_thresh", box_nms_thresh, 0, 1)
        _check_number("crop_nms_thresh", crop_nms_thresh, 0, 1)
        _check_number("crop_overlap_ratio", crop_overlap_ratio, 0, 0.99)
        _check_number("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1, math.inf)
        if output_mode not in OUTPUT_MODES:
            raise UsageError(f"output_mode: must be one of {', '.join(OUTPUT_MODES)}, not {output_mode!r}")
        if (points_per_side is None) == (point_grids is None):
            raise UsageError("points: pass either points_per_side or point_grids, and None for the other")
        if points_per_side is not None:
            _check_number("points_per_side", points_per_side, 1, 1024, whole=True)
            if int(points_per_side / crop_n_points_downscale_factor**crop_n_layers) < 1:
                raise UsageError(
                    "crop_n_points_downscale_factor: leaves no point in the last layer of crops; lower it or raise"
                    " points_per_side"
                )
            grids = crops.point_grids(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
        else:
            grids = _read_grids(point_grids, crop_n_layers + 1)
        self.predictor, self.point_grids, self.points_per_batch = predictor, grids, int(points_per_batch)
        self.limits = Limits(pred_iou_thresh, stability_score_thresh, stability_score_offset, int(memory))
        self.box_nms_thresh, self.crop_nms_thresh = box_nms_thresh, crop_nms_thresh
        self.crop_n_layers, self.crop_overlap_ratio = crop_n_layers, crop_overlap_ratio
        self.min_mask_region_area, self.output_mode = min_mask_region_area, output_mode
        self.coarse_to_fine, self.min_area, self.max_masks = coarse_to_fine, min_area, max_masks

    def generate(self, image: np.ndarray, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Return a record for each mask, by falling score; with crops, those of smaller crops first.

        A record has SAM's keys: ``segmentation`` (see ``output_mode``), ``area`` in pixels, ``bbox`` [x, y, width,
        height] between the outermost pixels (one less than their number, as in SAM), ``predicted_iou``,
        ``point_coords`` [[x, y]] of the point, ``stability_score`` and ``crop_box`` [x, y, width, height].

        Args:
          image: (h w 3) uint8 RGB.
          progress: see ``Progress``.

        Raises:
          UsageError: ``image`` is not (h w 3) uint8.
        """
        image = read_photo(image)
        size = image.shape[0], image.shape[1]
        masks = self._search(image, size, progress)
        if self.min_mask_region_area:
            masks = self._clean(masks, size)
        if self.min_area:
            areas = np.array([run_lengths.area_of(runs) for runs in masks.runs])
            masks = masks.take(np.flatnonzero(areas >= self.min_area))
        if self.max_masks and len(masks) > self.max_masks:
            best = np.argsort(-masks.scores, kind="stable")[: self.max_masks]
            masks = masks.take(np.sort(best))
        return [self._record(masks, i, size) for i in range(len(masks))]

    def _search(self, image: np.ndarray, size: tuple[int, int], progress: Progress | None) -> _Masks:
        """Search the photo and its crops."""
        boxes, layers = crops.crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        total, done, masks = sum(len(self.point_grids[layer]) for layer in layers), 0, _Masks()
        for box, layer in zip(boxes, layers, strict=True):

            def report(points: int, found: int, done: int = done, before: int = len(masks)) -> None:
                if progress is not None:
                    progress(done + points, total, before + found)

            masks += self._search_crop(image, box, self.point_grids[layer], report)
            done += len(self.point_grids[layer])
        if len(boxes) > 1:
            crop = masks.crop
            smaller_first = 1 / ((crop[:, 2] - crop[:, 0]) * (crop[:, 3] - crop[:, 1])).astype(np.float32)
            masks = masks.take(suppress(masks.boxes, smaller_first, self.crop_nms_thresh))
        return masks

    def _search_crop(
        self, image: np.ndarray, crop: np.ndarray, grid: np.ndarray, report: Callable[[int, int], None]
    ) -> _Masks:
        """Search one crop; return its masks in pixels of the photo."""
        x0, y0, x1, y1 = crop.tolist()
        size, whole = (y1 - y0, x1 - x0), (image.shape[0], image.shape[1])
        embedding = self.predictor.set_image(image[y0:y1, x0:x1])
        points = grid * [size[1], size[0]]
        masks, done = _Masks(), 0
        covered = np.zeros(size, bool) if self.coarse_to_fine else None
        for group in _passes(len(grid)) if self.coarse_to_fine else [np.arange(len(grid))]:
            done += len(group)
            if covered is not None:
                columns, rows = points[group].astype(int).T
                group = group[~covered[rows, columns]]
            for first in range(0, len(group), self.points_per_batch):
                batch = points[group[first : first + self.points_per_batch]]
                placed = scale_coords(batch, size, embedding.input_size)
                found = self.predictor.scan_points(embedding, placed, self.limits, self.points_per_batch)
                if covered is not None:
                    _cover(covered, found)
                masks += _in_photo(found, batch, crop, whole)
                report(done - len(group) + first + len(batch), len(masks))
            report(done, len(masks))
        return masks.take(suppress(masks.boxes, masks.scores, self.box_nms_thresh))

    def _clean(self, masks: _Masks, size: tuple[int, int]) -> _Masks:
        """Fill small holes and drop small parts; suppress what has become the same, changed masks first."""
        runs, boxes, unchanged = [], masks.boxes.copy(), np.ones(len(masks))
        for i, before in enumerate(masks.runs):
            mask = run_lengths.mask_of(before, size)
            cleaned = drop_islands(fill_holes(mask, self.min_mask_region_area), self.min_mask_region_area)
            if not np.array_equal(cleaned, mask):
                unchanged[i] = 0
                rows, columns = np.flatnonzero(cleaned.any(1)), np.flatnonzero(cleaned.any(0))
                x0, y0, x1, y1 = columns[0], rows[0], columns[-1], rows[-1]
                boxes[i] = x0, y0, x1, y1
                before = run_lengths.runs_of(cleaned[y0 : y1 + 1, x0 : x1 + 1], (x0, y0), size)
            runs.append(before)
        kept = suppress(boxes, unchanged, max(self.box_nms_thresh, self.crop_nms_thresh))
        return _Masks(masks.scores, masks.stability, boxes, masks.points, masks.crop, runs).take(kept)

    def _record(self, masks: _Masks, i: int, size: tuple[int, int]) -> dict[str, Any]:
        runs = masks.runs[i]
        forms: dict[str, Callable[[np.ndarray, tuple[int, int]], Any]] = {
            "binary_mask": run_lengths.mask_of,
            "uncompressed_rle": run_lengths.uncompressed,
            "coco_rle": run_lengths.compressed,
        }
        return {
            "segmentation": forms[self.output_mode](runs, size),
            "area": run_lengths.area_of(runs),
            "bbox": _xywh(masks.boxes[i]),
            "predicted_iou": float(masks.scores[i]),
            "point_coords": [masks.points[i].tolist()],
            "stability_score": float(masks.stability[i]),
            "crop_box": _xywh(masks.crop[i]),
        }


def _in_photo(found: list[Measured], points: np.ndarray, crop: np.ndarray, size: tuple[int, int]) -> _Masks:
    """Return the masks of a crop that its edges don't cut off, in pixels of the photo."""
    if not found:
        return _Masks()
    boxes = np.stack([mask.box for mask in found])
    cut = crops.is_cut(boxes, crop, size)
    kept = [mask for mask, lost in zip(found, cut, strict=True) if not lost]
    if not kept:
        return _Masks()
    corner = crop[:2]
    boxes = np.stack([mask.box for mask in kept]) + np.tile(corner, 2)
    runs = [
        run_lengths.runs_of(mask.window(), (int(box[0]), int(box[1])), size)
        for mask, box in zip(kept, boxes, strict=True)
    ]
    return _Masks(
        np.array([mask.score for mask in kept], np.float32),
        np.array([mask.stability for mask in kept]),
        boxes,
        points[[mask.point for mask in kept]] + corner,
        np.tile(crop, (len(kept), 1)),
        runs,
    )


def _passes(points: int) -> list[np.ndarray]:
    """Split the indices of a square grid into those of every 4th point per side, every 2nd, and the rest.

    Raises:
      UsageError: the number of points is not a square.
    """
    side = math.isqrt(points)
    if side * side != points:
        raise UsageError(f"coarse_to_fine: needs square grids; a grid has {points} points")
    row, column = np.divmod(np.arange(points), side)
    level = np.full(points, len(PASSES))
    for number, step in reversed(list(enumerate(PASSES))):
        level[(row % step == step // 2) & (column % step == step // 2)] = number
    return [np.flatnonzero(level == number) for number in range(len(PASSES))]


def _cover(covered: np.ndarray, found: list[Measured]) -> None:
    """Mark the smallest mask of each point."""
    smallest: dict[int, Measured] = {}
    for mask in found:
        if mask.area and (mask.point not in smallest or mask.area < smallest[mask.point].area):
            smallest[mask.point] = mask
    for mask in smallest.values():
        x0, y0, x1, y1 = mask.box.tolist()
        covered[y0 : y1 + 1, x0 : x1 + 1] |= mask.window()


def _xywh(box: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """Check an option.

    Raises:
      UsageError: not a number, not whole where it must be, or out of range.
    """
    numeric = isinstance(value, int | np.integer) or (not whole and isinstance(value, float | np.floating))
    kind = "a whole number" if whole else "a number"
    reach = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
    if not numeric or isinstance(value, bool):
        raise UsageError(f"{name}: expected {kind} {reach}, got {type_text(value)}")
    if not low <= value <= high:
        raise UsageError(f"{name}: expected {kind} {reach}, got {value:g}")


def _read_grids(grids: Any, count: int) -> list[np.ndarray]:
    """Return ``point_grids`` as arrays (n 2) float64.

    Raises:
      UsageError: not a grid for each layer, or points outside 0 to 1.
    """
    expected = f"point_grids: expected {count} arrays (n 2) of x, y from 0 to 1, one per layer (crop_n_layers + 1)"
    try:
        read = [np.asarray(grid, np.float64) for grid in grids]
    except (TypeError, ValueError):
        raise UsageError(f"{expected}, got {type_text(grids)}") from None
    if len(read) != count:
        raise UsageError(f"{expected}, got {len(read)}")
    for i, grid in enumerate(read):
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise UsageError(f"{expected}; number {i} has shape {grid.shape}")
        if not ((grid >= 0) & (grid < 1)).all():
            raise UsageError(f"{expected}; number {i} has points outside")
    return read
