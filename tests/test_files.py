"""Files and folders appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesam_jax.config import UsageError
from edgesam_jax.files import atomic_file, atomic_folder, parse_json, read_json, staged_files, write_atomically


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> text of all files, temporary ones included."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "1")
    with atomic_file(tmp_path / "a") as path:
        path.write_text("2")
        assert (tmp_path / "a").read_text() == "1" and path.parent == tmp_path and path.name.startswith(".a.")
    assert contents(tmp_path) == {"a": "2"}


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "1")
    (tmp_path / "b").mkdir()
    write_atomically(tmp_path / "b" / "c", "1")
    with pytest.raises(KeyError), atomic_file(tmp_path / "a") as path:
        path.write_text("2")
        raise KeyError
    for change in (atomic_folder, staged_files):
        with pytest.raises(KeyError), change(tmp_path / "b") as path:
            (path / "c").write_text("2")
            raise KeyError
        with pytest.raises(KeyError), change(tmp_path / "new") as path:
            raise KeyError
    assert contents(tmp_path) == {"a": "1", "b/c": "1"} and not (tmp_path / "new").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
    assert contents(tmp_path) == {"a": "1"}


def test_only_a_sole_writer_removes_what_killed_ones_left(tmp_path: Path) -> None:
    (tmp_path / ".a.123.part").write_text("")
    (tmp_path / ".ab.123.part").write_text("")
    write_atomically(tmp_path / "a", "1")
    assert len(contents(tmp_path)) == 3
    with atomic_file(tmp_path / "a", sole_writer=True) as path:
        path.write_text("2")
    assert contents(tmp_path) == {"a": "2", ".ab.123.part": ""}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("1", "2"):
        with atomic_folder(tmp_path / "x" / "y") as folder:
            (folder / text).write_text(text)
    assert contents(tmp_path) == {"x/y/2": "2"}


def test_staged_files_join_those_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x" / "sub").mkdir(parents=True)
    for name in ("a1", "a2", "b1", "sub/old"):
        (tmp_path / "x" / name).write_text("old")
    with staged_files(tmp_path / "x", obsolete=r"a\d") as folder:
        (folder / "a2").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "new").write_text("new")
    assert contents(tmp_path) == {"x/a2": "new", "x/b1": "old", "x/sub/new": "new"}


def test_a_link_to_a_folder_keeps_pointing_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "link").is_symlink() and [p.name for p in (tmp_path / "real").iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_the_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('{"name": "Käfer"}', encoding=encoding)
    assert read_json(tmp_path / "a.json", "file") == {"name": "Käfer"}
    assert parse_json('\ufeff{"a": 1}', "text") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"7" * 5000 + b"]", "thousands of digits"),
        (b'["\xff"]', "not UTF-8 text at byte 2"),
        (b"\xff\xfe\xfd", "not UTF-16"),
        (b"\x80\x02pickle", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_json_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"^--flag .*a\.json: not valid JSON") as caught:
        read_json(tmp_path / "a.json", "--flag")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.json", "no such file"), ("", "is a folder"), ("a" * 5000, "cannot be read"), ("a\0b", "cannot be read")],
)
def test_a_json_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_json(tmp_path / name, "--flag")
