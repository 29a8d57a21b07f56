"""Bring photos and coordinates into the model's square frame, exactly as SAM does.

There are two kinds of frame. ``pad`` (EdgeSAM, SAM): the photo's longest side becomes ``size`` pixels (bilinear with
antialiasing, sides rounded half up); the photo fills the top left corner, and the rest is padding. ``stretch``
(EfficientSAM): both sides become ``size`` pixels, without antialiasing.

There are two ways of resizing. ``pillow``: SAM's predictor, Pillow on uint8. ``torch``: the published training and
evaluation, torch's filter on floats that are not rounded; frames are float32, four times as large. They differ by less
than a grey level. A ``stretch`` frame has torch's filter in both, rounded to uint8 with ``pillow``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from edgesam_jax.portable.resizing import antialiased

Frame = Literal["pad", "stretch"]
Resize = Literal["pillow", "torch"]
PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, for RGB values from 0 to 255
PIXEL_STD = (58.395, 57.12, 57.375)


def target_size(height: int, width: int, size: int, kind: Frame = "pad") -> tuple[int, int]:
    """Return a photo's rows and columns in the frame. For ``pad``: int(side * scale + 0.5), at least 1."""
    if kind == "stretch":
        return size, size
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest_side(
    image: np.ndarray | Image.Image, size: int, resize: Resize = "pillow"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Resize (h w 3) uint8 so that its longest side has ``size`` pixels.

    Returns:
      The photo, uint8 or for ``torch`` float32, and its (rows, columns).
    """
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    rows, columns = target_size(height, width, size)
    if resize == "torch":
        return antialiased(np.asarray(image), rows, columns), (rows, columns)
    if (rows, columns) == (height, width):
        return np.asarray(image), (rows, columns)
    photo = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.asarray(photo.resize((columns, rows), Image.Resampling.BILINEAR)), (rows, columns)


def into_frame(
    image: np.ndarray, size: int, kind: Frame = "pad", resize: Resize = "pillow"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a photo (h w 3) uint8 in the model's frame (size size 3), and the rows and columns that it fills.

    The frame is uint8, or for ``torch`` float32.
    """
    if kind == "stretch":
        stretched = stretch(image, size)
        return stretched if resize == "torch" else (stretched + 0.5).astype(np.uint8), (size, size)
    resized, filled = resize_longest_side(image, size, resize)
    return pad_to_square(resized, size), filled


def stretch(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (h w 3) uint8 to (size size 3) float32 as torch does: bilinear without antialiasing."""
    resized = image.astype(np.float32)
    for axis in (0, 1):
        old = resized.shape[axis]
        source = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0.0)
        low = np.minimum(source.astype(np.int64), old - 1)
        fraction = (source - low).astype(np.float32).reshape(-1, *(1,) * (2 - axis))
        high = np.minimum(low + 1, old - 1)
        resized = np.take(resized, low, axis) * (1 - fraction) + np.take(resized, high, axis) * fraction
    return resized


def pad_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Pad (h w 3) with zeros at the bottom and right to (size size 3)."""
    if image.shape[:2] == (size, size):
        return image
    padded = np.zeros((size, size, image.shape[2]), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def scale_coords(coords: np.ndarray, old_hw: tuple[int, int], new_hw: tuple[int, int]) -> np.ndarray:
    """Scale XY pairs (... 2k) from one frame (rows, columns) to another, each axis by its own ratio; float32."""
    ratio = np.array([new_hw[1] / old_hw[1], new_hw[0] / old_hw[0]])
    return (coords * np.tile(ratio, coords.shape[-1] // 2)).astype(np.float32)
