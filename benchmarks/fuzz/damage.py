"""Damage to values and to bytes, drawn from a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

# Never a valid value of a field that holds a number, an id, a box, a mask or a name.
WRONG: tuple[Any, ...] = (
    True, float("nan"), float("inf"), -float("inf"), 1e308, [], {}, [[]], {"a": 1}, [None], "text", "", "\x1b[31mred\n",
    "1e5", -(10**30), 10**400,
)  # fmt: skip
UNUSUAL: tuple[Any, ...] = (None, False, 0, -1, -0.5, 1e-30, 0.999999, 2**31, 2**53 + 1, "0", "é", "e\u0301", "..", "/")


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    if prefix:
        yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*prefix, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with the value at ``path`` replaced."""
    result = copy.deepcopy(value)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return result


def removed(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy without the entry at ``path``."""
    result = copy.deepcopy(value)
    place = result
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return result


def damaged_bytes(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Truncate, flip, overwrite, insert, repeat, or nest; return what was done, and the result."""
    kind = rng.choice(("cut", "flip", "zeros", "insert", "repeat", "noise", "nest"))
    place = rng.randrange(max(1, len(content)))
    data = bytearray(content)
    if kind == "cut":
        data = data[:place]
    elif kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        data[place : place + 64] = bytes(min(64, len(data) - place))
    elif kind == "insert":
        data[place:place] = rng.randbytes(16)
    elif kind == "repeat":
        data = data + data[place:]
    elif kind == "nest":
        data[place:place] = b"[" * 20_000
    else:
        data[place : place + 16] = rng.randbytes(min(16, len(data) - place))
    return f"{kind} at {place}", bytes(data)
