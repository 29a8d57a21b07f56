"""A few of the cases of ``benchmarks/fuzz``: no damaged input ends in a traceback, in silence, or leaves files."""

from __future__ import annotations

import itertools
import random

import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz.cases import LEFTOVER, SILENT, TRACEBACK, Case, Tally, judge, leftovers
from edgesam_jax.config import UsageError

GROUPS = ("images", "prompts", "coco", "detections", "reports", "configs", "overrides", "tars")


@pytest.mark.parametrize("group", GROUPS)
def test_damaged_input_is_refused_or_counted(group, tmp_path):
    make, _ = fuzz.GROUPS[group]
    tally, folder = Tally(), tmp_path / group
    for case in itertools.islice(make(random.Random(f"tests {group}"), folder), 30):
        judge(case, tally, folder)
    assert tally.cases == 30 and not tally.faults
    assert tally.refused


def test_faults_are_found(tmp_path):
    def refuse() -> bool:
        (tmp_path / "out").write_text("half")
        (tmp_path / ".out.part").write_text("half")
        raise UsageError("no")

    tally = Tally()
    judge(Case("a", lambda: bool(1 / 0)), tally, tmp_path)
    judge(Case("b", lambda: False), tally, tmp_path)
    judge(Case("c", refuse, outputs=(tmp_path / "out",)), tally, tmp_path)
    assert [kind for kind, _ in tally.faults] == [TRACEBACK, SILENT, LEFTOVER, LEFTOVER]
    assert [path.name for path in leftovers(tmp_path)] == [".out.part"]
