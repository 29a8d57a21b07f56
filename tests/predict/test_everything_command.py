"""``predict --everything`` on a photo and on a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from edgesam_jax.data.scenes.scene import scene
from edgesam_jax.portable.everything import EverythingGenerator
from edgesam_jax.predict.__main__ import main
from edgesam_jax.predict.everything import _coco_box

FLAGS = ["--everything", "--points-per-side", "4", "--pred-iou-thresh", "0.4", "--stability-score-thresh", "0.6"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos/inner").mkdir(parents=True)
    for number, name in enumerate(("7.png", "inner/b.png")):
        Image.fromarray(scene(0, number).image).save(tmp_path / "photos" / name)
    (tmp_path / "photos/broken.jpg").write_bytes(b"no photo")
    return tmp_path / "photos"


def call(folder, output, *flags):
    return main(["--image", str(folder), "--output", str(output), *FLAGS, *flags])


def test_a_folder_gives_coco_results_and_pictures(folder, tmp_path, capsys):
    assert call(folder, tmp_path / "out") == 0
    output, errors = capsys.readouterr()
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {result["image_id"] for result in results} == {7, "b.png"}
    for result in results:
        mask = coco.decode(result["segmentation"])
        assert result["area"] == mask.sum() and result["bbox"] == coco.toBbox(result["segmentation"]).tolist()
        assert 0.4 < result["score"] <= 1 and result["category_id"] == 1
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert names == {"predictions.json", "report.json", "overlays/7.jpg", "overlays/inner/b.jpg"}
    assert np.asarray(Image.open(tmp_path / "out/overlays/7.jpg")).shape == (128, 128, 3)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["photos"] == 2 and report["skipped"]["counts"] == {"photo damaged": 1}
    assert f"{len(results)} masks on 2 photos" in output
    assert "1 photos are skipped (photo damaged 1" in errors and "broken.jpg" in errors


def test_a_stopped_run_resumes(folder, tmp_path, monkeypatch):
    assert call(folder, tmp_path / "whole") == 0
    generate, calls = EverythingGenerator.generate, []

    def stopped(self, image, progress):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, image, progress)

    monkeypatch.setattr(EverythingGenerator, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        call(folder, tmp_path / "out")
    assert not (tmp_path / "out/predictions.json").exists()
    assert call(folder, tmp_path / "out", "--min-area", "5") == 2  # other options
    assert call(folder, tmp_path / "out") == 0
    assert len(calls) == 3
    whole, resumed = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("whole", "out"))
    assert whole == resumed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--box", "1,2,3,4"], "--box can't be used with --everything"),
        (["--num-masks", "3"], "--num-masks can't be used with --everything"),
        (["--crop-n-layers", "9"], "--crop-n-layers: expected a whole number from 0 to 6, got 9"),
        (["--max-masks", "-1"], "--max-masks: expected a whole number of at least 0, got -1"),
    ],
)
def test_flags_that_can_not_be_are_refused(folder, tmp_path, capsys, flags, message):
    assert call(folder, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_modes_and_folders_are_told_apart(folder, tmp_path, capsys):
    common = ["--image", str(folder / "7.png"), "--output", str(tmp_path / "out")]
    assert main([*common, "--box", "1,2,30,40", "--max-masks", "3"]) == 2
    assert "--max-masks needs --everything" in capsys.readouterr().err
    assert main(["--image", str(folder), "--output", str(tmp_path / "out"), "--box", "1,2,30,40"]) == 2
    assert "is a folder; for many photos pass --everything or --prompts FILE" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty", tmp_path / "out") == 2
    assert "no photos in this folder" in capsys.readouterr().err
    assert call(folder / "broken.jpg", tmp_path / "out") == 2
    assert "broken.jpg: not an image" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.*"))


def test_boxes_are_cocos_also_of_an_empty_mask():
    assert _coco_box({"bbox": [3, 4, 0, 0], "area": 1}) == [3, 4, 1, 1]
    assert _coco_box({"bbox": [0, 0, 0, 0], "area": 0}) == [0, 0, 0, 0]
