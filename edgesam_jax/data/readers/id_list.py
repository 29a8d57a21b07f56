"""Lists of photos: written by ``edgesam_jax.prepare --sample``, read for ``data.ids``.

    # photos of an edgesam_jax data set
    # source: tars sa_000130
    # drawn: 1000 of 11183, seed 0
    # sha256: the digest of the lines below
    sa_1452
    sa_1466

A photo's id is the name of its file without folder and suffix, so that one list fits a data set as tars, as a folder
and prepared.  Where these names are not unique, ids include the suffix, the folders, or both.  Other comments are
ignored; a list that doesn't match its digest is rejected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.file_names import composed
from edgesam_jax.data.schema import Example
from edgesam_jax.data.source import Keep, Source, skipped_entries

DIGEST = "# sha256: "


def photo_ids(source: Source, where: str) -> list[str]:
    """Return the ids of a source's photos, in its order.

    Args:
      where: name of the data set in error messages.

    Raises:
      UsageError: the photos have no names, or two have the same name.
    """
    if not hasattr(source, "names"):
        raise UsageError(f"{where}: its photos have no names to select by")
    names = list(map(PurePosixPath, source.names()))
    for spell in (lambda n: n.stem, lambda n: n.name, lambda n: str(n.with_suffix("")), str):
        ids = [spell(name) for name in names]
        if len(set(ids)) == len(ids):
            return ids
    raise UsageError(f"{where}: several photos have the same name; rename them")


def draw(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw ``count`` of the ids at random, and return them in their order.

    The draw takes the ids with the lowest hashes of seed and id.  The order of the ids therefore makes no difference,
    and adding or removing photos changes few of those drawn.

    Raises:
      UsageError: there are fewer than ``count`` ids.
    """
    if count > len(ids):
        raise UsageError(f"--sample {count}: the data set has only {len(ids)} photos")
    drawn = set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())[:count])
    return [i for i in ids if i in drawn]


def digest(ids: Sequence[str]) -> str:
    """Return the SHA-256 of a list of ids, in this order."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def ids_text(ids: Sequence[str], comments: Sequence[str]) -> str:
    """Format a list of ids as the text of a file, with comments and its digest."""
    head = ["# photos of an edgesam_jax data set", *(f"# {comment}" for comment in comments), DIGEST + digest(ids)]
    return "".join(f"{line}\n" for line in (*head, *ids))


def read_ids(path: Path) -> list[str]:
    """Read the ids of a list.

    Raises:
      UsageError: the file is missing or unreadable, the list is empty, contains an id twice, or doesn't match its
        digest.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"data.ids={path}: cannot be read ({error}); pass a text file with one photo id per line"
        ) from None
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UsageError(f"data.ids={path}: no photo in it; add ids, one per line")
    if len(set(ids)) < len(ids):
        raise UsageError(f"data.ids={path}: a photo is listed twice; remove one of the lines")
    noted = [line.removeprefix(DIGEST) for line in lines if line.startswith(DIGEST)]
    if noted and noted[-1] != digest(ids):
        raise UsageError(f"data.ids={path}: changed since it was written; restore it, or remove its line {DIGEST}...")
    return ids


class SelectedSource:
    """The photos of a source that are on a list, in the source's order.

    Args:
      source: the data set to select from.
      path: file of the list.
      where: name of the data set in error messages.
      limit: keep only the first ``limit`` photos; 0 keeps all.

    Raises:
      UsageError: see ``read_ids`` and ``photo_ids``; or the source lacks photos of the list.
    """

    def __init__(self, source: Source, path: Path, where: str, limit: int = 0) -> None:
        ids = [composed(i) for i in photo_ids(source, where)]
        listed = dict.fromkeys(composed(i) for i in read_ids(path))
        available = set(ids)
        absent = [i for i in listed if i not in available]
        if absent:
            raise UsageError(
                f"data.ids={path}: {len(absent)} of its {len(listed)} photos are not in {where}: {absent[0]}"
            )
        self._indices = [index for index, i in enumerate(ids) if i in listed][: limit or None]
        self._source, self.annotated, self.true_masks = source, source.annotated, source.true_masks
        self.skipped_entries = skipped_entries(source)

    def __len__(self) -> int:
        return len(self._indices)

    def names(self) -> list[str]:
        """Return the photos' file names."""
        names = self._source.names()  # type: ignore[attr-defined]
        return [names[index] for index in self._indices]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return self._source.load(self._indices[index], keep)

    def record(self, index: int) -> Any:
        """Return a photo's file and annotations; see ``records.Record``."""
        return self._source.record(self._indices[index])  # type: ignore[attr-defined]
