"""Orbax without its log messages, for one process at a time."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import UsageError

# Seconds after a failed save: how long nothing may appear before its folder counts as removed, and how long to wait.
QUIET, SETTLING = 0.5, 10.0


@functools.cache
def orbax() -> Any:
    """Import ``orbax.checkpoint`` on first use, and silence the reports of its background threads."""
    import orbax.checkpoint

    before = sys.unraisablehook

    def unraisable(caught: Any) -> None:
        # Tensorstore's threads report every array that failed, after Orbax has already raised the first error.
        if not (isinstance(caught.exc_value, RuntimeError) and str(caught.exc_value) == "Event loop is closed"):
            before(caught)

    sys.unraisablehook = unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the same for tasks that were never awaited
    return orbax.checkpoint


def alone() -> Any:
    """Return options for one process of a job that saves alone; by default Orbax waits for the other processes."""
    index = jax.process_index()
    return orbax().options.MultiprocessingOptions(
        primary_host=index, active_processes={index} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"alone{index}" if jax.process_count() > 1 else None,
    )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence absl's log: Orbax logs routine messages there, and tracebacks of errors that it also raises."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove the folders of a save that failed, until no more appear: other threads of Orbax may still create some."""
    end, empty_since = time.monotonic() + SETTLING, time.monotonic()
    while time.monotonic() < min(end, empty_since + QUIET):
        for unfinished in folder.glob(pattern):
            shutil.rmtree(unfinished, ignore_errors=True)
            empty_since = time.monotonic()
        time.sleep(QUIET / 20)


def reason_of(error: BaseException) -> str:
    """Return the operating system's message if the error's text contains it, else the first line of the text."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return (text.splitlines() or [type(error).__name__])[0][:200]


def restore_numpy(folder: Path, where: Path) -> Any:
    """Restore a tree of any structure as numpy arrays, whichever devices it was saved from.

    Processes of a job restore independently of one another.

    Raises:
      UsageError: the checkpoint is damaged; ``where`` names it.
    """
    ocp = orbax()
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
        with quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone()) as checkpointer:
            index = checkpointer.metadata(folder).item_metadata
            if index is None:
                raise ValueError("its index cannot be read")
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), index.tree)
            return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except Exception as error:  # orbax, tensorstore and json each raise their own types
        first = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"checkpoint {where}: damaged ({type(error).__name__}: {first})") from error
