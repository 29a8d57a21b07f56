"""Lists of photo ids: drawing, writing, reading, and selecting photos by them."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import annotation, coco_folder, photo, write_tar

from edgesam_jax import prepare
from edgesam_jax.config import Config, DataConfig, MixtureConfig, UsageError, apply_overrides
from edgesam_jax.data.opening import open_parts, open_source
from edgesam_jax.data.readers.id_list import digest, draw, ids_text, photo_ids, read_ids

NAMES = st.lists(st.integers(0, 10**6).map("sa_{}".format), min_size=1, max_size=60, unique=True)


def run(*arguments: object) -> int:
    return prepare.main([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image_ids(**data):
    source = open_source(DataConfig(**data), 64)
    return [source.record(i).image_id for i in range(len(source))]


@settings(max_examples=60, deadline=None)
@given(ids=NAMES, seed=st.integers(0, 9), given_data=st.data())
def test_a_draw_is_of_the_ids_and_not_of_their_order(ids, seed, given_data):
    count = given_data.draw(st.integers(1, len(ids)))
    drawn = draw(ids, count, seed)
    assert len(set(drawn)) == count and [i for i in ids if i in drawn] == drawn
    assert set(draw(given_data.draw(st.permutations(ids)), count, seed)) == set(drawn)
    without = [i for i in ids if i != drawn[0]]
    if count < len(ids):  # a missing photo is replaced, the others stay
        assert set(draw(without, count, seed)) > set(drawn[1:])
    with pytest.raises(UsageError, match="--sample"):
        draw(ids, len(ids) + 1, seed)


def test_a_draw_never_changes():
    """Published figures depend on it."""
    assert draw([f"sa_{i}" for i in range(1000)], 4, 0) == ["sa_671", "sa_832", "sa_848", "sa_960"]
    few = [draw([f"sa_{i}" for i in range(1000)], 100, seed) for seed in range(20)]
    hits = [sum(f"sa_{i}" in set(d) for d in few) for i in range(1000)]
    assert 0.5 < sum(hits) / len(hits) / 2 <= 1 and max(hits) < 12  # every id can be drawn


def test_one_list_serves_tars_folders_and_prepared_data(tmp_path, capsys):
    tars, folder, output, full = (tmp_path / name for name in ("tars", "folder", "sa1k", "full"))
    tars.mkdir()
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        write_tar(tars / f"sa_{number:06d}.tar", [4 * number + k for k in range(4)])
    for number in range(12):
        (folder / f"deep/sa_{number}.jpg").write_bytes(photo(number))
        (folder / f"deep/sa_{number}.json").write_bytes(annotation(number))
    command = ("--source", "tars", "--root", tars, "--subset", "sa_000001..sa_000002", "--output", output)
    command = (*command, "--sample", 5, "--seed", 3, "--workers", 2, "--photos-per-shard", 2)
    assert run(*command) == 0 and "5 photos" in capsys.readouterr().out
    lines = (output / "ids.txt").read_text().splitlines()
    ids = [line for line in lines if not line.startswith("#")]
    assert "# source: tars sa_000001..sa_000002" in lines and "# drawn: 5 of 8, seed 3" in lines
    assert f"# sha256: {hashlib.sha256(''.join(i + chr(10) for i in ids).encode()).hexdigest()}" in lines
    numbers = [int(i.removeprefix("sa_")) for i in ids]
    assert len(set(numbers)) == 5 and set(numbers) <= set(range(4, 12)) and numbers == sorted(numbers)
    assert image_ids(source="prepared", root=str(output)) == numbers
    assert run(*command) == 0  # done already
    another = [4 if value == 3 else value for value in command]  # --seed
    assert run(*another) == 2 and "a data set with other settings" in capsys.readouterr().err

    assert run("--source", "tars", "--root", tars, "--output", full) == 0
    for source, root in (("tars", tars), ("images", folder), ("prepared", full)):
        data = {"source": source, "root": str(root), "ids": str(output / "ids.txt")}
        assert sorted(image_ids(**data)) == numbers and len(image_ids(**data, limit=2)) == 2
    selected = MixtureConfig("tars", root=str(tars), ids=str(output / "ids.txt"))
    sizes = [
        len(p.source) for p in open_parts(DataConfig(mixture=(selected, MixtureConfig("tars", root=str(tars)))), 64)
    ]
    assert sizes == [5, 12]
    again = tmp_path / "again"
    assert run("--source", "images", "--root", folder, "--ids", output / "ids.txt", "--output", again) == 0
    manifest = json.loads((again / "prepared.json").read_text())
    assert manifest["records"] == 5 and manifest["settings"]["ids"] == digest(ids)


def test_names_of_several_folders(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo(1))
    source = open_source(DataConfig(source="images", root=str(tmp_path)), 64)
    assert photo_ids(source, "") == ["a/1", "a/2", "b/1"]
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "a/1.webp").write_bytes(photo(1))
    source = open_source(DataConfig(source="images", root=str(tmp_path)), 64)
    assert photo_ids(source, "") == ["1.jpg", "1.webp", "2.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("002", "003"), "changed since it was written"),
        (lambda text: text + "001\n", "a photo is listed twice"),
        (lambda text: "# nothing\n\n", "no photo in it"),
        (lambda text: "001\n900\n901\n", "2 of its 3 photos are not in coco .*: 900"),
        (lambda text: None, "cannot be read"),
    ],
)
def test_lists_that_do_not_fit_are_named(tmp_path, change, message):
    root, path = coco_folder(tmp_path / "coco"), tmp_path / "ids.txt"
    path.write_text(ids_text(["001", "002"], ["a comment"]))
    assert read_ids(path) == ["001", "002"]
    assert image_ids(source="coco", root=str(root), ids=str(path)) == [1, 2]
    text = change(path.read_text())
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        image_ids(source="coco", root=str(root), ids=str(path))
    assert "ids.txt" in str(caught.value)


def test_scenes_have_no_names(tmp_path):
    (tmp_path / "ids.txt").write_text(ids_text(["1"], []))
    config = apply_overrides(Config(), [f"data.ids={tmp_path / 'ids.txt'}"])
    with pytest.raises(UsageError, match="no names to select by"):
        open_source(config.data, 64)
