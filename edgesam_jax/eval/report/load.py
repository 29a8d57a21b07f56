"""Load one system's report from a report file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from edgesam_jax.config import UsageError
from edgesam_jax.config.parse import shown
from edgesam_jax.eval.report.settings import names_of
from edgesam_jax.files import read_json
from edgesam_jax.portable.errors import one_line


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
            raise UsageError(
                f"{one_line(text)}: no such file; pass a report written by python -m edgesam_jax.eval --output"
            )
        path, name = text[: cuts[0]], text[cuts[0] + 1 :]
    content = read_json(path, "report")
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
    if fault := _fault(report):
        raise UsageError(
            f"{text}: not a report with the IoUs of every instance ({fault}); pass one written by "
            "python -m edgesam_jax.eval --output with --prompt box, center, point or everything"
        )
    return LoadedReport(path, names[matches[0]], report)


def _fault(report: Any) -> str | None:
    """Return the field that prevents instances from being paired and compared, and its fault; None without one."""
    for key, kinds, needed in (
        ("dataset", str, True), ("prompt", str, True), ("protocol", str, False), ("refine", int, False)
    ):  # fmt: skip
        if (needed and key not in report) or (key in report and not isinstance(report[key], kinds)):
            return f"{key}: {f'got {shown(report[key])}' if key in report else 'missing'}"
    rows = report.get("instances")
    if not isinstance(rows, list) or not rows:
        return f"instances: {'missing' if rows is None else f'got {shown(rows)}'}"
    rounds = -1  # of the first row, which all others must have too
    for number, row in enumerate(rows):
        where = f"instances[{number}]"
        if not isinstance(row, dict):
            return f"{where}: got {shown(row)}"
        for key in ("image_id", "annotation_id"):
            if not isinstance(row.get(key), int | str) or isinstance(row[key], bool):
                return f"{where}.{key}: must be a number or a text, got {shown(row.get(key))}"
        for key in ("iou", *(["boundary_iou"] if "boundary_iou" in row else [])):
            values = row.get(key)
            if not isinstance(values, list) or not values:
                return f"{where}.{key}: must be a list of fractions, got {shown(values)}"
            for i, value in enumerate(values):
                number_or_null = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
                if not number_or_null or (value is not None and not 0 <= value <= 1):  # NaN fails the comparison
                    return f"{where}.{key}[{i}]: must be a fraction, 0 to 1, or null; got {shown(value)}"
            rounds = len(values) if rounds < 0 else rounds
            if len(values) != rounds:
                return f"{where}.{key}: has {len(values)} values, the first instance has {rounds}"
    if report.get("refine", rounds - 1) != rounds - 1:
        return f"refine: is {shown(report['refine'])}, but every instance has {rounds} IoUs"
    return None
