"""Conversion of any source to ArrayRecord in TFDS's layout, and reading it back."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_data import coco_folder

from edgesam_jax import prepare
from edgesam_jax.config import DataConfig, SamConfig, UsageError
from edgesam_jax.data import source as data_source
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.pipeline import BatchSource
from edgesam_jax.data.readers.prepared import PreparedSource
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import Part

FIELDS = ("image", "masks", "boxes", "points", "annotation_ids")


def run(*arguments: object) -> int:
    return prepare.main([str(a) for a in arguments])


def test_prepared_data_is_the_source_bit_for_bit(tmp_path, capsys):
    root, output = coco_folder(tmp_path / "coco"), tmp_path / "out"
    assert run("--source", "coco", "--root", root, "--output", output, "--photos-per-shard", 2, "--workers", 1) == 0
    assert "5 photos" in capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir()) == [
        "dataset_info.json", "features.json",
        *(f"photos-train.array_record-0000{k}-of-00003" for k in range(3)), "prepared.json",
    ]  # fmt: skip
    source = open_source(DataConfig(source="coco", root=str(root)), 64)
    stored = pickle.loads(pickle.dumps(open_source(DataConfig(source="prepared", root=str(output)), 64)))
    assert len(stored) == 5 and stored.annotated and stored.true_masks
    for index in range(5):
        assert stored.record(index).photo == source.record(index).photo
        a, b = source.load(index), stored.load(index)
        assert a.image_id == b.image_id
        for name in FIELDS:
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
    data = DataConfig(batch_size=5, max_prompts=2, min_area=10, box_jitter=0.1)
    first, second = (BatchSource(data, SamConfig(image_size=64), [Part(s)])[3].arrays for s in (source, stored))
    assert all((first[name] == second[name]).all() for name in first)


def test_tfds_reads_it_by_itself(tmp_path):
    root, output = coco_folder(tmp_path / "coco"), tmp_path / "out"
    assert run("--source", "coco", "--root", root, "--output", output, "--name", "mine", "--split", "val") == 0
    records = tfds.builder_from_directory(output).as_data_source(split="val")
    assert len(records) == 5
    first = records[0]
    assert np.array_equal(first["image"]["content"], np.asarray(Image.open(root / "001.jpg")))
    assert len(first["annotations"]["id"]) == 3 and "tensorflow" not in sys.modules


def test_photos_that_can_not_be_used_are_skipped_and_listed(tmp_path, capsys):
    root, output = coco_folder(tmp_path / "coco", 8), tmp_path / "out"
    (root / "001.jpg").write_bytes((root / "001.jpg").read_bytes()[:300])
    (root / "003.jpg").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(root / "004.jpg")
    content = json.loads((root / "instances.json").read_text())
    content["images"][4] |= {"height": 2, "width": 600}
    Image.new("RGB", (600, 2)).save(root / "005.jpg")
    for annotation in content["annotations"]:
        if annotation["image_id"] == 5:
            annotation["segmentation"] = [[0, 0, 9, 0, 9, 2]]
        if annotation["image_id"] == 6 and isinstance(annotation["segmentation"], dict):
            annotation["segmentation"]["size"] = [7, 7]
    (root / "instances.json").write_text(json.dumps(content))
    assert run("--source", "coco", "--root", root, "--output", output, "--photos-per-shard", 3, "--workers", 2) == 0
    assert "4 photos" in capsys.readouterr().out
    manifest = json.loads((output / "prepared.json").read_text())
    assert manifest["skipped"] == {
        "photo damaged": 2, "photo of another size": 1, "photo too thin": 1, "segmentation damaged": 2
    }  # fmt: skip
    assert [s["records"] for s in manifest["shards"]] == [1, 1, 2]
    stored = PreparedSource(output)
    assert [stored.record(i).image_id for i in range(len(stored))] == [2, 6, 7, 8]
    assert stored.load(1).annotation_ids.tolist() == [60]  # the two damaged ones cost only themselves


def test_annotations_without_a_pixel_are_left_out_and_listed(tmp_path):
    root, output = coco_folder(tmp_path / "coco", 2), tmp_path / "out"
    content = json.loads((root / "instances.json").read_text())
    content["annotations"][0]["segmentation"] = [[70, 20, 90, 20, 90, 60]]  # beside the photo
    content["annotations"][3]["segmentation"] = [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]  # smaller than a pixel
    content["annotations"][4]["segmentation"]["counts"] = [42 * 58]
    content["annotations"][5]["segmentation"] = [[-9, -9, -3, -9, -3, -3]]
    (root / "instances.json").write_text(json.dumps(content))
    assert run("--source", "coco", "--root", root, "--output", output, "--workers", 1) == 0
    manifest = json.loads((output / "prepared.json").read_text())
    assert manifest["records"] == 1 and manifest["skipped"] == {"no annotations": 1, "annotation empty": 1}
    assert "annotation empty 3" in manifest["skipped_photos"][0][1]
    assert PreparedSource(output).load(0).annotation_ids.tolist() == [11, 12]


def test_too_many_bad_photos_stop_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_source, "ENOUGH_TO_JUDGE", 4)
    root, output = coco_folder(tmp_path / "coco", 8), tmp_path / "out"
    (root / "003.jpg").write_bytes(b"")
    flags = ["--source", "coco", "--root", root, "--output", output, "--photos-per-shard", 4, "--workers", 1]
    assert run(*flags, "--max-bad-share", "0.2") == 2
    assert "1 of the first 4 photos can't be used, more than --max-bad-share 0.2" in capsys.readouterr().err
    assert not (output / "prepared.json").exists()
    assert run(*flags, "--max-bad-share", "0.25") == 0  # resumes after the first shard


def killed_worker(*unused: object) -> None:
    os._exit(1)  # as the system kills a process when memory runs out


def test_a_killed_worker_gives_a_one_line_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "write_shard", killed_worker)
    root = coco_folder(tmp_path / "coco", 4)
    flags = ["--source", "coco", "--root", root, "--output", tmp_path / "out", "--photos-per-shard", 1]
    assert run(*flags, "--workers", 2) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: --workers 2: a worker process was killed" in last


def test_prepared_data_can_be_prepared_again(tmp_path):
    root, first, second = coco_folder(tmp_path / "coco", 6), tmp_path / "first", tmp_path / "second"
    assert run("--source", "coco", "--root", root, "--output", first) == 0
    assert run("--source", "prepared", "--root", first, "--output", second, "--sample", 3, "--seed", 1) == 0
    full, drawn = PreparedSource(first), PreparedSource(second)
    assert len(drawn) == 3
    by_id = {full.load(i).image_id: full.load(i) for i in range(6)}
    for i in range(3):
        example = drawn.load(i)
        assert all((getattr(example, name) == getattr(by_id[example.image_id], name)).all() for name in FIELDS)


def test_a_killed_preparation_resumes(tmp_path):
    root, output = coco_folder(tmp_path / "coco", 60), tmp_path / "out"
    arguments = ["--source", "coco", "--root", root, "--output", output, "--photos-per-shard", 3, "--workers", 2]
    command = [sys.executable, "-m", "edgesam_jax.prepare", *map(str, arguments)]
    for least in (2, 9):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 60
        while len(list(output.glob("photos-*"))) < least and time.monotonic() < until:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(UsageError, match="not finished: run the same command again"):
            PreparedSource(output)
    kept = {p: p.stat().st_mtime_ns for p in output.glob("photos-*")}
    assert 9 <= len(kept) <= 20
    assert run(*arguments) == 0
    noted = [p for p, when in kept.items() if p.stat().st_mtime_ns == when]
    assert len(noted) >= len(kept) - 4  # renamed but without a note yet: at most one per worker and kill
    assert run("--output", output, "--verify") == 0
    assert not list(output.glob(".*"))
    stored = PreparedSource(output)
    assert [stored.record(i).image_id for i in range(60)] == list(range(1, 61))
    assert run(*arguments) == 0  # does nothing


def test_damage_is_found(tmp_path, capsys):
    root, output = coco_folder(tmp_path / "coco"), tmp_path / "out"
    assert run("--source", "coco", "--root", root, "--output", output, "--photos-per-shard", 2) == 0
    shard = sorted(output.glob("photos-*"))[1]
    content = bytearray(shard.read_bytes())
    content[200:260] = bytes(60)
    shard.write_bytes(content)
    capsys.readouterr()
    assert run("--output", output, "--verify") == 2
    assert f"damaged or missing: {shard.name};" in capsys.readouterr().err
    stored, kinds = PreparedSource(output), []
    for index in range(5):
        try:
            stored.load(index)
        except BadExample as error:
            kinds.append((index, error.kind))
    assert kinds and {kind for _, kind in kinds} <= {"record damaged", "photo damaged"}
    assert {index for index, _ in kinds} <= {2, 3}
    manifest = json.loads((output / "prepared.json").read_text())
    (output / "prepared.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "shards"}))
    assert run("--output", output, "--verify") == 2
    assert "its prepared.json is damaged" in capsys.readouterr().err
    (output / "prepared.json").write_text(json.dumps(manifest))
    shard.unlink()
    with pytest.raises((UsageError, BadExample)):
        PreparedSource(output).load(2)


def test_wrong_usage_gives_a_one_line_error(tmp_path, capsys):
    root, output = coco_folder(tmp_path / "coco"), tmp_path / "out"
    base = ["--source", "coco", "--root", root, "--output", output]
    assert run(*base) == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    (tmp_path / "bad").mkdir()
    coco_folder(tmp_path / "none_good", 1)
    (tmp_path / "none_good" / "001.jpg").write_bytes(b"")
    capsys.readouterr()
    for arguments, message in (
        ([*base, "--limit", "2"], "already contains a data set with other settings"),
        ([*base[:-1], tmp_path / "full"], "already contains other files"),
        (["--output", output], "--source: required"),
        ([*base, "--name", "a-b"], "letters, digits"),
        ([*base, "--workers", "0"], "--workers"),
        (["--source", "films", "--output", output], "invalid choice"),
        (["--source", "coco", "--root", tmp_path / "nowhere", "--output", output], "no such folder"),
        (["--output", tmp_path / "bad", "--verify"], "no prepared.json"),
        (["--source", "coco", "--root", tmp_path / "none_good", "--output", tmp_path / "o2"], "none of the 1 photos"),
    ):
        assert run(*arguments) == 2, message
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("error: ") and message in error[-1], (message, error)
    for give, message in ((tmp_path / "bad", "empty"), (tmp_path / "x", "no such folder"), (root, "no dataset_info")):
        with pytest.raises(UsageError, match=message):
            PreparedSource(give)
    with pytest.raises(UsageError, match="no split 'val'; it has train"):
        PreparedSource(output, "val")


def test_photos_that_need_a_range_keep_it(tmp_path, capsys):
    """Photos of floats need a range; it is noted with the prepared data, which can't be read with another one."""
    root, output = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    values = np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)
    Image.fromarray(values).save(root / "a.tif")
    flags = ("--source", "images", "--root", root, "--workers", 1)
    assert run(*flags, "--output", tmp_path / "no") == 2
    assert "floating-point pixels from 0 to 1 have no agreed range" in capsys.readouterr().err
    assert run(*flags, "--output", output, "--pixel-range", "0,1") == 0
    assert run(*flags, "--output", output, "--pixel-range", "0,2") == 2
    assert run(*flags, "--output", output, "--pixel-range", "1,0") == 2
    assert "--pixel-range 1,0: expected auto or LO,HI" in capsys.readouterr().err
    stored = open_source(DataConfig(source="prepared", root=str(output), pixel_range="0,1"), 64)
    np.testing.assert_array_equal(stored.load(0).image[..., 0], np.rint(values * np.float64(255)))
    with pytest.raises(UsageError, match=r"prepared with --pixel-range 0,1, but data\.pixel_range is auto"):
        open_source(DataConfig(source="prepared", root=str(output)), 64)
