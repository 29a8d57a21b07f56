"""JAX's persistent compilation cache: later runs of a command start in a fraction of the time."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EDGESAM_JAX_CACHE"


def cache_dir() -> Path | None:
    """Return ``$EDGESAM_JAX_CACHE`` (None if it is ``off``), else ``edgesam_jax/xla`` in the user's cache folder."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0", "no", "false"):
        return None
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesam_jax" / "xla"


def enable() -> Path | None:
    """Enable the cache for this process; return its folder, or None if the cache is off or not writable."""
    import jax

    folder = cache_dir()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
