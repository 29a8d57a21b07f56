"""The one exception for what a user can mend."""

from __future__ import annotations


class UsageError(ValueError):
    """Something a user can cause and mend; command lines print it on one line and exit with code 2."""
