"""A folder of photos, with or without annotation files.

The annotations of ``a.jpg`` are ``a.json`` (SA-1B's or labelme's format), next to the photo or under ``annotations/``
if the photo is under ``images/``; or instance masks ``masks/a.png`` or ``masks/a/*.png``, where ``masks`` is in the
photo's folder or takes the place of ``images``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import PHOTO_SUFFIXES
from edgesam_jax.data.readers.label_files import labelme_record, png_record
from edgesam_jax.data.readers.records import Record, annotation_fault, decode_record, has_extent, is_integer, read_file
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import Keep, SkippedEntries

MASKS = "masks"  # folder of instance masks


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
        photos = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in PHOTO_SUFFIXES and MASKS not in path.relative_to(folder).parts and path.is_file()
        )
        if not photos:
            raise UsageError(f"{folder}: no photos in it ({', '.join(sorted(PHOTO_SUFFIXES))})")
        pairs = [(photo, _annotations_of(photo, folder)) for photo in photos]
        annotated = [pair for pair in pairs if pair[1] is not None]
        bare = [photo for photo, file in pairs if file is None] if annotated else []
        self.skipped_entries = SkippedEntries(
            [("no annotations", f"{photo}: no JSON file and no masks") for photo in bare], len(pairs)
        )
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
        if annotation_file.suffix != ".json":
            return png_record(content, name, annotation_file)
        return json_record(content, name, read_file(annotation_file), str(annotation_file))


def _annotations_of(photo: Path, root: Path) -> Path | None:
    """Find the JSON file or the masks of a photo, next to it or in the parallel tree."""
    next_to_photo = photo.with_suffix(".json")
    parts = list(photo.relative_to(root).with_suffix("").parts)
    masks = photo.parent / MASKS / photo.stem
    candidates = [next_to_photo, masks.with_name(f"{photo.stem}.png"), masks]
    if "images" in parts:
        level = parts.index("images")
        json_file, masks = (root.joinpath(*parts[:level], name, *parts[level + 1 :]) for name in ("annotations", MASKS))
        candidates += [json_file.with_name(f"{photo.stem}.json"), masks.with_name(f"{photo.stem}.png"), masks]
    return next((path for path in candidates if path.exists()), None)


def json_record(photo: bytes, name: str, annotations: bytes, where: str) -> Record:
    """Make a record of a photo's file and its JSON file, in SA-1B's or labelme's format.

    Args:
      photo, annotations: contents of the two files.
      name, where: their names in error messages.

    Raises:
      BadExample: the JSON file is in neither format.
    """
    try:
        content = json.loads(annotations)
    except (ValueError, RecursionError) as error:
        raise BadExample("annotations damaged", f"{where}: not valid JSON ({error}); fix or remove it") from None
    if isinstance(content, dict) and "shapes" in content:
        return labelme_record(photo, name, content, where)
    return sa1b_record(photo, name, content, where)


def sa1b_record(photo: bytes, name: str, content: Any, where: str) -> Record:
    """Make a record of a photo's file and the parsed content of its JSON file in SA-1B's format.

    Raises:
      BadExample: the content is not in SA-1B's format.
    """
    try:
        image, annotations = content["image"], list(content["annotations"])
        sides, image_id = (image["height"], image["width"]), image.get("image_id", Path(name).stem)
        faults = [fault for annotation in annotations if (fault := annotation_fault(annotation))]
        if not all(is_integer(side) and side > 0 for side in sides):
            faults.append(f"its size is {sides[1]!r} x {sides[0]!r}")
        if not (is_integer(image_id) or isinstance(image_id, str)):
            faults.append("its image_id is neither an integer nor a string")
        if faults:
            raise ValueError(faults[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadExample(
            "annotations damaged", f"{where}: not SA-1B's format ({type(error).__name__}: {error}); fix or remove it"
        ) from None
    size = int(sides[0]), int(sides[1])
    return Record(photo, name, image_id, [a for a in annotations if has_extent(a)], where, size)
