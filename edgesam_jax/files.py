"""Files and folders that appear complete or not at all, their checksums, and the reading of JSON files.

Everything is written under a temporary name in the same folder, ``.NAME.PID.RANDOM.part``, and renamed when it is
complete. A reader never sees a partial file, and several threads, processes and hosts may write the same file: the last
one to finish wins. A block that fails leaves what was there before and removes its temporary files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgesam_jax.portable.errors import UsageError, one_line


def write_atomically(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def atomic_file(path: Path, sole_writer: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to; rename it to ``path`` when the block succeeds.

    Args:
      sole_writer: no other process writes this file at the same time. Temporary files left by writers that were killed
        are then removed first.
    """
    if sole_writer:
        for stale in path.parent.glob(f".{path.name}.*"):
            stale.unlink(missing_ok=True)
    temporary = _temporary(path)
    try:
        with _system_errors():
            yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to write into; rename it to ``path`` when the block succeeds.

    An earlier folder at ``path`` is replaced as a whole, together with any files that the block didn't write. Parents
    are created.  If ``path`` is a link, the folder it points to is replaced.
    """
    path = path.resolve()
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        with _system_errors():
            yield temporary
        if path.exists():
            old = temporary.with_suffix(".old")
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def staged_files(folder: Path, obsolete: str | None = None) -> Iterator[Path]:
    """Yield a new folder to write into; move its entries into ``folder`` when the block succeeds.

    An entry replaces the file or folder of the same name in ``folder``; everything else there stays. ``folder`` and its
    parents are created.

    Args:
      obsolete: regular expression. Files in ``folder`` whose entire name matches are removed, unless the block wrote
        them again.
    """
    temporary = _temporary(folder)
    try:
        temporary.mkdir(parents=True)
        with _system_errors():
            yield temporary
        folder.mkdir(exist_ok=True)
        entries = {entry.name: entry for entry in sorted(temporary.iterdir())}
        for earlier in folder.iterdir() if obsolete else ():
            if re.fullmatch(obsolete or "", earlier.name) and earlier.name not in entries:
                earlier.unlink()
        for name, entry in entries.items():
            target = folder / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            entry.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Raise another library's error as ``OSError`` where its text says that a file couldn't be written."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # of safetensors, ArrayRecord, torch
        for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO):
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code)) from error
        raise


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Hold an exclusive lock on an existing folder; yield False if another process holds it.

    The lock leaves no file and ends with the process, however that ends. Systems without such locks (Windows, some
    network file systems) yield True.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError:
            held = True
        yield held
    finally:
        os.close(descriptor)


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file in UTF-8 with or without a byte order mark, or in UTF-16 or UTF-32.

    Args:
      what: the flag or kind of file, which error messages begin with: "annotations", "--detections".

    Raises:
      UsageError: the file is missing, can't be read, or is not valid JSON.
    """
    where = f"{what} {path}"
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{where}: is a folder; pass a file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{where}: cannot be read ({reason}); check the path and its permissions") from None
    return parse_json(content, where)


def parse_json(content: str | bytes, where: str) -> Any:
    """Parse the content of a JSON file.

    Args:
      content: bytes in one of the encodings of ``read_json``, or a text.
      where: name of the file in error messages.

    Raises:
      UsageError: the content is not valid JSON, is nested too deeply, or contains a number with too many digits.
    """
    try:
        return json.loads(content.removeprefix("\ufeff") if isinstance(content, str) else content)
    except json.JSONDecodeError as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = f"not {error.encoding.upper()} text at byte {error.start}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # Python limits the digits of an integer
        reason = "an integer with thousands of digits"
    raise UsageError(f"{where}: not valid JSON ({reason})")


def is_file(path: str | Path, what: str) -> bool:
    """Return whether a file exists.

    Args:
      what: the flag or kind of file, which error messages begin with.

    Raises:
      UsageError: the system can't look it up: a name that is too long, a loop of links, no permission.
    """
    return _mode_of(path, what, stat.S_ISREG)


def is_folder(path: str | Path, what: str) -> bool:
    """Return whether a folder exists; otherwise as ``is_file``."""
    return _mode_of(path, what, stat.S_ISDIR)


def _mode_of(path: str | Path, what: str, test: Callable[[int], bool]) -> bool:
    try:
        return test(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{what} {one_line(path, 500)}: cannot be looked up ({reason}); check the path") from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"
