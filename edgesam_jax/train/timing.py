"""Where the time of a run goes: seconds of a step on the device, waiting for data, photos a second, memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax

# Names of metrics that say how fast a run was; all others are the same whenever it is repeated.
TIMES = ("seconds", "step_seconds", "device_seconds", "data_seconds", "photos_per_second", "memory_bytes", "mfu")


class Meter:
    """Times steps that run asynchronously: a thread waits for each, so the loop need not."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meter")
        self._last_end: float | None = None

    def sent(self, metrics: Mapping[str, jax.Array], data_seconds: float) -> Future[dict[str, float] | None]:
        """Call it when a step was sent off; ``metrics`` are among its outputs, ``data_seconds`` the wait for its batch.

        Returns:
          ``step_seconds`` from the end of the step before; ``device_seconds`` from when it could begin, which is when
          it was sent off or the one before was done; ``data_seconds``.  None where the step was compiled on the way.
        """
        return self._thread.submit(self._wait, metrics, time.perf_counter(), data_seconds)

    def _wait(self, metrics: Mapping[str, jax.Array], sent: float, data_seconds: float) -> dict[str, float] | None:
        jax.block_until_ready(metrics)
        end, last = time.perf_counter(), self._last_end
        self._last_end = end
        if last is None:
            return None
        return {"step_seconds": end - last, "device_seconds": end - max(sent, last), "data_seconds": data_seconds}

    def pause(self) -> None:
        """Time from here to the next step does not count.  Call it when no step is under way."""
        if self._last_end is not None:
            self._last_end = time.perf_counter()

    def restart(self) -> None:
        """The next step has to be compiled, which does not count.  Call it when no step is under way."""
        self._last_end = None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
