"""COCO-format data: a JSON of polygons or RLE masks, and a folder of photos.

Format: https://cocodataset.org/#format-data.  LVIS files, whose images carry a ``coco_url`` only, are read too.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import OBJECT, Example
from edgesam_jax.data.sources import Keep
from edgesam_jax.data.transforms import interior_point, load_image

PHOTO_FOLDERS = ("", "images", "train2017", "val2017", "images/train2017", "images/val2017")
_log = logging.getLogger(__name__)


class CocoSource:
    """Annotated photos of a COCO-format file.

    Crowd annotations and photos without any other annotation are left out (``without_annotations`` counts the photos);
    so are photos that aren't there (``missing`` names them), unless all are missing.

    Args:
      root: folder of the photos, or one whose ``images/``, ``train2017/`` or ``val2017/`` holds them.
      annotations: the JSON file; empty to find the only one under ``root``.
      limit: keep the first so many photos; 0 for all.
    """

    def __init__(self, root: str | Path, annotations: str | Path = "", limit: int = 0) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UsageError(f"data root {str(root)!r}: no such folder; give the folder of the photos")
        self.annotation_file = Path(annotations) if annotations else find_annotations(folder)
        index = _read(self.annotation_file)
        self.categories: dict[int, str] = {c["id"]: c.get("name", "") for c in index.dataset.get("categories", [])}
        self.missing: list[str] = []
        self.without_annotations = 0
        self._entries: list[tuple[dict[str, Any], Path, list[dict[str, Any]]]] = []
        for image in index.dataset["images"]:
            wanted = [a for a in index.imgToAnns.get(image["id"], ()) if not a.get("iscrowd") and usable(a)]
            if not wanted:
                self.without_annotations += 1
                continue
            name = _file_name(image, self.annotation_file)
            path = next((folder / sub / name for sub in PHOTO_FOLDERS if (folder / sub / name).is_file()), None)
            if path is None:
                self.missing.append(name)
            else:
                self._entries.append((image, path, wanted))
            if limit and len(self._entries) == limit:
                break
        if not self._entries:
            if self.missing:
                raise UsageError(
                    f"{folder}: none of the {len(self.missing)} photos that {self.annotation_file} lists is there, "
                    f"nor in images/, train2017/ or val2017/ (the first is {self.missing[0]}); give their folder"
                )
            raise UsageError(f"{self.annotation_file}: no photo in it has an annotation that is not a crowd")
        if self.missing:
            named = ", ".join(self.missing[:3]) + (", ..." if len(self.missing) > 3 else "")
            _log.warning("%s: %d photos of %s are missing: %s", folder, len(self.missing), self.annotation_file, named)

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, index: int) -> Path:
        """Where a photo lies."""
        return self._entries[index][1]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The photo's annotations as the file has them, in the order of an unfiltered ``load``."""
        return self._entries[index][2]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        image, path, wanted = self._entries[index]
        pixels = load_sized(path, int(image["height"]), int(image["width"]), str(self.annotation_file))
        return decode_example(pixels, wanted, image["id"], f"{self.annotation_file}: image {image['id']}", keep)


def find_annotations(folder: Path) -> Path:
    """The only COCO-format JSON file in a folder or in its ``annotations/``.

    Raises:
      UsageError: none, or several to choose from.
    """
    found = [path for sub in ("", "annotations") for path in sorted((folder / sub).glob("*.json"))]
    preferred = [path for path in found if path.name.startswith(("instances_", "lvis_v1_"))] or found
    if len(preferred) == 1:
        return preferred[0]
    if not found:
        raise UsageError(f"{folder}: no annotations (*.json) in it or in its annotations/; name the file")
    names = ", ".join(path.name for path in preferred[:4])
    raise UsageError(f"{folder}: several annotation files ({names}); name the one to use")


def load_sized(path: Path, height: int, width: int, where: str) -> np.ndarray:
    """Read a photo whose annotations say its size.

    Annotation tools differ in whether they heed EXIF orientation, so the size decides.

    Raises:
      UsageError: the photo can't be read, or has another size.
    """
    pixels = load_image(path)
    if pixels.shape[:2] != (height, width):
        stored = load_image(path, orient=False)
        if stored.shape[:2] != (height, width):
            raise UsageError(
                f"{path}: it has {pixels.shape[1]}x{pixels.shape[0]} pixels but {where} says {width}x{height}; "
                "use the photos that were annotated"
            )
        pixels = stored
    return pixels


def decode_example(
    pixels: np.ndarray, annotations: Sequence[dict[str, Any]], image_id: int | str, where: str, keep: Keep | None
) -> Example:
    """An ``Example`` from annotations with ``bbox`` XYWH, ``segmentation`` and maybe ``point_coords``."""
    height, width = pixels.shape[:2]
    if keep is not None:
        areas = np.array([_area(a) for a in annotations], np.float64)
        annotations = [annotations[i] for i in keep(areas, (height, width))]
    n = len(annotations)
    masks = np.zeros((n, height, width), bool)
    boxes, points = np.zeros((n, 4), np.float32), np.zeros((n, 2), np.float32)
    ids = np.array([a.get("id", i) for i, a in enumerate(annotations)], np.int64)
    for i, annotation in enumerate(annotations):
        masks[i] = decode_mask(annotation["segmentation"], height, width, f"{where}, annotation {ids[i]}")
        x, y, w, h = annotation["bbox"]
        boxes[i] = x, y, x + w, y + h
        given = annotation.get("point_coords")
        if given and numbers(given[0], 2):
            points[i] = given[0]
        else:  # the same point whenever the annotation is read
            key = zlib.crc32(f"{image_id} {ids[i]}".encode())
            points[i] = interior_point(np.random.default_rng(key), masks[i])
    return Example(pixels, masks, boxes, points, image_id, ids, np.full(n, OBJECT, np.int8))


def decode_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Mask (height width) bool of polygons, uncompressed RLE or compressed RLE.

    Raises:
      UsageError: it is none of these, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose nothing
            if not np.isfinite(np.concatenate(polygons or [np.zeros(0)]).astype(np.float64)).all():
                raise ValueError("a corner is not a number")
            if not polygons:
                return np.zeros((height, width), bool)
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
            return np.asarray(coco_mask.decode(rle), bool)
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"size {segmentation['size']} instead of {[height, width]}")
        # pycocotools trusts the runs, and writes past the end of the mask where they are too long.
        runs = _runs(segmentation["counts"])
        if (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"runs of {runs.sum()} pixels instead of {height * width}")
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
        return np.asarray(coco_mask.decode(rle), bool)
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise UsageError(f"{where}: damaged segmentation ({error}); mend or remove it") from None


def _runs(counts: list[int] | str | bytes) -> np.ndarray:
    """Lengths of the runs, int64, of either run-length code.

    Format: a compressed count is a little-endian number of 5-bit digits, one per character from "0" on; 32 says that
    more follow, the last digit's 16 that it is negative.  From the fourth on, counts are differences to the one two
    before.
    """
    if isinstance(counts, list):
        return np.array(counts, np.int64)
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError("unknown or missing characters")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    places = np.arange(len(digits)) - np.repeat(starts, np.diff([*starts, len(digits)]))
    if places.max() > 6:
        raise ValueError("a count of too many digits")
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    negative = (digits[last] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (places[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _read(path: Path) -> COCO:
    """Index a file, having checked what the reader relies on."""
    if not path.is_file():
        raise UsageError(f"annotations {path}: no such file")
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"annotations {path}: not valid JSON ({error})") from None
    if not (isinstance(dataset, dict) and all(isinstance(dataset.get(k), list) for k in ("images", "annotations"))):
        raise UsageError(f'annotations {path}: not in COCO format, which has lists "images" and "annotations"')
    needed = (("images", ("id", "height", "width")), ("annotations", ("image_id", "bbox", "segmentation", "id")))
    for kind, names in needed:
        for entry in dataset[kind]:
            absent = [name for name in names if not isinstance(entry, dict) or name not in entry]
            if absent:
                raise UsageError(f"annotations {path}: an entry of {kind!r} has no {absent[0]!r}: {str(entry)[:80]}")
    for entry in dataset["annotations"]:
        entry.setdefault("category_id", 0)  # what the index wants, and a class-agnostic file may lack
    dataset.setdefault("categories", [])
    index = COCO()
    index.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        index.createIndex()
    return index


def usable(annotation: dict[str, Any]) -> bool:
    """Has a mask, and a box with an inside."""
    box = annotation["bbox"]
    shape = annotation["segmentation"]
    if isinstance(shape, list) and not any(isinstance(p, list) and len(p) >= 6 for p in shape):
        return False
    return bool(shape) and numbers(box, 4) and box[2] > 0 and box[3] > 0


def numbers(value: Any, length: int) -> bool:
    """Is a list of so many numbers."""
    return isinstance(value, list) and len(value) == length and all(isinstance(v, int | float) for v in value)


def _area(annotation: dict[str, Any]) -> float:
    area = annotation.get("area")
    return area if isinstance(area, int | float) else annotation["bbox"][2] * annotation["bbox"][3]


def _file_name(image: dict[str, Any], path: Path) -> str:
    name = image.get("file_name") or str(image.get("coco_url", "")).rsplit("/", 1)[-1]
    if not name:
        raise UsageError(f"annotations {path}: image {image['id']} has neither file_name nor coco_url")
    return str(name)
