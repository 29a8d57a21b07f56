"""Step times of a run: seconds on the device, and seconds waiting for data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax

# Metrics that measure speed or memory; all others are the same whenever a run is repeated.
TIMES = ("seconds", "step_seconds", "device_seconds", "data_seconds", "photos_per_second", "memory_bytes", "mfu")


class StepTimer:
    """Times steps that run asynchronously: a thread waits for each, which leaves the loop free to continue."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-timer")
        self._last_end: float | None = None

    def track(self, metrics: Mapping[str, jax.Array], data_seconds: float) -> Future[dict[str, float] | None]:
        """Time a step that was just dispatched.

        Args:
          metrics: outputs of the step.
          data_seconds: how long the loop waited for its batch.

        Returns:
          ``step_seconds``: from the end of the step before to the end of this one.  ``device_seconds``: from when this
          step could start (the later of its dispatch and the end of the step before) to its end.  ``data_seconds``.
          None for the first step, and for the first after ``restart``: these include compilation.
        """
        return self._thread.submit(self._wait, metrics, time.perf_counter(), data_seconds)

    def _wait(
        self, metrics: Mapping[str, jax.Array], dispatched: float, data_seconds: float
    ) -> dict[str, float] | None:
        jax.block_until_ready(metrics)
        end, last = time.perf_counter(), self._last_end
        self._last_end = end
        if last is None:
            return None
        return {"step_seconds": end - last, "device_seconds": end - max(dispatched, last), "data_seconds": data_seconds}

    def discard_elapsed(self) -> None:
        """Exclude the time since the last step from the next step's time.  No step may be running."""
        if self._last_end is not None:
            self._last_end = time.perf_counter()

    def restart(self) -> None:
        """Don't time the next step, as it has to be compiled.  No step may be running."""
        self._last_end = None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
