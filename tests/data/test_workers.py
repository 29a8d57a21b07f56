"""Batches prepared by worker processes: the end of a run doesn't wait for them, and a killed one is named."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from edgesam_jax.config import UsageError
from edgesam_jax.data.workers import AHEAD, in_processes


class Large:
    """Batches larger than a pipe holds, with the process that made them."""

    def __getitem__(self, step):
        return step, os.getpid(), np.full(1 << 20, step)


def test_workers_end_soon_also_if_nobody_takes_their_batches():
    """A worker that waits for room in a full queue would otherwise be waited for until a time-out."""
    batches = in_processes(Large(), 3, 2)
    taken = [next(batches) for _ in range(3)]
    assert [step for step, _, _ in taken] == [3, 4, 5] and all((array == step).all() for step, _, array in taken)
    time.sleep(1)  # until all that may be prepared is
    begin = time.monotonic()
    batches.close()
    assert time.monotonic() - begin < 8  # seconds; 0.1 on a machine that does nothing else
    for _, worker, _ in taken:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_a_killed_worker_is_one_line():
    batches = in_processes(Large(), 0, 1)
    os.kill(next(batches)[1], signal.SIGKILL)
    with pytest.raises(UsageError, match=r"^data\.workers=1: a worker process was killed.*fewer workers"):
        for _ in range(AHEAD + 2):
            next(batches)
            time.sleep(0.5)
