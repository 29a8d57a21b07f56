"""A folder of photos, with annotations beside them or without any.

A photo ``a.jpg`` has ``a.json`` next to it (SA-1B's format or labelme's), or under ``annotations/`` where the photo is
under ``images/``; or instance masks as ``masks/a.png`` or ``masks/a/*.png``, with ``masks`` in place of ``images`` or
in the folder of the photo.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.labels import labelme_record, png_record
from edgesam_jax.data.records import Record, decode_record, read_file, usable
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.sources import Keep
from edgesam_jax.data.transforms import PHOTO_SUFFIXES

MASKS = "masks"  # folder of instance masks
_log = logging.getLogger(__name__)


class ImagesSource:
    """Photos of a folder and its subfolders, in the order of their names.

    Where some photos are annotated, the others are left out (``without_annotations`` counts them).  Where none is, all
    are kept, with no instances: enough for encoder-only distillation.

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
        self.without_annotations = len(pairs) - len(annotated)
        if annotated and self.without_annotations:
            _log.warning("%s: %d photos without annotations are left out", folder, self.without_annotations)
        self.annotated = self.true_masks = bool(annotated)
        self._entries = (annotated or pairs)[: limit or None]

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, index: int) -> Path:
        """Where a photo lies."""
        return self._entries[index][0]

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
    except ValueError as error:
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
        image = content["image"]
        wanted = [a for a in content["annotations"] if usable(a)]
        size = int(image["height"]), int(image["width"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadExample(
            "annotations damaged", f"{where}: not SA-1B's format ({type(error).__name__}: {error}); mend or remove it"
        ) from None
    return Record(photo, name, image.get("image_id", Path(name).stem), wanted, where, size)
