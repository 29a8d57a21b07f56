"""Reading photos, and masks and points in the model's square frame (``portable/frame.py``)."""

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

if TYPE_CHECKING:  # scipy is loaded where it is used: predict starts half a second sooner without it
    from scipy import sparse

_ORIENTATION = 0x0112  # EXIF's tag
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Not all that Pillow knows: some formats start other programs.  "JPEG" opens phones' two-picture files too.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM")
MAX_SIDE, MAX_PIXELS = 16384, 1 << 27  # of a photo in a data set; decoding takes six to nine bytes a pixel at its peak


def load_image(source: str | Path | bytes, name: str = "") -> np.ndarray:
    """``load_photo`` as an array (h w 3) uint8 RGB.

    Raises:
      BadExample: see ``load_photo``.
    """
    return np.array(load_photo(source, name))


def load_photo(source: str | Path | bytes, name: str = "", orient: bool = True, limited: bool = False) -> Image.Image:
    """Read a photo as a person sees it: RGB, 8 bits.

    EXIF orientation is applied unless ``orient`` is False.  Grey, palette, CMYK and 16-bit pictures are converted;
    alpha is dropped, not composited; 16-bit values are divided by 257.  An animation gives its first picture.

    Args:
      source: a path, or the bytes of a file.
      name: what to call the photo in an error; the path by default.
      limited: refuse more than ``MAX_SIDE`` or ``MAX_PIXELS``, by the header, before anything is decoded.

    Raises:
      BadExample: no such file, not an image, damaged or cut short, or too large to be decoded safely.
    """
    with _opened(source, name, limited) as image:
        image.load()
        return _rgb(_oriented(image) if orient else image)


def stored_size(photo: bytes, name: str) -> tuple[int, int]:
    """(rows, columns) of a data set's photo as it is stored, from its header alone.

    Raises:
      BadExample: as ``load_photo`` with ``limited``, so far as the header tells.
    """
    with _opened(photo, name, limited=True) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str, limited: bool) -> Iterator[Image.Image]:
    """An image of which the header is read; whatever goes wrong with it, also in decoding, is a ``BadExample``."""
    name = name or ("image" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.exists():
            raise BadExample("file missing", f"{name}: no such file")
        if not path.is_file():
            raise BadExample("file missing", f"{name}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # photos of 90 to 180 megapixels are large, but fine
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else path, formats=FORMATS) as image:
                if limited and (max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS):
                    size = f"{image.width}x{image.height}"
                    raise BadExample("photo too large", f"{name}: {size} pixels; shrink it first")
                yield image
    except BadExample:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadExample("photo too large", f"{name}: more than {most:,} pixels; shrink it first") from None
    except MemoryError:
        raise BadExample("photo too large", f"{name}: too large for this machine's memory; shrink it first") from None
    except PermissionError:
        raise BadExample("file unreadable", f"{name}: not allowed to read it; change its permissions") from None
    except Exception as error:  # each decoder has its own: OSError, SyntaxError, ValueError, struct.error, zlib.error
        reason = "not an image that can be read" if "cannot identify" in str(error) else f"damaged image ({error})"
        message = f"{name}: {reason}; use a JPEG, PNG, WebP, BMP or TIFF file"
        raise BadExample("photo damaged", message) from None


def _oriented(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:  # most photos, which exif_transpose would copy
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the orientation; the pixels are fine
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":  # which convert would copy
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # 16 bits, and what Pillow widens to 32
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _area_weights(old: int, new: int, frame: int, cells: int) -> sparse.csr_array:
    """Weights (cells old): the share of each cell of the padded frame that each pixel of the photo covers."""
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
    """Of all weights, those of the cells that some pixels lie in: the cells' first pixel, the cells, their weights."""
    from scipy import sparse

    pixels = weights.indices
    places = weights.indptr[: np.searchsorted(weights.indptr, len(pixels)) + 1]  # cells beyond the photo have none
    first = np.searchsorted(pixels[places[1:] - 1], start)
    last = np.searchsorted(pixels[places[:-1]], start + length)
    low, high = places[first], places[last]
    begin, end = int(pixels[low]), int(pixels[high - 1]) + 1
    entries = weights.data[low:high], pixels[low:high] - begin, places[first : last + 1] - low
    return begin, slice(first, last), sparse.csr_array(entries, shape=(last - first, end - begin))


def low_res_windows(
    masks: Sequence[Window], hw: tuple[int, int], new_hw: tuple[int, int], image_size: int, mask_size: int
) -> np.ndarray:
    """Masks of a photo of ``hw`` pixels as training targets in the padded square frame: (n mask_size mask_size) bool.

    A cell is set where more than half of its area is mask.  A mask too small for that keeps the cells that hold more
    than half of what its fullest cell holds, so that no instance vanishes.
    """
    out = np.zeros((len(masks), mask_size, mask_size), bool)
    down = _area_weights(hw[0], new_hw[0], image_size, mask_size)
    across = _area_weights(hw[1], new_hw[1], image_size, mask_size)
    for target, mask in zip(out, masks, strict=True):
        if not mask:
            continue
        # Only the cells that the window touches, with all of their pixels: these sums are those of the whole mask.
        rows, columns = mask.pixels.shape
        y, y_cells, y_weights = _touched(down, mask.top, rows)
        x, x_cells, x_weights = _touched(across, mask.left, columns)
        pixels = np.zeros((y_weights.shape[1], x_weights.shape[1]), np.float32)
        pixels[mask.top - y :, mask.left - x :][:rows, :columns] = mask.pixels
        share = (x_weights @ (y_weights @ pixels).T).T
        target[y_cells, x_cells] = share > min(0.5, float(share.max()) / 2)
    return out


def suppress_masks(masks: np.ndarray, share: float) -> np.ndarray:
    """Indices, in their order, of the masks (n h w) that larger ones leave visible.

    From large to small; a mask goes if more than ``share`` of it is covered by those that stayed.  Source: the
    published training option MASK_NMS.
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
    """Boxes (n 4) XYXY with noise on every corner: N(0, std * side) clipped to 20 px, kept in the photo and not empty.

    Source: the published training option BOX_JITTER (std 0.1), applied to the photo before it is resized.
    """
    side = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noisy = boxes + np.clip(rng.standard_normal(boxes.shape) * std * side, -20, 20)
    noisy = np.clip(noisy, 0, np.tile([hw[1], hw[0]], 2))
    kept = (noisy[:, 2:] - noisy[:, :2] >= 1).all(1, keepdims=True)
    return np.where(kept, noisy, boxes).astype(np.float32)


def interior_point(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """A random pixel (x, y) from the thick regions of a mask (h w) bool; (0, 0) if it is empty.

    Thick: at least 0.6 of the greatest distance from the background.
    """
    from scipy import ndimage

    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0.0, 0.0
    x0, y0 = columns[0], rows[0]
    window = mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    step = -(-max(window.shape) // 256)  # a coarse distance will do for large masks
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
    """The pixel (x, y) of a mask (h w) bool that is deepest inside it; (0, 0) if it is empty.

    "exact" takes the Euclidean distance from the background, what lies beyond the border included.  "published" follows
    the approximate transform of the published evaluation (kornia's, kernel 3, h 0.35): rings of 8-neighbours are filled
    from outside, and within the last one the pixel wins that has the fewest and farthest filled neighbours.  Ties go to
    the first in row-major order.
    """
    if not mask.any():
        return 0.0, 0.0
    from scipy import ndimage

    padded = np.pad(mask, 1)
    if protocol == "exact":
        depth = ndimage.distance_transform_edt(padded)
    elif protocol == "published":
        ring = ndimage.distance_transform_cdt(padded, metric="chessboard")
        # Rings grow by floor(1.5 i) and a pixel's own term is below 1.5, so the winner always lies in the last ring.
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
