"""Decoding of photos, and conversion of masks, boxes and points to the model's square frame (``portable/frame.py``)."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from edgesam_jax.config import UsageError
from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.schema import BadExample

if TYPE_CHECKING:  # scipy is imported where it is used: predict starts half a second sooner without it
    from scipy import sparse

_ORIENTATION = 0x0112  # EXIF tag
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Not every format of Pillow: some of them start other programs.  "JPEG" opens phones' two-picture files (MPO) too.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM")
MAX_SIDE, MAX_PIXELS = 16384, 1 << 27  # of a photo in a data set; decoding peaks at six to nine bytes per pixel


def load_image(source: str | Path | bytes, name: str = "") -> np.ndarray:
    """Read a photo as an array (h w 3) uint8 RGB; see ``load_photo``.

    Raises:
      BadExample: see ``load_photo``.
    """
    return np.array(load_photo(source, name))


def load_photo(source: str | Path | bytes, name: str = "", orient: bool = True, limited: bool = False) -> Image.Image:
    """Read a photo as upright 8-bit RGB.

    Grey, palette, CMYK and 16-bit pictures are converted; alpha is dropped, not composited; 16-bit values are divided
    by 257.  An animation gives its first picture.

    Args:
      source: a path, or the bytes of a file.
      name: name of the photo in error messages; the path by default.
      orient: apply the EXIF orientation.
      limited: reject photos beyond ``MAX_SIDE`` or ``MAX_PIXELS`` by their header, before decoding.

    Raises:
      BadExample: the file is missing, not an image, damaged, truncated, or too large to be decoded safely.
    """
    with _opened(source, name, limited) as image:
        image.load()
        return _rgb(_oriented(image) if orient else image)


def stored_size(photo: bytes, name: str) -> tuple[int, int]:
    """Return the (rows, columns) of a data set's photo before EXIF orientation, from its header alone.

    Raises:
      BadExample: as ``load_photo`` with ``limited``, for faults that the header shows.
    """
    with _opened(photo, name, limited=True) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str, limited: bool) -> Iterator[Image.Image]:
    """Open an image and read its header; any failure, including later in decoding, becomes a ``BadExample``."""
    name = name or ("image" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.exists():
            raise BadExample("file missing", f"{name}: no such file")
        if not path.is_file():
            raise BadExample("file missing", f"{name}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns from 90 megapixels on; those photos are fine
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else path, formats=FORMATS) as image:
                if limited and (max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS):
                    size = f"{image.width}x{image.height}"
                    raise BadExample("photo too large", f"{name}: {size} pixels is too large; shrink it first")
                yield image
    except BadExample:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadExample("photo too large", f"{name}: more than {most:,} pixels; shrink it first") from None
    except MemoryError:
        raise BadExample("photo too large", f"{name}: too large for this machine's memory; shrink it first") from None
    except PermissionError:
        raise BadExample("file unreadable", f"{name}: permission denied; change its permissions") from None
    except (
        Exception
    ) as error:  # each decoder raises its own: OSError, SyntaxError, ValueError, struct.error, zlib.error
        reason = "not an image in a supported format" if "cannot identify" in str(error) else f"damaged image ({error})"
        message = f"{name}: {reason}; use a JPEG, PNG, WebP, BMP or TIFF file"
        raise BadExample("photo damaged", message) from None


def _oriented(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:  # true of most photos; exif_transpose would copy them
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF gives no orientation; the pixels are fine
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":  # ``convert`` would copy it
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # 16 bits, which Pillow widens to 32 for some formats
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _area_weights(old: int, new: int, frame: int, cells: int) -> sparse.csr_array:
    """Return weights (cells old): the fraction of each cell of the padded frame that each pixel of the photo covers."""
    from scipy import sparse

    edges = np.arange(cells + 1) * (frame / cells) * (old / new)
    rows, columns, values = [], [], []
    for cell in range(cells):
        low, high = edges[cell], edges[cell + 1]
        pixels = np.arange(int(low), min(int(np.ceil(high)), old))
        overlap = np.minimum(pixels + 1, high) - np.maximum(pixels, low)
        rows.append(np.full(len(pixels), cell))
        columns.append(pixels)
        values.append(overlap / (high - low))
    entries = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(cells, old))


def _touched(weights: sparse.csr_array, start: int, length: int) -> tuple[int, slice, sparse.csr_array]:
    """Restrict ``weights`` to the cells that overlap ``length`` pixels from ``start`` on.

    Returns:
      The first pixel of these cells, the slice of cells, and their weights.
    """
    from scipy import sparse

    pixels = weights.indices
    places = weights.indptr[
        : np.searchsorted(weights.indptr, len(pixels)) + 1
    ]  # cells beyond the photo have no entries
    first = np.searchsorted(pixels[places[1:] - 1], start)
    last = np.searchsorted(pixels[places[:-1]], start + length)
    low, high = places[first], places[last]
    begin, end = int(pixels[low]), int(pixels[high - 1]) + 1
    entries = weights.data[low:high], pixels[low:high] - begin, places[first : last + 1] - low
    return begin, slice(first, last), sparse.csr_array(entries, shape=(last - first, end - begin))


def low_res_windows(
    masks: Sequence[Window], hw: tuple[int, int], new_hw: tuple[int, int], image_size: int, mask_size: int
) -> np.ndarray:
    """Resize masks to training targets in the padded square frame: (n mask_size mask_size) bool.

    A cell is set if the mask covers more than half of its area.  A mask too small to cover half of any cell sets the
    cells that it covers more than half as much as its fullest cell, so that no instance vanishes.

    Args:
      masks: masks of a photo.
      hw, new_hw: (rows, columns) of the photo, and of the part of the frame that it fills.
      image_size, mask_size: sides of the frame in pixels and of the targets in cells.
    """
    out = np.zeros((len(masks), mask_size, mask_size), bool)
    down = _area_weights(hw[0], new_hw[0], image_size, mask_size)
    across = _area_weights(hw[1], new_hw[1], image_size, mask_size)
    for target, mask in zip(out, masks, strict=True):
        if not mask:
            continue
        # The cells that the window touches, with all of their pixels, give the same sums as the full-size mask.
        rows, columns = mask.pixels.shape
        y, y_cells, y_weights = _touched(down, mask.top, rows)
        x, x_cells, x_weights = _touched(across, mask.left, columns)
        pixels = np.zeros((y_weights.shape[1], x_weights.shape[1]), np.float32)
        pixels[mask.top - y :, mask.left - x :][:rows, :columns] = mask.pixels
        covered = (x_weights @ (y_weights @ pixels).T).T
        target[y_cells, x_cells] = covered > min(0.5, float(covered.max()) / 2)
    return out


def suppress_masks(masks: np.ndarray, share: float) -> np.ndarray:
    """Return the sorted indices of the masks (n h w) that are not covered by larger ones.

    Masks are visited from large to small; one is dropped if more than the fraction ``share`` of it is covered by masks
    already kept.  Source: the published training option MASK_NMS.
    """
    areas = masks.sum((1, 2))
    covered = np.zeros(masks.shape[1:], bool)
    kept = []
    for i in np.argsort(-areas, kind="stable"):
        if areas[i] and (masks[i] & covered).sum() <= share * areas[i]:
            kept.append(i)
            covered |= masks[i]
    return np.array(sorted(kept), np.int64)


def jitter_boxes(rng: np.random.Generator, boxes: np.ndarray, hw: tuple[int, int], std: float) -> np.ndarray:
    """Add noise N(0, std * side), clipped to 20 px, to every coordinate of boxes (n 4) XYXY.

    Boxes are clipped to the photo of ``hw`` pixels; one that would become less than a pixel wide or high stays as it
    was.  Source: the published training option BOX_JITTER (std 0.1), applied to the photo before resizing.
    """
    side = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noisy = boxes + np.clip(rng.standard_normal(boxes.shape) * std * side, -20, 20)
    noisy = np.clip(noisy, 0, np.tile([hw[1], hw[0]], 2))
    kept = (noisy[:, 2:] - noisy[:, :2] >= 1).all(1, keepdims=True)
    return np.where(kept, noisy, boxes).astype(np.float32)


def interior_point(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """Draw a random pixel (x, y) well inside a mask (h w) bool; (0, 0) if the mask is empty.

    The pixel is at least 0.6 times as far from the background as the deepest one.
    """
    from scipy import ndimage

    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0.0, 0.0
    x0, y0 = columns[0], rows[0]
    window = mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    step = -(-max(window.shape) // 256)  # a coarse distance is enough for large masks
    if step > 1 and window[::step, ::step].any():
        window = window[::step, ::step]
    else:
        step = 1
    framed = np.zeros((window.shape[0] + 2, window.shape[1] + 2), bool)  # np.pad is slow on small arrays
    framed[1:-1, 1:-1] = window
    depth = ndimage.distance_transform_edt(framed)[1:-1, 1:-1]
    thick = np.argwhere(depth >= 0.6 * depth.max())
    row, column = thick[rng.integers(len(thick))]
    return float(x0 + step * column), float(y0 + step * row)


def center_point(mask: np.ndarray, protocol: str = "exact") -> tuple[float, float]:
    """Return the pixel (x, y) deepest inside a mask (h w) bool; (0, 0) if the mask is empty.

    "exact" uses the Euclidean distance from the background; beyond the photo's border everything is background.
    "published" follows the approximate transform of the published evaluation (kornia's, kernel 3, h 0.35): rings of
    8-neighbours are filled from outside, and within the last ring the pixel with the fewest and farthest filled
    neighbours is taken.  Ties go to the first pixel in row-major order.

    Raises:
      UsageError: an unknown ``protocol``.
    """
    if not mask.any():
        return 0.0, 0.0
    from scipy import ndimage

    padded = np.pad(mask, 1)
    if protocol == "exact":
        depth = ndimage.distance_transform_edt(padded)
    elif protocol == "published":
        ring = ndimage.distance_transform_cdt(padded, metric="chessboard")
        # Rings grow by floor(1.5 i) and a pixel's own term is below 1.5, so the maximum always lies in the last ring.
        rows, columns = np.nonzero(ring == ring.max())
        total = np.zeros(len(rows), np.float32)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                filled = ring[rows + dy, columns + dx] < ring[rows, columns]
                total += np.where(filled, np.float32(np.exp(-np.hypot(dx, dy) / 0.35)), np.float32(0))
        best = int(np.argmax(-np.log(total)))
        return float(columns[best] - 1), float(rows[best] - 1)
    else:
        raise UsageError(f"--protocol {protocol}: use exact or published")
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(column - 1), float(row - 1)
