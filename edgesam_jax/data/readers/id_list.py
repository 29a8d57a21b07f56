"""Lists of photos: written by ``edgesam_jax.prepare --sample``, read for ``data.ids``.

    # photos of an edgesam_jax data set
    # source: tars sa_000130
    # drawn: 1000 of 11183, seed 0
    # sha256: the digest of the lines below
    sa_1452
    sa_1466

A photo's id is the name of its file without folder and suffix, so that one list serves a data set as tars, as a folder
and prepared; where that does not tell all photos apart, the name goes with its suffix, or with its folders too.
Comments are free; a list whose digest is another is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import Example
from edgesam_jax.data.source import Keep, Source, left_out

DIGEST = "# sha256: "


def photo_ids(source: Source, where: str) -> list[str]:
    """The ids of a source's photos, in its order.

    Raises:
      UsageError: it has no photos with names, or two of one name.
    """
    if not hasattr(source, "names"):
        raise UsageError(f"{where}: its photos have no names to choose by")
    names = list(map(PurePosixPath, source.names()))
    for spell in (lambda n: n.stem, lambda n: n.name, lambda n: str(n.with_suffix("")), str):
        ids = [spell(name) for name in names]
        if len(set(ids)) == len(ids):
            return ids
    raise UsageError(f"{where}: several of its photos have the same name; they can't be told apart")


def draw(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` of the ids, in their order.

    An id's place in the draw is a hash of the seed and itself: the order of the ids makes no difference, and photos
    that are added to a data set or go missing change little.

    Raises:
      UsageError: there are fewer.
    """
    if count > len(ids):
        raise UsageError(f"--sample {count}: the data set has {len(ids)} photos")
    chosen = set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())[:count])
    return [i for i in ids if i in chosen]


def digest(ids: Sequence[str]) -> str:
    """Of a list, in its order."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def ids_text(ids: Sequence[str], comments: Sequence[str]) -> str:
    """A list as a file has it, with its digest."""
    head = ["# photos of an edgesam_jax data set", *(f"# {comment}" for comment in comments), DIGEST + digest(ids)]
    return "".join(f"{line}\n" for line in (*head, *ids))


def read_ids(path: Path) -> list[str]:
    """The ids of a list.

    Raises:
      UsageError: no such file, an empty list, an id that comes twice, or another digest than the list's own.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data.ids={path}: cannot be read ({error}); name a list of photos, one a line") from None
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UsageError(f"data.ids={path}: no photo in it")
    if len(set(ids)) < len(ids):
        raise UsageError(f"data.ids={path}: a photo comes twice; remove one")
    noted = [line.removeprefix(DIGEST) for line in lines if line.startswith(DIGEST)]
    if noted and noted[-1] != digest(ids):
        raise UsageError(f"data.ids={path}: not the list that was written: restore it, or remove its line {DIGEST}...")
    return ids


class ChosenSource:
    """The photos of a source that a list names, in the source's order.

    Args:
      path: the list.
      where: what errors call the data set.
      limit: keep the first so many photos; 0 for all.

    Raises:
      UsageError: see ``read_ids`` and ``photo_ids``; or photos of the list that the source hasn't.
    """

    def __init__(self, source: Source, path: Path, where: str, limit: int = 0) -> None:
        ids = photo_ids(source, where)
        wanted = dict.fromkeys(read_ids(path))
        there = set(ids)
        absent = [i for i in wanted if i not in there]
        if absent:
            raise UsageError(
                f"data.ids={path}: {len(absent)} of its {len(wanted)} photos are not in {where}: {absent[0]}"
            )
        self._places = [place for place, i in enumerate(ids) if i in wanted][: limit or None]
        self._source, self.annotated, self.true_masks = source, source.annotated, source.true_masks
        self.left_out = left_out(source)

    def __len__(self) -> int:
        return len(self._places)

    def names(self) -> list[str]:
        """The photos' files."""
        names = self._source.names()  # type: ignore[attr-defined]
        return [names[place] for place in self._places]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        return self._source.load(self._places[index], keep)

    def record(self, index: int) -> Any:
        """The photo's file and annotations; see ``records.Record``."""
        return self._source.record(self._places[index])  # type: ignore[attr-defined]
