"""COCO-format data: a JSON of polygons or RLE masks, and a folder of photos.

Format: https://cocodataset.org/#format-data.  LVIS files, whose images carry a ``coco_url`` only, are read too.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.records import Record, decode_record, fault_of, read_file, usable, whole
from edgesam_jax.data.schema import Example
from edgesam_jax.data.source import Keep, LeftOut

PHOTO_FOLDERS = ("", "images", "train2017", "val2017", "images/train2017", "images/val2017")


class CocoSource:
    """Annotated photos of a COCO-format file.

    Crowd annotations are left out.  So are entries that are damaged, photos without annotations and photos that aren't
    there, each with a row in ``left_out``.  Names may not lead out of the folder (``..``, absolute paths); links in it
    are followed, since who owns the folder made them.

    Args:
      root: folder of the photos, or one whose ``images/``, ``train2017/`` or ``val2017/`` holds them.
      annotations: the JSON file; empty to find the only one under ``root``.
      limit: keep the first so many photos; 0 for all.
      bare: keep photos without annotations too, on which a detector can only be wrong.

    Raises:
      UsageError: no such folder or file, not COCO's format, or not one photo that can be used.
    """

    annotated = true_masks = True

    def __init__(self, root: str | Path, annotations: str | Path = "", limit: int = 0, bare: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UsageError(f"data root {str(root)!r}: no such folder; give the folder of the photos")
        self.annotation_file = Path(annotations) if annotations else find_annotations(folder)
        content = _read(self.annotation_file)
        self.categories: dict[int, str] = {
            c["id"]: str(c.get("name", "")) for c in content["categories"] if isinstance(c, dict) and whole(c.get("id"))
        }
        rows: list[tuple[str, str]] = []
        self._entries: list[tuple[dict[str, Any], Path, list[dict[str, Any]]]] = []
        wanted, poorer = _by_image(content["annotations"], str(self.annotation_file), rows)
        damaged, seen = len(poorer), set()
        self.sizes: dict[int | str, tuple[int, int]] = {}  # of all photos listed, rows and columns
        for number, image in enumerate(content["images"]):
            where = f"{self.annotation_file}: images[{number}]"
            fault = _image_fault(image) or ("its id is used twice" if image["id"] in seen else "")
            if fault:
                kind = "path outside the data root" if fault == OUTSIDE else "image entry damaged"
                rows.append((kind, f"{where}: {fault}: {str(image)[:80]}; mend or remove it"))
                damaged += 1
                continue
            seen.add(image["id"])
            self.sizes[image["id"]] = int(image["height"]), int(image["width"])
            if limit and len(self._entries) == limit:
                continue
            if image["id"] not in wanted and not bare:
                rows.append(("no annotations", f"{where}: no annotation of it can be used ({_file_name(image)})"))
                continue
            path = _find(folder, _file_name(image))
            if path is None:
                rows.append(("file missing", f"{where}: {_file_name(image)} is not in {folder}"))
                continue
            self._entries.append((image, path, wanted.get(image["id"], [])))
        self.left_out = LeftOut(rows, len(content["images"]), damaged)
        if not self._entries:
            missing = sum(kind == "file missing" for kind, _ in rows)
            if missing:
                raise UsageError(
                    f"{folder}: none of the {missing} photos that {self.annotation_file} lists is there, or in images/,"
                    f" train2017/ or val2017/ ({next(m for k, m in rows if k == 'file missing')}); give their folder"
                )
            reason = self.left_out.note if rows else "it lists none"
            raise UsageError(f"{self.annotation_file}: no photo in it can be used: {reason}")

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, index: int) -> Path:
        """Where a photo lies."""
        return self._entries[index][1]

    def names(self) -> list[str]:
        """The photos' files as the annotations name them."""
        return [_file_name(image) for image, _, _ in self._entries]

    def image_ids(self) -> list[int | str]:
        """The photos' ids, in order."""
        return [image["id"] for image, _, _ in self._entries]

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


def _read(path: Path) -> dict[str, Any]:
    """The content of a file in COCO's format, so far as its two lists go.

    Raises:
      UsageError: no such file, no JSON, or not these lists.
    """
    if not path.is_file():
        raise UsageError(f"annotations {path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"annotations {path}: not valid JSON ({error})") from None
    if not (isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "annotations"))):
        raise UsageError(f'annotations {path}: not in COCO format, which has lists "images" and "annotations"')
    if not isinstance(content.get("categories"), list):
        content["categories"] = []
    return content


def _by_image(
    annotations: list[Any], where: str, rows: list[tuple[str, str]]
) -> tuple[dict[int | str, list[dict[str, Any]]], set[Any]]:
    """The annotations of each image, but for crowds and for what can't be used, which gets a row.

    Returns also the ids of the images that lost one; an annotation that names no image counts as an image.
    """
    found: dict[int | str, list[dict[str, Any]]] = {}
    poorer: set[Any] = set()
    for number, annotation in enumerate(annotations):
        fault = fault_of(annotation)
        image_id: Any = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not (whole(image_id) or isinstance(image_id, str)):
            fault, image_id = fault or "no image_id that is a whole number or a text", ("nameless", number)
        elif not fault and "id" not in annotation:
            fault = "no 'id'"
        if isinstance(annotation, dict) and annotation.get("iscrowd"):
            continue
        kind = "annotation damaged" if fault else "annotation empty"
        if fault or not usable(annotation):
            fault = fault or "no inside"
            rows.append((kind, f"{where}: annotations[{number}]: {fault}: {str(annotation)[:80]}; mend or remove it"))
            poorer.add(image_id)
        else:
            found.setdefault(image_id, []).append(annotation)
    return found, poorer


OUTSIDE = "its name leads out of the data root"


def _image_fault(image: Any) -> str:
    """What is wrong with an entry of ``images``; empty if nothing is."""
    if not isinstance(image, dict):
        return "not an object with fields"
    absent = [name for name in ("id", "height", "width") if name not in image]
    if absent:
        return f"no {absent[0]!r}"
    if not (whole(image["id"]) or isinstance(image["id"], str)):
        return "its id is neither a whole number nor a text"
    if not all(whole(image[side]) and image[side] > 0 for side in ("height", "width")):
        return "its height or width is not a whole number above 0"
    name = _file_name(image)
    if not name or "\0" in name or len(name) > 1000:
        return "neither file_name nor coco_url says which file"
    path = PurePosixPath(name)
    return OUTSIDE if path.is_absolute() or ".." in path.parts else ""


def _file_name(image: dict[str, Any]) -> str:
    """The name of the photo's file; LVIS has an address only."""
    name = image.get("file_name") or str(image.get("coco_url", "")).rsplit("/", 1)[-1]
    return name if isinstance(name, str) else ""


def _find(folder: Path, name: str) -> Path | None:
    """Where a photo lies, if it does."""
    try:
        return next((folder / sub / name for sub in PHOTO_FOLDERS if (folder / sub / name).is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None
