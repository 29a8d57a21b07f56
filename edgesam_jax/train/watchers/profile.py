"""A profiler trace of a few steps."""

from __future__ import annotations

from pathlib import Path

import jax


class Profile:
    """Traces consecutive steps into ``profile/`` (for TensorBoard or Perfetto).

    Args:
      first: finished steps before the first one to trace.
      count: number of steps to trace; 0 for none.
    """

    def __init__(self, workdir: Path, first: int, count: int) -> None:
        self._folder = workdir / "profile"
        self._steps = range(first, first + count)
        self._tracing = False

    def starts(self, done: int) -> bool:
        """Whether the step after ``done`` steps is the first to trace."""
        return done in self._steps and not self._tracing

    def ends(self, done: int) -> bool:
        """Whether the step after ``done`` steps is the first that is no longer traced."""
        return done not in self._steps and self._tracing

    def start(self) -> None:
        """Start the trace.  No step may be running."""
        jax.profiler.start_trace(str(self._folder))
        self._tracing = True

    def stop(self, running: list[dict[str, jax.Array]]) -> None:
        """End the trace, if there is one, once the steps with these metrics are done."""
        if self._tracing:
            jax.block_until_ready(running)
            jax.profiler.stop_trace()
            self._tracing = False
