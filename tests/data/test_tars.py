"""Reading SA-1B's tars without unpacking."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from small_data import annotation, photo, write_tar

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers import tars
from edgesam_jax.data.readers.tars import TarsSource, make_index, open_index, tar_names
from edgesam_jax.data.schema import BadExample


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_photos_and_masks_come_out_of_the_tars(tmp_path):
    write_tar(tmp_path / "sa_000001.tar", [3, 4], prefix="./some/folder/")
    write_tar(tmp_path / "sa_000000.tar", [1, 2])
    source = pickle.loads(pickle.dumps(open_source(DataConfig(source="tars", root=str(tmp_path)), 64)))
    assert len(source) == 4
    for index, number in enumerate((1, 2, 3, 4)):  # sorted by tar, then in the order of the members
        assert source.record(index).photo == photo(number)
        example = source.load(index)
        assert example.image_id == number and example.annotation_ids.tolist() == [100 * number, 100 * number + 1]
        assert example.masks.sum((1, 2)).tolist() == [10 * (16 + number), 11 * (16 + number)]
        assert example.boxes[1].tolist() == [4, 5, 20 + number, 16] and example.points[0].tolist() == [6.5, 7]
        assert np.abs(example.image.astype(int) - 10 * number).max() <= 2


def test_subsets_and_limits(tmp_path):
    for number in range(4):
        write_tar(tmp_path / f"sa_{number:06d}.tar", [2 * number + 1, 2 * number + 2])

    def ids(**arguments):
        source = TarsSource(tmp_path, **arguments)
        return [source.record(i).image_id for i in range(len(source))]

    assert ids(subset=["sa_000001..sa_000002"]) == [3, 4, 5, 6]
    assert ids(subset=["sa_000003.tar", "sa_000000"]) == [7, 8, 1, 2]
    assert ids(limit=3) == [1, 2, 3]
    source = TarsSource(tmp_path / "sa_000002.tar")
    assert source.record(0).image_id == 5
    with pytest.raises(UsageError, match="sa_000004, sa_000005"):
        ids(subset=["sa_000003..sa_000005"])


def test_the_published_subset_is_ten_tars():
    names = tar_names("sa_000020..sa_000029")
    assert len(names) == 10 and names[0] == "sa_000020" and names[-1] == "sa_000029"
    for wrong in ("sa_000029..sa_000020", "sa_..sa_3", "a_1..b_2"):
        with pytest.raises(UsageError, match="write a range"):
            tar_names(wrong)


def test_the_index_is_made_once_and_again_for_another_tar(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "sa_000000.tar", [1, 2, 3])
    made = []
    monkeypatch.setattr(tars, "make_index", lambda path: made.append(path) or make_index(path))
    first, second = open_index(tar), open_index(tar)
    assert len(made) == 1 and (first.places == second.places).all() and (first.names == second.names).all()
    (tmp_path / "sa_000000.tar.index.npz").write_bytes(b"torn")
    assert len(open_index(tar).names) == 3 and len(made) == 2
    write_tar(tar, [1, 2])
    assert len(open_index(tar).names) == 2 and len(made) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_can_not_be_written_has_its_index_in_the_cache(tmp_path):
    check_cached(tmp_path)


def test_where_saving_beside_fails_the_cache_serves(tmp_path, monkeypatch):
    def refuse(file, **arrays):
        if "cache" not in str(file):
            raise PermissionError(13, "Permission denied")
        return save(file, **arrays)

    save = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", refuse)
    check_cached(tmp_path)


def check_cached(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    tar = write_tar(folder / "sa_000000.tar", [1])
    folder.chmod(0o500)
    try:
        assert len(open_index(tar).names) == 1
        assert [p.name for p in folder.iterdir()] == ["sa_000000.tar"]
        assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    finally:
        folder.chmod(0o700)


def test_photos_without_their_pair_are_skipped(tmp_path):
    write_tar(tmp_path / "sa_000000.tar", [1, 2, 3], leave_out=("2.json", "3.jpg"))
    source = TarsSource(tmp_path)
    assert len(source) == 1 and source.skipped_entries.listed == 2
    assert source.skipped_entries.rows == [("no annotations", f"{tmp_path}/sa_000000.tar/sa_2.jpg: no sa_2.json")]


def test_bad_tars_are_named(tmp_path):
    for root, message in ((tmp_path / "none", "no such"), (tmp_path, r"no \*\.tar")):
        with pytest.raises(UsageError, match=message):
            TarsSource(root)
    bad = tmp_path / "sa_000000.tar"
    bad.write_bytes(b"<html>link expired</html>" * 100)
    with pytest.raises(UsageError, match=r"sa_000000\.tar: not a tar"):
        TarsSource(tmp_path)
    intact = write_tar(tmp_path / "sa_000001.tar", [1, 2]).read_bytes()
    bad.write_bytes(intact[: len(photo(1)) + len(annotation(1)) + 1800])
    with pytest.raises(UsageError, match=r"sa_000000\.tar: (truncated|not a tar)"):
        TarsSource(bad)
    write_tar(bad, [1], leave_out=("1.json",))
    with pytest.raises(UsageError, match="no photo with annotations"):
        TarsSource(bad)


def test_what_goes_bad_after_indexing_is_one_bad_example(tmp_path):
    tar = write_tar(tmp_path / "sa_000000.tar", [1, 2])
    source = TarsSource(tmp_path)
    with tar.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(BadExample, match=r"sa_000000\.tar/sa_2") as caught:
        source.load(1)
    assert caught.value.kind in ("annotations damaged", "photo damaged")
    tar.unlink()
    with pytest.raises(BadExample, match=r"sa_000000\.tar: No such file") as caught:
        source.load(0)
    assert caught.value.kind == "file unreadable"
