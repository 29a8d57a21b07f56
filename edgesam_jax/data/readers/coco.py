"""COCO-format data: a JSON file of polygons or RLE masks, and a folder of photos.

Format: https://cocodataset.org/#format-data.  LVIS files, whose images have only a ``coco_url``, can be read too.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.annotations import CROWD, DAMAGED, UNKNOWN_PHOTO, fault_of, is_integer, shown
from edgesam_jax.data.readers.file_names import spellings
from edgesam_jax.data.readers.records import Record, decode_record, read_file
from edgesam_jax.data.schema import Example
from edgesam_jax.data.source import CONSEQUENCE, Keep, SkippedEntries, SkippedRow, commonest
from edgesam_jax.files import read_json

PHOTO_FOLDERS = ("", "images", "train2017", "val2017", "images/train2017", "images/val2017")


class CocoSource:
    """Annotated photos of a COCO-format file.

    Crowd annotations, damaged entries, photos without annotations and missing photos are skipped, each with a row in
    ``skipped_entries``.  File names that lead out of the folder (``..``, absolute paths) are rejected; links inside the
    folder are followed, since its owner made them.  Backslashes in file names separate folders, as on Windows.

    Args:
      root: folder of the photos, or one whose ``images/``, ``train2017/`` or ``val2017/`` holds them.
      annotations: the JSON file; empty to find the only one under ``root``.
      limit: keep only the first ``limit`` photos; 0 keeps all.
      bare: read the photos only, all of them, without their annotations; in detection, ``eval`` reads these itself.

    Raises:
      UsageError: the folder or the file is missing, the file is not in COCO format, or no photo can be used.
    """

    annotated = true_masks = True

    def __init__(self, root: str | Path, annotations: str | Path = "", limit: int = 0, bare: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UsageError(f"data root {str(root)!r}: no such folder; pass the folder of the photos")
        self.annotation_file = Path(annotations) if annotations else find_annotations(folder)
        content = read_coco(self.annotation_file)
        self.categories: dict[int, str] = {
            c["id"]: name if isinstance(name := c.get("name", ""), str) else shown(name)
            for c in content["categories"]
            if isinstance(c, dict) and is_integer(c.get("id"))
        }
        rows: list[SkippedRow] = []
        self._entries: list[tuple[dict[str, Any], Path, list[dict[str, Any]]]] = []
        listed = {i["id"] for i in content["images"] if isinstance(i, dict) and is_id(i.get("id"))}
        entries = [] if bare else content["annotations"]
        by_image, affected = _by_image(entries, listed, str(self.annotation_file), rows)
        damaged, seen = len(affected), set()
        self.sizes: dict[int | str, tuple[int, int]] = {}  # (rows, columns) of all listed photos
        for number, image in enumerate(content["images"]):
            where = f"{self.annotation_file}: images[{number}]"
            fault = _image_fault(image) or ("its id is used twice" if image["id"] in seen else "")
            if fault:
                kind = "path outside the data root" if fault == OUTSIDE else "image entry damaged"
                rows.append((kind, f"{where}: {fault}: {shown(image)}; fix or remove it"))
                damaged += 1
                continue
            seen.add(image["id"])
            self.sizes[image["id"]] = int(image["height"]), int(image["width"])
            if limit and len(self._entries) == limit:
                continue
            if image["id"] not in by_image and not bare:
                rows.append((CONSEQUENCE, f"{where}: no usable annotation ({_file_name(image)})"))
                continue
            path = _find(folder, _file_name(image))
            if path is None:
                tried = ", also with its backslashes as /" if "\\" in _file_name(image) else ""
                rows.append(("file missing", f"{where}: {_file_name(image)} is not in {folder}{tried}"))
                continue
            self._entries.append((image, path, by_image.get(image["id"], [])))
        self.skipped_entries = SkippedEntries(rows, len(content["images"]), damaged)
        if not self._entries:
            missing = sum(kind == "file missing" for kind, _ in rows)
            if missing and commonest(rows) == "file missing":
                raise UsageError(
                    f"{folder}: none of the {missing} photos listed in {self.annotation_file} found here or in images/,"
                    f" train2017/ or val2017/ ({next(m for k, m in rows if k == 'file missing')}); pass their folder"
                )
            reason = self.skipped_entries.note if rows else "it lists none"
            raise UsageError(f"{self.annotation_file}: no photo in it can be used: {reason}")

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, index: int) -> Path:
        """Return the path of a photo."""
        return self._entries[index][1]

    def names(self) -> list[str]:
        """Return the photos' file names as in the annotations, with "/" between folders."""
        return [_file_name(image).replace("\\", "/") for image, _, _ in self._entries]

    def image_ids(self) -> list[int | str]:
        """Return the photos' ids, in order."""
        return [image["id"] for image, _, _ in self._entries]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Return a photo's annotations as in the file; an unfiltered ``load`` leaves out those without a mask."""
        return self._entries[index][2]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        """Read a photo's file, and return it with its annotations."""
        image, path, annotations = self._entries[index]
        size = int(image["height"]), int(image["width"])
        where = f"{self.annotation_file}: image {image['id']}"
        return Record(read_file(path), str(path), image["id"], annotations, where, size)


def find_annotations(folder: Path) -> Path:
    """Find the only COCO-format JSON file in a folder or in its ``annotations/``.

    Raises:
      UsageError: no such file, or several.
    """
    found = [path for sub in ("", "annotations") for path in sorted((folder / sub).glob("*.json"))]
    preferred = [path for path in found if path.name.startswith(("instances_", "lvis_v1_"))] or found
    if len(preferred) == 1:
        return preferred[0]
    if not found:
        raise UsageError(
            f"{folder}: no annotations (*.json) in it or its annotations/; pass the file (data.annotations,"
            " --annotations)"
        )
    names = ", ".join(path.name for path in preferred[:4])
    raise UsageError(
        f"{folder}: several annotation files ({names}); pass one of them (data.annotations, --annotations)"
    )


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO-format file and check that it has its lists; ``categories`` is empty if the file has none.

    Raises:
      UsageError: the file is missing, not valid JSON, or lacks a list.
    """
    content = read_json(path, "annotations")
    if not (isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "annotations"))):
        raise UsageError(f'annotations {path}: not in COCO format, which has lists "images" and "annotations"')
    if not isinstance(content.get("categories"), list):
        content["categories"] = []
    return content


def annotation_row(where: str, number: int, kind: str, fault: str, annotation: Any) -> SkippedRow:
    """Return the row of an annotation that is not used.

    Args:
      where: name of the file.
      number: index in the list of annotations.
      kind, fault: see ``annotations.fault_of``.
    """
    return kind, f"{where}: annotations[{number}]: {fault}: {shown(annotation)}; fix or remove it"


def _by_image(
    annotations: list[Any], images: Collection[int | str], where: str, rows: list[SkippedRow]
) -> tuple[dict[int | str, list[dict[str, Any]]], set[Any]]:
    """Group the usable annotations by image, and add a row for each of the others.

    Annotations of images that are not listed share a row per image, since cut-down files have many of them.

    Args:
      images: ids of the listed images.

    Returns:
      The annotations of each image, and the ids of the images that lost one.  An annotation without a valid image id
      counts as a separate image.
    """
    by_image: dict[int | str, list[dict[str, Any]]] = {}
    affected: set[Any] = set()
    strangers: dict[int | str, list[int]] = {}
    for number, annotation in enumerate(annotations):
        if isinstance(annotation, dict) and annotation.get("iscrowd") in (1,):
            row = f"{where}: annotations[{number}]: a crowd region, which is no single object to prompt"
            rows.append((CROWD, f"{row}: {shown(annotation)}"))
            continue
        fault = fault_of(annotation)
        image_id: Any = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not is_id(image_id):
            fault = fault or (DAMAGED, "its image_id is neither an integer nor a string")
            image_id = ("nameless", number)
        elif image_id not in images:
            strangers.setdefault(image_id, []).append(number)
            continue
        elif not fault and "id" not in annotation:
            fault = DAMAGED, "no 'id'"
        if fault:
            rows.append(annotation_row(where, number, *fault, annotation))
            affected.add(image_id)
        else:
            by_image.setdefault(image_id, []).append(annotation)
    for image_id, numbers in strangers.items():
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        message = f"{where}: annotations[{numbers[0]}]{more}: no image has their image_id, {image_id!r}"
        rows.append((UNKNOWN_PHOTO, message))
    return by_image, affected


def is_id(value: Any) -> bool:
    """Whether a value can be the id of an image."""
    return is_integer(value) or isinstance(value, str)


OUTSIDE = "its file name leads out of the data root"


def _image_fault(image: Any) -> str:
    """Describe the fault of an entry of ``images``; empty if it has none."""
    if not isinstance(image, dict):
        return "not an object"
    absent = [name for name in ("id", "height", "width") if name not in image]
    if absent:
        return f"no {absent[0]!r}"
    if not is_id(image["id"]):
        return "its id is neither an integer nor a string"
    if not all(is_integer(image[side]) and image[side] > 0 for side in ("height", "width")):
        return "its height or width is not a positive integer"
    name = _file_name(image)
    if not name or "\0" in name or len(name) > 1000:
        return "neither file_name nor coco_url names a file"
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = posix.is_absolute() or ".." in posix.parts
    if "\\" in name:
        leaves = leaves or bool(windows.drive or windows.root) or ".." in windows.parts
    return OUTSIDE if leaves else ""


def _file_name(image: dict[str, Any]) -> str:
    """Return the name of the photo's file; LVIS has only its URL."""
    name, url = image.get("file_name"), image.get("coco_url", "")
    name = name or (url.rsplit("/", 1)[-1] if isinstance(url, str) else "")
    return name if isinstance(name, str) else ""


def _find(folder: Path, name: str) -> Path | None:
    """Return the path of a photo; None if there is no such file."""
    for spelling in spellings(name):
        try:
            return next(folder / sub / spelling for sub in PHOTO_FOLDERS if (folder / sub / spelling).is_file())
        except (StopIteration, OSError, ValueError):  # not there, or not a possible file name
            continue
    return None
