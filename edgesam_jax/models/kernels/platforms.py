"""The platform that programs are compiled for, by which operations choose their form; nothing else chooses it."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import jax

_platform = jax.make_user_context("")  # a part of the key of JAX's caches: functions are traced anew for each value
# Every layer as its definition says, in XLA's own operations: the form in which a model's work is counted.
PLAIN = "plain"


def _compiled_for() -> str:
    return _platform.value or jax.default_backend()


def on_cpu() -> bool:
    """Whether programs are compiled for the CPU."""
    return _compiled_for() == "cpu"


def on_accelerator() -> bool:
    """Whether programs are compiled for a GPU or TPU: for forms that do more products to move less data."""
    return _compiled_for() not in ("cpu", PLAIN)


def on_tpu() -> bool:
    """Whether programs are compiled for a TPU, for forms that only TPUs have."""
    return _compiled_for() == "tpu"


def traced_for(platform: str) -> contextlib.AbstractContextManager[Any]:
    """Trace programs in the form of ``platform``, whatever the current one is: "cpu", "gpu", "tpu" or ``PLAIN``."""
    return cast("contextlib.AbstractContextManager[Any]", _platform(platform))
