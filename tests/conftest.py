"""Fixtures for all test modules."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile

import jax
import pytest
from tiny import FAST_FLAGS

# Writing a program and reading it back takes a few milliseconds.
CACHE = {"jax_persistent_cache_min_compile_time_secs": 0.1, "jax_persistent_cache_min_entry_size_bytes": -1}


def pytest_configure(config: pytest.Config) -> None:
    """Compile quickly, and each program once per worker; the user's cache isn't used.

    A worker and its subprocesses share a cache, so tests that train a config again don't compile it again.  Workers
    don't share one: JAX writes entries in place, and another worker may read half of one.
    """
    gc.set_threshold(100_000, 20, 1000)  # tracing makes millions of objects that live on; searching them costs 10 %
    worker = getattr(config, "workerinput", None)
    if worker is None:  # workers inherit the environment
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_FLAGS}".strip()
        folder = tempfile.mkdtemp(prefix="edgesam_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["EDGESAM_JAX_CACHE"] = folder
    else:
        folder = os.path.join(os.environ["EDGESAM_JAX_CACHE"], worker["workerid"])
        os.makedirs(folder, exist_ok=True)
        os.environ["EDGESAM_JAX_CACHE"] = folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    for name, value in CACHE.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


# The files that take longest, longest first.  Started last, one would keep a worker busy while the other is idle.
LONG = (
    "test_multiprocess.py", "test_parallel.py", "test_step.py", "test_priors.py", "test_train_command.py",
    "test_students.py", "test_plan.py", "test_parity.py", "test_to_coreml.py", "test_bundle.py", "test_pipeline.py",
    "test_mil_evaluator.py", "test_fused.py", "test_prompt_loop.py", "test_ablate.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; ``--no-loadscope-reorder`` has xdist keep this order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
