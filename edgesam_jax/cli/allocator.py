"""Memory settings for long runs on a CPU: keep freed memory, use huge pages, schedule for less memory.

XLA allocates a step's temporary memory at every step, and glibc maps fresh pages for it each time. That takes a quarter
of the processor time of a training step (docs/performance.md, "Training steps at full size"). glibc reads its settings
only when a process starts, so the command restarts itself with them. The restart also sets XLA's scheduler: the default
one optimises for concurrency, which costs up to 0.7 GB more memory and gains nothing here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

SETTING = "GLIBC_TUNABLES"
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,  # transparent huge pages by madvise
        "mmap_max": 0,  # allocate large blocks from the heap too, which is kept
        "arena_max": 1,  # one heap: per-thread heaps are unmapped as soon as they are empty
        "trim_threshold": 4_000_000_000,
        "top_pad": 1 << 28,
    }.items()
)
SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
KNOWN_TO = ("0.10.", "0.11.", "0.12.")  # releases of jaxlib that have the flag: XLA aborts on an unknown flag
ACCELERATORS = ("jax_plugins", "libtpu")  # packages installed with JAX's GPU and TPU support


def settings() -> dict[str, str]:
    """Return the environment variables that the command sets for itself."""
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith(KNOWN_TO) and SCHEDULER.split("=")[0] not in flags:
        flags = f"{flags} {SCHEDULER}".strip()
    return {SETTING: TUNABLES} | ({"XLA_FLAGS": flags} if flags else {})


def restart_with_huge_pages() -> None:
    """Replace this process by the same command with ``settings`` in its environment; the process ID stays.

    Does nothing on other systems and C libraries, if an accelerator's package is installed, or if ``GLIBC_TUNABLES`` is
    set already (set it to the empty string to prevent the restart).
    """
    if SETTING in os.environ or platform.libc_ver()[0] != "glibc":
        return
    if any(importlib.util.find_spec(name) for name in ACCELERATORS):
        return
    os.environ |= settings()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
