"""Orbax, kept quiet and in one process."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import UsageError


@functools.cache
def orbax() -> Any:
    import orbax.checkpoint

    before = sys.unraisablehook

    def unraisable(caught: Any) -> None:
        # Tensorstore's threads report each array of a read or write that failed, after orbax has raised the first.
        if not (isinstance(caught.exc_value, RuntimeError) and str(caught.exc_value) == "Event loop is closed"):
            before(caught)

    sys.unraisablehook = unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the same, of tasks that nobody waited for
    return orbax.checkpoint


def alone() -> Any:
    """Options for a process of a job that saves by itself: Orbax would wait for the others."""
    own = jax.process_index()
    return orbax().options.MultiprocessingOptions(
        primary_host=own, active_processes={own} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"alone{own}" if jax.process_count() > 1 else None,
    )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Orbax reports its routine through absl, and errors with their traces before it raises them."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def restore_numpy(folder: Path, where: Path) -> Any:
    """Restore a tree of any structure as numpy arrays, whatever devices wrote it."""
    ocp = orbax()
    try:
        with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            index = checkpointer.metadata(folder).item_metadata
            if index is None:
                raise ValueError("its index cannot be read")
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), index.tree)
            return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except Exception as error:  # orbax, tensorstore and json each have their own
        first = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"checkpoint {where}: damaged ({type(error).__name__}: {first})") from error
