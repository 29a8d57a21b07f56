"""A folder of photos, with or without annotation files.

The annotations of ``a.jpg`` are ``a.json`` (SA-1B's or labelme's format), next to the photo or under ``annotations/``;
or instance masks ``masks/a.png`` or ``masks/a/*.png``.  ``annotations`` and ``masks`` are in the photo's folder or take
the place of a folder ``images`` above it.  Masks may also be other picture files (``mask_files``).  Likewise ``a.txt``
(YOLO's format) next to the photo or under ``labels/``; and ``a.png`` next to ``a.jpg``, if all PNG files of that folder
have a JPEG file of the same name.
The letter case of suffixes and the Unicode form of names don't matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import PHOTO_SUFFIXES
from edgesam_jax.data.readers import yolo
from edgesam_jax.data.readers.annotations import fault_of, is_integer, shown
from edgesam_jax.data.readers.file_names import Folders
from edgesam_jax.data.readers.labelme import labelme_record
from edgesam_jax.data.readers.mask_files import MASK_SUFFIXES, mask_record
from edgesam_jax.data.readers.records import Record, decode_record, read_file
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import CONSEQUENCE, Keep, SkippedEntries, SkippedRow
from edgesam_jax.files import parse_json

MASKS = "masks"  # folder of instance masks
ANNOTATIONS = "annotations"  # folder of JSON files
LABELS = "labels"  # folder of YOLO's text files
PAIRED = ".png"  # suffix of a mask next to a JPEG file of its name
JSON = (".json",)


class ImagesSource:
    """Photos of a folder and its subfolders, in the order of their names.

    If any photo is annotated, those without annotations are skipped (``skipped_entries`` lists them).  If none is, all
    are kept, with no instances, which is enough for encoder-only distillation.  Links in the folder are followed.

    Args:
      root: the folder.
      limit: keep only the first ``limit`` photos; 0 keeps all.

    Raises:
      UsageError: the folder is missing or contains no photo.
    """

    def __init__(self, root: str | Path, limit: int = 0) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UsageError(f"data root {str(root)!r}: no such folder; pass the folder of the photos")
        photos, masks, documents = [], [], []
        for path in folder.rglob("*"):
            suffix = path.suffix.lower()
            if suffix in JSON:
                documents.append(path)
            elif suffix not in PHOTO_SUFFIXES.union(MASK_SUFFIXES):
                continue
            elif MASKS in path.relative_to(folder).parts:
                masks.append(path)
            elif suffix in PHOTO_SUFFIXES and path.is_file():
                photos.append(path)
        photos, pairs_of_photos = _without_pairs(photos)
        if not photos:
            raise UsageError(f"{folder}: no photos in it ({', '.join(sorted(PHOTO_SUFFIXES))})")
        folders = Folders()
        pairs = [
            (photo, _annotations_of(photo, folder, folders) or pairs_of_photos.get(photo)) for photo in sorted(photos)
        ]
        annotated = [pair for pair in pairs if pair[1] is not None]
        bare = [photo for photo, file in pairs if file is None] if annotated else []
        rows = [(CONSEQUENCE, f"{photo}: no annotation file and no masks") for photo in bare]
        used = {file for _, file in annotated}
        rows += _unused("mask not used", [path for path in masks if not {path, path.parent} & used])
        rows += _unused("JSON file not used", [path for path in documents if path not in used])
        self.skipped_entries = SkippedEntries(rows, len(pairs))
        self._folder = folder
        self.annotated = self.true_masks = bool(annotated)
        self._entries = (annotated or pairs)[: limit or None]

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, index: int) -> Path:
        """Return the path of a photo."""
        return self._entries[index][0]

    def names(self) -> list[str]:
        """Return the photos' paths relative to the folder."""
        return [photo.relative_to(self._folder).as_posix() for photo, _ in self._entries]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        """Read a photo's file and its annotations."""
        photo, annotation_file = self._entries[index]
        content, name = read_file(photo), str(photo)
        if annotation_file is None:
            return Record(content, name, photo.stem)
        if annotation_file.suffix.lower() == yolo.SUFFIX:
            return yolo.yolo_record(content, name, read_file(annotation_file), str(annotation_file))
        if annotation_file.suffix.lower() not in JSON:
            return mask_record(content, name, annotation_file)
        return json_record(content, name, read_file(annotation_file), str(annotation_file))


def _annotations_of(photo: Path, root: Path, folders: Folders) -> Path | None:
    """Find the JSON file or the masks of a photo, next to it or in the parallel tree."""
    parts = photo.relative_to(root).parts[:-1]
    texts = [photo.parent, photo.parent / LABELS]
    places = [(photo.parent, photo.parent / MASKS), (photo.parent / ANNOTATIONS, photo.parent / MASKS)]
    if "images" in parts:
        level = parts.index("images")
        annotations, masks = (root.joinpath(*parts[:level], n, *parts[level + 1 :]) for n in (ANNOTATIONS, MASKS))
        places.append((annotations, masks))
        texts.append(root.joinpath(*parts[:level], LABELS, *parts[level + 1 :]))
    for annotations, masks in places:
        found = folders.find(annotations, photo.stem, JSON) or folders.find(masks, photo.stem, (*MASK_SUFFIXES, ""))
        if found is not None:
            return found
    return next((path for text in texts if (path := folders.find(text, photo.stem, (yolo.SUFFIX,)))), None)


def _without_pairs(photos: list[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Separate ``a.jpg`` from its mask ``a.png``, in folders where all PNG files belong to a JPEG file.

    Returns:
      The photos, and the masks by photo.
    """
    names = {(path.parent, path.stem, path.suffix.lower()): path for path in photos}
    masks: dict[Path, Path] = {}
    alone: set[Path] = set()  # folders with PNG files that are photos
    for (parent, stem, suffix), path in names.items():
        if suffix == PAIRED:
            photo = next((names[key] for s in (".jpg", ".jpeg") if (key := (parent, stem, s)) in names), None)
            if photo is None:
                alone.add(parent)
            else:
                masks[photo] = path
    masks = {photo: mask for photo, mask in masks.items() if photo.parent not in alone}
    taken = set(masks.values())
    return [path for path in photos if path not in taken], masks


def _unused(kind: str, files: list[Path]) -> list[SkippedRow]:
    """Return a row for each folder with files that no photo uses."""
    by_folder: dict[Path, list[str]] = {}
    for path in sorted(files):
        by_folder.setdefault(path.parent, []).append(path.name)
    return [
        (kind, f"{folder}: {len(names)} of no photo, or of one with other annotations: {', '.join(names[:3])}")
        for folder, names in by_folder.items()
    ]


def json_record(photo: bytes, name: str, annotations: bytes, where: str) -> Record:
    """Make a record of a photo's file and its JSON file, in SA-1B's or labelme's format.

    Args:
      photo, annotations: contents of the two files.
      name, where: their names in error messages.

    Raises:
      BadExample: the JSON file is in neither format.
    """
    try:
        content = parse_json(annotations, where)
    except UsageError as error:
        raise BadExample("annotations damaged", f"{error}; fix or remove it") from None
    if isinstance(content, dict) and "shapes" in content:
        return labelme_record(photo, name, content, where)
    return sa1b_record(photo, name, content, where)


def sa1b_record(photo: bytes, name: str, content: Any, where: str) -> Record:
    """Make a record of a photo's file and the parsed content of its JSON file in SA-1B's format.

    Raises:
      BadExample: the content is not in SA-1B's format.
    """
    try:
        image, annotations = content["image"], content["annotations"]
        sides, image_id = (image["height"], image["width"]), image.get("image_id", Path(name).stem)
        if not isinstance(annotations, list):
            raise ValueError("its annotations are not a list")
        if not all(is_integer(side) and side > 0 for side in sides):
            raise ValueError(f"its size is {shown(sides[1])} x {shown(sides[0])}")
        if not (is_integer(image_id) or isinstance(image_id, str)):
            raise ValueError("its image_id is neither an integer nor a string")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadExample(
            "annotations damaged", f"{where}: not SA-1B's format ({type(error).__name__}: {error}); fix or remove it"
        ) from None
    size = int(sides[0]), int(sides[1])
    usable, rows = [], []
    for number, annotation in enumerate(annotations):
        fault = fault_of(annotation)
        if fault:
            kind, reason = fault
            rows.append((kind, f"{where}: annotations[{number}]: {reason}: {shown(annotation)}; fix or remove it"))
        else:
            usable.append(annotation)
    return Record(photo, name, image_id, usable, where, size, rows)
