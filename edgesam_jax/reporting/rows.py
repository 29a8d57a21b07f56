"""Results on disk as they arrive, one line per photo, so that a stopped run resumes where it stopped.

Several hosts that share the folder each write a file for their part; the last one to finish has all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesam_jax.files import write_atomically
from edgesam_jax.portable.errors import UsageError

Row = dict[str, Any]


class Rows:
    """The rows of one run, for instance of one system's evaluation.

    Args:
      stem: path of the files without their suffix: ``STEM.rows.jsonl``, ``STEM.rows.1-of-4.jsonl``; None keeps the
        rows in memory only.
      header: describes the run; existing rows with a different header are refused.
      part: number of this host (from 0) and number of hosts.
      what: kind of run, for messages.

    Raises:
      UsageError: the files hold rows of another run, or the folder can't be written.
    """

    def __init__(
        self, stem: Path | None, header: Mapping[str, Any], part: tuple[int, int] = (0, 1), what: str = "evaluation"
    ) -> None:
        self._what = what
        self._stem, self._header, self._part = stem, json.loads(json.dumps(header)), part
        self._rows: dict[int, Row] = {}
        self._file: Any = None
        if stem is None:
            return
        suffix = f".{part[0]}-of-{part[1]}" if part[1] > 1 else ""
        self.path = stem.with_name(f"{stem.name}.rows{suffix}.jsonl")
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            self.refresh()
            lines = _read(self.path) if self.path.exists() else [self._header]
            # Rewritten, because the last line may be incomplete.
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))
            self._file = self.path.open("a")
        except OSError as error:
            raise UsageError(
                f"--output: cannot write to {stem.parent} ({error.strerror}); choose another folder"
            ) from None

    def refresh(self) -> None:
        """Read the rows that all hosts have written so far.

        Raises:
          UsageError: a file holds rows of another run.
        """
        if self._stem is None:
            return
        for path in sorted(self._stem.parent.glob(f"{self._stem.name}.rows*.jsonl")):
            header, *rows = _read(path) or [{}]
            differing = sorted(k for k in {*header, *self._header} if header.get(k) != self._header.get(k))
            if differing:
                raise UsageError(
                    f"{path}: rows of another {self._what} ({', '.join(differing)} differ); remove the file or choose"
                    " another --output"
                )
            self._rows |= {row["photo"]: row for row in rows}

    def __contains__(self, photo: int) -> bool:
        return photo in self._rows

    def add(self, row: Row) -> None:
        """Add one photo's row; its ``photo`` is the index in the data set.

        Raises:
          UsageError: the row can't be written, for instance because the disk is full; earlier rows are kept.
        """
        self._rows[row["photo"]] = row
        if self._file is not None:
            try:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
            except OSError as error:
                raise UsageError(
                    f"{self.path}: cannot write ({error.strerror}); free some space, then run the same command again"
                    " to resume"
                ) from None

    def in_order(self) -> list[Row]:
        """All rows, in the order of the data set."""
        return [self._rows[i] for i in sorted(self._rows)]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _read(path: Path) -> list[Row]:
    """Header and rows of a file, without an incomplete last line."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
