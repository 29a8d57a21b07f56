"""Pixels of any depth to 8-bit RGB, and the range of values that becomes 0 to 255.

``auto`` takes 8-bit pixels as they are and divides 16-bit ones by 257. Signed, floating-point and 32-bit pixels have no
range that could be assumed, so they need one: ``LO,HI`` maps LO to 0 and HI to 255 and clips the rest.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import numpy as np
from PIL import Image

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import BadExample

AUTO = "auto"
FULL = 65535  # the largest 16-bit value
DARK, BRIGHT = 32, 223  # levels of 255; a photo entirely below or above is hardly one in the right range
Range = tuple[float, float]


@functools.lru_cache(maxsize=64)
def parse_range(text: str, where: str = "--pixel-range") -> Range | None:
    """Parse ``auto`` (None) or ``LO,HI``.

    Args:
      where: the flag or field, for the message.

    Raises:
      UsageError: neither.
    """
    if text == AUTO:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high - low) and low < high and math.isfinite(255 / (high - low))):
        raise UsageError(f"{where} {text}: expected auto or LO,HI, two numbers of which the first is less: 0,4095")
    return low, high


def sixteen_bit_colour(image: Image.Image) -> bool:
    """Whether an image that isn't decoded yet has colours of 16 bits, of which Pillow keeps the upper 8."""
    return image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in _raw_modes(image))


def _raw_modes(image: Image.Image) -> list[str]:
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(a[0] if isinstance(a, tuple) else a) for a in arguments if a]


def take_lower_bytes(image: Image.Image, name: str) -> None:
    """Have an image of ``sixteen_bit_colour`` that isn't decoded yet decoded to the lower 8 bits of its values.

    Pillow reads one byte of each value, and the raw mode's last letter (big, little or native endian) tells which.

    Raises:
      BadExample: Pillow can't do that for this kind of pixels.
    """
    native = "B" if sys.byteorder == "little" else "L"
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        old = tile[3][0] if isinstance(tile[3], tuple) else tile[3]
        stem, order = old[:-1], old[-1:]
        if not stem.startswith("RGB") or order not in "BLN":
            message = f"{name}: Pillow reads only the upper bytes of such pixels ({old}); save it without alpha"
            raise BadExample("photo unsupported", f"{message}, or remove --pixel-range")
        new = stem + {"B": "L", "L": "B", "N": native}[order]
        arguments = (new, *tile[3][1:]) if isinstance(tile[3], tuple) else new
        tiles.append(tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments))
    image.tile = tiles  # type: ignore[attr-defined]


def rgb(image: Image.Image, name: str, wanted: Range | None, notes: list[str] | None) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB.

    Grey, palette, CMYK and 16-bit pixels are converted; alpha is dropped, not composited.

    Args:
      name: of the photo, for messages.
      wanted: the range that becomes 0 to 255; None: ``auto``.
      notes: remarks on pixels that use little of the range are added here.

    Raises:
      BadExample: pixels without a known range under ``auto``, or pixels that are not finite.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _scaled_grey(np.asarray(image), image.mode == "F", name, wanted, notes)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGB":  # ``convert`` would copy it
        image = image.convert("RGB")
    if wanted is not None:
        return Image.fromarray(_mapped(np.asarray(image), name, wanted, notes))
    return image


def rgb_of_halves(upper: Image.Image, lower: Image.Image, name: str, wanted: Range, notes: list[str] | None) -> Any:
    """Convert 16-bit colours, decoded as upper and lower bytes, to 8-bit RGB; see ``rgb``."""
    high, low = (np.asarray(half.convert("RGB")).astype(np.uint16) for half in (upper, lower))
    return Image.fromarray(_mapped(high << 8 | low, name, wanted, notes))


def note_on_colour(image: Image.Image, name: str, notes: list[str]) -> None:
    """Add a note if the upper bytes of 16-bit colours, as RGB, use little of their range."""
    high = np.asarray(image)
    _note_on_range(int(high.min()) << 8, int(high.max()) << 8 | 255, "16-bit colours", name, notes)


def _scaled_grey(
    values: np.ndarray, floating: bool, name: str, wanted: Range | None, notes: list[str] | None
) -> np.ndarray:
    """Scale grey values (h w) of more than 8 bits to uint8."""
    if floating and not np.isfinite(values).all():
        raise BadExample("photo unsupported", f"{name}: some pixels are NaN or infinite; replace them by numbers")
    if wanted is not None:
        return _mapped(values, name, wanted, notes)
    low, high = values.min(), values.max()
    if floating or low < 0 or high > FULL:
        kind = "floating-point" if floating else "signed" if low < 0 else "32-bit"
        if floating and low >= 0 and high <= 255:
            span = "0,1" if high <= 1 else "0,255"
        else:
            span = f"{_text(low)},{_text(high if low < high else low + 1)}"
        raise BadExample(
            "photo unsupported",
            f"{name}: {kind} pixels from {_text(low)} to {_text(high)} have no agreed range; pass the range to map to"
            f" black and white, such as {_flag(span)}, or save the photo with 8 bits",
        )
    if notes is not None:
        _note_on_range(int(low), int(high), "16-bit pixels", name, notes)
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _note_on_range(low: int, high: int, what: str, name: str, notes: list[str]) -> None:
    if high < (FULL + 1) // 2:
        span = f"0,{(1 << max(high.bit_length(), 8)) - 1}"
    elif low < high and high - low < (FULL + 1) // 4:
        span = f"{low},{high}"
    else:
        return
    notes.append(
        f"{name}: {what} from {low} to {high}, scaled as if from 0 to {FULL}; if they fill a smaller range, pass it:"
        f" {_flag(span)}"
    )


def _flag(span: str) -> str:
    """How to pass a range; argparse takes a value that begins with a minus sign only after an equals sign."""
    return f"--pixel-range{'=' if span.startswith('-') else ' '}{span} (train: --set data.pixel_range={span})"


def _mapped(values: np.ndarray, name: str, wanted: Range, notes: list[str] | None) -> np.ndarray:
    """Map values of any type linearly to uint8, with ``wanted`` to 0 and 255; add a note if that leaves little."""
    low, high = wanted

    def to_levels(some: np.ndarray) -> np.ndarray:
        scaled = (some.astype(np.float64) - low) * (255 / (high - low))
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)

    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:  # a table takes less memory than float64 pixels
        levels = to_levels(np.arange(np.iinfo(values.dtype).max + 1))[values]
    else:
        levels = to_levels(values)
    if notes is not None and (levels.max() < DARK or levels.min() > BRIGHT):
        result = "nearly black" if levels.max() < DARK else "nearly white"
        span = f"{_text(values.min())} to {_text(values.max())}"
        notes.append(f"{name}: pixels from {span} are {result} with --pixel-range {_text(low)},{_text(high)}")
    return levels


def _text(value: Any) -> str:
    """A number with all digits; 3.0 becomes 3, and a float32 is not widened."""
    return str(value.item() if isinstance(value, np.integer) else value).removesuffix(".0")
