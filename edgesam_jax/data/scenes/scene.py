"""Scenes of the procedural data set: textured, overlapping objects made of parts; endless and deterministic.

Scenes replace photographs where no annotated data can be assumed (the bundled teacher, the quickstart, tests).  Apart
from the settings, a scene depends on (seed, index) alone: each has its own PCG64 stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from edgesam_jax.data.scenes import shapes, textures
from edgesam_jax.data.schema import OBJECT, PART, Example, boxes_of
from edgesam_jax.data.transforms import interior_point

MIN_AREA = 150  # visible pixels of a 128 px scene, 1 % of it; smaller instances are not annotated
_HELD_OUT = 1 << 40


def held_out_seed(seed: int) -> int:
    """Return the seed of the scenes reserved for evaluation, which never equals a training seed below 2**40."""
    return seed + _HELD_OUT


@dataclass
class _Canvas:
    rng: np.random.Generator
    size: int
    difficulty: float
    pixels: np.ndarray  # (size size 3) float32
    labels: np.ndarray  # (size size) int16: number of the visible surface; 0 is the background
    surfaces: int = 0

    @property
    def unit(self) -> float:
        """Pixels per pixel of a 128 px scene."""
        return self.size / 128

    def paint(self, window: shapes.Window, drawn: Image.Image, colour: np.ndarray, light: float) -> int:
        """Paint one textured surface on top; returns its label."""
        x0, y0, x1, y1 = window
        height, width = y1 - y0, x1 - x0
        rng = self.rng
        alpha = np.asarray(drawn.reduce(shapes.OVERSAMPLE), np.float32) / 255
        strength = (3 + 19 * rng.random() ** 1.5) * (0.3 + 0.7 * self.difficulty)
        surface = colour + np.float32(strength) * textures.residual(rng, height, width, self.unit)
        surface = surface * (1 + np.float32(light) * textures.gradient(rng, height, width))[..., None]
        region = self.pixels[y0:y1, x0:x1]
        region += alpha[..., None] * (np.maximum(np.minimum(surface, 255), 0) - region)
        self.surfaces += 1
        self.labels[y0:y1, x0:x1][alpha >= 0.5] = self.surfaces
        return self.surfaces

    def shade(self, window: shapes.Window, drawn: Image.Image) -> None:
        """Darken the surroundings of a shape about to be painted, like a soft contact shadow."""
        x0, y0, x1, y1 = window
        alpha = drawn.reduce(shapes.OVERSAMPLE).filter(ImageFilter.BoxBlur(1.5 * self.unit))
        region = self.pixels[y0:y1, x0:x1]
        region *= 1 - np.float32(0.15 + 0.35 * self.rng.random()) * np.asarray(alpha, np.float32)[..., None] / 255


def scene(seed: int, index: int, size: int = 128, difficulty: float = 1.0) -> Example:
    """Draw one scene.

    Args:
      seed, index: any non-negative integers; they determine the scene.
      size: side of the square picture in pixels.
      difficulty: 0 (two to four flat objects of distinct colours) to 1 (two to six, more hollow shapes, texture).

    Returns:
      An ``Example`` with an instance for each visible object and each sufficiently visible part (``granularity``);
      always at least one.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    while True:
        example = _draw_scene(rng, size, difficulty, index)
        if len(example):
            return example


def _draw_scene(rng: np.random.Generator, size: int, difficulty: float, index: int) -> Example:
    pixels, mean = _background(rng, size, difficulty)
    canvas = _Canvas(rng, size, difficulty, pixels, np.zeros((size, size), np.int16))
    colours = [mean]
    objects: list[_Parts] = []
    centres: list[np.ndarray] = []
    for _ in range(2 + int(rng.integers(0, 3 + round(2 * difficulty)))):
        tries = rng.random((3 if difficulty < 0.5 else 2, 2)) * 0.8 + 0.1
        gaps = [min((float(np.hypot(*(t - c))) for c in centres), default=1.0) for t in tries]
        centres.append(tries[int(np.argmax(gaps))])
        objects.append(_object(canvas, centres[-1] * size, colours))
    pixels = canvas.pixels
    if rng.random() < 0.6:  # light that varies across the entire scene
        pixels *= (1 + np.float32(0.2 * rng.random()) * textures.gradient(rng, size, size))[..., None]
    grain = np.float32(1 + 5 * difficulty * rng.random())
    pixels += grain * rng.standard_normal((size, size, 1), dtype=np.float32)
    image = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.BoxBlur(float(0.5 * rng.random()) * canvas.unit))
    return _annotate(np.asarray(image), canvas, objects, index)


def _background(rng: np.random.Generator, size: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a background; returns its pixels (size size 3) float32 and their mean colour."""
    if rng.random() < 0.25 + 0.25 * difficulty:
        crop = textures.photo_crop(rng, size, size)
        mean = crop.mean((0, 1))
        gain = np.float32((0.35 + 0.45 * difficulty) * (0.6 + 0.4 * rng.random()))
        return mean + gain * (crop - mean), mean
    mean = _hues(rng, 1)[0]
    strength = np.float32((6 + 16 * rng.random()) * (0.3 + 0.7 * difficulty))
    flat = np.broadcast_to(mean, (size, size, 3)) + strength * textures.residual(rng, size, size, size / 128, 0.0)
    return np.ascontiguousarray(flat, np.float32), mean


def _hues(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw random colours (n 3) float32 of any lightness, from grey to saturated."""
    colours = rng.random((n, 3), dtype=np.float32)
    grey = colours.mean(1, keepdims=True)
    vivid = np.float32(0.3) + np.float32(1.2) * rng.random((n, 1), dtype=np.float32)
    return 20 + 215 * np.clip(grey + (colours - grey) * vivid, 0, 1)


def _contrasting(rng: np.random.Generator, near: list[np.ndarray], difficulty: float) -> np.ndarray:
    """Return the one of a few random colours that is farthest from the colours in ``near``."""
    tries = _hues(rng, 8 - round(3 * difficulty))
    gaps = np.abs(tries[:, None] - np.stack(near)).sum(-1).min(1)
    return tries[int(np.argmax(gaps))]


_Parts = list[list[int]]  # labels of the surfaces of each part of an object; together they are the object


class _Body(NamedTuple):
    """A painted shape that markings and inserts are placed on."""

    matrix: np.ndarray  # (2 2), from the shape's coordinates to pixels
    centre: np.ndarray  # (2), in pixels
    window: shapes.Window
    drawn: Image.Image  # the shape over ``window``; see ``shapes.draw``
    colour: np.ndarray
    light: float


def _object(canvas: _Canvas, centre: np.ndarray, colours: list[np.ndarray]) -> _Parts:
    """Draw one object; returns its parts."""
    rng, size = canvas.rng, canvas.size
    hollow = rng.random() < 0.1 + 0.3 * canvas.difficulty
    family = shapes.HOLLOW if hollow else shapes.COMPACT
    body = family[rng.integers(len(family))](rng)
    radius = size * (0.14 + 0.15 * rng.random()) * (1.1 if hollow else 1.0)
    stretch = 0.75 + 0.25 * rng.random()
    matrix = shapes.rotation(_angle(rng), radius, radius * stretch)
    colour = _contrasting(rng, colours, canvas.difficulty)
    colours.append(colour)
    light = 0.1 + 0.2 * rng.random()
    kind = rng.random()
    if not hollow and kind < 0.45:  # such as a head, a wheel or a handle: sticks out, behind or in front of the body
        return _attachments(canvas, body, matrix, centre, colour, light)
    window = shapes.window_of(body, matrix, centre, size)
    if window.empty:
        return []
    drawn = shapes.draw(body, matrix, centre, window)
    canvas.shade(window, drawn)
    parts = [[canvas.paint(window, drawn, colour, light)]]
    painted = _Body(matrix, centre, window, drawn, colour, light)
    if hollow or 0.45 <= kind < 0.6:
        if kind < 0.85:
            parts.append([_marking(canvas, painted, hollow)])
    else:
        parts += _inserts(canvas, painted)
    return parts


def _angle(rng: np.random.Generator) -> float:
    """Draw an angle; multiples of 90 degrees are more likely, as in photographs."""
    return (
        float(rng.normal(0, 0.15)) + np.pi / 2 * int(rng.integers(4)) if rng.random() < 0.3 else rng.random() * 6.2832
    )


def _attachments(
    canvas: _Canvas, body: shapes.Shape, matrix: np.ndarray, centre: np.ndarray, colour: np.ndarray, light: float
) -> _Parts:
    """Draw a body with one or two smaller shapes at its contour, and maybe others inside."""
    rng = canvas.rng
    layers = [(body, matrix, centre, colour)]
    contour = body[0][1] @ matrix + centre
    radius = float(np.sqrt(abs(np.linalg.det(matrix))))
    for _ in range(1 + int(rng.random() < 0.45)):
        part = shapes.COMPACT[rng.integers(len(shapes.COMPACT))](rng)
        scale = radius * (0.45 + 0.3 * rng.random())
        place = contour[rng.integers(len(contour))]
        place = place + (place - centre) * (0.05 + 0.2 * rng.random())
        tint = _contrasting(rng, [colour], canvas.difficulty)
        layer = (part, shapes.rotation(rng.random() * 6.2832, scale, scale * 0.85), place, tint)
        layers.insert(0 if rng.random() < 0.5 else len(layers), layer)
    parts: _Parts = []
    for shape, frame, place, tint in layers:
        window = shapes.window_of(shape, frame, place, canvas.size)
        if not window.empty:
            drawn = shapes.draw(shape, frame, place, window)
            canvas.shade(window, drawn)
            labels = [canvas.paint(window, drawn, tint, light)]
            inserts = []
            if shape is body and rng.random() < 0.75:
                inserts = _inserts(canvas, _Body(frame, place, window, drawn, tint, light))
            parts += [labels + [label for part in inserts[:1] for label in part], *inserts]
    return parts


def _inserts(canvas: _Canvas, body: _Body) -> _Parts:
    """Draw one or two nested smaller shapes at the middle of a body, like a hub in a wheel or a pane in a window.

    A click there may refer to each of them or to the entire object, while their boxes differ, as points are ambiguous
    in photographs (SAM section 3).  The first part includes the second.
    """
    rng = canvas.rng
    matrix, centre, window, drawn, colour, light = body
    parts: _Parts = []
    for _ in range(1 + int(rng.random() < 0.5)):
        scale = 0.45 + 0.2 * rng.random()
        shape = shapes.COMPACT[rng.integers(len(shapes.COMPACT))](rng)
        centre = centre + 0.12 * (rng.random(2) - 0.5) @ matrix
        matrix = shapes.rotation(0.2 * (rng.random() - 0.5), scale, scale) @ matrix
        drawn = ImageChops.multiply(drawn, shapes.draw(shape, matrix, centre, window))
        colour = _contrasting(rng, [colour], canvas.difficulty)
        label = canvas.paint(window, drawn, colour, light)
        for outer in parts:
            outer.append(label)
        parts.append([label])
    return parts


def _marking(canvas: _Canvas, body: _Body, hollow: bool) -> int:
    """Paint a band, a patch or a half of another colour, clipped to the body; returns its label."""
    rng = canvas.rng
    matrix, centre, window, drawn, colour, light = body
    draw = rng.random()
    if hollow or draw < 0.35:  # everything on one side of a line
        mark: shapes.Shape = [shapes.Stroke("fill", np.array([(-3, -3), (3, -3), (3, 0), (-3, 0)]) * 1.0)]
        shift, scale = 0.25 * (rng.random(2) - 0.5), 1.0
    elif draw < 0.65:
        half = 0.16 + 0.16 * rng.random()
        mark = [shapes.Stroke("fill", np.array([(-3, -half), (3, -half), (3, half), (-3, half)]))]
        shift, scale = 0.7 * (rng.random(2) - 0.5), 1.0
    else:
        mark = shapes.COMPACT[rng.integers(len(shapes.COMPACT))](rng)
        shift, scale = 0.5 * (rng.random(2) - 0.5), 0.38 + 0.22 * rng.random()
    frame = shapes.rotation(rng.random() * 6.2832, scale, scale) @ matrix
    mark_drawn = ImageChops.multiply(drawn, shapes.draw(mark, frame, centre + shift @ matrix, window))
    return canvas.paint(window, mark_drawn, _contrasting(rng, [colour], canvas.difficulty), light)


def _annotate(image: np.ndarray, canvas: _Canvas, objects: list[_Parts], index: int) -> Example:
    """Return the example with masks of the visible objects and parts."""
    smallest = MIN_AREA * canvas.unit**2
    masks: list[np.ndarray] = []
    granularity: list[int] = []
    areas = np.bincount(canvas.labels.ravel(), minlength=canvas.surfaces + 1)
    for parts in objects:
        labels = sorted({label for part in parts for label in part})
        if not labels or areas[labels].sum() < smallest:
            continue
        # An object's labels are consecutive, since its surfaces were painted one after the other.
        whole = (canvas.labels >= labels[0]) & (canvas.labels <= labels[-1])
        masks.append(whole)
        granularity.append(OBJECT)
        kept = [whole]
        for part in parts:
            mask = np.isin(canvas.labels, part)
            if areas[part].sum() >= smallest and not any(_alike(mask, larger) for larger in kept):
                masks.append(mask)
                granularity.append(PART)
                kept.append(mask)
    stacked = np.stack(masks) if masks else np.zeros((0, *canvas.labels.shape), bool)
    points = np.zeros((len(stacked), 2), np.float32)
    for point, mask in zip(points, stacked, strict=True):
        point[:] = interior_point(canvas.rng, mask)
    return Example(
        image=image,
        masks=stacked,
        boxes=boxes_of(stacked),
        points=points,
        image_id=index,
        annotation_ids=np.arange(len(stacked), dtype=np.int64),
        granularity=np.array(granularity, np.int8),
    )


def _alike(part: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a part or its box nearly equals the whole's, so that a box prompt couldn't tell them apart."""
    if (part & ~whole).any():
        return False
    if part.sum() > 0.8 * whole.sum():
        return True
    x0, y0, x1, y1 = boxes_of(np.stack([part, whole])).T
    area = (x1 - x0) * (y1 - y0)
    return bool(area[0] > 0.8 * area[1])
