"""The exception for errors that the user can fix."""

from __future__ import annotations


class UsageError(ValueError):
    """An error in the user's input. Its message is one line; commands print it and exit with code 2."""
