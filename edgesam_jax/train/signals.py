"""Signals that make a run save and stop."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax


@dataclass
class StopSignal:
    """Records the first SIGTERM or SIGINT inside a ``with`` block; a second one has its usual effect.

    In a job of several processes JAX handles these signals: see ``parallel.agree_to_stop``.

    Attributes:
      received: the signal's number; 0 before it arrives.
    """

    received: int = 0
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopSignal:
        for number in () if jax.distributed.is_initialized() else (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()
