"""Segmentations in YOLO's text format: a line for each object, its class and the corners of its outline.

    0 0.481 0.634 0.690 0.713 0.727 0.712 ...

Coordinates are fractions of the photo's width and height. Lines of a class and four numbers are boxes, which have no
mask, and are left out. Names of the classes are in ``data.yaml``, which isn't read.

Format: https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from edgesam_jax.data.photo import stored_size
from edgesam_jax.data.readers.annotations import DAMAGED, EMPTY
from edgesam_jax.data.readers.mask_files import instance
from edgesam_jax.data.readers.records import Record
from edgesam_jax.data.readers.segmentations import encode_polygons
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow

SUFFIX = ".txt"
BOX = "box without a mask"  # the kind of lines of a detector's data set
BEYOND = 0.01  # of a side; corners farther outside are not fractions


def yolo_record(photo: bytes, name: str, text: bytes, where: str) -> Record:
    """Make a record of a photo's file and its YOLO text file.

    Coordinates refer to the upright photo.

    Raises:
      BadExample: the file is not text.
    """
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadExample("annotations damaged", f"{where}: not a text file; fix or remove it") from None
    height, width = stored_size(photo, name)
    annotations, rows = [], list[SkippedRow]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            category, corners = _parse(line)
        except ValueError as error:
            rows.append((DAMAGED, f"{where}, line {number}: {error}"))
            continue
        if len(corners) == 2:
            rows.append((BOX, f"{where}, line {number}: a box; masks are needed"))
            continue
        found = instance(number - 1, encode_polygons([np.ravel(corners * (width, height)).tolist()], height, width))
        if found is None:
            rows.append((EMPTY, f"{where}, line {number}: its outline encloses no pixel"))
        else:
            annotations.append({**found, "category_id": category})
    if not annotations and not rows:
        rows.append((EMPTY, f"{where}: no object in it"))
    return Record(photo, name, Path(name).stem, annotations, where, (height, width), rows)


def _parse(line: str) -> tuple[int, np.ndarray]:
    """Return the class and the corners (n 2) of a line.

    Raises:
      ValueError: it is not in the format.
    """
    words = line.split()
    try:
        category, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError("not a class and numbers") from None
    if len(numbers) < 4 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} coordinates; an outline has pairs of them, three or more")
    if not all(math.isfinite(v) and -BEYOND <= v <= 1 + BEYOND for v in numbers):
        raise ValueError("its coordinates are not fractions from 0 to 1")
    return category, np.array(numbers).reshape(-1, 2)
