"""The photos that ``predict --image`` names, and the names of the pictures drawn of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import PHOTO_SUFFIXES
from edgesam_jax.files import is_file, is_folder


def find_photos(text: str) -> list[Path]:
    """Return the photos that ``--image`` names: of a folder and its subfolders, a pattern or a list, or one photo.

    A list is a text file with a path per line, relative to its folder; empty lines and lines with ``#`` are ignored.

    Raises:
      UsageError: there is no photo, or the list can't be read.
    """
    if is_folder(text, "--image"):
        found = sorted(p for p in Path(text).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
        if not found:
            raise UsageError(f"--image {text}: no photos in this folder ({', '.join(sorted(PHOTO_SUFFIXES))})")
        return found
    if is_file(text, "--image"):
        return [Path(text)] if Path(text).suffix.lower() in PHOTO_SUFFIXES else _read_list(Path(text))
    if glob.has_magic(text):
        found = sorted(Path(p) for p in glob.iglob(text, recursive=True) if os.path.isfile(p))
        found = [p for p in found if p.suffix.lower() in PHOTO_SUFFIXES]
        if not found:
            raise UsageError(f"--image {text}: no photo matches this pattern ({', '.join(sorted(PHOTO_SUFFIXES))})")
        return found
    raise UsageError(f"--image {text}: no such file or folder; pass a folder, a pattern in quotes, or a list of photos")


def _read_list(path: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UsageError(
            f"--image {path}: neither a photo nor a list of photos, one path per line ({reason})"
        ) from None
    found = list(dict.fromkeys(path.parent / line for line in lines if line and not line.startswith("#")))
    if not found:
        raise UsageError(f"--image {path}: no photo in this list; write one path per line")
    return found


def picture_names(paths: Sequence[Path]) -> list[Path]:
    """Return names for pictures of photos: the photos' paths below their common folder, as JPEG, all different."""
    root = os.path.commonpath([path.absolute().parent for path in paths])
    names = [path.absolute().relative_to(root) for path in paths]
    taken = Counter(str(name.with_suffix("")) for name in names)
    return [
        name.with_suffix(".jpg") if taken[str(name.with_suffix(""))] == 1 else name.with_name(f"{name.name}.jpg")
        for name in names
    ]
