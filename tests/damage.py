"""Damage to files, and equality of trees."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np


def same(a: object, b: object) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
