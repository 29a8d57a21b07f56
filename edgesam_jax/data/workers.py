"""Prepare batches ahead of the step that takes them: in a background thread, or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any, Protocol, TypeVar

from edgesam_jax.config import UsageError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
AHEAD = 2  # batches prepared while a step runs, by each worker


class Steps(Protocol[T_co]):
    """Random access to batches by step.  It is pickled once for each worker process."""

    def __getitem__(self, step: int) -> T_co: ...


def in_thread(steps: Steps[T], start: int) -> Iterator[T]:
    """Yield the batches from a step on, prepared in a background thread, which ends when the iterator is closed."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
    try:
        yield from _ahead(executor, steps.__getitem__, start, AHEAD)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def in_processes(steps: Steps[T], start: int, workers: int) -> Iterator[T]:
    """Yield the same from worker processes; closing the iterator waits for the batches that they have begun.

    Raises:
      UsageError: a worker ended unexpectedly.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the state of JAX's threads
    stopping = context.Event()
    executor = ProcessPoolExecutor(workers, context, _begin, (steps, stopping))
    try:
        yield from _ahead(executor, _prepare, start, workers * AHEAD)
    except BrokenProcessPool:
        raise UsageError(
            f"data.workers={workers}: a worker process was killed, most likely for lack of memory; use fewer workers,"
            " then run the same command again to resume"
        ) from None
    finally:
        stopping.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _ahead(executor: Executor, prepare: Callable[[int], T], start: int, ahead: int) -> Iterator[T]:
    pending: deque[Future[T]] = deque()
    step = start
    while True:
        while len(pending) < ahead:
            pending.append(executor.submit(prepare, step))
            step += 1
        yield pending.popleft().result()


# ------------------------------------------------------------------------------------------------ in a worker process

_job: tuple[Any, Event] | None = None


def _begin(steps: Steps[Any], stopping: Event) -> None:
    """Keep the batches of this worker, and tie its life to the process that started it.

    A signal to the entire process group (Ctrl-C, a scheduler's SIGTERM) must not end the workers of a run that still
    has to save, and a run that was killed must not leave its workers behind.
    """
    global _job
    _job = steps, stopping
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(step: int) -> Any:
    """Return a batch, or None after the end: calls that are already on their way to a worker can't be cancelled."""
    assert _job is not None
    steps, stopping = _job
    return None if stopping.is_set() else steps[step]
