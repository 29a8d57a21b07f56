"""Rows on disk: a stopped evaluation resumes, several hosts share a folder, other evaluations are refused."""

from __future__ import annotations

import json

import pytest

from edgesam_jax.config import UsageError
from edgesam_jax.reporting.rows import Rows

HEADER = {"settings": {"seed": 0}, "photos": 4}


def test_rows_are_read_back_without_an_incomplete_line(tmp_path):
    rows = Rows(tmp_path / "out" / "report", HEADER)
    for photo in (0, 1):
        rows.add({"photo": photo, "instances": []})
    rows.close()
    with rows.path.open("a") as file:
        file.write('{"photo": 2, "inst')
    again = Rows(tmp_path / "out" / "report", HEADER)
    assert [i in again for i in range(3)] == [True, True, False]
    again.add({"photo": 2, "instances": []})
    again.close()
    last = Rows(tmp_path / "out" / "report", HEADER)
    last.close()
    assert [row["photo"] for row in last.in_order()] == [0, 1, 2]
    assert len(rows.path.read_text().splitlines()) == 4


def test_parts_are_merged(tmp_path):
    parts = [Rows(tmp_path / "r", HEADER, (i, 2)) for i in range(2)]
    for photo in (3, 1):
        parts[1].add({"photo": photo})
    parts[0].add({"photo": 2})
    parts[0].refresh()
    assert [row["photo"] for row in parts[0].in_order()] == [1, 2, 3]
    whole = Rows(tmp_path / "r", HEADER)  # a single host resumes from all parts
    assert 1 in whole and 0 not in whole
    for rows in (*parts, whole):
        rows.close()


def test_another_evaluation_is_refused(tmp_path):
    Rows(tmp_path / "r", HEADER).close()
    with pytest.raises(
        UsageError, match=r"r.rows.jsonl: rows of another evaluation \(settings differ\); remove the file"
    ):
        Rows(tmp_path / "r", {**HEADER, "settings": {"seed": 1}})


def test_without_a_path_nothing_is_written(tmp_path):
    rows = Rows(None, HEADER)
    rows.add({"photo": 5})
    rows.refresh()
    assert 5 in rows and rows.in_order() == [{"photo": 5}] and not list(tmp_path.iterdir())
    rows.close()


def test_the_file_begins_with_the_header(tmp_path):
    rows = Rows(tmp_path / "r", HEADER)
    rows.close()
    assert json.loads(rows.path.read_text()) == HEADER
