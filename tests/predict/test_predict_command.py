"""The predict command: its output files; errors are one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model, save_model_file
from edgesam_jax.config import DecoderConfig, SamConfig, VitConfig
from edgesam_jax.models.init import init_variables
from edgesam_jax.portable.postprocess import upscale_masks
from edgesam_jax.portable.regions import clean
from edgesam_jax.predict.__main__ import main
from edgesam_jax.predict.predictor import Predictor

CONFIG = SamConfig(
    encoder=VitConfig(width=16, depth=1, heads=2, global_blocks=(0,)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_variables(CONFIG, 3), {})


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Model, pixels: np.ndarray) -> Path:
    """Return a folder with a photo, a model, and files that are neither."""
    path = tmp_path_factory.mktemp("predict")
    Image.fromarray(pixels).save(path / "photo.png")
    save_model_file(path / "model.msgpack", model)
    folder = save_model(path / "folder", model)
    (folder / "config.json").write_text("{}")
    (path / "notes.txt").write_text("no photo, no model")
    (path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    return path


def command(place: Path, *flags: str, image: str = "photo.png", checkpoint: str = "model.msgpack") -> list[str]:
    return ["--checkpoint", str(place / checkpoint), "--image", str(place / image), *flags]


def test_each_box_is_a_separate_prompt(place: Path, tmp_path: Path, model: Model, pixels: np.ndarray) -> None:
    boxes = [[10.0, 5.0, 60.0, 40.0], [0.0, 0.0, 80.0, 48.0]]
    flags = [x for box in boxes for x in ("--box", ",".join(map(str, box)))]
    output = tmp_path / "new" / "out"
    assert main(command(place, *flags, "--num-masks", "4", "--save-logits", "--output", str(output))) == 0
    assert {p.name for p in output.iterdir()} == {"overlay_0.png", "overlay_1.png", "predictions.json", "logits.npz"}
    assert [p.name for p in output.parent.iterdir()] == ["out"]
    predictor = Predictor(model)
    predictor.set_image(pixels)
    masks, scores, logits = predictor.predict_prompts(np.array(boxes), num_masks=4)
    with np.load(output / "logits.npz") as saved:
        np.testing.assert_array_equal(saved["low_res_logits"], logits)
        np.testing.assert_array_equal(saved["masks"], masks)
        np.testing.assert_array_equal(saved["scores"], scores)
        assert saved["image_embedding"].shape == (4, 4, 16)
    report = json.loads((output / "predictions.json").read_text())
    assert (report["width"], report["height"], report["score"]) == (80, 48, "stability")
    for i, prompt in enumerate(report["prompts"]):
        assert prompt["box"] == boxes[i] and "points" not in prompt
        assert prompt["best"] == int(np.argmax(scores[i]))
        for mask, score, entry in zip(masks[i], scores[i], prompt["masks"], strict=True):
            np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask)
            assert entry["area"] == mask.sum() and entry["score"] == pytest.approx(float(score))
            rows, columns = np.nonzero(mask)
            if len(rows):
                x, y = columns.min(), rows.min()
                assert entry["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
    with Image.open(output / "overlay_0.png") as picture:
        assert picture.size == (80, 48)
        assert (np.asarray(picture) != pixels).any()


def test_points_are_one_prompt_and_join_a_single_box(place: Path, tmp_path: Path) -> None:
    points = ["--point", "30,20,1", "--point", "70,40,0"]
    for box in ([], ["--box", "10,5,60,40"]):
        assert main(command(place, *points, *box, "--save-logits", "--output", str(tmp_path))) == 0
        report = json.loads((tmp_path / "predictions.json").read_text())
        assert len(report["prompts"]) == 1 and report["prompts"][0]["points"] == [[30, 20, 1], [70, 40, 0]]
        assert ("box" in report["prompts"][0]) == bool(box)
        with np.load(tmp_path / "logits.npz") as saved:
            assert saved["low_res_logits"].shape == (1, 1, 16, 16) and saved["scores"].shape == (1, 1)


def test_an_earlier_result_is_replaced_and_other_files_are_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"precious")
    flags = ("--output", str(tmp_path), "--box", "10,5,60,40")
    assert main(command(place, *flags, "--box", "1,1,9,9", "--save-logits")) == 0
    assert main(command(place, *flags)) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"holiday.png", "overlay_0.png", "predictions.json"}
    assert (tmp_path / "holiday.png").read_bytes() == b"precious"


def test_coordinates_are_pixels_of_the_displayed_photo(place: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    """A photo stored on its side with an EXIF orientation gives the same masks as one stored upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "turned.png", exif=exif)
    flags = ["--box", "50,5,75,40", "--save-logits", "--output"]
    assert main(command(place, *flags, str(tmp_path / "a"))) == 0
    assert main(command(place, *flags, str(tmp_path / "b"), image=str(tmp_path / "turned.png"))) == 0
    with np.load(tmp_path / "a" / "logits.npz") as a, np.load(tmp_path / "b" / "logits.npz") as b:
        np.testing.assert_array_equal(a["low_res_logits"], b["low_res_logits"])
        assert b["masks"].shape == (1, 1, 48, 80)


BOX = ("--box", "10,5,60,40")


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        ((), {}, "--box"),
        (("--point", "81,5,1"), {}, "--point 81,5,1: not on the photo"),
        (("--point", "8,5"), {}, "--point 8,5: expected 3 numbers"),
        (("--point", "8,5,2"), {}, "--point 8,5,2: the label"),
        (("--point", "8,5,nan"), {}, "--point"),
        (("--point", "nan,5,1"), {}, "--point nan,5,1"),
        (("--box", "60,5,10,40"), {}, "--box 60,5,10,40: expected x0 < x1"),
        (("--box", "10,5,10,40"), {}, "--box 10,5,10,40: expected x0 < x1"),
        (("--box", "-1,5,10,40"), {}, "--box -1,5,10,40: not within the photo"),
        (("--box", "10,5,60,400"), {}, "--box 10,5,60,400: not within the photo"),
        (("--box", "10,five,60,40"), {}, "--box 10,five,60,40: expected 4 numbers"),
        (("--box", "inf,5,60,40"), {}, "--box"),
        (("--box", "10,5,80.0001,40"), {}, "--box 10,5,80.0001,40: not within the photo, which is 80 x 48"),
        (("--box", "0,0,1e-30,1e-30"), {}, "--box 0,0,1e-30,1e-30: only 1e-30 x 1e-30 pixels; expected sides of"),
        (("--box", "10,5,1e999,40"), {}, "--box 10,5,inf,40: expected four finite numbers"),
        (("--point", "8,5,-1"), {}, "--point 8,5,-1: the label"),
        ((*BOX, "--fill-holes", "-3"), {}, "--fill-holes"),
        ((*BOX, "--pixel-range", "5,5"), {}, "--pixel-range 5,5: expected auto or LO,HI"),
        (BOX, {"image": "a\nb\x1b[2J.png"}, r"a\nb\x1b[2J.png: no such file"),
        (BOX, {"image": "a" * 5000}, "no file can have this name (File name too long)"),
        ((*BOX, *BOX, "--point", "8,5,1"), {}, "several --box"),
        ((*BOX, "--num-masks", "2"), {}, "--num-masks"),
        ((*BOX, "--frobnicate"), {}, "--frobnicate"),
        (BOX, {"image": "none.png"}, "none.png: no such file"),
        (BOX, {"image": "notes.txt"}, "notes.txt"),
        (BOX, {"image": "cut.jpg"}, "cut.jpg"),
        (BOX, {"image": "."}, "is a folder; for many photos pass --everything or --prompts FILE"),
        (BOX, {"checkpoint": "none"}, "none: no such file"),
        (BOX, {"checkpoint": "notes.txt"}, "notes.txt: not a checkpoint"),
        (BOX, {"checkpoint": "folder"}, "folder: its config is damaged"),
        (BOX, {"checkpoint": "."}, "contains no checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple, options: dict, message: str
) -> None:
    assert main(command(place, *flags, "--output", str(tmp_path / "out"), **options)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert not captured.out and not any(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        assert main(command(place, *BOX, "--output", str(output))) == 2
        assert "--output" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_names_too_long_for_an_output_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, *BOX, "--output", str(place / ("a" * 300)))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "cannot write there (File name too long)" in captured.err


def test_masks_are_saved_as_pictures_without_small_regions(place: Path, tmp_path: Path) -> None:
    small = ("--fill-holes", "30", "--drop-islands", "40")
    flags = (*BOX, "--box", "1,1,79,47", "--num-masks", "3", "--save-masks", *small)
    assert main(command(place, *flags, "--save-logits", "--output", str(tmp_path))) == 0
    report = json.loads((tmp_path / "predictions.json").read_text())
    with np.load(tmp_path / "logits.npz") as saved:
        masks, logits = saved["masks"], saved["low_res_logits"]
    for i, prompt in enumerate(report["prompts"]):
        for j, entry in enumerate(prompt["masks"]):
            assert entry["mask"] == f"mask_{i}_{j}.png"
            with Image.open(tmp_path / entry["mask"]) as picture:
                assert picture.mode == "L" and picture.size == (80, 48)
                np.testing.assert_array_equal(np.asarray(picture), masks[i, j] * np.uint8(255))
            np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), masks[i, j])
    plain = upscale_masks(logits, 64, (38, 64), (48, 80))
    np.testing.assert_array_equal(masks, clean(plain, 30, 40))
    assert (masks != plain).any()
    assert main(command(place, *BOX, "--output", str(tmp_path))) == 0
    assert not list(tmp_path.glob("mask_*")) and '"mask":' not in (tmp_path / "predictions.json").read_text()


def test_a_range_of_pixels(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: np.ndarray) -> None:
    """12-bit values in a 16-bit file give the masks of the 8-bit photo if their range is passed, else a note."""
    Image.fromarray(pixels[..., 0]).save(tmp_path / "eight.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    logits = []
    for name, flags, notes in (
        ("eight.png", (), 0),
        ("twelve.png", ("--pixel-range", "0,4080"), 0),
        ("twelve.png", (), 1),
    ):
        output = ("--save-logits", "--output", str(tmp_path / "out"))
        assert main(command(place, *BOX, *flags, *output, image=str(tmp_path / name))) == 0
        error = capsys.readouterr().err
        assert error.count("note: --image") == error.count("\n") == notes, error
        assert ("--pixel-range 0,4095" in error) == bool(notes)
        with np.load(tmp_path / "out" / "logits.npz") as saved:
            logits.append(saved["low_res_logits"])
    np.testing.assert_array_equal(logits[0], logits[1])
    assert (logits[0] != logits[2]).any()


@pytest.mark.slow
def test_as_a_process_with_a_compile_cache(place: Path, tmp_path: Path) -> None:
    """The result is on standard output, and the compiled programs are kept for the next run."""
    environment = {**os.environ, "EDGESAM_JAX_CACHE": str(tmp_path / "cache")}
    arguments = [sys.executable, "-m", "edgesam_jax.predict", *command(place, *BOX, "--output", str(tmp_path / "out"))]
    sizes = []
    for _ in range(2):
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
        assert done.stdout.startswith(str(tmp_path / "out" / "overlay_0.png"))
        sizes.append(len(list((tmp_path / "cache").glob("*-cache"))))
    assert sizes[0] > 0 and sizes[1] == sizes[0]
