"""Files of prompts for many photos, and the photos they belong to.

A file is one of these:

- COCO annotations: a prompt is the box of an annotation. Crowd regions are left out.
- COCO results, the boxes of a detector, which keep their scores.
- JSON lines, one photo a line: ``{"image": "a.jpg", "boxes": [[x0, y0, x1, y1], ...], "points": [[[x, y], ...], ...],
  "labels": [[1, 0, ...], ...]}``. See ``docs/batches.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.annotations import (
    CROWD,
    UNKNOWN_PHOTO,
    box_of,
    is_integer,
    is_number_list,
    is_outside,
    shown,
)
from edgesam_jax.data.readers.coco import is_id
from edgesam_jax.data.readers.file_names import composed
from edgesam_jax.data.source import SkippedRow
from edgesam_jax.files import parse_json, read_json
from edgesam_jax.portable.prompts import check_box, check_point, read_numbers

LINES = (".jsonl", ".ndjson")
DAMAGED = "prompt damaged"
CATEGORY = 1  # of prompts whose file names none; COCO's results need one
FIELDS = {"image", "image_id", "boxes", "points", "labels", "ids", "categories"}


@dataclass(frozen=True)
class Prompt:
    """A prompt in pixels of its photo.

    Attributes:
      where: its place in the file, for messages.
      box: x0, y0, x1, y1, or None.
      points, labels: (n 2) and (n).
      annotation_id: of the annotation, or what JSON lines give as ``ids``; None for a detector's boxes.
      category_id: of its result.
      score: a detector's; None if the mask's is the result's.
    """

    where: str
    box: tuple[float, ...] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    annotation_id: int | str | None = None
    category_id: int = CATEGORY
    score: float | None = None

    def on(self, size: tuple[int, int]) -> Prompt:
        """Return the prompt on a photo of ``size`` (rows, columns): a box that reaches beyond its edges is cut there.

        Raises:
          UsageError: nothing of the box, or not all points, are on the photo.
        """
        box = self.box
        if box is not None:
            x0, y0, x1, y1 = box
            if not is_outside([x0, y0, x1 - x0, y1 - y0], *size):
                box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[1])), min(y1, float(size[0])))
            check_box(box, size)
        for point, label in zip(self.points, self.labels, strict=True):
            check_point(point, label, size)
        return dataclasses.replace(self, box=box)


@dataclass
class Listed:
    """A photo as a file of prompts lists it.

    Attributes:
      image_id: of its results.
      name: of its file; None in COCO results, which have the id only.
      size: (rows, columns) that the prompts refer to; None if the file says nothing.
      prompts: on the photo.
    """

    image_id: int | str
    name: str | None = None
    size: tuple[int, int] | None = None
    prompts: list[Prompt] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name if self.name is not None else f"image_id {self.image_id}"


def read_prompt_file(path: Path, photo_list: str = "") -> tuple[list[Listed], list[SkippedRow]]:
    """Read a file of prompts.

    Args:
      path: the file.
      photo_list: a COCO file with the names of the photos, for results.

    Returns:
      The photos with prompts, and the kind and message of each prompt that can't be used.

    Raises:
      UsageError: a file can't be read, or is in none of the formats.
    """
    where = f"--prompts {path}"
    rows: list[SkippedRow] = []
    content = None if path.suffix.lower() in LINES else read_json(path, "--prompts")
    if photo_list and not isinstance(content, list):
        raise UsageError("--annotations: goes with COCO results as --prompts; other files name their photos")
    if path.suffix.lower() in LINES:
        listed = _from_lines(_lines(path), where, rows)
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        listed = _from_coco(content, where, rows)
    elif isinstance(content, dict) and "image" in content:
        listed = _from_lines([(where, content)], where, rows)
    elif isinstance(content, list) and content and all(isinstance(x, dict) and "image" in x for x in content):
        listed = _from_lines([(f"{where}: [{i}]", x) for i, x in enumerate(content)], where, rows)
    elif isinstance(content, list) and any(isinstance(x, dict) for x in content):
        names = read_json(photo_list, "--annotations") if photo_list else None
        listed = _from_results(content, names, where, f"--annotations {photo_list}", rows)
    else:
        raise UsageError(
            f"{where}: expected COCO annotations, COCO results (a list of boxes), or a file .jsonl with one photo"
            " per line"
        )
    return [photo for photo in listed if photo.prompts], rows


class Photos:
    """Photos by their names and ids.

    A photo belongs to a name if its path ends with the name, whole folders compared, and to an id if it is the name of
    its file without suffix, as in COCO (``000000000632.jpg`` is 632).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._by_name: dict[str, list[int]] = {}
        self._by_stem: dict[str, list[int]] = {}
        self._parts = [_parts(path.absolute().as_posix()) for path in paths]
        for number, parts in enumerate(self._parts):
            self._by_name.setdefault(parts[-1], []).append(number)
            self._by_stem.setdefault(_plain(Path(parts[-1]).stem), []).append(number)

    def find(self, photo: Listed) -> list[int]:
        """Return the indices of the paths that a listed photo may be."""
        if photo.name is None:
            return self._by_stem.get(_plain(str(photo.image_id)), [])
        parts = _parts(photo.name)
        found = self._by_name.get(parts[-1], []) if parts else []
        return [number for number in found if self._parts[number][-len(parts) :] == parts]


def match(listed: Sequence[Listed], paths: Sequence[Path]) -> tuple[dict[int, Listed], list[SkippedRow]]:
    """Find the photos of a file of prompts.

    Returns:
      Listed photos by the index of their path, and a row for each that is not found, or not for certain.
    """
    photos, found = Photos(paths), {}
    rows: list[SkippedRow] = []
    for photo in listed:
        numbers = photos.find(photo)
        prompts = f"its {len(photo.prompts)} prompts are" if len(photo.prompts) > 1 else "its prompt is"
        if len(numbers) == 1 and numbers[0] not in found:
            found[numbers[0]] = photo
        elif not numbers:
            rows.append((UNKNOWN_PHOTO, f"{photo}: not among the photos of --image; {prompts} not used"))
        else:
            other = paths[numbers[1]] if len(numbers) > 1 else found[numbers[0]]
            why = f"may be {paths[numbers[0]]} or {other}" if len(numbers) > 1 else f"the same photo as {other}"
            rows.append(("photo ambiguous", f"{photo}: {why}; {prompts} not used"))
    return found, rows


def _parts(name: str) -> tuple[str, ...]:
    parts = composed(name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", "."))


def _plain(text: str) -> str:
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 100 else text


def _from_coco(content: dict[str, Any], where: str, rows: list[SkippedRow]) -> list[Listed]:
    photos = _images(content, where, rows)
    for number, annotation in enumerate(content["annotations"]):
        place = f"{where}: annotations[{number}]"
        if isinstance(annotation, dict) and annotation.get("iscrowd") in (1,):
            rows.append((CROWD, f"{place}: a crowd region, which is no single object to prompt"))
            continue
        photo = _of_photo(annotation, photos, place, rows)
        prompt = _box_prompt(annotation, place, rows) if photo is not None else None
        if photo is not None and prompt is not None:
            photo.prompts.append(prompt)
    return list(photos.values())


def _from_results(
    results: list[Any], names: Any, where: str, names_from: str, rows: list[SkippedRow]
) -> list[Listed]:  # fmt: skip
    if names is not None and not (isinstance(names, dict) and isinstance(names.get("images"), list)):
        raise UsageError(f'{names_from}: not in COCO format, which has a list "images"')
    photos = None if names is None else _images(names, names_from, rows)
    listed: dict[int | str, Listed] = {} if photos is None else photos
    for number, entry in enumerate(results):
        place = f"{where}: results[{number}]"
        if photos is None and isinstance(entry, dict) and is_id(entry.get("image_id")):
            image_id = _integer(entry["image_id"])
            listed.setdefault(image_id, Listed(image_id))
        photo = _of_photo(entry, listed, place, rows)
        prompt = _box_prompt(entry, place, rows) if photo is not None else None
        if photo is not None and prompt is not None:
            photo.prompts.append(prompt)
    return list(listed.values())


def _images(content: dict[str, Any], where: str, rows: list[SkippedRow]) -> dict[int | str, Listed]:
    """The images of a COCO file by id."""
    images = content.get("images")
    if not isinstance(images, list):
        raise UsageError(f'{where}: not in COCO format, which has lists "images" and "annotations"')
    photos: dict[int | str, Listed] = {}
    for number, image in enumerate(images):
        name, size = "", None
        if isinstance(image, dict) and is_id(image.get("id")):
            name = image.get("file_name") or str(image.get("coco_url") or "").rsplit("/", 1)[-1]
            if all(is_integer(image.get(side)) and image[side] > 0 for side in ("height", "width")):
                size = int(image["height"]), int(image["width"])
        if not isinstance(name, str) or not name or _integer(image["id"]) in photos:
            fault = "its id is used twice" if isinstance(name, str) and name else "no id, or no name of a file"
            rows.append(("image entry damaged", f"{where}: images[{number}]: {fault}: {shown(image)}"))
            continue
        photos[_integer(image["id"])] = Listed(_integer(image["id"]), name, size)
    return photos


def _of_photo(entry: Any, photos: dict[int | str, Listed], place: str, rows: list[SkippedRow]) -> Listed | None:
    image_id = entry.get("image_id") if isinstance(entry, dict) else None
    if not is_id(image_id):
        rows.append((DAMAGED, f"{place}: its image_id is missing, or neither an integer nor a text: {shown(entry)}"))
        return None
    photo = photos.get(_integer(image_id))
    if photo is None:
        rows.append((UNKNOWN_PHOTO, f"{place}: no image has its image_id, {shown(image_id)}"))
    return photo


def _box_prompt(entry: dict[str, Any], place: str, rows: list[SkippedRow]) -> Prompt | None:
    """The prompt of an annotation or a detection, with its id, category and score."""
    fault, score = "", entry.get("score")
    if not is_number_list(entry.get("bbox"), 4):
        fault = "its bbox is not four finite numbers"
    elif not (entry["bbox"][2] > 0 and entry["bbox"][3] > 0):
        fault = "its bbox has no area"
    elif not is_integer(entry.get("category_id", CATEGORY)):
        fault = "its category_id is not an integer"
    elif not is_id(entry.get("id", 0)):
        fault = "its id is neither an integer nor a text"
    elif score is not None and not is_number_list([score], 1):
        fault = "its score is not a finite number"
    if fault:
        rows.append((DAMAGED, f"{place}: {fault}: {shown(entry)}"))
        return None
    annotation_id = _integer(entry["id"]) if "id" in entry and score is None else None  # not the id of a detection
    box = tuple(map(float, box_of(entry["bbox"])))
    category = int(entry.get("category_id", CATEGORY))
    return Prompt(place, box, (), (), annotation_id, category, None if score is None else float(score))


def _lines(path: Path) -> list[tuple[str, Any]]:
    """The objects of a file of JSON lines with their places."""
    where = f"--prompts {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{where}: cannot be read ({reason}); check the path") from None
    places = [(f"{where}: line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(place, parse_json(line, place)) for place, line in places]


def _from_lines(entries: Iterable[tuple[str, Any]], where: str, rows: list[SkippedRow]) -> list[Listed]:
    listed: dict[str, Listed] = {}
    for place, entry in entries:
        name = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _parts(name):
            raise UsageError(f'{place}: expected an object with "image", the name of a photo: {shown(entry)}')
        boxes, points, labels = (entry.get(key) for key in ("boxes", "points", "labels"))
        lists = {key: entry[key] for key in ("boxes", "points", "labels", "ids", "categories") if entry.get(key)}
        wrong = next((key for key, value in lists.items() if not isinstance(value, list)), None)
        if wrong or (not boxes and not points) or (labels and not points):
            fault = f'"{wrong}" is not a list' if wrong else '"labels" without "points"' if labels else "no prompt"
            raise UsageError(f"{place}: {fault}; the fields are {', '.join(sorted(FIELDS))}")
        count = len(boxes or points)
        other = next((key for key, value in lists.items() if len(value) != count), None)
        if other:
            prompts = f"{count} {'boxes' if boxes else 'sets of points'}"
            raise UsageError(f'{place}: {prompts} but {len(lists[other])} "{other}"; pass one for each prompt')
        image_id = entry.get("image_id", name)
        if not is_id(image_id):
            raise UsageError(f"{place}: its image_id is neither an integer nor a text: {shown(image_id)}")
        photo = listed.setdefault(name, Listed(_integer(image_id), name))
        for i in range(count):
            try:
                photo.prompts.append(_line_prompt(lists, i, f"{place}, prompt {i}"))
            except UsageError as error:
                rows.append((DAMAGED, f"{place}, prompt {i}: {error}"))
    if not listed:
        raise UsageError(f"{where}: no photo in it; write one per line")
    return list(listed.values())


def _line_prompt(lists: dict[str, list[Any]], i: int, place: str) -> Prompt:
    """Prompt ``i`` of a line.

    Raises:
      UsageError: one of its fields can't be read.
    """
    box, points = (lists[key][i] if key in lists else None for key in ("boxes", "points"))
    labels = lists["labels"][i] if "labels" in lists else [1] * len(points or ())
    annotation_id, category = (lists[key][i] if key in lists else None for key in ("ids", "categories"))
    if annotation_id is not None and not is_id(annotation_id):
        raise UsageError(f"its id is neither an integer nor a text: {shown(annotation_id)}")
    if category is not None and not is_integer(category):
        raise UsageError(f"its category is not an integer: {shown(category)}")
    if box is not None and not is_number_list(box, 4):
        raise UsageError(f"box: expected four numbers x0, y0, x1, y1: {shown(box)}")
    coords = np.zeros((0, 2)) if not points else read_numbers(points, "points", "x, y of each point")
    kinds = np.zeros(0) if not points else read_numbers(labels, "labels", "one label per point")
    if coords.ndim != 2 or coords.shape[1:] != (2,) or kinds.shape != coords.shape[:1]:
        raise UsageError(
            f"points: expected x, y with one label each, (n 2) and (n), got shapes {coords.shape} and {kinds.shape}"
        )
    if box is None and not len(coords):
        raise UsageError("neither a box nor points")
    if not np.isin(kinds, (0, 1)).all():
        raise UsageError(f"labels: must be 1 (inside the object) or 0 (outside): {shown(labels)}")
    return Prompt(
        place, None if box is None else tuple(map(float, box)), tuple((float(x), float(y)) for x, y in coords),
        tuple(int(k) for k in kinds), None if annotation_id is None else _integer(annotation_id),
        CATEGORY if category is None else int(category),
    )  # fmt: skip


def _integer(value: Any) -> Any:
    """Convert ids like 7.0, as some tools write them, to integers."""
    return int(value) if isinstance(value, float) else value
