"""One photo as a source stores it, and its conversion to an ``Example``.

Annotations follow COCO: ``bbox`` XYWH in pixels, ``segmentation`` (polygons or either run-length code), ``id``,
optionally ``area``, and SA-1B's ``point_coords``.  https://cocodataset.org/#format-data  An annotation that can't be
used is left out, with a row (kind, message); ``annotations`` and ``segmentations`` give the reasons.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgesam_jax.data import mask_window
from edgesam_jax.data.embeddings import photo_key
from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.photo import load_photo, stored_size
from edgesam_jax.data.pixels import AUTO
from edgesam_jax.data.readers.annotations import DAMAGED, EMPTY, annotated_point, area_of, box_of, is_outside
from edgesam_jax.data.readers.segmentations import decode_window
from edgesam_jax.data.schema import OBJECT, BadExample, Example
from edgesam_jax.data.source import Keep, SkippedRow, commonest, reasons
from edgesam_jax.data.transforms import interior_point

MAX_BYTES = 1 << 30  # of a file; no photo or annotation file is larger
MAX_MASKS = 1 << 33  # bytes of one photo's masks, at a byte per pixel; SA-1B's fullest photos need a third of it


@dataclass(frozen=True)
class Record:
    """A photo's file and its annotations, undecoded.

    ``photo`` is the content of the file; ``name`` and ``where`` are the names of the photo and of its annotations in
    messages; ``size`` is the (rows, columns) that the annotations refer to, None if unknown; ``pixel_range`` is the
    range of pixels that becomes 0 to 255 (``data/pixels.py``).  ``skipped`` has a row for each annotation that the
    reader left out.
    """

    photo: bytes
    name: str
    image_id: int | str
    annotations: Sequence[dict[str, Any]] = ()
    where: str = ""
    size: tuple[int, int] | None = None
    skipped: Sequence[SkippedRow] = ()
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

    ``boxes`` (n 4), ``points`` (n 2) and ``ids`` (n) are as in ``Example``; masks are windows of the photo, none of
    them empty; ``annotations`` (n) are the record's.  ``skipped`` has a row for each annotation that can't be used:
    the record's, and those of the selected ones.
    """

    photo: Image.Image
    masks: list[Window]
    boxes: np.ndarray
    points: np.ndarray
    ids: np.ndarray
    annotations: Sequence[dict[str, Any]] = ()
    skipped: Sequence[SkippedRow] = ()

    @property
    def size(self) -> tuple[int, int]:
        """The (rows, columns) of the photo."""
        return self.photo.height, self.photo.width


def decode(record: Record, keep: Keep | None = None) -> Decoded:
    """Decode the photo and the masks of the instances that ``keep`` selects.

    Annotation tools differ in whether they apply the EXIF orientation, so the annotations' size decides whether it is
    applied.  An annotation without a point gets one inside its mask, the same on every read; one without a mask gets
    its filled box.  Annotations that are damaged, or whose masks have no pixel, are left out.

    Raises:
      BadExample: the photo is damaged or differs in size from its annotations; or there are annotations, and none that
        was selected can be used.
    """
    if record.skipped and not record.annotations:
        raise none_usable(record.where, record.skipped)
    photo = load_photo(record.photo, record.name, limited=True, pixel_range=record.pixel_range)
    if record.size is not None and (photo.height, photo.width) != record.size:
        stored = load_photo(record.photo, record.name, orient=False, pixel_range=record.pixel_range)
        if (stored.height, stored.width) != record.size:
            raise _another_size(record.name, (photo.height, photo.width), record.where, record.size)
        photo = stored
    height, width = photo.height, photo.width
    selected = np.arange(len(record.annotations))
    if keep is not None:
        areas = np.array([area_of(a) for a in record.annotations], np.float64)
        selected = np.asarray(keep(areas, (height, width)), np.int64)
    if len(selected) * height * width > MAX_MASKS:
        raise BadExample(
            "too many masks", f"{record.where}: {len(selected)} masks of {width}x{height} pixels; remove some"
        )
    annotations: list[dict[str, Any]] = []
    masks: list[Window] = []
    ids, skipped = [], list(record.skipped)
    for i in selected.tolist():
        annotation = record.annotations[i]
        number = int(annotation.get("id", i))
        where = f"{record.where}, annotation {number}"
        try:
            mask = _mask_of(annotation, height, width, where)
        except BadExample as error:
            skipped.append((error.kind, str(error)))
            continue
        annotations.append(annotation)
        masks.append(mask)
        ids.append(number)
    if len(selected) and not masks:
        raise none_usable(record.where, skipped)
    boxes, points = np.zeros((len(masks), 4), np.float32), np.zeros((len(masks), 2), np.float32)
    for i, annotation in enumerate(annotations):
        boxes[i] = box_of(annotation["bbox"])
        point = annotated_point(annotation, height, width)
        points[i] = point_in(masks[i], record.image_id, ids[i]) if point is None else point
    return Decoded(photo, masks, boxes, points, np.array(ids, np.int64), annotations, skipped)


def _mask_of(annotation: dict[str, Any], height: int, width: int, where: str) -> Window:
    """Decode the mask of an annotation, or fill its box if it has none.

    Raises:
      BadExample: the mask is damaged or has no pixel, or the box lies outside the photo.
    """
    if "segmentation" in annotation:
        mask = decode_window(annotation["segmentation"], height, width, where)
    else:
        x0, y0, x1, y1 = box_of(annotation["bbox"])
        filled = np.zeros((height, width), bool)
        filled[max(0, int(y0)) : max(0, int(np.ceil(y1))), max(0, int(x0)) : max(0, int(np.ceil(x1)))] = True
        mask = mask_window.crop(filled)
    if not mask:
        raise BadExample(EMPTY, f"{where}: its mask has no pixel in the photo of {width}x{height} pixels; remove it")
    if is_outside(annotation["bbox"], height, width):
        raise BadExample(DAMAGED, f"{where}: its bbox lies outside the photo of {width}x{height} pixels; fix it")
    return mask


def none_usable(where: str, rows: Sequence[SkippedRow]) -> BadExample:
    """Return the error for a photo that has annotations, none of which can be used.

    Args:
      where: name of the annotations.
      rows: (kind, message) of each.
    """
    kind = {DAMAGED: "annotations damaged", "segmentation damaged": "segmentation damaged"}.get(commonest(rows))
    return BadExample(kind or "no annotations", f"{where}: no usable annotation: {reasons(rows)}")


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
        np.array(decoded.photo), masks, decoded.boxes, decoded.points, record.image_id, decoded.ids, granularity, key,
        tuple(decoded.skipped),
    )  # fmt: skip


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


def point_in(mask: Window, image_id: int | str, annotation_id: int) -> tuple[float, float]:
    """Return a point (x, y) of the photo well inside a mask, the same on every read of the annotation."""
    x, y = interior_point(np.random.default_rng(zlib.crc32(f"{image_id} {annotation_id}".encode())), mask.pixels)
    return mask.left + x, mask.top + y
