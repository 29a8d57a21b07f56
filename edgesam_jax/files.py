"""Whole files or none, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader never sees half a file, and several processes may write the same."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(text)
    os.replace(beside, path)


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write a large file to, renamed to ``path`` when the block ends well.

    What earlier writers of the same file left there when they were killed is removed.
    """
    for stale in path.parent.glob(f".{path.name}.*"):
        stale.unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
