"""One system's report out of a report file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.eval.report.settings import names_of


def load_system(where: str | Path) -> tuple[str, str, dict[str, Any]]:
    """The file, the system's name, and its report, from ``FILE`` or ``FILE:NAME``.

    Raises:
      UsageError: no such file, not a report with instances, or not exactly one system of that name.
    """
    text = str(where)
    path, name = text, ""
    if not os.path.isfile(text):
        # The longest beginning that is a file: names and folders may have colons of their own.
        cuts = [i for i in range(len(text) - 1, 0, -1) if text[i] == ":" and os.path.isfile(text[:i])]
        if not cuts:
            raise UsageError(f"{text}: no such file; give a report that python -m edgesam_jax.eval --output wrote")
        path, name = text[: cuts[0]], text[cuts[0] + 1 :]
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a report: cannot be read as JSON ({error})") from None
    systems = content.get("systems", [content]) if isinstance(content, dict) else None
    if not isinstance(systems, list) or not systems or not all(isinstance(system, dict) for system in systems):
        raise UsageError(f"{path}: not a report; give one that python -m edgesam_jax.eval --output wrote")
    names = names_of(systems)
    if not name and len(systems) > 1:
        raise UsageError(f"{path}: has {len(systems)} systems; choose one: {path}:NAME, of {', '.join(names)}")
    chosen = [i for i, own in enumerate(names) if name in ("", own)]
    if not chosen and name.isdecimal() and 1 <= int(name) <= len(systems):
        chosen = [int(name) - 1]
    if not chosen:
        raise UsageError(f"{text}: no system {name!r} in {path}; it has {', '.join(names)}")
    report = systems[chosen[0]]
    if not _is_report(report):
        raise UsageError(
            f"{text}: not a report of single instances, each with its IoUs; give one that "
            "python -m edgesam_jax.eval --output wrote, for ground-truth prompts"
        )
    return path, names[chosen[0]], report


def _is_report(report: Any) -> bool:
    """Whether its instances can be paired and compared."""
    if not isinstance(report, dict) or not {"dataset", "prompt", "instances"} <= report.keys():
        return False
    rows = report["instances"]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return False
    lengths = {_rounds(row.get("iou")) for row in rows}
    boundaries = {_rounds(row["boundary_iou"]) for row in rows if "boundary_iou" in row}
    ids = all(isinstance(row.get(key), int | str) for row in rows for key in ("image_id", "annotation_id"))
    return ids and len(lengths) == 1 and lengths != {0} and (not boundaries or boundaries == lengths)


def _rounds(values: Any) -> int:
    """How many IoUs these are; 0 if they are something else."""
    fit = isinstance(values, list) and all(value is None or isinstance(value, int | float) for value in values)
    return len(values) if fit else 0
