"""A folder of photos, with annotations beside them or without any.

A photo ``a.jpg`` has ``a.json`` next to it (SA-1B's format or labelme's), or under ``annotations/`` where the photo is
under ``images/``; or instance masks as ``masks/a.png`` or ``masks/a/*.png``, with ``masks`` in place of ``images`` or
in the folder of the photo.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.label_files import labelme_record, png_record
from edgesam_jax.data.readers.records import Record, decode_record, fault_of, read_file, usable, whole
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import Keep, LeftOut
from edgesam_jax.data.transforms import PHOTO_SUFFIXES

MASKS = "masks"  # folder of instance masks


class ImagesSource:
    """Photos of a folder and its subfolders, in the order of their names.

    Where some photos are annotated, the others are left out (``left_out`` lists them).  Where none is, all are kept,
    with no instances: enough for encoder-only distillation.  Links in the folder are followed.

    Args:
      root: the folder.
      limit: keep the first so many photos; 0 for all.
    """

    def __init__(self, root: str | Path, limit: int = 0) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UsageError(f"data root {str(root)!r}: no such folder; give the folder of the photos")
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
        self.left_out = LeftOut(
            [("no annotations", f"{photo}: neither a JSON nor masks beside it") for photo in bare], len(pairs)
        )
        self._folder = folder
        self.annotated = self.true_masks = bool(annotated)
        self._entries = (annotated or pairs)[: limit or None]

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, index: int) -> Path:
        """Where a photo lies."""
        return self._entries[index][0]

    def names(self) -> list[str]:
        """The photos' files below the folder."""
        return [photo.relative_to(self._folder).as_posix() for photo, _ in self._entries]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        photo, annotation_file = self._entries[index]
        content, name = read_file(photo), str(photo)
        if annotation_file is None:
            return Record(content, name, photo.stem)
        if annotation_file.suffix != ".json":
            return png_record(content, name, annotation_file)
        return json_record(content, name, read_file(annotation_file), str(annotation_file))


def _annotations_of(photo: Path, root: Path) -> Path | None:
    """The JSON or the masks of a photo: next to it, or in the parallel tree."""
    beside = photo.with_suffix(".json")
    parts = list(photo.relative_to(root).with_suffix("").parts)
    masks = photo.parent / MASKS / photo.stem
    candidates = [beside, masks.with_name(f"{photo.stem}.png"), masks]
    if "images" in parts:
        place = parts.index("images")
        json_file, masks = (root.joinpath(*parts[:place], name, *parts[place + 1 :]) for name in ("annotations", MASKS))
        candidates += [json_file.with_name(f"{photo.stem}.json"), masks.with_name(f"{photo.stem}.png"), masks]
    return next((path for path in candidates if path.exists()), None)


def json_record(photo: bytes, name: str, annotations: bytes, where: str) -> Record:
    """A record of a photo and the text of its JSON, of SA-1B's format or labelme's.

    Raises:
      BadExample: neither format.
    """
    try:
        content = json.loads(annotations)
    except (ValueError, RecursionError) as error:
        raise BadExample("annotations damaged", f"{where}: not valid JSON ({error}); mend or remove it") from None
    if isinstance(content, dict) and "shapes" in content:
        return labelme_record(photo, name, content, where)
    return sa1b_record(photo, name, content, where)


def sa1b_record(photo: bytes, name: str, content: Any, where: str) -> Record:
    """A record of a photo and SA-1B's JSON for it.

    Raises:
      BadExample: not SA-1B's format.
    """
    try:
        image, annotations = content["image"], list(content["annotations"])
        sides, image_id = (image["height"], image["width"]), image.get("image_id", Path(name).stem)
        faults = [fault for annotation in annotations if (fault := fault_of(annotation))]
        if not all(whole(side) and side > 0 for side in sides):
            faults.append(f"a size of {sides[1]!r} x {sides[0]!r}")
        if not (whole(image_id) or isinstance(image_id, str)):
            faults.append("its image_id is neither a whole number nor a text")
        if faults:
            raise ValueError(faults[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadExample(
            "annotations damaged", f"{where}: not SA-1B's format ({type(error).__name__}: {error}); mend or remove it"
        ) from None
    size = int(sides[0]), int(sides[1])
    return Record(photo, name, image_id, [a for a in annotations if usable(a)], where, size)
