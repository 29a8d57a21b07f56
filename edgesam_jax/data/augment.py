"""Augmentation of a photo together with its masks, boxes and points, before resizing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from edgesam_jax.config import AugmentConfig
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.data.transforms import interior_point

VISIBLE = 0.5  # an instance is dropped when a smaller fraction of its pixels lies inside the window


def augment(example: Example, config: AugmentConfig, rng: np.random.Generator) -> Example:
    """Apply the augmentations that ``config`` enables; a disabled one draws no random number."""
    if config.scale:
        example = zoom(example, rng.uniform(1 - config.scale, 1 + config.scale), rng)
    if config.flip and rng.random() < config.flip:
        example = mirror(example)
    if config.colour:
        example = recolour(example, rng.uniform(1 - config.colour, 1 + config.colour, 3))
    return example


def mirror(example: Example) -> Example:
    """Flip an example horizontally."""
    width = example.image.shape[1]
    boxes, points = example.boxes.copy(), example.points.copy()
    boxes[:, [0, 2]] = width - example.boxes[:, [2, 0]]
    points[:, 0] = width - 1 - points[:, 0]  # points are pixel indices, boxes have continuous edges
    return replace(example, image=example.image[:, ::-1], masks=example.masks[:, :, ::-1], boxes=boxes, points=points)


def zoom(example: Example, scale: float, rng: np.random.Generator) -> Example:
    """Scale the content of a photo by ``scale``: crop a random window, or pad with black at a random position.

    A crop drops instances of which less than half remains visible and recomputes boxes from the visible pixels.  A
    point outside the window is drawn again from the visible mask.
    """
    height, width = example.image.shape[:2]
    rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
    y, x = (int(np.floor(rng.random() * (abs(old - new) + 1))) for old, new in ((height, rows), (width, columns)))
    if scale < 1:
        margins = ((y, rows - height - y), (x, columns - width - x))
        moved = np.array([x, y], np.float32)
        return replace(
            example,
            image=np.pad(example.image, (*margins, (0, 0))),
            masks=np.pad(example.masks, ((0, 0), *margins)),
            boxes=example.boxes + np.tile(moved, 2),
            points=example.points + moved,
        )
    window = (slice(y, y + rows), slice(x, x + columns))
    masks = example.masks[:, *window]
    seen = masks.sum((1, 2))
    cropped = replace(example, image=example.image[window], masks=masks, boxes=boxes_of(masks))
    shown = cropped.take(np.flatnonzero((seen > 0) & (seen >= VISIBLE * example.masks.sum((1, 2)))))
    shown.points -= np.array([x, y], np.float32)
    for point, mask in zip(shown.points, shown.masks, strict=True):
        if not (0 <= point[0] < columns and 0 <= point[1] < rows):
            point[:] = interior_point(rng, mask)
    return shown


def recolour(example: Example, factors: np.ndarray) -> Example:
    """Multiply brightness, contrast and saturation by ``factors`` (3)."""
    photo = Image.fromarray(np.ascontiguousarray(example.image))
    for change, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        photo = change(photo).enhance(float(factor))
    return replace(example, image=np.asarray(photo))
