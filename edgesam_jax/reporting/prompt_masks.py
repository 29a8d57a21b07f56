"""Draw all prompts of a photo with their masks, one colour for each."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from edgesam_jax.reporting.overlay import EDGE, INSIDE, OUTSIDE, contour

TINT = 0.45
GOLDEN = 0.618034  # of a turn: hues of successive numbers are far apart


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour of a prompt by its number."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * GOLDEN) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_all(
    image: np.ndarray,
    masks: Iterable[np.ndarray],
    boxes: Sequence[Sequence[float] | None],
    points: Sequence[Sequence[tuple[float, float, int]]],
) -> Image.Image:
    """Draw prompts and their masks on the photo; a mask that comes later lies on top.

    Args:
      image: (h w 3) uint8 RGB.
      masks: (h w) bool of each prompt.
      boxes: x0, y0, x1, y1 of each prompt, or None.
      points: x, y, label of each prompt's points; green for label 1 (inside), red for 0 (outside).
    """
    pixels = image.copy()
    unit = max(1, round(min(image.shape[:2]) / 400))  # line width
    for number, mask in enumerate(masks):
        shade = np.asarray(colour(number), np.float32)
        rows, columns = (slice(*_extent(np.asarray(mask.any(axis)), unit)) for axis in (1, 0))
        part, inside = pixels[rows, columns], mask[rows, columns]
        part[inside] = ((1 - TINT) * part[inside] + TINT * shade).astype(np.uint8)
        part[contour(inside, unit)] = shade.astype(np.uint8)
    picture = Image.fromarray(pixels)
    pen, radius = ImageDraw.Draw(picture), 3 * unit
    for number, (box, clicks) in enumerate(zip(boxes, points, strict=True)):
        if box is not None:
            pen.rectangle(tuple(box), outline=colour(number), width=unit)
        for x, y, label in clicks:
            circle = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(circle, fill=INSIDE if label else OUTSIDE, outline=EDGE, width=unit)
    return picture


def _extent(used: np.ndarray, margin: int) -> tuple[int, int]:
    """Return the first and the end of the lines that are used, with a margin where there is room."""
    lines = np.flatnonzero(used)
    return (max(0, int(lines[0]) - margin), int(lines[-1]) + 1 + margin) if len(lines) else (0, 0)
