"""One photo as a source stores it, and the way from there to an ``Example``.

Annotations are COCO's: ``bbox`` XYWH in pixels, ``segmentation`` (polygons or either run-length code), ``id``, maybe
``area``, and SA-1B's ``point_coords``.  https://cocodataset.org/#format-data
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
from edgesam_jax.data.schema import OBJECT, BadExample, Example
from edgesam_jax.data.source import Keep
from edgesam_jax.data.transforms import interior_point, load_photo, stored_size

REACH = 1e7  # px: numbers beyond it are no coordinates, and overflow what they are stored in
MAX_BYTES = 1 << 30  # of a file; no photo, nor what is known of one, is larger
MAX_OUTLINE = 1 << 22  # px of an object's polygons together; pycocotools takes some 40 bytes for each
MAX_MASKS = 1 << 33  # bytes of one photo's masks, a byte a pixel; SA-1B's fullest photos take a third of it


@dataclass(frozen=True)
class Record:
    """A photo's file and its annotations, undecoded.

    ``photo`` the bytes of the file; ``name`` what messages call it; ``where`` what they call its annotations; ``size``
    the (rows, columns) that the annotations are of, None where nothing says so.
    """

    photo: bytes
    name: str
    image_id: int | str
    annotations: Sequence[dict[str, Any]] = ()
    where: str = ""
    size: tuple[int, int] | None = None


def read_file(path: Path) -> bytes:
    """The bytes of a photo or of its annotations.

    Raises:
      BadExample: it isn't there, can't be read, or is larger than ``MAX_BYTES``.
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
    """A record's photo, RGB, and the instances wanted: ``boxes`` (n 4), ``points`` (n 2) and ``ids`` as ``Example`` has
    them, masks as windows of the photo."""

    photo: Image.Image
    masks: list[Window]
    boxes: np.ndarray
    points: np.ndarray
    ids: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the photo."""
        return self.photo.height, self.photo.width


def decode(record: Record, keep: Keep | None = None) -> Decoded:
    """Decode the photo and the masks of the instances that ``keep`` wants.

    Annotation tools differ in whether they heed EXIF orientation, so the size that they say decides.  An annotation
    without a point gets one inside its mask, the same whenever it is read; one without a mask has its box's inside.

    Raises:
      BadExample: a photo or a segmentation that is damaged, or of another size.
    """
    photo = load_photo(record.photo, record.name, limited=True)
    if record.size is not None and (photo.height, photo.width) != record.size:
        stored = load_photo(record.photo, record.name, orient=False)
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
        given = given_point(annotation, height, width)
        points[i] = point_in(mask, record.image_id, int(ids[i])) if given is None else given
    return Decoded(photo, masks, boxes, points, ids)


def decode_record(record: Record, keep: Keep | None = None) -> Example:
    """``decode`` as an example with whole masks.

    Raises:
      BadExample: see ``decode``.
    """
    found = decode(record, keep)
    masks = np.zeros((len(found.masks), *found.size), bool)
    for whole_mask, window in zip(masks, found.masks, strict=True):
        window.paste(whole_mask)
    granularity, key = np.full(len(masks), OBJECT, np.int8), photo_key(record.photo)
    return Example(
        np.array(found.photo), masks, found.boxes, found.points, record.image_id, found.ids, granularity, key
    )


def check_annotated(size: tuple[int, int], photo: bytes, name: str, where: str) -> None:
    """Refuse annotations of another size than the photo's, upright or as it is stored, before they take memory.

    Raises:
      BadExample: another size; or a photo that can't be read.
    """
    stored = stored_size(photo, name)
    if size not in (stored, stored[::-1]):
        raise _another_size(name, stored, where, size)


def _another_size(name: str, found: tuple[int, ...], where: str, size: tuple[int, int]) -> BadExample:
    return BadExample(
        "photo of another size",
        f"{name}: it has {found[1]}x{found[0]} pixels but {where} says {size[1]}x{size[0]}; use the photos that were"
        " annotated",
    )


def box_of(bbox: Sequence[float]) -> np.ndarray:
    """XYWH -> XYXY (4) float32."""
    x, y, w, h = bbox
    return np.array([x, y, x + w, y + h], np.float32)


def point_in(mask: Window, image_id: int | str, annotation_id: int) -> tuple[float, float]:
    """A point (x, y) of the photo well inside a mask, the same whenever the annotation is read."""
    x, y = interior_point(np.random.default_rng(zlib.crc32(f"{image_id} {annotation_id}".encode())), mask.pixels)
    return mask.left + x, mask.top + y


def given_point(annotation: dict[str, Any], height: int, width: int) -> list[float] | None:
    """The first point of an annotation, if it has one and that lies in the photo."""
    given = annotation.get("point_coords")
    if not (isinstance(given, list) and given and numbers(given[0], 2)):
        return None
    x, y = given[0]
    return given[0] if 0 <= x <= width and 0 <= y <= height else None


def decode_window(segmentation: Any, height: int, width: int, where: str) -> Window:
    """Mask in a photo of (height width) pixels of polygons, uncompressed RLE or compressed RLE.

    Raises:
      BadExample: it is none of these, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose nothing
            if not polygons:
                return mask_window.NOTHING
            return mask_window.from_runs(_runs(encode_polygons(polygons, height, width)["counts"]), height)
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"size {segmentation['size']} instead of {[height, width]}")
        # pycocotools trusts the runs, and writes past the end of the mask where they are too long.
        runs = _runs(segmentation["counts"])
        # A run longer than the photo is looked for as such: sums of longer ones may pass int64's end.
        if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
            raise ValueError(f"runs of {runs.sum()} pixels instead of {height * width}")
        return mask_window.from_runs(runs, height)
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample(
            "segmentation damaged", f"{where}: damaged segmentation ({error}); mend or remove it"
        ) from None


def encode_polygons(polygons: list[list[float]], height: int, width: int) -> Any:
    """Run-length code of the union of polygons, each x y x y ..., of a photo's size.

    Raises:
      ValueError: a corner that is no number, or so far outside the photo that it must be a mistake, or outlines beyond
        ``MAX_OUTLINE``: pycocotools takes memory for every pixel of an outline.
    """
    corners = np.concatenate(polygons).astype(np.float64)
    if not np.isfinite(corners).all():
        raise ValueError("a corner is not a number")
    if (np.abs(corners) > 4 * max(height, width)).any():
        raise ValueError("a corner far outside the photo")
    lines = [np.diff(np.asarray(p[: len(p) // 2 * 2], np.float64).reshape(-1, 2), axis=0) for p in polygons]
    if sum(float(np.abs(line).max(1).sum()) for line in lines) > MAX_OUTLINE:
        raise ValueError("outlines longer than any object's")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _runs(counts: list[int] | str | bytes) -> np.ndarray:
    """Lengths of the runs, int64, of either run-length code.

    Format: a compressed count is a little-endian number of 5-bit digits, one per character from "0" on; 32 says that
    more follow, the last digit's 16 that it is negative.  From the fourth on, counts are differences to the one two
    before.
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
        raise ValueError("a count of too many digits")
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    negative = (digits[last] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (places[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def fault_of(annotation: Any) -> str:
    """What is wrong with an annotation as it came out of a JSON; empty if it can be read."""
    if not isinstance(annotation, dict):
        return "not an object with fields"
    absent = [name for name in ("bbox", "segmentation") if name not in annotation]
    if absent:
        return f"no {absent[0]!r}"
    if not whole(annotation.get("id", 0)):
        return "its id is no whole number"
    if not numbers(annotation["bbox"], 4):
        return "its bbox is not four numbers"
    if not isinstance(annotation["segmentation"], list | dict):
        return "its segmentation is neither polygons nor run-length code"
    return ""


def usable(annotation: dict[str, Any]) -> bool:
    """Has a mask, and a box with an inside; of an annotation without a fault."""
    box, shape = annotation["bbox"], annotation["segmentation"]
    if isinstance(shape, list) and not any(isinstance(p, list) and len(p) >= 6 for p in shape):
        return False
    return bool(shape) and box[2] > 0 and box[3] > 0


def whole(value: Any) -> bool:
    """Is a whole number that int64 holds; 7.0, as tables are exported, is one."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 1 << 53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def numbers(value: Any, length: int) -> bool:
    """Is a list of so many numbers, none of them beyond ``REACH`` or not finite."""
    if not (isinstance(value, list) and len(value) == length):
        return False
    return all(isinstance(v, int | float) and -REACH < v < REACH for v in value)


def area_of(annotation: dict[str, Any]) -> float:
    """In pixels of the photo; the box's where the file has none.  As precise as prepared data has it."""
    area, box = annotation.get("area"), annotation["bbox"]
    known = isinstance(area, int | float) and 0 <= area < REACH**2
    return float(np.float32(area if known else box[2] * box[3]))
