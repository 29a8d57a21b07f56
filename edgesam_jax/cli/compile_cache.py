"""Compiled programs kept across runs, so that a command line starts in a fraction of its first time."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EDGESAM_JAX_CACHE"


def cache_dir() -> Path | None:
    """The folder: ``$EDGESAM_JAX_CACHE`` (``off`` switches it off), else edgesam_jax/xla in the user's cache folder."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0", "no", "false"):
        return None
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesam_jax" / "xla"


def enable() -> Path | None:
    """Switch the cache on for this process.  Returns its folder, or None where it is off or cannot be written."""
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
