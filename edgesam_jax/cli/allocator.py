"""Memory of a long run on a CPU: what is freed is kept, in huge pages, and programs are ordered to need less.

XLA asks for a step's temporary memory anew at every step, and glibc hands out fresh pages for it each time: a quarter
of the processor time of a training step (docs/performance.md, "Training steps at full size").  glibc reads its settings
only when a process starts, so the command starts itself again with them.  With them goes the compiler's choice of an
order of operations: by default it is for concurrency, at the price of up to 0.7 GB more and without a gain here.
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
        "mmap_max": 0,  # large blocks from the heap too, which is kept
        "arena_max": 1,  # one heap: those of single threads are given back as soon as they are empty
        "trim_threshold": 4_000_000_000,
        "top_pad": 1 << 28,
    }.items()
)
SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
KNOWN_TO = ("0.10.", "0.11.", "0.12.")  # releases of jaxlib: XLA ends a process at a flag that it does not know
ACCELERATORS = ("jax_plugins", "libtpu")  # packages that JAX's GPU and TPU support brings


def settings() -> dict[str, str]:
    """The environment variables that the command gives itself."""
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith(KNOWN_TO) and SCHEDULER.split("=")[0] not in flags:
        flags = f"{flags} {SCHEDULER}".strip()
    return {SETTING: TUNABLES} | ({"XLA_FLAGS": flags} if flags else {})


def restart_with_huge_pages() -> None:
    """Replace this process by the same command with ``settings`` made; returns where that is of no use.

    That is on other systems and C libraries, where an accelerator's package is installed, and where the environment
    has ``GLIBC_TUNABLES`` already (set it to nothing to do without).  The process keeps its number.
    """
    if SETTING in os.environ or platform.libc_ver()[0] != "glibc":
        return
    if any(importlib.util.find_spec(name) for name in ACCELERATORS):
        return
    os.environ |= settings()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
