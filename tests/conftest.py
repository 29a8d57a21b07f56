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


# Files of few, long tests: started last, they would keep one worker busy while the other has nothing left.
LONG = ("test_multiprocess.py", "test_parallel.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; ``--no-loadscope-reorder`` has xdist keep this order."""
    items.sort(key=lambda item: item.path.name not in LONG)
