"""One photo as a source stores it, and its conversion to an ``Example``.

Annotations follow COCO: ``bbox`` XYWH in pixels, ``segmentation`` (polygons or either run-length code), ``id``,
optionally ``area``, and SA-1B's ``point_coords``.  https://cocodataset.org/#format-data
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.data import mask_window
from edgesam_jax.data.embeddings import photo_key
from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.photo import load_photo, stored_size
from edgesam_jax.data.pixels import AUTO
from edgesam_jax.data.schema import OBJECT, BadExample, Example
from edgesam_jax.data.source import Keep
from edgesam_jax.data.transforms import interior_point

REACH = 1e7  # px; larger numbers can't be coordinates and would overflow their stored types
MAX_BYTES = 1 << 30  # of a file; no photo or annotation file is larger
MAX_OUTLINE = 1 << 22  # px, length of an object's outlines together; pycocotools uses about 40 bytes for each
MAX_MASKS = 1 << 33  # bytes of one photo's masks, at a byte per pixel; SA-1B's fullest photos need a third of it


@dataclass(frozen=True)
class Record:
    """A photo's file and its annotations, undecoded.

    ``photo`` is the content of the file; ``name`` and ``where`` are the names of the photo and of its annotations in
    messages; ``size`` is the (rows, columns) that the annotations refer to, None if unknown; ``pixel_range`` is the
    range of pixels that becomes 0 to 255 (``data/pixels.py``).
    """

    photo: bytes
    name: str
    image_id: int | str
    annotations: Sequence[dict[str, Any]] = ()
    where: str = ""
    size: tuple[int, int] | None = None
    pixel_range: str = AUTO


def read_file(path: Path) -> bytes:
    """Read the file of a photo or of its annotations.

    Raises:
      BadExample: the file is missing, can't be read, or is larger than ``MAX_BYTES``.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadExample("file too large", f"{path}: more than a gigabyte; remove it")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadExample("file missing", f"{path}: no such file") from None
    except OSError as error:
        raise BadExample("file unreadable", f"{path}: {error.strerror or error}; check the file") from None


@dataclass(frozen=True)
class Decoded:
    """A record's photo as RGB, with the selected instances.

    ``boxes`` (n 4), ``points`` (n 2) and ``ids`` (n) are as in ``Example``; masks are windows of the photo.
    """

    photo: Image.Image
    masks: list[Window]
    boxes: np.ndarray
    points: np.ndarray
    ids: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """The (rows, columns) of the photo."""
        return self.photo.height, self.photo.width


def decode(record: Record, keep: Keep | None = None) -> Decoded:
    """Decode the photo and the masks of the instances that ``keep`` selects.

    Annotation tools differ in whether they apply the EXIF orientation, so the annotations' size decides whether it is
    applied.  An annotation without a point gets one inside its mask, the same on every read; one without a mask gets
    its filled box.

    Raises:
      BadExample: the photo or a segmentation is damaged, or they differ in size.
    """
    photo = load_photo(record.photo, record.name, limited=True, pixel_range=record.pixel_range)
    if record.size is not None and (photo.height, photo.width) != record.size:
        stored = load_photo(record.photo, record.name, orient=False, pixel_range=record.pixel_range)
        if (stored.height, stored.width) != record.size:
            raise _another_size(record.name, (photo.height, photo.width), record.where, record.size)
        photo = stored
    height, width = photo.height, photo.width
    annotations = record.annotations
    if keep is not None:
        areas = np.array([area_of(a) for a in annotations], np.float64)
        annotations = [annotations[i] for i in keep(areas, (height, width))]
    n = len(annotations)
    if n * height * width > MAX_MASKS:
        raise BadExample("too many masks", f"{record.where}: {n} masks of {width}x{height} pixels; remove some")
    masks: list[Window] = []
    boxes, points = np.zeros((n, 4), np.float32), np.zeros((n, 2), np.float32)
    ids = np.array([a.get("id", i) for i, a in enumerate(annotations)], np.int64)
    for i, annotation in enumerate(annotations):
        boxes[i] = box_of(annotation["bbox"])
        if "segmentation" in annotation:
            where = f"{record.where}, annotation {ids[i]}"
            mask = decode_window(annotation["segmentation"], height, width, where)
        else:
            x0, y0, x1, y1 = boxes[i]
            filled = np.zeros((height, width), bool)
            filled[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = True
            mask = mask_window.crop(filled)
        masks.append(mask)
        point = annotated_point(annotation, height, width)
        points[i] = point_in(mask, record.image_id, int(ids[i])) if point is None else point
    return Decoded(photo, masks, boxes, points, ids)


def decode_record(record: Record, keep: Keep | None = None) -> Example:
    """Decode a record as an example with full-size masks.

    Raises:
      BadExample: see ``decode``.
    """
    decoded = decode(record, keep)
    masks = np.zeros((len(decoded.masks), *decoded.size), bool)
    for mask, window in zip(masks, decoded.masks, strict=True):
        window.paste(mask)
    granularity, key = np.full(len(masks), OBJECT, np.int8), photo_key(record.photo, record.pixel_range)
    return Example(
        np.array(decoded.photo), masks, decoded.boxes, decoded.points, record.image_id, decoded.ids, granularity, key
    )


def check_annotated(size: tuple[int, int], photo: bytes, name: str, where: str) -> None:
    """Reject annotations whose size is not the photo's, upright or as stored, before memory is allocated for them.

    Raises:
      BadExample: the sizes differ, or the photo can't be read.
    """
    stored = stored_size(photo, name)
    if size not in (stored, stored[::-1]):
        raise _another_size(name, stored, where, size)


def _another_size(name: str, actual: tuple[int, ...], where: str, size: tuple[int, int]) -> BadExample:
    return BadExample(
        "photo of another size",
        f"{name}: it has {actual[1]}x{actual[0]} pixels but {where} says {size[1]}x{size[0]}; use the photos that were"
        " annotated",
    )


def box_of(bbox: Sequence[float]) -> np.ndarray:
    """Convert a COCO box XYWH to XYXY (4) float32."""
    x, y, w, h = bbox
    return np.array([x, y, x + w, y + h], np.float32)


def point_in(mask: Window, image_id: int | str, annotation_id: int) -> tuple[float, float]:
    """Return a point (x, y) of the photo well inside a mask, the same on every read of the annotation."""
    x, y = interior_point(np.random.default_rng(zlib.crc32(f"{image_id} {annotation_id}".encode())), mask.pixels)
    return mask.left + x, mask.top + y


def annotated_point(annotation: dict[str, Any], height: int, width: int) -> list[float] | None:
    """Return the first point of an annotation; None if it has none or the point lies outside the photo."""
    points = annotation.get("point_coords")
    if not (isinstance(points, list) and points and is_number_list(points[0], 2)):
        return None
    x, y = points[0]
    return points[0] if 0 <= x <= width and 0 <= y <= height else None


def decode_window(segmentation: Any, height: int, width: int, where: str) -> Window:
    """Decode polygons, uncompressed RLE or compressed RLE as a mask of a photo of (height width) pixels.

    Args:
      where: name of the annotation in error messages.

    Raises:
      BadExample: ``segmentation`` is in none of these formats, or its size is not the photo's.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose nothing
            if not polygons:
                return mask_window.EMPTY_WINDOW
            return mask_window.from_runs(_runs(encode_polygons(polygons, height, width)["counts"]), height)
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"size {segmentation['size']} instead of {[height, width]}")
        # pycocotools trusts the runs, and writes past the end of the mask where they are too long.
        runs = _runs(segmentation["counts"])
        # Single runs are checked too, because sums of very long ones could overflow int64.
        if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
            raise ValueError(f"runs of {runs.sum()} pixels instead of {height * width}")
        return mask_window.from_runs(runs, height)
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample("segmentation damaged", f"{where}: damaged segmentation ({error}); fix or remove it") from None


def encode_polygons(polygons: list[list[float]], height: int, width: int) -> Any:
    """Encode the union of polygons, each x y x y ..., as a run-length code of a photo's size.

    Raises:
      ValueError: a corner is not a finite number or lies so far outside the photo that it must be a mistake, or the
        outlines are longer than ``MAX_OUTLINE``, since pycocotools allocates memory for every pixel of an outline.
    """
    corners = np.concatenate(polygons).astype(np.float64)
    if not np.isfinite(corners).all():
        raise ValueError("a corner is not a number")
    if (np.abs(corners) > 4 * max(height, width)).any():
        raise ValueError("a corner is far outside the photo")
    lines = [np.diff(np.asarray(p[: len(p) // 2 * 2], np.float64).reshape(-1, 2), axis=0) for p in polygons]
    if sum(float(np.abs(line).max(1).sum()) for line in lines) > MAX_OUTLINE:
        raise ValueError("its outlines are too long for an object")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _runs(counts: list[int] | str | bytes) -> np.ndarray:
    """Return the lengths of the runs, int64, of either run-length code.

    Format of a compressed count: a little-endian number of 5-bit digits, one per character, with "0" as zero.  Bit 32
    marks that more digits follow; bit 16 of the last digit, a negative number.  From the fourth count on, each is
    stored as the difference to the count two before it.
    """
    if isinstance(counts, list):
        return np.array(counts, np.int64)
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError("unknown or missing characters")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    places = np.arange(len(digits)) - np.repeat(starts, np.diff([*starts, len(digits)]))
    if places.max() > 6:
        raise ValueError("a count has too many digits")
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    negative = (digits[last] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (places[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def annotation_fault(annotation: Any) -> str:
    """Describe the fault of an annotation parsed from JSON; empty if it has none."""
    if not isinstance(annotation, dict):
        return "not an object"
    absent = [name for name in ("bbox", "segmentation") if name not in annotation]
    if absent:
        return f"no {absent[0]!r}"
    if not is_integer(annotation.get("id", 0)):
        return "its id is not an integer"
    if not is_number_list(annotation["bbox"], 4):
        return "its bbox is not four numbers"
    if not isinstance(annotation["segmentation"], list | dict):
        return "its segmentation is neither polygons nor run-length code"
    return ""


def has_extent(annotation: dict[str, Any]) -> bool:
    """Whether an annotation without fault has a mask and a non-empty box."""
    box, shape = annotation["bbox"], annotation["segmentation"]
    if isinstance(shape, list) and not any(isinstance(p, list) and len(p) >= 6 for p in shape):
        return False
    return bool(shape) and box[2] > 0 and box[3] > 0


def is_integer(value: Any) -> bool:
    """Whether a value is an integer that fits int64; floats like 7.0, as some tools export, count too."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 1 << 53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def is_number_list(value: Any, length: int) -> bool:
    """Whether a value is a list of ``length`` finite numbers, none of them beyond ``REACH``."""
    if not (isinstance(value, list) and len(value) == length):
        return False
    return all(isinstance(v, int | float) and -REACH < v < REACH for v in value)


def area_of(annotation: dict[str, Any]) -> float:
    """Return an annotation's area in pixels of the photo, or its box's if it has none.

    Rounded to float32, the precision of prepared data.
    """
    area, box = annotation.get("area"), annotation["bbox"]
    known = isinstance(area, int | float) and 0 <= area < REACH**2
    return float(np.float32(area if known else box[2] * box[3]))
