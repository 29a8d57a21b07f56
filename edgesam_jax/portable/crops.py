"""The crops and the point grids of everything mode (SAM, appendix B, "Cropping" and "Filtering"). Needs numpy only.

Boxes of crops are x0, y0, x1, y1 in pixels of the photo, ends excluded.
"""

from __future__ import annotations

import math

import numpy as np

EDGE = 20  # px; a mask that ends so close to the edge of a crop is cut off by it


def point_grid(per_side: int) -> np.ndarray:
    """Return the centres (n 2) x, y of ``per_side`` x ``per_side`` equal cells of the unit square, row by row."""
    offset = 1 / (2 * per_side)
    line = np.linspace(offset, 1 - offset, per_side)  # to the last bit SAM's, unlike (i + 1/2) / per_side
    x, y = np.meshgrid(line, line)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def point_grids(per_side: int, layers: int, downscale: int) -> list[np.ndarray]:
    """Return the grid of the photo and those of ``layers`` layers of crops, each ``downscale`` times coarser."""
    return [point_grid(int(per_side / downscale**layer)) for layer in range(layers + 1)]


def crop_boxes(size: tuple[int, int], layers: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (c 4) of all crops, the whole photo first, and the layer (c) of each.

    Layer i has 2^i x 2^i crops of equal size, column by column. Neighbours overlap by ``overlap * 2 / 2^i`` of the
    photo's shorter side; crops at the right and at the bottom end with the photo. A photo of very few pixels has fewer
    crops, because those beyond its end are left out.

    Args:
      size: rows and columns of the photo.
    """
    height, width = size
    boxes, layer_of = [(0, 0, width, height)], [0]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        shared = int(overlap * min(height, width) * 2 / per_side)
        crop_width, crop_height = (math.ceil((shared * (per_side - 1) + side) / per_side) for side in (width, height))
        for i in range(per_side):
            for j in range(per_side):
                x, y = (crop_width - shared) * i, (crop_height - shared) * j
                if x < width and y < height:
                    boxes.append((x, y, min(x + crop_width, width), min(y + crop_height, height)))
                    layer_of.append(layer)
    return np.array(boxes, np.int64), np.array(layer_of)


def is_cut(boxes: np.ndarray, crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which masks (n) end at an edge of their crop that is not an edge of the photo.

    Args:
      boxes: (n 4) of the masks, in pixels of the crop.
      crop: (4).
      size: rows and columns of the photo.
    """
    placed = boxes + np.tile(crop[:2], 2)
    near_crop = np.abs(placed - crop) <= EDGE
    near_photo = np.abs(placed - np.array([0, 0, size[1], size[0]])) <= EDGE
    found: np.ndarray = (near_crop & ~near_photo).any(1)
    return found
