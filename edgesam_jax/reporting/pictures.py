"""Pictures of the prompt loop."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from edgesam_jax.files import atomic_file
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE

GREEN, RED, BLUE, YELLOW = (60, 200, 90), (230, 60, 60), (70, 130, 240), (250, 210, 50)
GAP, LINE = 4, 16  # pixels: between the panels of a picture, and of a line of text
MAX_ROWS = 4  # prompts in a picture of the loop


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], strength: float = 0.55) -> np.ndarray:
    """Lay a mask (s s) bool over a photo (h w 3) uint8 of the same frame."""
    size = (image.shape[1], image.shape[0])
    alpha = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 127
    out = image.astype(np.float32)
    out[alpha] = (1 - strength) * out[alpha] + strength * np.asarray(colour, np.float32)
    return out.astype(np.uint8)


def draw_prompt(image: np.ndarray, coords: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Draw one prompt's box and points (n 2) on a photo (h w 3): green inside the object, red outside."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    radius = max(2, image.shape[0] // 64)
    first, last = (np.flatnonzero(valid & (labels == corner)) for corner in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT))
    if first.size and last.size:
        a, b = coords[first[0]], coords[last[0]]
        pen.rectangle(
            (*np.minimum(a, b).tolist(), *np.maximum(a, b).tolist()), outline=YELLOW, width=max(1, radius // 2)
        )
    for (x, y), label, real in zip(coords, labels, valid, strict=True):
        if real and label in (POSITIVE, NEGATIVE):
            colour = GREEN if label == POSITIVE else RED
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(255, 255, 255))
    return np.asarray(picture)


def errors(image: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Lay a mask (s s) bool over a photo (h w 3): blue is right, green missing, red extra."""
    right = tint(image, mask & truth, BLUE)
    return tint(tint(right, truth & ~mask, GREEN, 0.8), mask & ~truth, RED, 0.8)


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    legend: str = "",
) -> np.ndarray:
    """Arrange panels (h w 3) of equal size in one picture.

    Args:
      titles: texts above the columns.
      captions: texts below the panels, by row.
      legend: text below all of them; it is broken into lines.
    """
    h, w = rows[0][0].shape[:2]
    head, foot = LINE * bool(titles), LINE * bool(captions)
    across, step = max(map(len, rows)) * (w + GAP) - GAP, h + foot + GAP
    lines = textwrap.wrap(legend, max(20, across // 6))  # pixels of a letter
    body = head + len(rows) * step - GAP
    sheet = np.full((body + LINE * len(lines), across, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            sheet[head + i * step :, j * (w + GAP) :][:h, :w] = panel
    texts = [(j * (w + GAP), 0, title) for j, title in enumerate(titles)]
    texts += [
        (j * (w + GAP), head + i * step + h, text) for i, row in enumerate(captions) for j, text in enumerate(row)
    ]
    texts += [(0, body + LINE * k, line) for k, line in enumerate(lines)]
    if not texts:
        return sheet
    picture = Image.fromarray(sheet)
    pen = ImageDraw.Draw(picture)
    for x, y, text in texts:
        pen.text((x + 2, y + 2), text, fill=(0, 0, 0))
    return np.asarray(picture)


def loop_picture(
    image: np.ndarray, trace: Any, prompt_valid: np.ndarray, photo: tuple[int, int] | None = None
) -> np.ndarray:
    """Draw one row per prompt: photo with box and points, target mask, student mask, and where the masks disagree.

    Args:
      image: (h w 3) uint8.
      trace: a ``prompt_loop.Trace`` of this image alone (no leading b), as numpy arrays.
      prompt_valid: (p) bool, which prompts are real; at most ``MAX_ROWS`` of them are drawn.
      photo: rows and columns of the image that the photo fills; the rest is cropped.
    """
    h, w = photo or image.shape[:2]
    rows = []
    for i in np.flatnonzero(prompt_valid)[:MAX_ROWS]:
        student, target, differ = trace.student[i], trace.target[i], trace.disagreement[i]
        prompts = trace.prompts
        panels = [
            draw_prompt(image, prompts.coords[i], prompts.labels[i], prompts.valid[i]),
            tint(image, target, BLUE),
            tint(image, student, BLUE),
            tint(tint(image, differ & target, GREEN, 0.8), differ & student, RED, 0.8),
        ]
        rows.append([panel[:h, :w] for panel in panels])
    return side_by_side(rows, ("prompt", "target", "student", "green missing, red extra"))


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture (h w 3) uint8 as PNG; parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
