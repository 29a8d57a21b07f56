"""Random shapes of the procedural scenes, and their rasterisation.

A shape is a list of strokes in its own coordinates, approximately within the unit disc.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw


class Stroke(NamedTuple):
    """A polygon ("fill") or polyline of a width ("line") through ``points`` (n 2).

    With ``add`` False, it erases what earlier strokes drew.
    """

    kind: Literal["fill", "line"]
    points: np.ndarray
    width: float = 0
    add: bool = True


class Window(NamedTuple):
    """A rectangle of pixels of a scene; ``x1`` and ``y1`` are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def empty(self) -> bool:
        """Whether the window contains no pixels."""
        return self.x1 <= self.x0 or self.y1 <= self.y0


Shape = list[Stroke]
OVERSAMPLE = 4
_TURN = np.linspace(0, 2 * np.pi, 49)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], -1)


def ellipse(rng: np.random.Generator) -> Shape:
    """Draw an ellipse."""
    return [Stroke("fill", _CIRCLE * (1, 0.45 + 0.55 * rng.random()))]


def rectangle(rng: np.random.Generator) -> Shape:
    """Draw a rectangle with sharp to round corners (a superellipse)."""
    power = 0.12 + 0.5 * rng.random()
    points = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** power
    return [Stroke("fill", points * (0.95, 0.3 + 0.6 * rng.random()))]


def polygon(rng: np.random.Generator) -> Shape:
    """Draw an irregular polygon of three to seven corners."""
    n = int(rng.integers(3, 8))
    angle = (np.arange(n) + 0.55 * (rng.random(n) - 0.5)) * (2 * np.pi / n)
    radius = 0.75 + 0.35 * rng.random(n)
    return [Stroke("fill", np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None])]


def blob(rng: np.random.Generator, wild: float = 0.25) -> Shape:
    """Draw a rounded contour from a few Fourier terms."""
    k = np.arange(2, 6)
    weight = wild * rng.random(4) * (1.6, 1.4, 1.0, 0.7)
    radius = 1 + (weight * np.cos(_TURN[:, None] * k + rng.random(4) * 2 * np.pi)).sum(-1)
    points = _CIRCLE * radius[:, None]
    return [Stroke("fill", points / np.abs(points).max())]


def wild_blob(rng: np.random.Generator) -> Shape:
    """Draw a rounded contour with deep bays."""
    return blob(rng, 0.42)


def star(rng: np.random.Generator) -> Shape:
    """Draw a star of three to seven points."""
    n = int(rng.integers(3, 8))
    angle = np.arange(2 * n) * (np.pi / n)
    radius = np.where(np.arange(2 * n) % 2, 0.32 + 0.3 * rng.random(), 1.0)
    return [Stroke("fill", np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None] * 1.1)]


def ring(rng: np.random.Generator) -> Shape:
    """Draw a disc with a hole."""
    hole = 0.45 + 0.2 * rng.random()
    return [Stroke("fill", _CIRCLE), Stroke("fill", _CIRCLE * hole, add=False)]


def crescent(rng: np.random.Generator) -> Shape:
    """Draw a disc with a bite taken out by another disc."""
    cut = _CIRCLE * (0.7 + 0.2 * rng.random()) + (0.4 + 0.25 * rng.random(), 0)
    return [Stroke("fill", _CIRCLE), Stroke("fill", cut, add=False)]


def curve(rng: np.random.Generator) -> Shape:
    """Draw an elongated stroke along a quadratic or S-shaped curve."""
    t = np.linspace(-1, 1, 17)
    bend, twist = 1.6 * (rng.random() - 0.5), 2.2 * (rng.random() - 0.5)
    points = np.stack([t, bend * (t * t - 0.5) + twist * (t**3 - 0.6 * t)], -1)
    return [Stroke("line", points, 0.42 + 0.24 * rng.random())]


_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "L": [[(-0.6, -1), (-0.6, 0.9), (0.7, 0.9)]],
    "T": [[(-0.8, -0.9), (0.8, -0.9)], [(0, -0.9), (0, 1)]],
    "H": [[(-0.65, -1), (-0.65, 1)], [(0.65, -1), (0.65, 1)], [(-0.65, 0), (0.65, 0)]],
    "X": [[(-0.75, -0.9), (0.75, 0.9)], [(0.75, -0.9), (-0.75, 0.9)]],
    "Y": [[(-0.75, -0.9), (0, 0)], [(0.75, -0.9), (0, 0)], [(0, 0), (0, 1)]],
    "U": [[(-0.65, -1), (-0.65, 0.8), (0.65, 0.8), (0.65, -1)]],
    "C": [[(0.65, -0.8), (-0.65, -0.8), (-0.65, 0.8), (0.65, 0.8)]],
    "E": [[(0.65, -0.9), (-0.6, -0.9), (-0.6, 0.9), (0.65, 0.9)], [(-0.6, 0), (0.5, 0)]],
    "Z": [[(-0.7, -0.85), (0.7, -0.85), (-0.7, 0.85), (0.7, 0.85)]],
    "S": [[(0.6, -0.85), (-0.6, -0.85), (-0.6, 0), (0.6, 0), (0.6, 0.85), (-0.6, 0.85)]],
}


def letter(rng: np.random.Generator) -> Shape:
    """Draw a capital letter in thick strokes."""
    strokes = list(_LETTERS.values())[int(rng.integers(len(_LETTERS)))]
    width = 0.4 + 0.2 * rng.random()
    return [Stroke("line", np.array(points), width) for points in strokes]


COMPACT: tuple[Callable[[np.random.Generator], Shape], ...] = (ellipse, rectangle, polygon, blob)
HOLLOW: tuple[Callable[[np.random.Generator], Shape], ...] = (wild_blob, star, ring, crescent, curve, letter, curve)


def rotation(angle: float, scale_x: float, scale_y: float) -> np.ndarray:
    """Return the matrix (2 2) that scales along the axes and then rotates by ``angle``, for ``points @ matrix``."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c * scale_x, s * scale_x], [-s * scale_y, c * scale_y]])


def window_of(shape: Shape, matrix: np.ndarray, centre: np.ndarray, size: int) -> Window:
    """Return the pixels of a scene of side ``size`` that the drawn shape can touch; may be empty."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    scale = float(np.sqrt(abs(np.linalg.det(matrix))))
    for _, points, width, add in shape:
        if add:
            placed = points @ matrix + centre
            low = np.minimum(low, placed.min(0) - width * scale / 2)
            high = np.maximum(high, placed.max(0) + width * scale / 2)
    x0, y0 = np.clip(np.floor(low) - 2, 0, size).astype(int)
    x1, y1 = np.clip(np.ceil(high) + 2, 0, size).astype(int)
    return Window(int(x0), int(y0), int(x1), int(y1))


def draw(shape: Shape, matrix: np.ndarray, centre: np.ndarray, window: Window) -> Image.Image:
    """Rasterise a shape over a window, 255 inside and 0 outside, at ``OVERSAMPLE`` times the window's size."""
    x0, y0, x1, y1 = window
    image = Image.new("L", ((x1 - x0) * OVERSAMPLE, (y1 - y0) * OVERSAMPLE), 0)
    pen = ImageDraw.Draw(image)
    scale = float(np.sqrt(abs(np.linalg.det(matrix)))) * OVERSAMPLE
    for kind, points, width, add in shape:
        placed = ((points @ matrix + centre - (x0, y0)) * OVERSAMPLE).round(2)
        colour = 255 if add else 0
        if kind == "fill":
            pen.polygon(placed.ravel().tolist(), fill=colour)
            continue
        radius = width * scale / 2
        pen.line(placed.ravel().tolist(), fill=colour, width=max(1, round(2 * radius)))
        for x, y in placed.tolist():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image
