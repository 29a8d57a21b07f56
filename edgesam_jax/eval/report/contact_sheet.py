"""Contact sheets: pictures of the worst and of typical cases of an evaluation, with prompt, masks and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgesam_jax.reporting.overlay import BOX, EDGE, INSIDE, MASK, OUTSIDE, contour
from edgesam_jax.reporting.pictures import save_picture
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE

SMALLEST = 100  # pixels of an annotation: smaller worst cases are too small to show anything
TILE_HEIGHT, TILE_WIDTH = 160, 214  # of a panel in pixels, 3:4
MARGIN, MIN_SIDE = 0.25, 48  # margin around the object as a fraction of its longer side; minimum pixels shown per side
GAP, TITLE = 4, 20  # pixels between panels; height of a line of text
# Distinguishable by colour-blind readers too: one is light, the other dark.
MISSED, SURPLUS = (255, 205, 0), (230, 50, 40)
PAPER, INK = (255, 255, 255), (20, 20, 20)
HEADS: tuple[tuple[str, tuple[int, int, int] | None], ...] = (
    ("photo and prompt", None),
    ("truth", MASK),
    ("prediction", MASK),
    ("missed", MISSED),
    ("surplus", SURPLUS),
)

DRAWN = (NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)

Ints = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Case:
    """One instance to show.

    Attributes:
      photo: (h w 3) uint8 RGB.
      truth, prediction: (h w) bool.
      coords: (n 2) (x, y) in pixels of the photo; points are pixel indices and box corners continuous edges, as in
        ``data.schema.Example``.
      labels: (n): 1 foreground, 0 background, 2 and 3 the corners of a box; others are not drawn.
      title: the line above the panels.

    Raises:
      ValueError: the masks and the photo differ in size, or the points and the labels in number.
    """

    photo: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    coords: np.ndarray
    labels: np.ndarray
    title: str

    def __post_init__(self) -> None:
        if not self.photo.shape[:2] == self.truth.shape == self.prediction.shape:
            raise ValueError(f"{self.title}: photo and masks must have the same size")
        if len(self.coords) != len(self.labels):
            raise ValueError(f"{self.title}: {len(self.coords)} points but {len(self.labels)} labels")


def choose_cases(
    instances: Sequence[Mapping[str, Any]], worst: int = 8, typical: int = 8, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Choose the instances of a report to show.

    Worst: the lowest IoU after the last prompt among annotations of at least 100 pixels, at most one per photo.
    Typical: the instances nearest to evenly spaced quantiles of that IoU from 25 % to 75 %, of any size and without the
    worst; ties are broken at random.

    Args:
      instances: rows of a report (``summary``); those whose last IoU is None are never chosen.
      worst, typical: maximum number of each.
      seed: for ties.

    Returns:
      Indices of the worst instances, worst first, and of the typical ones, by increasing IoU.
    """
    last = {i: float(row["iou"][-1]) for i, row in enumerate(instances) if row["iou"] and row["iou"][-1] is not None}
    lowest: list[int] = []
    photos: set[Any] = set()
    for i in sorted(last, key=lambda i: (last[i], i)):
        if (
            len(lowest) < worst
            and instances[i].get("area", SMALLEST) >= SMALLEST
            and instances[i]["image_id"] not in photos
        ):
            lowest.append(i)
            photos.add(instances[i]["image_id"])
    others = [i for i in last if i not in set(lowest)]
    if not others or typical < 1:
        return lowest, []
    targets = np.quantile(list(last.values()), np.linspace(0.25, 0.75, typical) if typical > 1 else [0.5])
    order = np.random.default_rng(seed).permutation(len(others))
    shuffled, iou = np.array(others)[order], np.array([last[i] for i in others])[order]
    middle: list[int] = []
    for target in targets[: len(others)]:
        nearest = int(np.argmin(np.abs(iou - target)))
        middle.append(int(shuffled[nearest]))
        iou[nearest] = np.inf  # used
    return lowest, sorted(middle, key=lambda i: (last[i], i))


def sheet(cases: Sequence[Case], path: str | Path) -> None:
    """Write a PNG with one row per case: photo and prompt, truth, prediction, and their differences.

    The region around the object is shown; predictions and prompt points farther away than the object's own size are
    cut off.

    Raises:
      OSError: the file can't be written.
    """
    width = 4 * (TILE_WIDTH + GAP) + GAP
    height = TITLE + GAP + len(cases) * (TITLE + TILE_HEIGHT + GAP)
    picture = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    x = GAP
    for number, (text, colour) in enumerate(HEADS):
        x = max(x, GAP + min(number, 3) * (TILE_WIDTH + GAP))
        if colour is not None:
            pen.rectangle((x, 6, x + 10, 16), fill=colour)
            x += 15
        pen.text((x, 3), text, font=font, fill=INK)
        x += round(pen.textlength(text, font=font)) + 12
    for number, case in enumerate(cases):
        top = TITLE + GAP + number * (TITLE + TILE_HEIGHT + GAP)
        pen.text((GAP, top + 3), _truncated(pen, font, case.title, width - 2 * GAP), font=font, fill=INK)
        for column, panel in enumerate(_panels(case)):
            left = GAP + column * (TILE_WIDTH + GAP) + (TILE_WIDTH - panel.width) // 2
            picture.paste(panel, (left, top + TITLE + (TILE_HEIGHT - panel.height) // 2))
    save_picture(Path(path), np.asarray(picture))


def _truncated(pen: ImageDraw.ImageDraw, font: Any, text: str, width: int) -> str:
    """One line of text, shortened to ``width`` pixels."""
    text = " ".join(text.split())
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font=font) > width:
        text = text[:-1]
    return f"{text}…"


# ------------------------------------------------------------------------------------------------ one case


def _panels(case: Case) -> list[Image.Image]:
    """The four panels of a case, each at most TILE_WIDTH x TILE_HEIGHT."""
    (top, bottom), (left, right) = _window(case)
    part = np.s_[top:bottom, left:right]
    scale = min(TILE_HEIGHT / (bottom - top), TILE_WIDTH / (right - left))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    photo = np.asarray(Image.fromarray(case.photo[part]).resize(size, Image.Resampling.BICUBIC))
    truth, prediction = (_coverage(mask[part], size) for mask in (case.truth, case.prediction))
    missed = _coverage((case.truth & ~case.prediction)[part], size)
    surplus = _coverage((case.prediction & ~case.truth)[part], size)
    # Errors on a pale grey photo with the outline of the truth: the error colours are the only colours.
    grey = np.repeat(np.asarray(Image.fromarray(photo).convert("L"))[..., None], 3, axis=2)
    pale = _outlined((grey * 0.6 + 70).astype(np.uint8), truth)
    errors = _blend(_blend(pale, missed, MISSED, 0.85), surplus, SURPLUS, 0.85)
    coords = (np.asarray(case.coords, np.float64).reshape(-1, 2) - (left, top)) * scale
    return [
        _with_prompt(photo, coords, np.asarray(case.labels), scale),
        Image.fromarray(_outlined(_blend(photo, truth, MASK, 0.5), truth)),
        Image.fromarray(_outlined(_blend(photo, prediction, MASK, 0.5), prediction)),
        Image.fromarray(errors),
    ]


def _window(case: Case) -> tuple[Ints, Ints]:
    """The region of the photo to show: rows (top, bottom) and columns (left, right)."""
    coords = np.asarray(case.coords, np.float64).reshape(-1, 2)[np.isin(case.labels, DRAWN)]
    core = case.truth if case.truth.any() else case.prediction
    spans = []
    for axis, length in enumerate(case.truth.shape):
        inside = np.flatnonzero(core.any(axis=1 - axis))
        low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, length)
        limit = max(high - low, MIN_SIDE // 2)  # stretching farther would make the object itself too small to see
        reach = np.flatnonzero(case.prediction.any(axis=1 - axis))
        others = [*coords[:, 1 - axis], *((reach[0], reach[-1] + 1) if len(reach) else ())]
        spans.append((max(low - limit, min([low, *others])), min(high + limit, max([high, *others]))))
    longer = max(high - low for low, high in spans)
    sides = [max(MIN_SIDE, high - low + 2 * MARGIN * longer) for low, high in spans]
    ratio = TILE_WIDTH / TILE_HEIGHT  # the shorter side grows to the panel's aspect ratio if the photo is large enough
    sides = [max(sides[0], sides[1] / ratio), max(sides[1], sides[0] * ratio)]
    return tuple(  # type: ignore[return-value]
        _interval((low + high) / 2, side, length)
        for (low, high), side, length in zip(spans, sides, case.truth.shape, strict=True)
    )


def _interval(middle: float, side: float, length: int) -> Ints:
    """An interval of ``side`` pixels around ``middle``, shifted to lie within 0 to ``length``."""
    size = min(length, max(1, round(side)))
    start = min(max(0, round(middle - size / 2)), length - size)
    return start, start + size


def _coverage(mask: np.ndarray, size: Ints) -> np.ndarray:
    """Fraction of each pixel of a panel of ``size`` (w, h) that a mask (h w) bool covers: (h w 1) float32."""
    method = Image.Resampling.BOX if size[0] < mask.shape[1] else Image.Resampling.NEAREST
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, method)
    return np.asarray(scaled, np.float32)[..., None] / 255


def _blend(picture: np.ndarray, coverage: np.ndarray, colour: Sequence[int], strength: float) -> np.ndarray:
    alpha = strength * coverage
    return ((1 - alpha) * picture + alpha * np.asarray(colour, np.float32)).astype(np.uint8)


def _outlined(picture: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    out = picture.copy()
    out[contour(coverage[..., 0] >= 0.5)] = EDGE
    return out


def _with_prompt(photo: np.ndarray, coords: np.ndarray, labels: np.ndarray, scale: float) -> Image.Image:
    """The panel with its prompt; ``coords`` in pixels of the panel."""
    picture = Image.fromarray(photo)
    pen = ImageDraw.Draw(picture)
    first, second = (coords[labels == corner] for corner in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT))
    for a, b in zip(first, second, strict=False):
        corners = (*np.minimum(a, b), *np.maximum(a, b))
        pen.rectangle(corners, outline=INK, width=3)  # dark around light: visible on any background
        pen.rectangle((corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1), outline=BOX, width=1)
    for (x, y), label in zip(
        coords + scale / 2, labels, strict=True
    ):  # points are pixel indices: draw at the pixel's centre
        if label in (POSITIVE, NEGATIVE):
            colour = INSIDE if label == POSITIVE else OUTSIDE
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=EDGE, width=2)
    return picture
