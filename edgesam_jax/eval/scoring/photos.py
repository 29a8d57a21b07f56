"""Photos with their instances as the evaluation uses them: masks as windows, with areas and categories."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesam_jax.data.mask_window import Window, crop
from edgesam_jax.data.readers.annotations import area_of
from edgesam_jax.data.readers.records import decode
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import SkippedRow, Source
from edgesam_jax.data.threads import in_threads

AHEAD = 3  # photos read while others are scored


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo and its ``n`` instances, in pixels of the photo.

    Attributes:
      index: position in the data set.
      image: (h w 3) uint8.
      masks: n windows.
      boxes: (n 4) XYXY.
      points: (n 2).
      ids: (n), of the annotations.
      areas: (n), from the annotations, or from the masks where an annotation has none.
      categories: (n), -1 for unknown.
      skipped: kind and message of each annotation of the photo that can't be used.
    """

    index: int
    image_id: int | str
    image: np.ndarray
    masks: Sequence[Window]
    boxes: np.ndarray
    points: np.ndarray
    ids: np.ndarray
    areas: np.ndarray
    categories: np.ndarray
    skipped: Sequence[SkippedRow] = ()

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.image.shape[0], self.image.shape[1]

    def stream(self, instance: int) -> list[int]:
        """Seeds of an instance's random stream; they depend on its ids only, not on its position in the photo."""
        return [zlib.crc32(f"{self.image_id}".encode()), int(self.ids[instance]) & 0xFFFFFFFFFFFFFFFF]


def from_example(example: Example, index: int = 0) -> Photo:
    """Convert an example with full-size masks, as generated scenes have."""
    areas = example.masks.sum((1, 2)).astype(np.float64)
    return Photo(
        index, example.image_id, example.image, [crop(mask) for mask in example.masks], example.boxes, example.points,
        example.annotation_ids, areas, np.full(len(areas), -1), example.skipped,
    )  # fmt: skip


def load(source: Source, index: int) -> Photo:
    """Read one photo of a source.

    Raises:
      BadExample: the photo or one of its masks can't be read.
    """
    record = getattr(source, "record", None)
    if record is None:
        return from_example(source.load(index), index)
    entry = record(index)
    decoded = decode(entry)
    return Photo(
        index, entry.image_id, np.asarray(decoded.photo), decoded.masks, decoded.boxes, decoded.points, decoded.ids,
        np.array([_area(a, mask) for a, mask in zip(decoded.annotations, decoded.masks, strict=True)], np.float64),
        np.array([a.get("category_id", -1) for a in decoded.annotations], np.int64), decoded.skipped,
    )  # fmt: skip


def _area(annotation: Mapping[str, Any], mask: Window) -> float:
    known = annotation.get("area") is not None
    return area_of(dict(annotation)) if known else float(mask.pixels.sum())


def read_ahead(source: Source, indices: Sequence[int]) -> Iterator[tuple[int, Photo | BadExample]]:
    """Photos of a source in the order of ``indices``, read ahead by a thread; the error where one can't be read."""

    def read(index: int) -> tuple[int, Photo | BadExample]:
        try:
            return index, load(source, index)
        except BadExample as error:
            return index, error

    return in_threads(read, indices, 1, AHEAD, "photos")


def choose_instances(photo: Photo, most: int, seed: int) -> Photo:
    """Sample at most ``most`` instances without replacement, seeded by ``seed`` and the image id; 0 keeps all."""
    if not most or len(photo) <= most:
        return photo
    rng = np.random.default_rng([seed, 3, zlib.crc32(f"{photo.image_id}".encode())])
    kept = np.sort(rng.permutation(len(photo))[:most])
    return Photo(
        photo.index, photo.image_id, photo.image, [photo.masks[i] for i in kept], photo.boxes[kept],
        photo.points[kept], photo.ids[kept], photo.areas[kept], photo.categories[kept], photo.skipped,
    )  # fmt: skip
