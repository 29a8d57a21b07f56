"""Find the step folders of a run: ``WORKDIR/checkpoints/STEP/``."""

from __future__ import annotations

from pathlib import Path

COLLECTIONS = ("params", "batch_stats", "constants")
CHECKPOINTS = "checkpoints"


def newest_step(path: Path, at_most: int | None = None) -> Path | None:
    """Return the newest complete step folder.

    Args:
      path: a workdir, its checkpoint folder, or a step folder.
      at_most: ignore later steps; not used if ``path`` is a step folder.
    """
    if (path / "extra").is_dir() and (path / "variables").is_dir():
        return path
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir():
            steps = [p for p in folder.iterdir() if p.name.isdecimal() and (p / "variables").is_dir()]
            steps = [p for p in steps if at_most is None or int(p.name) <= at_most]
            if steps:
                return max(steps, key=lambda p: int(p.name))
    return None
