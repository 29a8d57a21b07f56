"""What the command lines share: a parser whose errors are one line, and types of flags."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from edgesam_jax.config import UsageError


class Parser(argparse.ArgumentParser):
    """No abbreviated flags, and a ``UsageError`` where argparse would print its usage and leave."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows the flags)")


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def part(text: str) -> tuple[int, int]:
    """Which of how many, counted from 0: ``0/4``."""
    index, _, parts = text.partition("/")
    if not 0 <= int(index) < int(parts):
        raise ValueError
    return int(index), int(parts)
