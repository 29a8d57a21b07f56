"""Fixtures for all test modules."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import jax
import pytest
from tiny import QUICK_FLAGS


def pytest_configure(config: pytest.Config) -> None:
    """Compile quickly, subprocesses too; the commands' cache is the suite's own, since the user's would be warm."""
    if not hasattr(config, "workerinput"):  # the workers have the environment from here
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS}".strip()
        folder = tempfile.mkdtemp(prefix="edgesam_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["EDGESAM_JAX_CACHE"] = folder


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
