"""The names and shapes of published checkpoints."""

from __future__ import annotations

import ast

from paths import GOLDEN


def read_keys(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> (shape, dtype) of a list in tests/golden/."""
    found = {}
    for line in (GOLDEN / f"{name}.txt").read_text().splitlines():
        key, rest = line.split(None, 1)
        shape, dtype = rest.rsplit(None, 1)
        found[key] = (tuple(ast.literal_eval(shape)), dtype)
    return found
