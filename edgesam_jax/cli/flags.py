"""An argument parser whose errors are one line, and types of flags."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from edgesam_jax.config import UsageError


class _Once(argparse.Action):
    """Store the value of a flag, and refuse the flag if it is given again: the first value would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None and isinstance(parser, Parser):
            if self.dest in parser.given:
                several = "all values after one flag" if self.nargs else "one"
                raise argparse.ArgumentError(self, f"given more than once; pass {several}")
            parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` without abbreviated or repeated flags.

    Errors are ``UsageError`` instead of usage and exit.  Flags with ``action="append"`` may be repeated.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.given: set[str] = set()  # destinations of the flags parsed so far
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the flags; see ``ArgumentParser``."""
        self.given.clear()
        return super().parse_known_args(args, namespace)

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
