"""An argument parser whose errors are one line, and types of flags."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from edgesam_jax.config import UsageError


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` without abbreviated flags, whose errors are ``UsageError`` instead of usage and exit."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing the usage and exiting.

        Raises:
          UsageError: always.
        """
        raise UsageError(f"{message} (--help shows the flags)")


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def share(text: str) -> float:
    """Parse a fraction, 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def part(text: str) -> tuple[int, int]:
    """Parse ``INDEX/PARTS``, with the index counted from 0: ``0/4`` is the first of four parts."""
    index, _, parts = text.partition("/")
    if not 0 <= int(index) < int(parts):
        raise ValueError
    return int(index), int(parts)
