"""Draw masks on a photo: one prompt with mask, contour, box, points and score, or many masks in colours."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MASK, EDGE, BOX = (30, 144, 255), (255, 255, 255), (255, 215, 0)
INSIDE, OUTSIDE = (46, 204, 64), (230, 50, 40)
TINT = 0.45


def contour(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Return the pixels (h w) bool of a mask that are within ``width`` steps of a pixel outside the mask."""
    inner = np.pad(mask, 1, mode="edge")  # no contour along the photo's border
    inner = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    edge = mask & ~inner
    return edge if width <= 1 else edge | contour(inner, width - 1)


def draw(
    image: np.ndarray,
    mask: np.ndarray,
    text: str,
    box: Sequence[float] | None = None,
    points: Sequence[tuple[float, float, int]] = (),
) -> Image.Image:
    """Draw a prompt and its mask on the photo.

    Args:
      image: (h w 3) uint8 RGB.
      mask: (h w) bool.
      text: shown in the top left corner.
      box: x0, y0, x1, y1.
      points: x, y, label; green for label 1 (inside), red for 0 (outside).
    """
    pixels = image.copy()
    pixels[mask] = ((1 - TINT) * pixels[mask] + TINT * np.asarray(MASK)).astype(np.uint8)
    unit = max(1, round(min(image.shape[:2]) / 300))  # line width: visible on large photos, not coarse on small ones
    pixels[contour(mask, unit)] = EDGE
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    if box is not None:
        pen.rectangle(tuple(box), outline=BOX, width=unit + 1)
    radius = 3 * unit + 1
    for x, y, label in points:
        circle = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(circle, fill=INSIDE if label else OUTSIDE, outline=EDGE, width=unit)
    font = ImageFont.load_default(size=12 * unit)
    left, top, right, bottom = pen.textbbox((2 * unit, 2 * unit), text, font=font)
    pen.rectangle((left - unit, top - unit, right + unit, bottom + unit), fill=(0, 0, 0))
    pen.text((2 * unit, 2 * unit), text, font=font, fill=EDGE)
    return picture


def draw_all(
    image: np.ndarray,
    masks: Iterable[np.ndarray],
    boxes: Sequence[Sequence[float] | None] = (),
    points: Sequence[Sequence[tuple[float, float, int]]] = (),
) -> Image.Image:
    """Draw masks (h w) bool on the photo, each in a colour of its own and on top of those before.

    Args:
      image: (h w 3) uint8 RGB.
      masks: any number of them.
      boxes: x0, y0, x1, y1 of the prompts, in the colours of their masks; or None.
      points: x, y, label of each prompt's points, as in ``draw``.
    """
    pixels = image.copy()
    unit = max(1, round(min(image.shape[:2]) / 600))
    for number, mask in enumerate(masks):
        rows, columns = (_extent(np.asarray(mask.any(axis)), unit) for axis in (1, 0))
        part, inside, below = pixels[rows, columns], mask[rows, columns], image[rows, columns]
        part[inside] = ((1 - TINT) * below[inside] + TINT * _colour(number)).astype(np.uint8)
        part[contour(inside, unit)] = _colour(number).astype(np.uint8)
    picture = Image.fromarray(pixels)
    pen, radius = ImageDraw.Draw(picture), 3 * unit
    for number, box in enumerate(boxes):
        if box is not None:
            red, green, blue = _colour(number).astype(int).tolist()
            pen.rectangle(tuple(box), outline=(red, green, blue), width=unit)
    for x, y, label in (point for some in points for point in some):
        circle = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(circle, fill=INSIDE if label else OUTSIDE, outline=EDGE, width=unit)
    return picture


def _colour(number: int) -> np.ndarray:
    """Return the colour (3) of a mask by its number, 0 to 255."""
    hue = number * 0.618034 % 1  # the golden ratio keeps the hues of any number of masks apart
    return 255 * np.array(colorsys.hsv_to_rgb(hue, 0.55 + 0.45 * (number // 2 % 2), 1.0))


def _extent(used: np.ndarray, margin: int) -> slice:
    """Return the lines from the first that is used to the last, with a margin where there is room."""
    lines = np.flatnonzero(used)
    return slice(max(0, int(lines[0]) - margin), int(lines[-1]) + 1 + margin) if len(lines) else slice(0, 0)
