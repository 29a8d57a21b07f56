"""Load one system's report from a report file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from edgesam_jax.config import UsageError
from edgesam_jax.eval.report.settings import names_of


class LoadedReport(NamedTuple):
    """A system's report, with its file and the system's name."""

    file: str
    system: str
    report: dict[str, Any]


def load_system(where: str | Path) -> LoadedReport:
    """Load a system's report from ``FILE`` or ``FILE:NAME``; NAME is a system's name or its number from 1.

    Raises:
      UsageError: the file doesn't exist or is not a report with instances, or it doesn't have exactly one such system.
    """
    text = str(where)
    path, name = text, ""
    if not os.path.isfile(text):
        # The longest prefix that is a file, because names and folders may contain colons too.
        cuts = [i for i in range(len(text) - 1, 0, -1) if text[i] == ":" and os.path.isfile(text[:i])]
        if not cuts:
            raise UsageError(f"{text}: no such file; pass a report written by python -m edgesam_jax.eval --output")
        path, name = text[: cuts[0]], text[cuts[0] + 1 :]
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a report: cannot be read as JSON ({error})") from None
    systems = content.get("systems", [content]) if isinstance(content, dict) else None
    if not isinstance(systems, list) or not systems or not all(isinstance(system, dict) for system in systems):
        raise UsageError(f"{path}: not a report; pass one written by python -m edgesam_jax.eval --output")
    names = names_of(systems)
    if not name and len(systems) > 1:
        raise UsageError(f"{path}: has {len(systems)} systems; pass {path}:NAME to choose one of {', '.join(names)}")
    matches = [i for i, system_name in enumerate(names) if name in ("", system_name)]
    if not matches and name.isdecimal() and 1 <= int(name) <= len(systems):
        matches = [int(name) - 1]
    if not matches:
        raise UsageError(f"{text}: no system {name!r} in {path}; it has {', '.join(names)}")
    report = systems[matches[0]]
    if not _is_report(report):
        raise UsageError(
            f"{text}: not a report with the IoUs of every instance; pass one written by "
            "python -m edgesam_jax.eval --output for a ground-truth prompt (box, center or point)"
        )
    return LoadedReport(path, names[matches[0]], report)


def _is_report(report: Any) -> bool:
    """Whether the report's instances can be paired and compared."""
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
    """The number of IoUs in a list; 0 if ``values`` is not a list of numbers and None."""
    valid = isinstance(values, list) and all(value is None or isinstance(value, int | float) for value in values)
    return len(values) if valid else 0
