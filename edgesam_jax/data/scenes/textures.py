"""Textures of the procedural scenes: noise, gradients, stripes, dots, and crops of real photographs.

The photographs are those of scikit-image's wheel that are CC0 or in the public domain.  Only PNG files are used: their
decoding is exact, so a scene is the same on every machine.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

_PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "brick", "grass", "gravel", "camera")
_SMALLEST = 160  # px: lower bound of the shorter side of a photograph's coarsest level


@functools.cache
def photos() -> tuple[tuple[np.ndarray, ...], ...]:
    """Return the photographs, each as a pyramid of levels (h w 3) uint8, each half the size of the one before.

    Raises:
      ModuleNotFoundError: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the scenes use scikit-image's photographs; pip install scikit-image")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    pyramids = []
    for name in _PHOTOS:
        with Image.open(folder / f"{name}.png") as file:
            image = file.convert("RGB")
        levels = [image]
        while min(levels[-1].size) // 2 >= _SMALLEST:
            levels.append(levels[-1].reduce(2))
        pyramids.append(tuple(np.asarray(level) for level in levels))
    return tuple(pyramids)


def photo_crop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Crop a random window (height width 3) float32 of a random photograph, mirrored half of the time."""
    levels = photos()[rng.integers(len(_PHOTOS))]
    fitting = [level for level in levels if level.shape[0] >= height and level.shape[1] >= width]
    if fitting:
        level = fitting[rng.integers(len(fitting))]
    else:  # scenes larger than the photograph
        level = np.asarray(Image.fromarray(levels[0]).resize((max(width, height), max(width, height))))
    y = int(rng.integers(level.shape[0] - height + 1))
    x = int(rng.integers(level.shape[1] - width + 1))
    crop = level[y : y + height, x : x + width].astype(np.float32)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Draw two octaves of smooth noise (height width) of about unit deviation.

    ``cell`` is the period of the coarse octave in pixels.
    """
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((1.0, 1.0), (2.5, 0.55)):
        rows, columns = (max(2, round(side * octave / cell) + 1) for side in (height, width))
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        total += weight * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return total * 1.1


def _waves(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Draw stripes, or dots from two crossing sets of stripes."""
    angle = rng.random() * np.pi
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    k = np.float32(2 * np.pi / period)
    wave = np.sin(
        k * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y) + rng.random(dtype=np.float32) * 6
    )
    if rng.random() < 0.4:
        wave = wave * np.sin(k * (np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x)) * 1.5
    return np.clip(wave * (1.0 + 3.0 * rng.random(dtype=np.float32)), -1, 1) * 1.2


def residual(rng: np.random.Generator, height: int, width: int, unit: float, photo: float = 0.35) -> np.ndarray:
    """Draw a random texture (height width 1 or 3) float32 around zero, of about unit deviation.

    ``unit`` is the number of pixels per pixel of a 128 px scene; ``photo`` is the probability of a photograph's crop.
    """
    draw = rng.random()
    if draw < photo:
        crop = photo_crop(rng, height, width)
        crop = crop - crop.mean((0, 1))
        return crop / max(float(crop.std()), 12.0)
    if draw < photo + 0.3 * (1 - photo):
        return _waves(rng, height, width, unit * (4 + 10 * rng.random()))[..., None]
    if draw < photo + 0.8 * (1 - photo):
        return noise(rng, height, width, unit * (5 + 25 * rng.random()))[..., None]
    return gradient(rng, height, width)[..., None] * 1.7


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a linear ramp (height width) in a random direction, with values within -1 to 1."""
    angle = rng.random() * 2 * np.pi
    x, y = _ramp(width)[None], _ramp(height)[:, None]
    return (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y) / np.float32(1.42)


@functools.lru_cache(maxsize=512)
def _ramp(length: int) -> np.ndarray:
    return np.linspace(-1, 1, length, dtype=np.float32)
