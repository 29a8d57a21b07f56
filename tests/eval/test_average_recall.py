"""Everything mode: figures are the official tool's, resuming changes nothing, files of masks score as their model."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx_pair import export_pair
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgesam_jax.checkpoints.load import TINY_TEACHER, load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.eval import __main__ as command
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.eval.scoring.everything import Generation, GeneratorSystem, ScoredMask, match
from edgesam_jax.eval.scoring.photos import from_example
from edgesam_jax.portable.everything import EverythingGenerator
from edgesam_jax.predict.predictor import Predictor

SIZES = {1: (48, 80), 2: (30, 30), 3: (90, 64), 4: (64, 64)}  # photo 2 has no annotations
LOOSE = ["--points-per-side", 4, "--pred-iou-thresh", 0, "--stability-score-thresh", 0]


def rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def rectangles(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        top, left = (int(rng.integers(0, side - 8)) for side in size)
        mask[top : top + rng.integers(4, 30), left : left + rng.integers(4, 30)] = True
    return masks


def score(*flags: object) -> int:
    return command.main([str(flag) for flag in flags])


def without_times(report: dict) -> dict:
    times = ("seconds", "stage_seconds", "seconds_per_photo", "compilations")
    return {key: value for key, value in report.items() if key not in times}


@pytest.fixture(scope="module")
def truth() -> dict[int, np.ndarray]:
    """Masks (n h w) by photo."""
    rng = np.random.default_rng(0)
    return {i: rectangles(rng, size, 0 if i == 2 else 3 + i) for i, size in SIZES.items()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, truth: dict[int, np.ndarray]) -> Path:
    """A COCO-format folder with two categories and a crowd region."""
    root = tmp_path_factory.mktemp("everything") / "data"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    images, annotations = [], []
    for i, (height, width) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for k, mask in enumerate([*truth[i], *([truth[i].any(0)] if i == 3 else [])]):
            box = boxes_of(mask[None])[0].tolist()
            annotations.append(
                {
                    "id": 100 * i + k, "image_id": i, "category_id": 1 + k % 2, "iscrowd": int(k == len(truth[i])),
                    "area": int(mask.sum()), "segmentation": rle(mask),
                    "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                }
            )  # fmt: skip
    categories = [{"id": 1, "name": "plate"}, {"id": 2, "name": "disc"}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def model() -> Model:
    """A trained model: random weights answer all points with the same mask."""
    return load_model(TINY_TEACHER)


def flags_of(dataset: Path) -> list[object]:
    return ["--dataset", "coco", "--data-root", dataset, "--prompt", "everything"]


# ----------------------------------------------------------------------------------------------------------- figures


def test_figures_are_the_official_tools(dataset: Path, truth: dict[int, np.ndarray], tmp_path: Path) -> None:
    """130 masks on one photo, few on another, none on the last; many equal scores, and a photo without annotations."""
    rng = np.random.default_rng(2)
    results, overlaps = [], []
    for i, count in ((1, 130), (2, 5), (3, 12), (4, 0)):
        shifted = [np.roll(mask, int(rng.integers(0, 3)), axis=int(rng.integers(0, 2))) for mask in truth[i]]
        masks = [*rectangles(rng, SIZES[i], count), *shifted] if count else []
        scores = rng.integers(0, 8, len(masks)) / 8
        scores[-1:] = 2.0
        results += [
            {"image_id": i, "score": float(s), "segmentation": rle(m)} for s, m in zip(scores, masks, strict=True)
        ]
        overlaps += [max((float(mask_iou(mask, one)) for one in masks), default=0.0) for mask in truth[i]]
    file, output = tmp_path / "masks.json", tmp_path / "r.json"
    file.write_text(json.dumps([{**entry, "category_id": 77} for entry in results]))  # of no category of the data set
    assert score(*flags_of(dataset), "--predictions", file, "--output", output, "--no-pictures") == 0
    report = json.loads(output.read_text())

    file.write_text(json.dumps([{**entry, "category_id": 1} for entry in results]))
    annotations = COCO(str(dataset / "annotations.json"))
    official = COCOeval(annotations, annotations.loadRes(str(file)), "segm")
    official.params.useCats, official.params.maxDets = 0, [1, 10, 100, 1000]
    official.evaluate()
    official.accumulate()
    recalls = [float(np.mean(official.eval["recall"][:, 0, 0, k])) for k in range(4)]
    assert report["everything"]["ar"] == dict(zip(("1", "10", "100", "1000"), recalls, strict=True))
    assert 0 < recalls[0] < recalls[1] < recalls[2] < recalls[3] < 1
    assert report["everything"]["mean_best_iou"] == pytest.approx(np.mean(overlaps), abs=1e-12)
    assert [row["iou"][0] for row in report["instances"]] == pytest.approx(overlaps, abs=1e-12)
    assert report["num_instances"] == 17 and report["num_images"] == 3
    assert report["everything"]["masks_per_photo"] == pytest.approx((134 + 18) / 3)
    assert report["skipped"]["counts"] == {"crowd": 1, "no annotations": 1}
    assert "seconds_per_photo" not in report and "points_per_side" not in report


def test_masks_beyond_the_thousandth_count_for_the_best_overlap_only() -> None:
    masks = np.zeros((1, 12, 12), bool)
    masks[0, 2:8, 3:9] = True
    photo = from_example(
        Example(np.zeros((12, 12, 3), np.uint8), masks, boxes_of(masks), np.zeros((1, 2)), 1, np.ones(1), np.zeros(1))
    )
    dots = np.zeros((12, 12), bool)
    dots[0, 0] = True
    best, matched = match(photo, [*[ScoredMask(0.5, rle(dots))] * 1000, ScoredMask(0.1, rle(masks[0]))])
    assert best.tolist() == [1.0] and not matched.any()
    best, matched = match(photo, [*[ScoredMask(0.5, rle(dots))] * 999, ScoredMask(0.1, rle(masks[0]))])
    assert best.tolist() == [1.0] and matched.tolist() == [[0] * 10] * 3 + [[1] * 10]


def test_an_annotation_is_matched_once() -> None:
    """Two masks of the same object: the second matches nothing, although it overlaps as much."""
    masks = np.zeros((2, 12, 12), bool)
    masks[0, 2:8, 3:9], masks[1, 9:, 9:] = True, True
    photo = from_example(
        Example(np.zeros((12, 12, 3), np.uint8), masks, boxes_of(masks), np.zeros((2, 2)), 1, np.arange(2), np.zeros(2))
    )
    best, matched = match(photo, [ScoredMask(0.5, rle(masks[0])), ScoredMask(0.9, rle(masks[0]))])
    assert best.tolist() == [1.0, 0.0] and matched.tolist() == [[1] * 10] * 4


def test_a_damaged_photo_is_counted_and_the_others_are_scored(
    dataset: Path, truth: dict[int, np.ndarray], tmp_path: Path
) -> None:
    root, file, output = tmp_path / "data", tmp_path / "masks.json", tmp_path / "r.json"
    shutil.copytree(dataset, root)
    photo = root / "images" / "3.png"
    photo.write_bytes(photo.read_bytes()[:200])
    entries = [{"image_id": i, "score": 1, "segmentation": rle(mask)} for i in truth for mask in truth[i]]
    file.write_text(json.dumps([*entries, {**entries[0], "image_id": 99}]))
    assert score(*flags_of(root), "--predictions", file, "--output", output, "--no-pictures") == 0
    report = json.loads(output.read_text())
    assert report["num_images"] == 2 and report["num_instances"] == 11
    assert report["everything"]["ar"]["10"] == 1.0 == report["everything"]["mean_best_iou"]
    assert report["everything"]["masks_per_photo"] == 5.5
    assert report["skipped"]["counts"] == {"photo damaged": 1, "photo unknown": 1, "no annotations": 1, "crowd": 1}


# -------------------------------------------------------------------------------------------------------- generators


def test_defaults_are_the_generators() -> None:
    parameters = inspect.signature(EverythingGenerator).parameters
    for field in dataclasses.fields(Generation):
        assert parameters[field.name].default == field.default


def test_a_file_of_the_generators_masks_scores_as_the_model(
    dataset: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = EverythingGenerator(Predictor(model), 4, 64, 0, 0, output_mode="coco_rle")
    results = [
        {"image_id": i, "category_id": 1, "score": record["predicted_iou"], "segmentation": record["segmentation"]}
        for i in SIZES
        for record in generator.generate(np.asarray(Image.open(dataset / "images" / f"{i}.png")))
    ]
    file, output = tmp_path / "masks.json", tmp_path / "r.json"
    file.write_text(json.dumps(results))
    flags = [*flags_of(dataset), "--checkpoint", TINY_TEACHER, "--predictions", file, *LOOSE]
    assert score(*flags, "--output", output) == 0
    ours, theirs = json.loads(output.read_text())["systems"]
    assert ours["everything"] == theirs["everything"] and ours["instances"] == theirs["instances"]
    assert ours["everything"]["masks_per_photo"] > 3 and ours["everything"]["mean_best_iou"] > 0.05
    assert ours["points_per_side"] == 4 and ours["pred_iou_thresh"] == 0.0 and not ours["coarse_to_fine"]
    assert ours["seconds_per_photo"] > 0 and "seconds_per_photo" not in theirs
    text, out = (tmp_path / "r.md").read_text(), capsys.readouterr().out
    for shown in (text, out):
        assert "AR@1 " in shown and "AR@1000" in shown and "best IoU" in shown and "masks/photo" in shown
        assert f"{100 * ours['everything']['mean_best_iou']:.1f}" in shown
    assert "everything mode on coco" in text and "a grid of 4 x 4 points, score above 0" in text
    assert "r_size.png" in text and (tmp_path / "r_size.png").exists()

    assert score("compare", f"{output}:tiny_teacher", f"{output}:masks.json", "--samples", 50) == 0
    out = capsys.readouterr().out
    assert "mean best IoU, everything" in out and "+0.00 to +0.00" in out
    box = tmp_path / "box.json"
    assert score(*flags_of(dataset)[:-1], "box", "--predictions", file, "--output", box, "--no-pictures") == 0
    assert score("compare", f"{output}:1", box) == 2
    assert "prompt differs (everything and box)" in capsys.readouterr().err


def test_a_stopped_evaluation_goes_on(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*flags_of(dataset), "--checkpoint", TINY_TEACHER, *LOOSE, "--no-pictures"]
    whole, cut, parts = (tmp_path / f"{name}.json" for name in ("whole", "cut", "parts"))
    assert score(*flags, "--output", whole, "--batch-size", 3) == 0
    rows = (tmp_path / "whole.rows.jsonl").read_text().splitlines()
    assert len(rows) == 4  # header and three photos
    (tmp_path / "cut.rows.jsonl").write_text("\n".join(rows[:2]) + "\n" + rows[2][:40])
    assert score(*flags, "--output", cut, "--batch-size", 1, "--no-boundary") == 0
    for number in (1, 0):
        assert score(*flags, "--output", parts, "--part", f"{number}/2") == 0
    a, b, c = (without_times(json.loads(path.read_text())) for path in (whole, cut, parts))
    assert a == b == c
    capsys.readouterr()
    assert score(*flags, "--output", cut, "--coarse-to-fine") == 2  # rows of another evaluation
    assert "(coarse_to_fine differ)" in capsys.readouterr().err
    assert score(*flags_of(dataset), "--checkpoint", TINY_TEACHER, "--output", cut) == 2
    error = capsys.readouterr().err
    assert "(points_per_side, pred_iou_thresh, stability_score_thresh differ)" in error


def test_nothing_found_scores_zero(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    flags = [*flags_of(dataset), "--checkpoint", TINY_TEACHER, "--points-per-side", 2, "--pred-iou-thresh", 1]
    assert score(*flags, "--output", output) == 0
    report = json.loads(output.read_text())
    ar = {"1": 0.0, "10": 0.0, "100": 0.0, "1000": 0.0}
    assert report["everything"] == {"ar": ar, "mean_best_iou": 0.0, "masks_per_photo": 0.0}
    assert report["num_instances"] == 17 and all(row["iou"] == [0.0] for row in report["instances"])
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    assert score(*flags_of(dataset), "--predictions", empty) == 2


def test_the_kind_of_score_belongs_to_the_system(model: Model) -> None:
    """The same weights rated by the stability score select other masks, so their rows must not be mixed."""
    other = Model(model.config, model.variables, {"score": "stability"})
    assert GeneratorSystem.of_model("a", model, Generation()).digest != (
        GeneratorSystem.of_model("a", other, Generation()).digest
    )


def test_an_onnx_pair_scores_as_its_model(
    dataset: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, output = export_pair(model, tmp_path), tmp_path / "r.json"
    flags = [*flags_of(dataset), "--checkpoint", TINY_TEACHER, "--onnx", *pair, *LOOSE, "--limit", 1, "--no-pictures"]
    assert score(*flags, "--output", output) == 0
    ours, theirs = json.loads(output.read_text())["systems"]
    assert theirs["system"] == "m" and ours["everything"]["masks_per_photo"] > 3
    assert theirs["everything"]["masks_per_photo"] == ours["everything"]["masks_per_photo"]
    for a, b in zip(ours["instances"], theirs["instances"], strict=True):
        assert a["iou"] == pytest.approx(b["iou"], abs=0.01)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--refine 2 --max-instances 3", "--prompt everything: has no prompts from annotations"),
        ("--refine 2 --max-instances 3", "remove --refine, --max-instances"),
        ("--protocol published", "remove --protocol"),
        ("--priors nearest", "remove --priors"),
        ("--num-masks 3", "remove --num-masks"),
        ("--detections x.json", "--detections x.json: only valid with"),
        ("--points-per-side 0", "--points-per-side: must be an integer from 1 to 1024, not '0'"),
        ("--points-per-side 2.5", "--points-per-side: must be an integer"),
        ("--pred-iou-thresh 1.5", "--pred-iou-thresh: must be a number from 0 to 1, not '1.5'"),
        ("--stability-score-thresh nan", "--stability-score-thresh: must be a number from 0 to 1, not 'nan'"),
        ("--prompt box --points-per-side 8 --coarse-to-fine", "--points-per-side, --coarse-to-fine: only valid with"),
        (
            "--predictions x.json --stability-score-thresh 0",
            "--stability-score-thresh: files of masks have no such option",
        ),
        ("--predictions x.json", "--predictions x.json: no such file"),
        ("--onnx a.onnx b.onnx", "--onnx a.onnx: no such file"),
        ("--dataset scenes --predictions x.json", "needs --dataset coco"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    dataset: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags.split()
    for name, value in (("--dataset", "coco"), ("--data-root", str(dataset)), ("--prompt", "everything")):
        given += [] if name in given else [name, value]
    assert score(*given) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0], error
