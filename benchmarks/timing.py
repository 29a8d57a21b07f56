"""Timing of contenders in one run, in turn, so that whatever else the machine does disturbs all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import numpy as np


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(size: int = 2048) -> tuple[float, float]:
    """Rates of this machine now: float32 matrix product in flop/s, and copying in bytes/s read and written."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    product = min(_once(lambda: a @ b)[0] for _ in range(5))
    source = np.zeros(1 << 26, np.float32)
    target = np.empty_like(source)
    copy = min(_once(lambda: np.copyto(target, source))[0] for _ in range(5))
    return 2 * size**3 / product, 2 * source.nbytes / copy


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Run every contender once to warm up, then ``rounds`` times in turn: (wall, CPU seconds / cores) of each run."""
    for run in contenders.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(_once(run))
    return times


def report(times: Mapping[str, list[tuple[float, float]]], against: str) -> None:
    """Print a row for each contender: best and median seconds, CPU seconds over cores, and the ratio of medians.

    CPU time over cores is what the wall time would be on an idle machine for work that keeps all cores busy; it is the
    figure to trust where other work runs beside.
    """
    base = [median(x[i] for x in times[against]) for i in (0, 1)]
    print(f"{'':34s} {'best s':>8s} {'median s':>9s} {'cpu s':>8s} {'wall ratio':>11s} {'cpu ratio':>10s}")
    for name, runs in times.items():
        wall, cpu = (median(x[i] for x in runs) for i in (0, 1))
        best = min(x[0] for x in runs)
        print(f"{name:34s} {best:8.3f} {wall:9.3f} {cpu:8.3f} {wall / base[0]:11.2f} {cpu / base[1]:10.2f}", flush=True)


def compiled_run(compiled: Any, *inputs: Any) -> Callable[[], Any]:
    """A call of a compiled JAX function that waits for its result."""
    return lambda: jax.block_until_ready(compiled(*inputs))


def temporary_bytes(compiled: Any) -> int:
    """Memory that XLA needs for a compiled function beside its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def _once(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, (time.process_time() - cpu) / cores()
