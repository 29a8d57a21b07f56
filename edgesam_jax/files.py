"""Whole files or none, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesam_jax.config import UsageError


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


@contextmanager
def whole_folder(output: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write into; what is in it moves to ``output`` when the block ends well, and else is gone.

    Args:
      replace: ``output`` is a bundle: an earlier one there goes as a whole, and anything else is refused.

    Raises:
      UsageError: ``output`` is a file, holds something else than a bundle, or cannot be written.
    """
    if replace and output.is_dir() and any(output.iterdir()) and not (output / "contract.json").is_file():
        raise UsageError(f"--output {output}: holds something other than a bundle; name a new folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; name a folder")
    beside = output.parent / f".{output.name}.{os.getpid()}.tmp"
    try:
        beside.mkdir(parents=True)
        yield beside
        if replace and output.is_dir():
            shutil.rmtree(output)
        output.mkdir(exist_ok=True)
        for entry in sorted(beside.iterdir()):
            target = output / entry.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            entry.replace(target)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there ({error.strerror or error})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
