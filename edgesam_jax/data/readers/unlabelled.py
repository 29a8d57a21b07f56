"""Prompts for photos without annotations: the teacher provides the masks, so a guess of where objects are is enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image

from edgesam_jax.data.schema import OBJECT, Example, boxes_of
from edgesam_jax.data.source import Keep, Source, select
from edgesam_jax.data.transforms import interior_point
from edgesam_jax.portable.frame import target_size

Guess = Literal["grid", "superpixels"]
GRID = (4, 8)  # cells along the shorter side, of the coarse and of the fine grid
SEGMENTS = (12, 60)  # superpixels of the coarse and of the fine pass
WORKING_SIDE = 192  # px: superpixels are found on a small copy


class GuessedSource:
    """A source without annotations, plus instances from a grid or from superpixels, the same on every read."""

    annotated, true_masks = True, False

    def __init__(self, source: Source, how: Guess) -> None:
        self._source, self._how = source, how

    def __len__(self) -> int:
        return len(self._source)

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        example = self._source.load(index)
        masks = grid(*example.image.shape[:2]) if self._how == "grid" else superpixels(example.image)
        rng = np.random.default_rng(index)
        points = np.array([interior_point(rng, mask) for mask in masks], np.float32).reshape(-1, 2)
        ids = np.arange(len(masks))
        prompted = replace(
            example, masks=masks, boxes=boxes_of(masks), points=points, annotation_ids=ids,
            granularity=np.full(len(masks), OBJECT, np.int8),
        )  # fmt: skip
        return select(prompted, keep)


def grid(height: int, width: int) -> np.ndarray:
    """Return the nearly square cells of a coarse and a fine grid as masks (n h w)."""
    masks = []
    for cells in GRID:
        side = min(height, width) / cells
        rows, columns = max(1, round(height / side)), max(1, round(width / side))
        y, x = (
            np.linspace(0, height, rows + 1).round().astype(int),
            np.linspace(0, width, columns + 1).round().astype(int),
        )
        for i in range(rows):
            for j in range(columns):
                mask = np.zeros((height, width), bool)
                mask[y[i] : y[i + 1], x[j] : x[j + 1]] = True
                masks.append(mask)
    kept = np.array(masks)
    return kept[kept.any((1, 2))]


def superpixels(image: np.ndarray) -> np.ndarray:
    """Return the SLIC superpixels of a photo (h w 3) at two scales as masks (n h w)."""
    from skimage.segmentation import slic

    height, width = image.shape[:2]
    rows, columns = target_size(height, width, min(WORKING_SIDE, max(height, width)))
    small = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX))
    masks = []
    for segments in SEGMENTS:
        labels = slic(small, n_segments=segments, compactness=10.0, sigma=1.0, start_label=0)
        full_size = np.asarray(
            Image.fromarray(labels.astype(np.int32), mode="I").resize((width, height), Image.Resampling.NEAREST)
        )
        masks += [full_size == label for label in range(labels.max() + 1)]
    kept = np.array(masks)
    return kept[kept.any((1, 2))]
