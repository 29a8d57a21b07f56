"""Fixtures for all test modules."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """Compile without most optimisations: on tiny models they cost more than they ever repay."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
