"""The photos of a data set, read with a range of pixels, and the remark that they may need one."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from edgesam_jax.data.photo import load_photo
from edgesam_jax.data.pixels import parse_range
from edgesam_jax.data.readers.records import Record, decode_record
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import Keep, Source, skipped_entries
from edgesam_jax.portable.errors import one_line

LOOKED_AT = 4  # photos, spread over a data set, whose pixels ``pixel_note`` looks at


class RangedSource:
    """The photos of ``source`` with the values ``pixel_range`` mapped to 0 to 255 (``data/pixels.py``).

    Embeddings of these photos have keys of their own, so they are never taken for those of another range.
    """

    def __init__(self, source: Source, pixel_range: str) -> None:
        self.source, self.pixel_range = source, pixel_range
        self.annotated, self.true_masks = source.annotated, source.true_masks
        self.skipped_entries = skipped_entries(source)

    def __len__(self) -> int:
        return len(self.source)

    def names(self) -> list[str]:
        """Return the photos' file names."""
        names: list[str] = self.source.names()  # type: ignore[attr-defined]
        return names

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        """Read a photo's file and its annotations."""
        return replace(self.source.record(index), pixel_range=self.pixel_range)  # type: ignore[attr-defined]


def with_pixel_range(source: Any, pixel_range: str) -> Any:
    """Return the source, wrapped in a ``RangedSource`` unless the range is ``auto`` or it has no photo files.

    Raises:
      UsageError: ``pixel_range`` is neither ``auto`` nor ``LO,HI``.
    """
    wanted = parse_range(pixel_range, "data.pixel_range")
    return source if wanted is None or not hasattr(source, "record") else RangedSource(source, pixel_range)


def pixel_note(source: Source) -> str:
    """Return what ``load_photo`` notes on the first of a few photos that it notes something on, else an empty text."""
    record = getattr(source, "record", None)
    count = len(source) if record is not None else 0
    for index in sorted({k * (count - 1) // max(1, LOOKED_AT - 1) for k in range(min(count, LOOKED_AT))}):
        notes: list[str] = []
        with contextlib.suppress(BadExample):  # reported when the photo is used
            entry = record(index)  # type: ignore[misc]
            load_photo(entry.photo, entry.name, limited=True, pixel_range=entry.pixel_range, notes=notes)
        if notes:
            return one_line(notes[0])
    return ""
