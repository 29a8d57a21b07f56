"""Opening photos: formats, EXIF orientation, limits, and the reasons why a file can't be used."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features

from edgesam_jax.data import pixels
from edgesam_jax.data.schema import BadExample

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap rows and columns
PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)  # fmt: skip
# Not every format of Pillow: some of them start other programs.  "JPEG" opens phones' two-picture files (MPO) too.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM")
MAX_SIDE, MAX_PIXELS = 16384, 1 << 27  # of a photo in a data set; decoding peaks at six to nine bytes per pixel
USE = "use a JPEG, PNG, WebP, BMP or TIFF file"
# Formats of plugins: the brands in their files' first box, the plugin's module, and what to do without it.
PLUGINS = {
    "AVIF": ({b"avif", b"avis"}, "pillow_avif", "install Pillow 11.3 or newer: pip install -U pillow"),
    "HEIF": (
        {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
        "pillow_heif",
        "install Pillow's plugin: pip install pillow-heif",
    ),
}
# Words in Pillow's messages about sound files that it can't decode.
_UNSUPPORTED = ("unsupported", "not supported", "not available", "not implemented", "unknown", "cannot handle")


def load_image(
    source: str | Path | bytes,
    name: str = "",
    pixel_range: str = pixels.AUTO,
    notes: list[str] | None = None,
    orient: bool = True,
) -> np.ndarray:
    """Read a photo as an array (h w 3) uint8 RGB; see ``load_photo``.

    Raises:
      UsageError, BadExample: see ``load_photo``.
    """
    return np.array(load_photo(source, name, orient, pixel_range=pixel_range, notes=notes))


def load_photo(
    source: str | Path | bytes,
    name: str = "",
    orient: bool = True,
    limited: bool = False,
    pixel_range: str = pixels.AUTO,
    notes: list[str] | None = None,
) -> Image.Image:
    """Read a photo as upright 8-bit RGB.

    Grey, palette, CMYK and 16-bit pictures are converted (``data/pixels.py``); alpha is dropped, not composited.  An
    animation or a file of several pages gives its first picture.

    Args:
      source: a path, or the bytes of a file.
      name: name of the photo in error messages; the path by default.
      orient: apply the EXIF orientation.
      limited: reject photos beyond ``MAX_SIDE`` or ``MAX_PIXELS`` by their header, before decoding.
      pixel_range: ``auto``, or the range ``LO,HI`` that becomes 0 to 255.
      notes: remarks on what was read are added here: a range that the pixels hardly use, pages and channels left out.

    Raises:
      UsageError: a ``pixel_range`` of another form.
      BadExample: the file is missing, not an image, damaged, truncated, too large to be decoded safely, or has pixels
        that can't be read without a range.
    """
    wanted = pixels.parse_range(pixel_range)
    name = name or _name(source)
    with _opened(source, name, limited) as image:
        colour16 = pixels.sixteen_bit_colour(image)
        if notes is not None:
            notes += _left_out(image, source, name)
        _check_complete(image, source, name)
        image.load()
        if colour16 and wanted is not None:
            with _opened(source, name, limited) as lower:
                pixels.take_lower_bytes(lower, name)
                lower.load()
                photo = pixels.rgb_of_halves(image, lower, name, wanted, notes)
        else:
            photo = pixels.rgb(image, name, wanted, notes)
            if colour16 and notes is not None:
                pixels.note_on_colour(photo, name, notes)
        return _upright(photo, image) if orient else photo


def stored_size(photo: bytes, name: str) -> tuple[int, int]:
    """Return the (rows, columns) of a data set's photo before EXIF orientation, from its header alone.

    Raises:
      BadExample: as ``load_photo`` with ``limited``, for faults that the header shows.
    """
    with _opened(photo, name, limited=True) as image:
        return image.height, image.width


def photo_sizes(source: str | Path | bytes, name: str = "") -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a photo's (rows, columns) upright and as stored, before EXIF orientation, from its header alone.

    Raises:
      BadExample: as ``load_photo``, for faults that the header shows.
    """
    with _opened(source, name, limited=False) as image:
        stored = image.height, image.width
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in _TRANSPOSED
        except Exception:  # damaged EXIF gives no orientation
            turned = False
        return (stored[::-1] if turned else stored), stored


def _name(source: str | Path | bytes) -> str:
    return "image" if isinstance(source, bytes) else str(source)


def _stream(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str, limited: bool) -> Iterator[Image.Image]:
    """Open an image and read its header; any failure, including later in decoding, becomes a ``BadExample``."""
    name = name or _name(source)
    if not isinstance(source, bytes):
        _check_file(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns from 90 megapixels on; those photos are fine
            with _stream(source) as file, Image.open(file, formats=_formats(file.read(64), name)) as image:
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
    except UnidentifiedImageError:
        pixel_kind = _tiff_pixels(source)
        if pixel_kind:
            message = f"{name}: Pillow can't read a TIFF file with {pixel_kind}; save it as 8-bit RGB or grey"
            raise BadExample("photo unsupported", message) from None
        raise BadExample("photo damaged", f"{name}: not an image in a supported format; {USE}") from None
    except (
        Exception
    ) as error:  # each decoder raises its own: OSError, SyntaxError, ValueError, struct.error, zlib.error
        if isinstance(error, NotImplementedError) or any(word in str(error).lower() for word in _UNSUPPORTED):
            raise BadExample("photo unsupported", f"{name}: Pillow can't read it ({error}); {USE}") from None
        raise BadExample("photo damaged", f"{name}: damaged image ({error}); restore it or remove it") from None


def _check_file(path: str | Path, name: str) -> None:
    """Check that a path leads to a file.

    Raises:
      BadExample: it doesn't, or no file can have this name.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadExample("file missing", f"{name}: no such file") from None
    except PermissionError:
        raise BadExample("file unreadable", f"{name}: permission denied; change its permissions") from None
    except (OSError, ValueError) as error:  # too long, or a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadExample("file missing", f"{name}: no file can have this name ({reason})") from None
    if not stat.S_ISREG(mode):
        raise BadExample("file missing", f"{name}: not a file")


def _formats(head: bytes, name: str) -> tuple[str, ...]:
    """Return the formats to try, given the beginning of a file; import a plugin if the file needs one.

    Raises:
      BadExample: the plugin is not installed.
    """
    if head[4:8] != b"ftyp":
        return FORMATS
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, end, 4))}
    for kind, (known, module, remedy) in PLUGINS.items():
        if brands & known:
            if _has_plugin(kind, module):
                return (kind,)
            raise BadExample("photo unsupported", f"{name}: {kind} files can't be read; {remedy}")
    return FORMATS


def _has_plugin(kind: str, module: str) -> bool:
    """Whether Pillow can open a format of ``PLUGINS``; registers its plugin."""
    if kind == "AVIF" and "avif" in features.modules and features.check_module("avif"):
        importlib.import_module("PIL.AvifImagePlugin")
        return True
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        return False
    if kind == "HEIF":
        plugin.register_heif_opener()
    return kind in Image.OPEN


def _check_complete(image: Image.Image, source: str | Path | bytes, name: str) -> None:
    """Refuse files that Pillow reads, but not as what they are.

    Raises:
      BadExample: 16-bit colours in separate planes, which Pillow takes for 8-bit ones, or a JPEG 2000 file without the
        marker that ends its pixels: cut in some places, it is read as black.
    """
    if image.format == "JPEG2000":
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if b"\xff\xd9" not in content:
            raise BadExample("photo damaged", f"{name}: damaged image (truncated); restore it or remove it")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if (
            tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
            and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) > 8
        ):
            message = f"{name}: Pillow can't read 16-bit channels in separate planes; save it with interleaved channels"
            raise BadExample("photo unsupported", message)


def _left_out(image: Image.Image, source: str | Path | bytes, name: str) -> list[str]:
    """Notes on the pages and channels of a TIFF file that are not used."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return []
    notes, pages, channels = [], 1, image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    with contextlib.suppress(BadExample), _opened(source, name, limited=False) as other:  # counting leaves the page
        pages = getattr(other, "n_frames", 1)
    if pages > 1:
        notes.append(f"{name}: has {pages} pages; the first is used")
    if 0 in image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ()):  # 0: neither a colour nor alpha
        used = "first three are" if image.mode.startswith("RGB") else "first is"
        notes.append(f"{name}: has {channels} channels; the {used} used")
    return notes


def _tiff_pixels(source: str | Path | bytes) -> str:
    """Describe the pixels of a TIFF file that Pillow doesn't know; empty for any other file."""
    try:
        with warnings.catch_warnings(action="ignore"), _stream(source) as file:
            header = file.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return ""
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        count, bits = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1), tags[TiffImagePlugin.BITSPERSAMPLE][0]
        kinds = {
            1: "integers",
            2: "signed integers",
            3: "floating-point numbers",
            5: "complex numbers",
            6: "complex numbers",
        }
        kind = kinds.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "values")
    except Exception:  # a damaged directory
        return ""
    return f"{count} channel{'s' if count > 1 else ''} of {bits}-bit {kind}"


def _upright(photo: Image.Image, described: Image.Image) -> Image.Image:
    """Turn a photo upright by the EXIF orientation of ``described``, the decoded image that it was made from."""
    try:
        turn = _TURNS.get(described.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF gives no orientation; the pixels are fine
        return photo
    return photo if turn is None else photo.transpose(turn)
