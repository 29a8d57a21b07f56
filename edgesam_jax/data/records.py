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
from pycocotools import mask as coco_mask

from edgesam_jax.data.embeddings import photo_key
from edgesam_jax.data.schema import OBJECT, BadExample, Example
from edgesam_jax.data.sources import Keep
from edgesam_jax.data.transforms import interior_point, load_image


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
      BadExample: it isn't there, or can't be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadExample("file missing", f"{path}: no such file") from None
    except OSError as error:
        raise BadExample("file unreadable", f"{path}: {error.strerror or error}; check the file") from None


def decode_record(record: Record, keep: Keep | None = None) -> Example:
    """Decode the photo and the masks of the instances that ``keep`` wants.

    Annotation tools differ in whether they heed EXIF orientation, so the size that they say decides.  An annotation
    without a point gets one inside its mask, the same whenever it is read; one without a mask has its box's inside.

    Raises:
      BadExample: a photo or a segmentation that is damaged, or of another size.
    """
    pixels = load_image(record.photo, record.name)
    if record.size is not None and pixels.shape[:2] != record.size:
        stored = load_image(record.photo, record.name, orient=False)
        if stored.shape[:2] != record.size:
            raise BadExample(
                "photo of another size",
                f"{record.name}: it has {pixels.shape[1]}x{pixels.shape[0]} pixels but {record.where} says "
                f"{record.size[1]}x{record.size[0]}; use the photos that were annotated",
            )
        pixels = stored
    height, width = pixels.shape[:2]
    annotations = record.annotations
    if keep is not None:
        areas = np.array([area_of(a) for a in annotations], np.float64)
        annotations = [annotations[i] for i in keep(areas, (height, width))]
    n = len(annotations)
    masks = np.zeros((n, height, width), bool)
    boxes, points = np.zeros((n, 4), np.float32), np.zeros((n, 2), np.float32)
    ids = np.array([a.get("id", i) for i, a in enumerate(annotations)], np.int64)
    for i, annotation in enumerate(annotations):
        boxes[i] = box_of(annotation["bbox"])
        if "segmentation" in annotation:
            where = f"{record.where}, annotation {ids[i]}"
            masks[i] = decode_mask(annotation["segmentation"], height, width, where)
        else:
            x0, y0, x1, y1 = boxes[i]
            masks[i, max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = True
        given = annotation.get("point_coords")
        points[i] = given[0] if given and numbers(given[0], 2) else point_in(masks[i], record.image_id, int(ids[i]))
    granularity, key = np.full(n, OBJECT, np.int8), photo_key(record.photo)
    return Example(pixels, masks, boxes, points, record.image_id, ids, granularity, key)


def box_of(bbox: Sequence[float]) -> np.ndarray:
    """XYWH -> XYXY (4) float32."""
    x, y, w, h = bbox
    return np.array([x, y, x + w, y + h], np.float32)


def point_in(mask: np.ndarray, image_id: int | str, annotation_id: int) -> tuple[float, float]:
    """A point well inside a mask (h w), the same whenever the annotation is read."""
    return interior_point(np.random.default_rng(zlib.crc32(f"{image_id} {annotation_id}".encode())), mask)


def decode_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Mask (height width) bool of polygons, uncompressed RLE or compressed RLE.

    Raises:
      BadExample: it is none of these, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose nothing
            if not np.isfinite(np.concatenate(polygons or [np.zeros(0)]).astype(np.float64)).all():
                raise ValueError("a corner is not a number")
            if not polygons:
                return np.zeros((height, width), bool)
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
            return np.asarray(coco_mask.decode(rle), bool)
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"size {segmentation['size']} instead of {[height, width]}")
        # pycocotools trusts the runs, and writes past the end of the mask where they are too long.
        runs = _runs(segmentation["counts"])
        if (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"runs of {runs.sum()} pixels instead of {height * width}")
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
        return np.asarray(coco_mask.decode(rle), bool)
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample(
            "segmentation damaged", f"{where}: damaged segmentation ({error}); mend or remove it"
        ) from None


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


def usable(annotation: dict[str, Any]) -> bool:
    """Has a mask, and a box with an inside."""
    box, shape = annotation["bbox"], annotation["segmentation"]
    if isinstance(shape, list) and not any(isinstance(p, list) and len(p) >= 6 for p in shape):
        return False
    return bool(shape) and numbers(box, 4) and box[2] > 0 and box[3] > 0


def numbers(value: Any, length: int) -> bool:
    """Is a list of so many numbers."""
    return isinstance(value, list) and len(value) == length and all(isinstance(v, int | float) for v in value)


def area_of(annotation: dict[str, Any]) -> float:
    """In pixels of the photo; the box's where the file has none.  As precise as prepared data has it."""
    area = annotation.get("area")
    return float(np.float32(area if isinstance(area, int | float) else annotation["bbox"][2] * annotation["bbox"][3]))
