"""The C library's memory allocator in a long run on a CPU: keep what is freed, and in huge pages.

XLA asks for a step's temporary memory anew at every step, and glibc hands out fresh pages for it each time: a quarter
of the processor time of a training step (docs/performance.md, "Training steps at full size").  glibc reads its settings
only when a process starts, so the command starts itself again with them.
"""

from __future__ import annotations

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
        "trim_threshold": 4_000_000_000,
        "top_pad": 1 << 28,
    }.items()
)
ACCELERATORS = ("jax_plugins", "libtpu")  # packages that JAX's GPU and TPU support brings


def restart_with_huge_pages() -> None:
    """Replace this process by the same command with ``TUNABLES`` set; returns where that is of no use.

    That is on other systems and C libraries, where an accelerator's package is installed, and where the environment
    has ``GLIBC_TUNABLES`` already (set it to nothing to do without).  The process keeps its number.
    """
    if SETTING in os.environ or platform.libc_ver()[0] != "glibc":
        return
    if any(importlib.util.find_spec(name) for name in ACCELERATORS):
        return
    os.environ[SETTING] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
