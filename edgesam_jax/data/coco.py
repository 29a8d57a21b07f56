"""COCO-format data: a JSON of polygons or RLE masks, and a folder of photos.

Format: https://cocodataset.org/#format-data.  LVIS files, whose images carry a ``coco_url`` only, are read too.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from edgesam_jax.config import UsageError
from edgesam_jax.data.records import Record, decode_record, read_file, usable
from edgesam_jax.data.schema import Example
from edgesam_jax.data.sources import Keep

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

    annotated = true_masks = True

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
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        image, path, wanted = self._entries[index]
        size = int(image["height"]), int(image["width"])
        where = f"{self.annotation_file}: image {image['id']}"
        return Record(read_file(path), str(path), image["id"], wanted, where, size)


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


def _file_name(image: dict[str, Any], path: Path) -> str:
    name = image.get("file_name") or str(image.get("coco_url", "")).rsplit("/", 1)[-1]
    if not name:
        raise UsageError(f"annotations {path}: image {image['id']} has neither file_name nor coco_url")
    return str(name)
