"""Read a COCO-format file into the form that the evaluation tools need: complete, valid, and renumbered.

Format: https://cocodataset.org/#format-data.  Crowd regions are kept, because the tools have a rule for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import MAX_PIXELS, MAX_SIDE
from edgesam_jax.data.readers.annotations import DAMAGED, EMPTY, fault_of, is_integer, shown
from edgesam_jax.data.readers.coco import annotation_row, read_coco
from edgesam_jax.data.readers.segmentations import REMEDY
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow
from edgesam_jax.eval.scoring.results import compressed

IMAGE_DAMAGED = "image entry damaged"  # kind of rows


@dataclass(frozen=True)
class GroundTruth:
    """Photos, annotations and categories of a file, and (kind, message) for each entry that can't be used.

    Annotations have an ``id`` from 1, ``iscrowd`` 0 or 1, ``area`` in pixels and a compressed ``segmentation``.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    skipped: list[SkippedRow]

    def require(self, image_ids: Iterable[int | str]) -> None:
        """Check that the file has these photos.

        Raises:
          UsageError: a photo is not in the file, or its id is a string, which the tools don't support.
        """
        known = {image["id"] for image in self.images}
        for image_id in image_ids:
            if isinstance(image_id, str):
                raise _string_id(self.path, image_id)
            if image_id not in known:
                raise UsageError(f"annotations {self.path}: no image has the id {image_id}")


def read_ground_truth(path: Path, image_ids: Sequence[int | str] | None = None) -> GroundTruth:
    """Read a file, fill in fields that custom files often lack (``iscrowd``, ``area``), and skip damaged entries.

    Annotations that ``fault_of`` refuses, or whose masks can't be decoded or have no pixel, are skipped.  The others
    are renumbered, because pycocotools treats a match with id 0 as no match and confuses equal ids.

    Args:
      image_ids: the photos whose annotations are read; None for all.

    Raises:
      UsageError: the file doesn't exist or is not in COCO format, or an image id is a string, which the tools don't
        support.
    """
    content = read_coco(path)
    rows: list[SkippedRow] = []
    categories = _categories(path, content, rows)
    known = {category["id"] for category in categories}
    images = _images(path, content["images"], rows)
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    selected = set(sizes) if image_ids is None else set(image_ids)
    annotations: list[dict[str, Any]] = []
    for number, annotation in enumerate(content["annotations"]):
        fault = _fault(annotation, sizes, known)
        if not fault and annotation["image_id"] not in selected:
            continue
        if not fault:
            try:
                code = compressed(annotation["segmentation"], *sizes[annotation["image_id"]], "its mask")
                if coco_mask.area(code):
                    annotations.append(_complete(annotation, len(annotations) + 1, code))
                    continue
                fault = EMPTY, "its mask has no pixel in the photo"
            except BadExample as error:
                fault = DAMAGED, str(error).removesuffix(REMEDY)
        rows.append(annotation_row(str(path), number, *fault, annotation))
    truth = GroundTruth(path, [image for image in images if image["id"] in selected], annotations, categories, rows)
    truth.require(image_ids or ())
    return truth


def _images(path: Path, entries: list[Any], rows: list[SkippedRow]) -> list[dict[str, Any]]:
    """The photos with a valid id and size."""
    images: dict[int, dict[str, Any]] = {}
    for number, image in enumerate(entries):
        fault = _image_fault(path, image)
        if not fault and image["id"] in images:
            fault = "its id is used twice"
        if fault:
            rows.append((IMAGE_DAMAGED, f"{path}: images[{number}]: {fault}: {shown(image)}"))
        else:
            images[int(image["id"])] = {**image, **{name: int(image[name]) for name in ("id", "height", "width")}}
    return list(images.values())


def _image_fault(path: Path, image: Any) -> str:
    """The fault of an entry of ``images``; empty if it is valid."""
    if not isinstance(image, dict):
        return "not a JSON object"
    if isinstance(image.get("id"), str):
        raise _string_id(path, image["id"])
    if not is_integer(image.get("id")):
        return "its id is not an integer"
    height: Any = image.get("height")
    width: Any = image.get("width")
    if not (is_integer(height) and is_integer(width) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        return f"its height or width is not an integer from 1 to {MAX_SIDE}"
    return f"more than {MAX_PIXELS} pixels" if height * width > MAX_PIXELS else ""


def _categories(path: Path, content: dict[str, Any], rows: list[SkippedRow]) -> list[dict[str, Any]]:
    """The categories that the file lists, or those of its annotations if it lists none."""
    listed = content.get("categories")
    if not isinstance(listed, list) or not listed:
        used = [
            a["category_id"] for a in content["annotations"] if isinstance(a, dict) and is_integer(a.get("category_id"))
        ]
        return [{"id": int(category), "name": str(int(category))} for category in sorted(set(used))]
    categories: dict[int, dict[str, Any]] = {}
    for number, category in enumerate(listed):
        if isinstance(category, dict) and is_integer(category.get("id")):
            categories.setdefault(int(category["id"]), {**category, "id": int(category["id"])})
        else:
            row = f"{path}: categories[{number}]: its id is not an integer: {shown(category)}"
            rows.append(("category entry damaged", row))
    return list(categories.values())


def _fault(annotation: Any, sizes: Mapping[int, tuple[int, int]], categories: Collection[int]) -> SkippedRow | None:
    """The kind and the fault of an annotation that shows without decoding its mask; None if there is none."""
    if not isinstance(annotation, dict):
        return DAMAGED, "not an object"
    image_id, category = annotation.get("image_id"), annotation.get("category_id")
    if not is_integer(image_id) or image_id not in sizes:
        return DAMAGED, "its image_id is not among the images"
    if not is_integer(category) or category not in categories:
        return DAMAGED, "its category_id is not among the categories"
    # A valid mask with an empty box can't be prompted with, but COCO has a few of them, and the tools count them.
    return fault_of(annotation, needs_box=False)


def _complete(annotation: dict[str, Any], number: int, code: dict[str, Any]) -> dict[str, Any]:
    """An annotation with the fields that the tools need, and no others."""
    area = annotation.get("area")
    return {
        "id": number,
        "image_id": int(annotation["image_id"]),
        "category_id": int(annotation["category_id"]),
        "iscrowd": int(bool(annotation.get("iscrowd"))),
        "area": float(coco_mask.area(code)) if area is None else area,
        "segmentation": code,
    }


def _string_id(path: Path, image_id: str) -> UsageError:
    return UsageError(f"annotations {path}: image id {image_id[:40]!r} is a string; average precision needs integers")
