"""Results on disk as they come, one photo a line, so that an evaluation that is stopped goes on where it was.

Several hosts that share the folder each write a file of their own share; whoever finishes last has all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.files import write_atomically

Row = dict[str, Any]


class Rows:
    """The rows of one system's evaluation.

    Args:
      stem: path of the files without their ending: ``STEM.rows.jsonl``, ``STEM.rows.1-of-4.jsonl``; None to keep the
        rows in memory only.
      header: what was asked; rows of anything else are not gone on with.
      part: this host's number, and how many there are.

    Raises:
      UsageError: rows of another evaluation are there, or the folder can't be written.
    """

    def __init__(self, stem: Path | None, header: Mapping[str, Any], part: tuple[int, int] = (0, 1)) -> None:
        self._stem, self._header, self._part = stem, json.loads(json.dumps(header)), part
        self._rows: dict[int, Row] = {}
        self._file: Any = None
        if stem is None:
            return
        own = f".{part[0]}-of-{part[1]}" if part[1] > 1 else ""
        self.path = stem.with_name(f"{stem.name}.rows{own}.jsonl")
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            self.refresh()
            mine = _read(self.path) if self.path.exists() else [self._header]
            # Written anew: the last line may be torn.
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in mine))
            self._file = self.path.open("a")
        except OSError as error:
            raise UsageError(f"--output: cannot write beside {stem} ({error.strerror}); name another folder") from None

    def refresh(self) -> None:
        """Read what all hosts have written so far."""
        if self._stem is None:
            return
        for path in sorted(self._stem.parent.glob(f"{self._stem.name}.rows*.jsonl")):
            header, *rows = _read(path) or [{}]
            differing = sorted(k for k in {*header, *self._header} if header.get(k) != self._header.get(k))
            if differing:
                raise UsageError(
                    f"{path}: rows of another evaluation ({', '.join(differing)} differ); remove it, or give another"
                    " --output"
                )
            self._rows |= {row["photo"]: row for row in rows}

    def __contains__(self, photo: int) -> bool:
        return photo in self._rows

    def add(self, row: Row) -> None:
        """Keep one photo's row; ``photo`` is its place in the data set.

        Raises:
          UsageError: the disk is full; what was written stays.
        """
        self._rows[row["photo"]] = row
        if self._file is not None:
            try:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
            except OSError as error:
                raise UsageError(
                    f"{self.path}: cannot write there ({error.strerror}); make room, then the same command goes on"
                ) from None

    def in_order(self) -> list[Row]:
        """All rows, by the photos' places in the data set."""
        return [self._rows[i] for i in sorted(self._rows)]

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()


def _read(path: Path) -> list[Row]:
    """Header and rows of a file; a torn last line is left out."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
