"""Signals that ask a run to save and leave."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax


@dataclass
class StopSignal:
    """SIGTERM and SIGINT ask the loop to save and leave; a second one has its usual effect.

    A job of several processes leaves them to JAX: see ``parallel.agree_to_stop``.
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
