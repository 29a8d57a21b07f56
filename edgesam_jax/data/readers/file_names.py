"""File names as people move them between systems: Unicode forms, letter case of the suffix, backslashes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path


def spellings(name: str) -> Iterator[str]:
    """Yield a name as it is, with "/" for backslashes, and composed and decomposed (Unicode's NFC and NFD).

    macOS decomposes accents where other systems compose them, so a photo and the file that lists it may differ.
    """
    seen = set()
    for separated in (name, name.replace("\\", "/")):
        composed_and_decomposed = (unicodedata.normalize("NFC", separated), unicodedata.normalize("NFD", separated))
        for spelling in (separated, *composed_and_decomposed):
            if spelling not in seen:
                seen.add(spelling)
                yield spelling


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Folders:
    """Entries of folders by name, listed once per folder.

    Names are compared in composed form, and suffixes without regard to case.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, dict[tuple[str, str], Path]] = {}

    def find(self, folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
        """Return the entry of a folder with this stem and the first of these suffixes that exists, else None.

        Args:
          suffixes: in lower case; "" for a folder.
        """
        entries = self._entries(folder)
        return next((entries[key] for s in suffixes if (key := (composed(stem), s)) in entries), None)

    def _entries(self, folder: Path) -> dict[tuple[str, str], Path]:
        if folder not in self._listed:
            listed: dict[tuple[str, str], Path] = {}
            try:
                names = sorted(os.listdir(folder))
            except OSError:  # no such folder
                names = []
            for name in names:
                path = folder / name
                listed.setdefault((composed(path.stem), path.suffix.lower()), path)
                listed.setdefault((composed(name), ""), path)
            self._listed[folder] = listed
        return self._listed[folder]
