"""One annotated photo, as every source returns it and the transforms take it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from edgesam_jax.config import UsageError

OBJECT, PART = 0, 1


class BadExample(UsageError):
    """A photo or annotation that can't be used.  A run that skips it counts it under ``kind``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(
        self,
    ) -> tuple[type[BadExample], tuple[str, str]]:  # by default exceptions pickle with one argument only
        return BadExample, (self.kind, str(self))


@dataclass
class Example:
    """A photo and its ``n`` instances, in pixels of the upright photo (EXIF orientation applied).

    ``image`` (h w 3) uint8 RGB; ``masks`` (n h w) bool; ``boxes`` (n 4) float32 XYXY with continuous edges: a mask of
    one pixel at the origin has the box 0 0 1 1; ``points`` (n 2) float32 XY, one inside each instance, in pixel indices
    as SAM counts them (its prompt encoder adds the half pixel); ``annotation_ids`` (n) int64; ``granularity`` (n) int8:
    0 an entire object, 1 a part of one.  ``key`` is the photo's key in a store of embeddings, empty for examples that
    don't come from a file.  ``skipped`` has (kind, message) for each annotation of the photo that can't be used.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    image_id: int | str = 0
    annotation_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    granularity: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    key: bytes = b""
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, indices: np.ndarray) -> Example:
        """Return the same photo with the instances at ``indices``, in this order."""
        return replace(
            self,
            masks=self.masks[indices],
            boxes=self.boxes[indices],
            points=self.points[indices],
            annotation_ids=self.annotation_ids[indices],
            granularity=self.granularity[indices],
        )


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Return the tight boxes (n 4) float32 XYXY of masks (n h w); an empty mask gives zeros."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
