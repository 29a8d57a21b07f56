"""A COCO-format file as the evaluation tools need it: complete, sound, and numbered as they expect.

Format: https://cocodataset.org/#format-data.  Crowd regions stay in, since the tools have a rule for them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.records import REACH, annotation_fault, has_extent, is_integer
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.transforms import MAX_PIXELS, MAX_SIDE
from edgesam_jax.eval.scoring.results import compressed


@dataclass(frozen=True)
class GroundTruth:
    """Photos, annotations and categories of a file, and a row (kind, message) for each entry that can't be used.

    Annotations have ``id`` from 1 on, ``iscrowd`` 0 or 1, ``area`` in pixels and a compressed ``segmentation``.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    left_out: list[tuple[str, str]]

    def require(self, image_ids: Iterable[int | str]) -> None:
        """Raises: UsageError: one of these photos is not in the file, or its id is a text, which no tool takes."""
        known = {image["id"] for image in self.images}
        for image_id in image_ids:
            if isinstance(image_id, str):
                raise _text_id(self.path, image_id)
            if image_id not in known:
                raise UsageError(f"annotations {self.path}: no image has the id {image_id}")


def read_ground_truth(path: Path, image_ids: Sequence[int | str] | None = None) -> GroundTruth:
    """Read a file, fill in what own files often lack (``iscrowd``, ``area``), and leave out what is damaged.

    Damaged is what ``annotation_fault`` says is, and what has no mask that can be decoded.  Annotations are numbered
    anew,
    because pycocotools takes a match with number 0 for none and mixes up equal numbers.

    Args:
      image_ids: the photos whose annotations are wanted; None for all.

    Raises:
      UsageError: no such file, not COCO's format, or a photo whose id is a text, which no tool takes.
    """
    content = _read(path)
    rows: list[tuple[str, str]] = []
    categories = _categories(path, content, rows)
    known = {category["id"] for category in categories}
    images = _images(path, content["images"], rows)
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    wanted = set(sizes) if image_ids is None else set(image_ids)
    annotations: list[dict[str, Any]] = []
    for number, annotation in enumerate(content["annotations"]):
        fault = _fault(annotation, sizes, known)
        if not fault and annotation["image_id"] not in wanted:
            continue
        if not fault:
            try:
                code = compressed(annotation["segmentation"], *sizes[annotation["image_id"]], "its mask")
                annotations.append(_complete(annotation, len(annotations) + 1, code))
                continue
            except BadExample as error:
                fault = str(error)
        rows.append(("annotation damaged", f"{path}: annotations[{number}]: {fault}: {str(annotation)[:80]}"))
    truth = GroundTruth(path, [image for image in images if image["id"] in wanted], annotations, categories, rows)
    truth.require(image_ids or ())
    return truth


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"annotations {path}: no such file")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"annotations {path}: not valid JSON ({error})") from None
    if not (isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "annotations"))):
        raise UsageError(f'annotations {path}: not in COCO format, which has lists "images" and "annotations"')
    return content


def _images(path: Path, entries: list[Any], rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The photos whose id and size are known."""
    found: dict[int, dict[str, Any]] = {}
    for number, image in enumerate(entries):
        fault = _image_fault(path, image)
        if not fault and image["id"] in found:
            fault = "its id is used twice"
        if fault:
            rows.append(("image entry damaged", f"{path}: images[{number}]: {fault}: {str(image)[:80]}"))
        else:
            found[int(image["id"])] = {**image, **{name: int(image[name]) for name in ("id", "height", "width")}}
    return list(found.values())


def _image_fault(path: Path, image: Any) -> str:
    """What is wrong with an entry of ``images``; empty if nothing is."""
    if not isinstance(image, dict):
        return "not an object with fields"
    if isinstance(image.get("id"), str):
        raise _text_id(path, image["id"])
    if not is_integer(image.get("id")):
        return "its id is no whole number"
    height: Any = image.get("height")
    width: Any = image.get("width")
    if not (is_integer(height) and is_integer(width) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        return f"its height or width is not a whole number from 1 to {MAX_SIDE}"
    return f"more than {MAX_PIXELS} pixels" if height * width > MAX_PIXELS else ""


def _categories(path: Path, content: dict[str, Any], rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The categories that the file lists; where it lists none, those of its annotations."""
    listed = content.get("categories")
    if not isinstance(listed, list) or not listed:
        used = [
            a["category_id"] for a in content["annotations"] if isinstance(a, dict) and is_integer(a.get("category_id"))
        ]
        return [{"id": int(category), "name": str(int(category))} for category in sorted(set(used))]
    found: dict[int, dict[str, Any]] = {}
    for number, category in enumerate(listed):
        if isinstance(category, dict) and is_integer(category.get("id")):
            found.setdefault(int(category["id"]), {**category, "id": int(category["id"])})
        else:
            row = f"{path}: categories[{number}]: no id that is a whole number: {str(category)[:80]}"
            rows.append(("category entry damaged", row))
    return list(found.values())


def _fault(annotation: Any, sizes: Mapping[int, tuple[int, int]], categories: Collection[int]) -> str:
    """What is wrong with an annotation, so far as it shows before the mask is decoded; empty if nothing is."""
    if not isinstance(annotation, dict):
        return "not an object with fields"
    image_id, category = annotation.get("image_id"), annotation.get("category_id")
    if not is_integer(image_id) or image_id not in sizes:
        return "its image_id is none of the images'"
    if not is_integer(category) or category not in categories:
        return "its category_id is none of the categories'"
    # A box without extent beside a sound mask can't be a prompt, but COCO has a few, and the tools count them.
    return annotation_fault(annotation) or ("" if has_extent({**annotation, "bbox": [0, 0, 1, 1]}) else "no inside")


def _complete(annotation: dict[str, Any], number: int, code: dict[str, Any]) -> dict[str, Any]:
    """An annotation with everything that the tools ask for, and nothing else."""
    area = annotation.get("area")
    known = isinstance(area, int | float) and 0 <= area < REACH**2
    return {
        "id": number,
        "image_id": int(annotation["image_id"]),
        "category_id": int(annotation["category_id"]),
        "iscrowd": int(bool(annotation.get("iscrowd"))),
        "area": area if known else float(coco_mask.area(code)),
        "segmentation": code,
    }


def _text_id(path: Path, image_id: str) -> UsageError:
    return UsageError(
        f"annotations {path}: image id {image_id[:40]!r} is a text; average precision needs whole numbers: number them"
    )
