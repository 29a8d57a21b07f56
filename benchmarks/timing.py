"""Time contenders in turn within one run, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import numpy as np


def cores() -> int:
    """The number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(size: int = 2048) -> tuple[float, float]:
    """Current rates of this machine: float32 matrix products in FLOP/s, and copies in bytes/s read and written."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    product = min(_once(lambda: a @ b)[0] for _ in range(5))
    source = np.zeros(1 << 26, np.float32)
    target = np.empty_like(source)
    copy = min(_once(lambda: np.copyto(target, source))[0] for _ in range(5))
    return 2 * size**3 / product, 2 * source.nbytes / copy


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Warm up every contender with one run, then time ``rounds`` runs in turn: (wall, CPU / cores) seconds of each."""
    for run in contenders.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(_once(run))
    return times


def report(times: Mapping[str, list[tuple[float, float]]], against: str) -> None:
    """Print a row per contender: best and median wall seconds, CPU seconds per core, and ratios of medians.

    CPU seconds per core equal the wall time on an idle machine if the work keeps all cores busy; they are the more
    reliable figure when other work is running.

    Args:
      against: the contender that ratios are relative to.
    """
    base = [median(x[i] for x in times[against]) for i in (0, 1)]
    print(f"{'':34s} {'best s':>8s} {'median s':>9s} {'cpu s':>8s} {'wall ratio':>11s} {'cpu ratio':>10s}")
    for name, runs in times.items():
        wall, cpu = (median(x[i] for x in runs) for i in (0, 1))
        best = min(x[0] for x in runs)
        print(f"{name:34s} {best:8.3f} {wall:9.3f} {cpu:8.3f} {wall / base[0]:11.2f} {cpu / base[1]:10.2f}", flush=True)


def compiled_run(compiled: Any, *inputs: Any) -> Callable[[], Any]:
    """A function that calls a compiled JAX function and waits for the result."""
    return lambda: jax.block_until_ready(compiled(*inputs))


def temporary_bytes(compiled: Any) -> int:
    """Memory in bytes that XLA needs for a compiled function, excluding arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def _once(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, (time.process_time() - cpu) / cores()
