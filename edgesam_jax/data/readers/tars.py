"""SA-1B's tars, read without unpacking: an index, built once, locates the members ``sa_1.jpg`` and ``sa_1.json``.

The index of ``sa_000020.tar`` is ``sa_000020.tar.index.npz`` next to the tar, or a file in the cache folder if that
can't be written.  It holds the offsets of each pair, so that reading one photo takes two reads of the tar.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.images import json_record
from edgesam_jax.data.readers.records import MAX_BYTES, Record, decode_record
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import Keep, SkippedEntries
from edgesam_jax.files import atomic_file

FORMAT = 1


@dataclass(frozen=True)
class TarIndex:
    """The positions of the photos in a tar.

    ``names`` (n) have no suffix; ``places`` (n 4) int64 are the offset and size of the photo and of its JSON file, with
    size 0 for a missing JSON file.
    """

    names: np.ndarray
    places: np.ndarray


class TarsSource:
    """Annotated photos in SA-1B's tars, tar by tar.

    Nothing is unpacked, and of a member's name only the last part is used, so its path can't lead anywhere.
    ``skipped_entries`` lists the photos without annotations.

    Args:
      root: folder of the tars, or one tar.
      subset: names of the tars to read, as ``sa_000020``, ``sa_000020.tar`` or a range ``sa_000020..sa_000029``, in
        this order; all tars, sorted by name, if empty.
      limit: keep only the first ``limit`` photos; 0 keeps all.

    Raises:
      UsageError: the folder or a tar is missing, a tar is damaged or truncated, or no photo has annotations.
    """

    annotated = true_masks = True

    def __init__(self, root: str | Path, subset: Sequence[str] = (), limit: int = 0) -> None:
        self._tars = find_tars(Path(root), subset)
        indices = [open_index(tar) for tar in tqdm(self._tars, "tars", unit="tar", leave=False, disable=None)]
        places, names, bare = [], [], []
        for number, index in enumerate(indices):
            rows = np.concatenate([np.full((len(index.places), 1), number), index.places], axis=1)
            annotated = index.places[:, 3] > 0
            places.append(rows[annotated])
            names.append(index.names[annotated])
            bare += [f"{self._tars[number]}/{name}.jpg: no {name}.json" for name in index.names[~annotated]]
        self._places, self._names = np.concatenate(places), np.concatenate(names)
        listed = sum(len(index.names) for index in indices)
        self.skipped_entries = SkippedEntries([("no annotations", message) for message in bare], listed)
        if limit:
            self._places, self._names = self._places[:limit], self._names[:limit]
        if not len(self._names):
            raise UsageError(f"{root}: no photo with annotations in its {len(self._tars)} tars")

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        """Return the photos' file names, without their folders in the tar."""
        return [f"{name}.jpg" for name in self._names.tolist()]

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        """Read a photo's file and its JSON file."""
        number, *places = self._places[index].tolist()
        tar, name = self._tars[number], str(self._names[index])
        if max(places[1::2]) > MAX_BYTES:
            raise BadExample("file too large", f"{tar}/{name}: more than a gigabyte; remove it")
        try:
            with tar.open("rb", buffering=0) as file:
                photo, annotations = (_read(file.fileno(), *places[k : k + 2]) for k in (0, 2))
        except OSError as error:
            raise BadExample("file unreadable", f"{tar}: {error.strerror or error}; check the file") from None
        where = f"{tar}/{name}"
        return json_record(photo, f"{where}.jpg", annotations, f"{where}.json")


def _read(descriptor: int, offset: int, size: int) -> bytes:
    """Read ``size`` bytes from an offset, or fewer at the end of the file."""
    pieces = []
    while size and (piece := os.pread(descriptor, size, offset)):
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)


def find_tars(root: Path, subset: Sequence[str]) -> list[Path]:
    """Return the tars of a folder that ``subset`` names, in its order; all tars sorted by name if it is empty.

    Raises:
      UsageError: the folder has no tar, or lacks some of the subset.
    """
    if root.is_file():
        tars = [root]
    elif root.is_dir():
        tars = sorted(root.glob("*.tar"))
    else:
        raise UsageError(f"data root {str(root)!r}: no such file or folder; pass the folder of the tars")
    if not tars:
        raise UsageError(f"{root}: no *.tar in it; pass the folder of the tars")
    if not subset:
        return tars
    by_name = {path.stem: path for path in tars}
    names = [name for entry in subset for name in tar_names(entry)]
    absent = [name for name in names if name not in by_name]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UsageError(f"{root}: tars of the subset not found: {', '.join(absent[:3])}{more}")
    return [by_name[name] for name in names]


def tar_names(entry: str) -> list[str]:
    """Expand a range such as ``sa_000020..sa_000029`` to its ten names; any other entry is one name.

    Raises:
      UsageError: an invalid range.
    """
    first, dots, last = entry.partition("..")
    if not dots:
        return [entry.removesuffix(".tar")]
    ends = [re.fullmatch(r"(\D*)(\d+)", end.removesuffix(".tar")) for end in (first, last)]
    if ends[0] and ends[1] and ends[0][1] == ends[1][1] and int(ends[0][2]) <= int(ends[1][2]):
        numbers = range(int(ends[0][2]), int(ends[1][2]) + 1)
        return [f"{ends[0][1]}{number:0{len(ends[0][2])}d}" for number in numbers]
    raise UsageError(f"subset {entry!r}: write a range as sa_000020..sa_000029")


def open_index(tar: Path) -> TarIndex:
    """Read the index of a tar; build and save it if it is missing, damaged, or of another state of the tar.

    Raises:
      UsageError: the file is not a tar, or is truncated.
    """
    status = tar.stat()
    state = f"{FORMAT} {status.st_size} {status.st_mtime_ns}"
    places = [tar.with_name(f"{tar.name}.index.npz"), _cache_folder() / f"{_digest(tar)}.npz"]
    for path in places:
        try:
            with np.load(path, allow_pickle=False) as cached:
                if str(cached["state"]) == state:
                    return TarIndex(cached["names"], cached["places"])
        except (OSError, ValueError, KeyError, EOFError):
            continue
    index = make_index(tar)
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, state=state, names=index.names, places=index.places)
            break
        except OSError:
            continue
    return index


def make_index(tar: Path) -> TarIndex:
    """Build the index in one pass over a tar's headers; members are paired by the last part of their names.

    Raises:
      UsageError: the file is not a tar, or is truncated.
    """
    photos: dict[str, tuple[int, int]] = {}
    annotations: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            bar = tqdm(file, f"indexing {tar.name}", unit="file", leave=False, disable=None, file=sys.stderr)
            for member in bar:
                name = PurePosixPath(member.name)
                group = {".jpg": photos, ".jpeg": photos, ".json": annotations}.get(name.suffix.lower())
                if member.isfile() and not member.issparse() and group is not None and not name.name.startswith("."):
                    group[name.stem] = member.offset_data, member.size
            assert file.fileobj is not None
            file.fileobj.seek(file.offset)
            ended = file.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # a tar ends with empty blocks
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"{tar}: not a tar, or a damaged one ({error}); download it again") from None
    if not ended:
        raise UsageError(f"{tar}: truncated; download it again")
    names = sorted(photos, key=lambda name: photos[name])
    places = [(*photos[name], *annotations.get(name, (0, 0))) for name in names]
    return TarIndex(np.array(names, np.str_), np.array(places, np.int64).reshape(-1, 4))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesam_jax" / "tars"


def _digest(tar: Path) -> str:
    return hashlib.sha256(str(tar.resolve()).encode()).hexdigest()[:32]
