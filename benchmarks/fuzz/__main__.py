"""Give the project damaged input, thousands of times, and count what it does.

    python -m benchmarks.fuzz --output OUT [--scale 1.0] [--groups images tars ...] [--seed 0]

A case is a fault of the project if it ends in a traceback (or an exit code but 0 and 2, or a hang), if input that is
surely wrong is accepted without a counted row or a note, if a failed command leaves files, or if its message is not one
readable line.  The table is printed and written to ``OUT/report.md``, with a line for each fault.  Exits with code 1 if
there is any.  All groups together take about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.fuzz import annotations, archives, commands, inputs
from benchmarks.fuzz.cases import FAULTS, Case, Tally, judge
from edgesam_jax.reporting.tables import aligned_table

GROUPS: dict[str, tuple[Callable[[random.Random, Path], Iterator[Case]], int]] = {
    "images": (inputs.images, 600),
    "prompts": (inputs.prompts, 1200),
    "coco": (annotations.coco, 1000),
    "detections": (annotations.detections, 400),
    "reports": (annotations.reports, 500),
    "checkpoints": (inputs.checkpoints, 500),
    "configs": (inputs.configs, 600),
    "overrides": (inputs.overrides, 600),
    "tars": (archives.tars, 600),
    "runs": (archives.runs, 200),
    "system": (commands.system, 29),
    "concurrent": (commands.concurrent, 12),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the groups; return 1 if a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the report")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of cases")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows, faults, total = [], [], Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        for group in arguments.groups:
            make, count = GROUPS[group]
            began, tally = time.monotonic(), Tally()
            folder = Path(name) / group
            cases = itertools.islice(
                make(random.Random(f"{arguments.seed} {group}"), folder), round(count * arguments.scale)
            )
            for case in tqdm(cases, group, total=round(count * arguments.scale), unit="case", disable=None):
                judge(case, tally, folder)
            rows.append(_row(group, tally, time.monotonic() - began))
            faults += [f"- {group}: {kind}: {text}" for kind, text in tally.faults]
            for field in ("cases", "refused", "reported", "accepted"):
                setattr(total, field, getattr(total, field) + getattr(tally, field))
            total.faults += tally.faults
    rows.append(_row("all", total, None))
    text = aligned_table(["group", "cases", "refused", "reported", "accepted", *FAULTS, "seconds"], rows)
    print(text)
    print("\n".join(faults))
    (arguments.output / "report.md").write_text("\n".join([text, "", *faults, ""]))
    return bool(faults)


def _row(name: str, tally: Tally, seconds: float | None) -> list[str]:
    counts = [tally.cases, tally.refused, tally.reported, tally.accepted, *(tally.count(kind) for kind in FAULTS)]
    return [name, *map(str, counts), "" if seconds is None else f"{seconds:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
