"""predict --prompts: COCO results for a folder of photos; a bad photo or prompt is a counted skip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import UsageError
from edgesam_jax.eval.__main__ import main as evaluate
from edgesam_jax.files import exclusive
from edgesam_jax.models.init import init_variables
from edgesam_jax.predict import batching
from edgesam_jax.predict.__main__ import main
from edgesam_jax.predict.folder import find_photos
from edgesam_jax.predict.photo_prompts import Listed, Prompt, match, read_prompt_file
from edgesam_jax.predict.predictor import Predictor

SIZES = {11: (40, 60), 12: (60, 44), 13: (33, 33)}  # rows and columns by image id
BOXES = {11: [[5, 5, 30, 20], [2, 3, 50, 30]], 12: [[4, 9, 30, 40]], 13: [[1, 1, 20, 20]]}  # XYWH


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(tiny.CONV, init_variables(tiny.CONV, 3), {})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """A folder with three photos, COCO annotations of them and a model."""
    path = tmp_path_factory.mktemp("folder")
    (path / "photos" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    images = []
    for image_id, size in SIZES.items():
        name = f"sub/{image_id:06}.png" if image_id == 13 else f"{image_id:06}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path / "photos" / name)
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        for x, y, w, h in BOXES[image_id]:
            outline = [[x, y, x + w, y, x + w, y + h, x + 2, y + h]]
            annotations.append(
                {"id": 100 + len(annotations), "image_id": image_id, "category_id": 3, "bbox": [x, y, w, h],
                 "segmentation": outline, "iscrowd": 0, "area": w * h}
            )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
    (path / "coco.json").write_text(json.dumps(content))
    save_model_file(path / "model.msgpack", model)
    return path


def command(place: Path, prompts: Path, output: Path, *flags: str, image: Path | str = "") -> int:
    return main(
        ["--checkpoint", str(place / "model.msgpack"), "--image", str(image or place / "photos"),
         "--prompts", str(prompts), "--output", str(output), *flags]
    )  # fmt: skip


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def results_of(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "predictions.json").read_text())


def skipped(output: Path) -> dict[str, int]:
    return json.loads((output / "report.json").read_text())["skipped"]["counts"]


def test_annotations_become_results_that_score_as_the_model(
    place: Path, tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert command(place, place / "coco.json", output, "--overlays") == 0
    assert f"{output}/predictions.json: 4 masks on 3 photos" in capsys.readouterr().out
    assert {p.name for p in output.iterdir()} == {"predictions.json", "report.json", "overlays"}
    results = results_of(output)
    assert [(r["image_id"], r["annotation_id"], r["category_id"]) for r in results] == [
        (11, 100, 3), (11, 101, 3), (12, 102, 3), (13, 103, 3)
    ]  # fmt: skip
    predictor = Predictor(model)
    predictor.set_image(np.asarray(Image.open(place / "photos" / "000011.png")))
    x, y, w, h = BOXES[11][1]
    masks, scores, _ = predictor.predict_prompts([[x, y, x + w, y + h]])
    mask = coco_mask.decode(results[1]["segmentation"]).astype(bool)
    assert np.mean(mask != masks[0, 0]) < 1e-3 and results[1]["score"] == pytest.approx(scores[0, 0], abs=1e-5)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, width, height = results[1]["bbox"]
    assert [x0, y0, x0 + width, y0 + height] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    with Image.open(output / "overlays" / "sub" / "000013.jpg") as overlay:
        assert overlay.size == (33, 33)

    flags = ["--dataset", "coco", "--data-root", str(place / "photos"), "--annotations", str(place / "coco.json")]
    systems = ["--checkpoint", str(place / "model.msgpack"), "--predictions", str(output / "predictions.json")]
    report = tmp_path / "report.json"
    assert evaluate([*systems, *flags, "--prompt", "box", "--no-pictures", "--output", str(report)]) == 0
    by_model, by_file = json.loads(report.read_text())["systems"]
    np.testing.assert_allclose(by_file["miou"], by_model["miou"], atol=1e-3)
    for one, other in zip(by_model["instances"], by_file["instances"], strict=True):
        assert one["annotation_id"] == other["annotation_id"]
        np.testing.assert_allclose(one["iou"], other["iou"], atol=2e-3)


def test_detections_keep_their_scores(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"image_id": 11, "category_id": 7, "score": 0.25, "bbox": [1, 2, 20, 20], "id": 5}
    far, unknown = {**entry, "bbox": [500, 2, 9, 9]}, {**entry, "image_id": 999}
    beyond = {**entry, "image_id": 12.0, "bbox": [-3.5, -1, 500, 30]}
    prompts = written(tmp_path / "boxes.json", [entry, far, beyond, unknown, {**entry, "bbox": [1, 2]}])
    assert command(place, prompts, tmp_path / "out") == 0
    first, second = results_of(tmp_path / "out")
    assert (first["score"], first["category_id"], first["image_id"]) == (0.25, 7, 11)
    assert 0 <= first["mask_score"] <= 1 and "annotation_id" not in first
    assert second["image_id"] == 12 and second["segmentation"]["size"] == [60, 44]
    assert skipped(tmp_path / "out") == {"prompt damaged": 1, "photo unknown": 1, "prompt not on the photo": 1}
    assert "1 photos have no prompts" in capsys.readouterr().out
    # With the photos' names, ids needn't be those of the files.
    names = written(tmp_path / "names.json", {"images": [{"id": 999, "file_name": "000013.png"}]})
    assert command(place, prompts, tmp_path / "named", "--annotations", str(names)) == 0
    assert [r["image_id"] for r in results_of(tmp_path / "named")] == [999]


def test_lines_hold_boxes_points_or_both(place: Path, tmp_path: Path, model: Model) -> None:
    lines = [
        {"image": "000011.png", "boxes": [[1, 2, 30, 30], None], "points": [[[9, 9], [20, 5]], [[30, 30]]],
         "labels": [[1, 0], [1]], "ids": ["a", 7], "categories": [2, 4]},
        {"image": "sub/000013.png", "points": [[[9, 9]]], "image_id": 13},
    ]  # fmt: skip
    prompts = written(tmp_path / "prompts.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert command(place, prompts, tmp_path / "out") == 0
    results = results_of(tmp_path / "out")
    assert [(r["image_id"], r.get("annotation_id"), r["category_id"]) for r in results] == [
        ("000011.png", "a", 2), ("000011.png", 7, 4), (13, None, 1)
    ]  # fmt: skip
    predictor = Predictor(model)
    predictor.set_image(np.asarray(Image.open(place / "photos" / "000011.png")))
    for result, prompt in zip(
        results,
        [{"box": [1, 2, 30, 30], "point_coords": [[9, 9], [20, 5]], "point_labels": [1, 0]},
         {"point_coords": [[30, 30]], "point_labels": [1]}],
        strict=False,
    ):  # fmt: skip
        masks, scores, _ = predictor.predict(**prompt)
        assert np.mean(coco_mask.decode(result["segmentation"]) != masks[0]) < 1e-3
        assert result["score"] == pytest.approx(scores[0], abs=1e-5)


def test_a_run_that_was_killed_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(place, place / "coco.json", whole) == 0
    predict_many = batching.predict_many

    def interrupted(*arguments: Any) -> Any:
        yield next(predict_many(*arguments))  # type: ignore[call-overload]
        raise KeyboardInterrupt

    monkeypatch.setattr(batching, "predict_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command(place, place / "coco.json", cut)
    rows = cut / "predictions.rows.jsonl"
    assert len(rows.read_text().splitlines()) == 2 and not (cut / "predictions.json").exists()
    rows.write_text(rows.read_text() + '{"photo": 1, "resu')  # killed while writing
    seen: list[int] = []

    def watched(model: Any, variables: Any, items: Any, *rest: Any) -> Any:
        return predict_many(model, variables, (seen.append(item.id) or item for item in items), *rest)

    monkeypatch.setattr(batching, "predict_many", watched)
    assert command(place, place / "coco.json", cut, "--num-masks", "3") == 2
    assert "rows of another run (settings differ); remove the file" in capsys.readouterr().err
    assert command(place, place / "coco.json", cut) == 0
    assert seen == [1, 2] and results_of(cut) == results_of(whole) and not rows.exists()


def test_a_bad_photo_is_counted_and_listed(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((place / "coco.json").read_text())
    photos = tmp_path / "photos"
    photos.mkdir()
    good = (place / "photos" / "000011.png").read_bytes()
    (photos / "000011.png").write_bytes(good)
    (photos / "000012.png").write_bytes(b"no photo")
    (photos / "000014.png").write_bytes(good[: len(good) // 2])
    (photos / "000015.png").write_bytes(good)
    content["images"] += [
        {"id": 14, "file_name": "000014.png", "height": 40, "width": 60},
        {"id": 15, "file_name": "000015.png", "height": 41, "width": 60},
    ]
    content["annotations"] += [{**content["annotations"][0], "image_id": i, "id": 200 + i} for i in (14, 15)]
    content["annotations"].append({**content["annotations"][0], "iscrowd": 1})
    assert command(place, written(tmp_path / "coco.json", content), tmp_path / "out", image=photos) == 0
    assert {r["image_id"] for r in results_of(tmp_path / "out")} == {11}
    assert skipped(tmp_path / "out") == {
        "crowd": 1, "photo unknown": 1, "photo damaged": 2, "photo of another size": 1
    }  # fmt: skip
    assert "skipped: photo damaged 2, " in capsys.readouterr().out


def test_a_turned_photo_is_used_as_it_was_annotated(place: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    with Image.open(place / "photos" / "000011.png") as photo:
        photo.save(tmp_path / "1.png", exif=exif)  # 60 x 40 as stored
    for name, size in (("stored", (40, 60)), ("upright", (60, 40))):
        image = {"id": 1, "file_name": "1.png", "height": size[0], "width": size[1]}
        box = {"id": 1, "image_id": 1, "bbox": [1, 1, 30, 30]}
        prompts = written(tmp_path / f"{name}.json", {"images": [image], "annotations": [box]})
        assert command(place, prompts, tmp_path / name, image=tmp_path / "1.png") == 0
        assert results_of(tmp_path / name)[0]["segmentation"]["size"] == list(size)


def test_photos_of_a_pattern_and_a_list(place: Path, tmp_path: Path) -> None:
    photos = place / "photos"
    assert [p.name for p in find_photos(str(photos))] == ["000011.png", "000012.png", "000013.png"]
    assert [p.name for p in find_photos(f"{photos}/*.png")] == ["000011.png", "000012.png"]
    assert [p.name for p in find_photos(f"{photos}/**/*13.png")] == ["000013.png"]
    (photos / "list.txt").write_text("# two\nsub/000013.png\n\n000011.png\nsub/000013.png\n")
    assert find_photos(str(photos / "list.txt")) == [photos / "sub" / "000013.png", photos / "000011.png"]
    (photos / "list.txt").unlink()


def test_a_photo_belongs_to_the_name_that_ends_its_path(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg", tmp_path / "000000000632.jpg"]
    prompt = Prompt("", (0, 0, 1, 1))
    cases = [
        (Listed(0, "a/1.jpg"), 0), (Listed(0, r"b\1.jpg"), 1), (Listed(0, f"{tmp_path.name}/b/1.jpg"), 1),
        (Listed(632), 2), (Listed("000632"), 2), (Listed(0, "./000000000632.jpg"), 2),
    ]  # fmt: skip
    for listed, index in cases:
        listed.prompts = [prompt]
        found, rows = match([listed], paths)
        assert list(found) == [index] and not rows, str(listed)
    for listed, kind in ((Listed(0, "1.jpg"), "photo ambiguous"), (Listed(0, "/1.jpg2"), "photo unknown")):
        listed.prompts = [prompt] * 2
        found, [(found_kind, message)] = match([listed], paths)
        assert not found and found_kind == kind and "its 2 prompts are not used" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected COCO annotations, COCO results"),
        ({"annotations": []}, 'not in COCO format, which has lists "images" and "annotations"'),
        ([{"image_id": 1, "bbox": [0, 0, 5, 5]}], "no prompt in it is on a photo of --image"),
        ({"image": "000011.png"}, "no prompt; the fields are boxes, categories, ids, image, image_id, labels, points"),
        ({"image": "000011.png", "labels": [[1]], "boxes": [[1, 2, 3, 4]]}, '"labels" without "points"'),
        ({"image": "000011.png", "boxes": 5}, '"boxes" is not a list'),
        ({"image": "000011.png", "boxes": [[1, 2, 3, 4]], "ids": [1, 2]}, '1 boxes but 2 "ids"'),
        ({"image": 5, "boxes": []}, 'expected an object with "image"'),
        ({"image": "000011.png", "boxes": [[1, 2, 3]]}, "prompt 0: box: expected four numbers"),
        ({"image": "000011.png", "points": [[[1, 2, 3]]]}, "points: expected x, y with one label each"),
        ({"image": "000011.png", "points": [[[1, 2]]], "labels": [[4]]}, "labels: must be 1 (inside the object) or 0"),
        ({"image": "none.png", "boxes": [[1, 2, 3, 4]]}, "photo unknown 1, the first: none.png: not among the photos"),
    ],
)
def test_a_file_without_usable_prompts_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    prompts = written(tmp_path / "prompts.json", content)
    assert command(place, prompts, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --prompts") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", '{"image": "a.jpg", "boxes": [[1, 2, 3, 4]]}\n{"image"\n')
    with pytest.raises(UsageError, match=r"p.jsonl: line 2: not valid JSON"):
        read_prompt_file(prompts)
    with pytest.raises(UsageError, match="no photo in it; write one per line"):
        read_prompt_file(written(prompts, "\n"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompt_file(tmp_path / "missing.jsonl")


def test_wrong_usage_is_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "blank.txt").write_text("# nothing\n")
    coco = place / "coco.json"
    cases: list[tuple[int, str]] = [
        (command(place, coco, tmp_path / "out", image=tmp_path / "empty"), "no photos in this folder"),
        (command(place, coco, tmp_path / "out", image=tmp_path / "*.png"), "no photo matches this pattern"),
        (command(place, coco, tmp_path / "out", image=tmp_path / "none"), "no such file or folder"),
        (command(place, coco, tmp_path / "out", image=tmp_path / "binary"), "neither a photo nor a list of photos"),
        (command(place, coco, tmp_path / "out", image=tmp_path / "blank.txt"), "no photo in this list"),
        (command(place, coco, coco), "is a file; choose a folder"),
        (command(place, coco, tmp_path / "out", "--box", "1,2,3,4"), "--box: for prompts on one photo"),
        (command(place, coco, tmp_path / "out", "--save-masks"), "--save-masks: for prompts on one photo"),
        (command(place, coco, tmp_path / "out", "--annotations", "x"), "--annotations: goes with COCO results"),
        (command(place, coco, tmp_path / "out", "--everything"), "--prompts can't be used with --everything"),
        (command(place, tmp_path / "none.json", tmp_path / "out"), "no such file"),
        (main(["--image", "a.png", "--box", "0,0,9,9", "--overlays", "--output", "x"]), "--overlays: goes with"),
    ]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(cases)
    for (code, message), error in zip(cases, errors, strict=True):
        assert code == 2 and error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_a_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(tmp_path) as held:
        assert held and command(place, place / "coco.json", tmp_path) == 2
    assert "another run writes there" in capsys.readouterr().err
