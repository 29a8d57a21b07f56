"""Instance masks as pictures: one per photo, whose values or colours identify instances, or one file per instance.

What a value means is checked for plausibility.  Smoothed edges, as drawing and resizing leave them, look like many
small instances: a black and white picture with such edges is cut at the middle of its range, any other is refused.
What was assumed becomes a row of the kind "mask assumed".
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.data.readers.annotations import EMPTY
from edgesam_jax.data.readers.records import MAX_MASKS, Record, check_annotated, read_file
from edgesam_jax.data.schema import BadExample, boxes_of
from edgesam_jax.data.source import ASSUMED, SkippedRow

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jpg", ".jpeg")  # the first that exists is read
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG")
VOID = (224, 224, 192)  # colour of PASCAL VOC's value 255, for the outlines between objects


@dataclass(frozen=True)
class Picture:
    """A mask file.

    Attributes:
      values: (h w) int32 or int64; what identifies an instance.  0 is the background.
      level: (h w) int32, brightness: the grey value, or the sum of red, green and blue.
      grey: whether the picture has no colours, so that ``level`` orders its values.
      lossy: whether its format changes values, as JPEG does.
      void: whether the value 255 is PASCAL VOC's, which is no object.
    """

    values: np.ndarray
    level: np.ndarray
    grey: bool
    lossy: bool = False
    void: bool = False


def mask_record(photo: bytes, name: str, masks: Path) -> Record:
    """Make a record of a photo's file and its instance masks.

    ``masks`` is one picture of the photo's size whose values (or colours) identify instances, with 0 or black as
    background; or a folder with one picture per instance, in which values above 0 are inside.

    Raises:
      BadExample: a picture can't be read, doesn't have the photo's size, or doesn't tell instances apart.
    """
    rows: list[SkippedRow] = []
    if masks.is_dir():
        files = sorted(path for path in masks.iterdir() if path.suffix.lower() in MASK_SUFFIXES)
        inside = [_inside(read_mask(path, photo, name), path, rows) for path in files]
        if len({mask.shape for mask in inside}) > 1:
            raise BadExample("annotations damaged", f"{masks}: its masks differ in size; fix or remove them")
        ids = list(range(len(inside)))
        shape = inside[0].shape if inside else None
        codes = [encode(mask) for mask in inside]
        names = [str(path) for path in files]
    else:
        values = _values(read_mask(masks, photo, name), masks, rows)
        shape = values.shape
        ids = [int(v) for v in np.unique(values) if v]
        if len(ids) * values.size > MAX_MASKS:
            raise BadExample(
                "too many masks",
                f"{masks}: {len(ids)} values on {shape[1]}x{shape[0]} pixels, one mask each; remove it",
            )
        codes = [encode(values == v) for v in ids]
        names = [f"{masks}: value {v}" for v in ids]
    annotations = []
    for number, code, where in zip(ids, codes, names, strict=True):
        entry = instance(number, code)
        if entry is None:
            rows.append((EMPTY, f"{where}: no pixel is set"))
        else:
            annotations.append(entry)
    if not annotations and not rows:
        rows.append((EMPTY, f"{masks}: no pixel is set, or no mask in it"))
    return Record(photo, name, Path(name).stem, annotations, str(masks), shape, rows)


def encode(mask: np.ndarray) -> Any:
    """Return the compressed run-length code of a mask (h w) bool."""
    return coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))


def instance(number: int, code: Any) -> dict[str, Any] | None:
    """Return a mask's run-length code as an annotation with its tight box; None if the mask is empty."""
    area = float(coco_mask.area(code))
    if not area:
        return None
    x0, y0, x1, y1 = boxes_of(coco_mask.decode(code)[None] > 0)[0].tolist()
    return {
        "id": number,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "segmentation": {"counts": code["counts"].decode(), "size": [int(side) for side in code["size"]]},
    }


# ------------------------------------------------------------------------------------------------------------- reading


def read_mask(path: Path, photo: bytes, name: str) -> Picture:
    """Read a mask file: grey values, palette indices, or RGB colours as 24-bit integers; transparent is 0.

    Args:
      photo, name: content and name of the photo, whose size the mask must have.

    Raises:
      BadExample: the file can't be read, has several pages or floating-point values, or is of another size.
    """
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=FORMATS) as picture:
            check_annotated((picture.height, picture.width), photo, name, str(path))
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise ValueError(f"it has {pages} pages; save each instance as a file of its own")
            return _picture(picture)
    except BadExample:
        raise
    except Exception as error:  # each decoder raises its own
        raise BadExample("annotations damaged", f"{path}: damaged picture ({error}); fix or remove it") from None


def _picture(picture: Image.Image) -> Picture:
    lossy = picture.format == "JPEG"
    if picture.mode == "F":
        raise ValueError("floating-point values; save it with 8 or 16 bits")
    if picture.mode == "P" and not lossy:
        values = np.asarray(picture).astype(np.int32)
        colours = np.zeros((256, 3), np.int32)
        listed = np.array(picture.getpalette() or [], np.int32).reshape(-1, 3)
        colours[: len(listed)] = listed
        grey = not np.ptp(colours[np.unique(values)], axis=1).any()
        level = colours[:, 0] if grey else colours.sum(1)
        return Picture(values, level[values], grey, void=tuple(colours[255]) == VOID)
    if picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.int32)
        return Picture(values, values, grey=True, lossy=lossy)
    pixels = np.asarray(picture.convert("RGBA")).astype(np.int32)
    colour = pixels[..., :3] * pixels[..., 3:] // 255
    red, green, blue = (colour[..., k] for k in range(3))
    if (red == green).all() and (green == blue).all():
        return Picture(red, red, grey=True, lossy=lossy)
    return Picture((red << 16) | (green << 8) | blue, colour.sum(-1), grey=False, lossy=lossy)


# -------------------------------------------------------------------------------------------------------- plausibility


def _values(picture: Picture, path: Path, rows: list[SkippedRow]) -> np.ndarray:
    """Return the values (h w) that identify instances, and note what was assumed.

    Raises:
      BadExample: its edges are smoothed, and it is not black and white.
    """
    values = picture.values
    if picture.void and (values == 255).any():
        rows.append((ASSUMED, f"{path}: value 255 has PASCAL VOC's colour of outlines, and is no object"))
        values = np.where(values == 255, 0, values)
    if is_smoothed(picture):
        values = _cut(picture, path, rows).astype(np.int32)
    border = _border(values)
    if border[0] and (border == border[0]).all():
        rows.append((ASSUMED, f"{path}: value {border[0]} covers the photo's whole border and is taken for an object,"
                              " since 0 is the background; if it is the background, set it to 0"))  # fmt: skip
    return values


def _inside(picture: Picture, path: Path, rows: list[SkippedRow]) -> np.ndarray:
    """Return the mask (h w) bool of a file that holds one instance, and note what was assumed."""
    return _cut(picture, path, rows) if is_smoothed(picture) else picture.values > 0


def _cut(picture: Picture, path: Path, rows: list[SkippedRow]) -> np.ndarray:
    """Cut a black and white picture with smoothed edges at the middle of its range.

    Raises:
      BadExample: the picture has colours, or areas between black and white.
    """
    low, high = int(picture.level.min()), int(picture.level.max())
    place = (picture.level - low) / max(1, high - low)
    flat = _blocks(picture.values)
    between = ((place > 0.15) & (place < 0.85) & flat).sum()
    if not picture.grey or between > 0.05 * flat.sum():
        raise BadExample(
            "annotations damaged",
            f"{path}: {len(np.unique(picture.values))} values, most of them along edges, as smoothing or JPEG leaves"
            " them: instances can't be told apart; save it as PNG without smoothing (antialiasing)",
        )
    mask: np.ndarray = place >= 0.5
    message = f"{path}: {len(np.unique(picture.values))} grey values from smoothed edges; read as one object, cut at"
    rows.append((ASSUMED, f"{message} {(low + high + 1) // 2} of {low} to {high}"))
    return mask


def is_smoothed(picture: Picture) -> bool:
    """Whether most values of a picture lie on the edges between others, as smoothing leaves them.

    Values that identify instances fill areas.  A value counts as an edge's if no four pixels in a square have it, and
    most of its pixels have both a darker and a brighter neighbour.  JPEG leaves such values in any picture of more than
    two.  A ramp too wide for that shows in neighbours that differ by one or two where they differ.
    """
    values, level = picture.values, picture.level
    index = values if values.min() >= 0 and values.max() < 1 << 16 else np.unique(values, return_inverse=True)[1]
    index = index.reshape(values.shape)
    count = np.bincount(index.ravel())
    present = np.flatnonzero(count)
    if len(present) < 3 or picture.lossy:
        return len(present) >= 3
    extremes = index.flat[level.argmin()], index.flat[level.argmax()]
    inner = np.setdiff1d(present, extremes)
    filled = np.bincount(index[_blocks(values)], minlength=len(count)) > 0
    if (~filled[inner]).sum() > 0.5 * len(inner):
        passed = np.bincount(index[_passes(level)], minlength=len(count))
        on_edges = ~filled[inner] & (passed[inner] > 0.5 * count[inner])
        if on_edges.sum() > 0.5 * len(inner):
            return True
    if picture.grey and len(present) >= 32:
        steps = np.abs(np.concatenate([np.diff(level, axis=0).ravel(), np.diff(level, axis=1).ravel()]))
        return bool((steps[steps > 0] <= 2).mean() > 0.9)
    return False


def _blocks(values: np.ndarray) -> np.ndarray:
    """Return the pixels (h w) bool that belong to a square of four pixels of one value."""
    below, right, across = values[1:, :-1], values[:-1, 1:], values[1:, 1:]
    first = values[:-1, :-1]
    same = (first == below) & (first == right) & (first == across)
    blocks = np.zeros(values.shape, bool)
    for y in (0, 1):
        for x in (0, 1):
            blocks[y : y + same.shape[0], x : x + same.shape[1]] |= same
    return blocks


def _passes(level: np.ndarray) -> np.ndarray:
    """Return the pixels (h w) bool with both a darker and a brighter one among their eight neighbours."""
    from scipy import ndimage

    return (ndimage.minimum_filter(level, 3) < level) & (level < ndimage.maximum_filter(level, 3))


def _border(values: np.ndarray) -> np.ndarray:
    """Return the values (n) along a picture's border."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
