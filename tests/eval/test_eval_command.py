"""The evaluation command: results don't depend on how the work is divided, and reports have the documented format."""

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
from tiny import FAST_FLAGS

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import DecoderConfig, SamConfig, UsageError, VitConfig
from edgesam_jax.data.mask_window import crop
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.eval import __main__ as command
from edgesam_jax.eval.heldout import evaluate
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.eval.scoring import protocol
from edgesam_jax.eval.scoring.photos import from_example
from edgesam_jax.eval.scoring.prompted import score_photo
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.systems import JaxSystem
from edgesam_jax.models.init import init_variables
from edgesam_jax.predict.predictor import Predictor

CONFIG = SamConfig(
    encoder=VitConfig(width=16, depth=1, heads=2, global_blocks=(0,)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)


def example(seed: int, n: int, size: tuple[int, int]) -> Example:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centres, radii = rng.uniform(0.25, 0.75, (n, 2)) * size, rng.uniform(6, 15, n)
    masks = np.array([(y - cy) ** 2 + (x - cx) ** 2 < r**2 for (cy, cx), r in zip(centres, radii, strict=True)])
    masks = masks.reshape(n, *size)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    points = np.ascontiguousarray(centres[:, ::-1].round(), np.float32)
    return Example(image, masks, boxes_of(masks), points, seed, np.arange(n) + 100 * seed, np.zeros(n, np.int8))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [example(1, 3, (48, 80)), example(2, 0, (30, 30)), example(3, 1, (90, 64)), example(4, 2, (64, 64))]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_variables(CONFIG, 3), {"score": "iou"})


@pytest.fixture(scope="module")
def teacher() -> Model:
    return Model(CONFIG, init_variables(CONFIG, 4), {})


# ------------------------------------------------------------------------------------------------------- in memory


@pytest.mark.parametrize("prompt", ["box", "point", "center"])
def test_initial_overlap_is_the_predictors(model: Model, examples: list[Example], prompt: str) -> None:
    found = evaluate(model, examples, Settings(prompt))  # type: ignore[arg-type]
    assert found.iou.shape == (6, 1)
    assert found.annotation_ids == [100, 101, 102, 300, 400, 401] and found.image_ids == [1, 1, 1, 3, 4, 4]
    predictor, expected = Predictor(model), []
    for photo in examples:
        predictor.set_image(photo.image)
        for i in range(len(photo)):
            if prompt == "box":
                masks, _, _ = predictor.predict(box=photo.boxes[i])
            else:
                point = photo.points[i] if prompt == "point" else protocol.deepest(crop(photo.masks[i]))[0]
                masks, _, _ = predictor.predict([point], [1])
            expected.append(mask_iou(masks[0], photo.masks[i]))
    np.testing.assert_allclose(found.iou[:, 0], expected, atol=2e-3)  # a pixel on the threshold may flip
    np.testing.assert_allclose(found.miou, [np.mean(expected)], atol=1e-3)


def test_results_do_not_depend_on_order_or_threads_but_on_the_seed(
    model: Model, teacher: Model, examples: list[Example]
) -> None:
    settings = Settings("box", refine=2)
    a = evaluate(model, examples, settings, teacher=teacher, at_once=1)
    b = evaluate(model, examples[::-1], settings, teacher=teacher, at_once=3)
    order = [b.annotation_ids.index(i) for i in a.annotation_ids]
    np.testing.assert_array_equal(a.iou, b.iou[order])
    assert a.teacher_iou is not None and b.teacher_iou is not None
    np.testing.assert_array_equal(a.teacher_iou, b.teacher_iou[order])
    other = evaluate(model, examples, Settings("box", refine=2, seed=1), teacher=teacher)
    np.testing.assert_array_equal(other.iou[:, 0], a.iou[:, 0])
    assert (other.iou[:, 1:] != a.iou[:, 1:]).any()
    alone = examples[0].take(np.array([1]))  # nor on the other instances of the photo
    one = evaluate(model, [alone], settings, teacher=teacher)
    np.testing.assert_array_equal(one.iou[0], a.iou[1])


def test_a_model_is_its_own_perfect_teacher(model: Model, examples: list[Example]) -> None:
    found = evaluate(model, examples, Settings("point", refine=1), teacher=model)
    assert found.teacher_iou is not None
    known = ~np.isnan(found.teacher_iou)
    assert (found.teacher_iou[known] == 1.0).all() and found.teacher_miou == [1.0, 1.0]


def test_a_teacher_of_another_frame_is_refused(model: Model, examples: list[Example]) -> None:
    other = Model(SamConfig(image_size=128), init_variables(CONFIG, 0), {})
    with pytest.raises(UsageError, match="teacher: its frame of 128 px"):
        evaluate(model, examples, teacher=other)


@pytest.mark.parametrize("refine_point", ["random", "largest"])
@pytest.mark.parametrize("name", ["exact", "published"])
def test_refinement_points_lie_where_the_prediction_is_wrong(model: Model, refine_point: str, name: str) -> None:
    """Compare each round's point with the masks of the previous round."""
    photo, system = from_example(example(1, 3, (48, 80))), JaxSystem("m", model)
    asked: list[tuple[protocol.Slots, list[np.ndarray]]] = []
    real = system.masks

    def masks(state, photo, slots):  # type: ignore[no-untyped-def]
        answer = real(state, photo, slots)
        asked.append((slots, [full[0].mask for full in answer.full]))
        return answer

    system.masks = masks  # type: ignore[method-assign]
    score_photo(system, photo, Settings("box", 2, refine_point, name))  # type: ignore[arg-type]
    assert len(asked) == 3
    drawn = 0
    for (_, before), (slots, _), slot in zip(asked, asked[1:], (2, 3), strict=False):
        for i in range(3):
            if slots.valid[i, slot] and slots.labels[i, slot] >= 0:
                truth = np.zeros(photo.size, bool)
                photo.masks[i].paste(truth)
                x, y = slots.coords[i, slot] * np.array([80, 48]) / np.array([64, 38])
                # Low-resolution cells are five pixels of the photo wide: look around the point.
                near = np.s_[max(0, int(y) - 5) : int(y) + 6, max(0, int(x) - 5) : int(x) + 6]
                wrong = truth & ~before[i] if slots.labels[i, slot] else before[i] & ~truth
                assert wrong[near].any()
                drawn += 1
    assert drawn > 3


def test_the_best_of_all_masks_is_never_worse(model: Model, examples: list[Example]) -> None:
    photo = from_example(examples[0])
    best = score_photo(JaxSystem("m", model, 4, "oracle"), photo, Settings("point", num_masks=4, select="oracle"))
    for select in ("score", "stability", "area"):
        other = score_photo(JaxSystem("m", model, 4, select), photo, Settings("point", num_masks=4, select=select))  # type: ignore[arg-type]
        assert (best.iou >= other.iou - 1e-12).all()


# ------------------------------------------------------------------------------------------------------ the command


def rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


@pytest.fixture
def dataset(tmp_path: Path, examples: list[Example]) -> Path:
    """The examples as a COCO-format folder, with a crowd, a missing photo and an annotation without a box."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for photo in examples:
        Image.fromarray(photo.image).save(root / "images" / f"{photo.image_id}.png")
        h, w = photo.image.shape[:2]
        images.append({"id": photo.image_id, "file_name": f"{photo.image_id}.png", "height": h, "width": w})
        for k, (mask, box) in enumerate(zip(photo.masks, photo.boxes.tolist(), strict=True)):
            shape = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {
                    "id": int(photo.annotation_ids[k]), "image_id": photo.image_id, "bbox": shape,
                    "area": float(mask.sum()), "iscrowd": 0, "segmentation": rle(mask), "category_id": 1 + k % 2,
                }
            )  # fmt: skip
    crowd = np.ones((48, 80), bool)
    annotations.append(
        {
            "id": 900, "image_id": 1, "bbox": [0, 0, 80, 48], "area": 3840.0, "iscrowd": 1, "segmentation": rle(crowd),
            "category_id": 2,
        }
    )  # fmt: skip
    images.append({"id": 77, "file_name": "gone.png", "height": 10, "width": 10})
    annotations.append({**annotations[0], "id": 901, "image_id": 77, "segmentation": rle(np.ones((10, 10), bool))})
    annotations.append({"id": 902, "image_id": 4, "category_id": 1, "segmentation": rle(np.ones((64, 64), bool))})
    content = {
        "images": images, "annotations": annotations,
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "plate"}],
    }  # fmt: skip
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    return save_model_file(tmp_path_factory.mktemp("model") / "m.msgpack", model)


def score(*flags: object) -> int:
    return command.main([str(flag) for flag in flags])


def base(dataset: Path, checkpoint: Path | None = None) -> list[object]:
    return ["--dataset", "coco", "--data-root", dataset, *(["--checkpoint", checkpoint] if checkpoint else [])]


def without_times(report: dict) -> dict:
    times = ("seconds", "stage_seconds", "seconds_per_photo", "compilations")
    return {k: v for k, v in report.items() if k not in times}


def test_the_command_writes_the_report(
    dataset: Path, checkpoint: Path, model: Model, examples: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    report = dataset.parent / "out" / "report.json"
    flags = [*base(dataset, checkpoint), "--prompt", "box", "--refine", 1]
    assert score(*flags, "--output", report) == 0
    found = json.loads(report.read_text())
    expected = evaluate(model, examples, Settings("box", refine=1))
    assert found["num_images"] == 3 and found["num_instances"] == 6  # the photo without annotations does not count
    assert found["dataset"] == "coco" and found["prompt"] == "box" and found["protocol"] == "exact"
    np.testing.assert_allclose(found["miou"], expected.miou, rtol=1e-15)
    assert [i["annotation_id"] for i in found["instances"]] == expected.annotation_ids
    np.testing.assert_array_equal([i["iou"] for i in found["instances"]], expected.iou)
    assert set(found["miou_by_category"]) == {"disc", "plate"} and found["miou_by_category"]["disc"]["count"] == 4
    assert len(found["boundary_iou"]) == 2 and "compilations" in found and "noc" not in found
    assert found["skipped"]["counts"] == {
        "file missing": 1, "annotation damaged": 1, "no annotations": 1, "crowd": 1
    }  # fmt: skip
    names = {p.name for p in report.parent.iterdir()}
    assert {"report.json", "report.md", "report.rows.jsonl", "report.sheet.png"} <= names
    text = (report.parent / "report.md").read_text()
    assert "m.msgpack" in text and "file missing: 1" in text and "report.sheet.png" in text
    assert "6 instances on 3 photos" in capsys.readouterr().out


def test_a_stopped_evaluation_goes_on(dataset: Path, checkpoint: Path) -> None:
    flags = [*base(dataset, checkpoint), "--prompt", "center", "--refine", 2, "--no-pictures"]
    whole, cut = dataset.parent / "whole.json", dataset.parent / "cut.json"
    assert score(*flags, "--output", whole, "--batch-size", 3) == 0
    rows = (dataset.parent / "whole.rows.jsonl").read_text().splitlines()
    assert len(rows) == 4  # what was asked, and three photos
    (dataset.parent / "cut.rows.jsonl").write_text("\n".join(rows[:2]) + "\n" + rows[2][:40])
    assert score(*flags, "--output", cut, "--batch-size", 1) == 0
    a, b = (json.loads(path.read_text()) for path in (whole, cut))
    assert without_times(a) == without_times(b)
    assert a["noc"]["max_clicks"] == 3
    assert score(*flags, "--output", cut, "--seed", 1) == 2  # rows of another evaluation


def test_a_range_of_pixels_gives_the_scores_of_the_eight_bit_photos(
    dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photos in grey, once with 8 bits and once with 12 in 16; rows of one range are not taken for another's."""
    out = dataset.parent / "out"
    for path in (dataset / "images").iterdir():
        Image.open(path).convert("L").save(path)
    flags = [*base(dataset, checkpoint), "--prompt", "box", "--no-boundary", "--no-pictures", "--output"]
    assert score(*flags, out / "eight.json") == 0
    assert "note:" not in capsys.readouterr().err
    for path in (dataset / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)
    assert score(*flags, out / "dark.json") == 0
    assert capsys.readouterr().err.count("--pixel-range 0,4095") == 1
    assert score(*flags, out / "twelve.json", "--pixel-range", "0,4080") == 0
    assert "note:" not in capsys.readouterr().err
    eight, dark, twelve = (json.loads((out / f"{n}.json").read_text()) for n in ("eight", "dark", "twelve"))
    assert twelve["instances"] == eight["instances"] != dark["instances"]
    assert twelve["pixel_range"] == "0,4080" and "pixel_range" not in eight
    assert twelve["miou_by_category"] == eight["miou_by_category"]  # still known as COCO data
    assert score(*flags, out / "twelve.json") == 2  # rows of the other range
    assert score(*flags, out / "no.json", "--pixel-range", "9") == 2
    assert "--pixel-range 9: expected auto or LO,HI" in capsys.readouterr().err


def test_centres_follow_either_protocol(
    dataset: Path, checkpoint: Path, model: Model, examples: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*base(dataset, checkpoint), "--prompt", "center", "--no-pictures"]
    found = {}
    for protocol_name, center in (("exact", "published"), ("exact", "exact"), ("published", "exact")):
        output = dataset.parent / f"{protocol_name}_{center}.json"
        assert score(*flags, "--protocol", protocol_name, "--center", center, "--output", output) == 0
        found[protocol_name, center] = report = json.loads(output.read_text())
        expected = evaluate(model, examples, Settings("center", protocol=protocol_name, center=center))  # type: ignore[arg-type]
        np.testing.assert_array_equal([i["iou"] for i in report["instances"]], expected.iou)
        assert report.get("center") == (None if center == protocol_name else center)
        assert report["resize"] == {"exact": "pillow", "published": "torch"}[protocol_name]
        text = output.with_suffix(".md").read_text()
        assert (f"--center {center}" in text) == (center != protocol_name)
    capsys.readouterr()
    mixed, plain = dataset.parent / "exact_published.json", dataset.parent / "exact_exact.json"
    assert score(*flags, "--output", mixed) == 2  # rows of another centre
    assert "rows of another evaluation (settings differ)" in capsys.readouterr().err
    assert score(*flags, "--output", plain) == 0  # --center exact is what the protocol does
    assert score("compare", mixed, plain) == 0
    assert "Note: center differs: A published, B exact" in capsys.readouterr().out


def test_the_published_protocol_does_not_round_photos(
    dataset: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Box prompts, and a detector's boxes."""
    detections = dataset.parent / "boxes.json"
    detections.write_text(json.dumps([{**entry, "bbox": [5, 5, 30, 30]} for entry in true_masks(dataset)[:2]]))
    asked: list[str] = []
    real = JaxSystem.start

    def start(self, photo, resize="pillow"):  # type: ignore[no-untyped-def]
        asked.append(resize)
        return real(self, photo, resize)

    monkeypatch.setattr(JaxSystem, "start", start)
    for prompt in (["box"], ["detections", "--detections", detections]):
        for name, resize in (("exact", "pillow"), ("published", "torch")):
            asked.clear()
            assert score(*base(dataset, checkpoint), "--prompt", *prompt, "--protocol", name) == 0
            assert set(asked) == {resize}, (prompt, name)


def test_parts_of_several_hosts_are_the_whole(
    dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*base(dataset, checkpoint), "--prompt", "point", "--refine", 1, "--no-pictures"]
    whole, parts = dataset.parent / "whole.json", dataset.parent / "parts.json"
    assert score(*flags, "--output", whole) == 0
    assert score(*flags, "--output", parts, "--part", "1/2") == 0
    assert not parts.exists() and "when all parts are done" in capsys.readouterr().out
    assert score(*flags, "--output", parts, "--part", "0/2") == 0
    a, b = (json.loads(path.read_text()) for path in (whole, parts))
    assert without_times(a) == without_times(b)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["box --refine 1", "everything --points-per-side 4 --pred-iou-thresh 0"])
def test_four_devices_give_the_same_report(dataset: Path, checkpoint: Path, prompt: str) -> None:
    reports = []
    for devices in (1, 4):
        output = dataset.parent / f"{devices}.json"
        flags = [*base(dataset, checkpoint), "--prompt", *prompt.split(), "--no-pictures", "--output", output]
        environment = {
            **os.environ, "XLA_FLAGS": f"{FAST_FLAGS} --xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "edgesam_jax.eval", *map(str, flags)], env=environment, cwd=ROOT,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        reports.append(without_times(json.loads(output.read_text())))
    assert reports[0] == reports[1]


def test_five_hundred_instances_and_one_pixel_masks(tmp_path: Path, checkpoint: Path) -> None:
    """500 instances on one photo need few compiled programs; empty masks count as zero."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((100, 120, 3), np.uint8)).save(data / "images" / "a.png")
    annotations = []
    for k in range(500):
        mask = np.zeros((100, 120), bool)
        mask[k // 25 * 5, k % 25 * 4] = True  # one pixel
        x, y = k % 25 * 4, k // 25 * 5
        annotations.append(
            {"id": k, "image_id": "a", "bbox": [x, y, 1, 1], "segmentation": rle(mask), "category_id": 1}
        )
    content = {"images": [{"id": "a", "file_name": "a.png", "height": 100, "width": 120}], "annotations": annotations}
    (data / "annotations.json").write_text(json.dumps(content))
    output = tmp_path / "out.json"
    assert score(*base(data, checkpoint), "--prompt", "box", "--refine", 1, "--output", output) == 0
    found = json.loads(output.read_text())
    assert found["num_instances"] == 500 and found["miou_by_size"]["small"]["count"] == 500
    assert found["compilations"] < 30
    few = tmp_path / "few.json"
    flags = [*base(data, checkpoint), "--prompt", "box", "--refine", 1, "--max-instances", 64, "--no-pictures"]
    assert score(*flags, "--output", few) == 0
    chosen = {i["annotation_id"]: i["iou"] for i in json.loads(few.read_text())["instances"]}
    assert len(chosen) == 64
    assert all(i["iou"] == chosen[i["annotation_id"]] for i in found["instances"] if i["annotation_id"] in chosen)


# --------------------------------------------------------------------------- predictions of others, and detections


def true_masks(dataset: Path, erode: int = 0) -> list[dict]:
    """The annotations as predictions, optionally without the leftmost ``erode`` columns."""
    content = json.loads((dataset / "annotations.json").read_text())
    found = []
    for annotation in content["annotations"]:
        if annotation["id"] < 900:
            mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
            columns = np.flatnonzero(mask.any(0))
            mask[:, : columns[0] + erode] = False
            found.append(
                {
                    "image_id": annotation["image_id"], "category_id": annotation["category_id"], "score": 0.9,
                    "segmentation": rle(mask), "bbox": annotation["bbox"],
                }
            )  # fmt: skip
    return found


def test_the_truth_as_a_prediction_scores_everything(dataset: Path) -> None:
    file, output = dataset.parent / "truth.json", dataset.parent / "r.json"
    file.write_text(json.dumps(true_masks(dataset)))
    flags = [*base(dataset), "--predictions", file, "--output", output, "--no-pictures"]
    assert score(*flags, "--prompt", "box", "--refine", 1) == 0
    found = json.loads(output.read_text())
    assert found["miou"] == [1.0, 1.0] and found["boundary_iou"] == [1.0, 1.0] and found["system"] == "truth.json"
    (dataset.parent / "r.rows.jsonl").unlink()
    assert score(*flags, "--prompt", "detections") == 0
    found = json.loads(output.read_text())
    assert found["ap"]["AP"] == found["boundary_ap"]["AP"] == 1.0 and found["num_images"] == 4


def test_masks_cut_by_known_amounts_score_what_arithmetic_says(dataset: Path, examples: list[Example]) -> None:
    file, output = dataset.parent / "cut.json", dataset.parent / "r.json"
    file.write_text(json.dumps(true_masks(dataset, erode=3)))
    flags = ["--predictions", file, "--prompt", "box", "--output", output, "--no-pictures"]
    assert score(*base(dataset), *flags) == 0
    expected = []
    for photo in examples:
        for mask in photo.masks:
            left = np.flatnonzero(mask.any(0))[0]
            expected.append(mask[:, left + 3 :].sum() / mask.sum())
    assert [i["iou"][0] for i in json.loads(output.read_text())["instances"]] == pytest.approx(expected, abs=1e-12)


def test_a_detectors_boxes_become_masks_with_its_scores(dataset: Path, checkpoint: Path) -> None:
    boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in true_masks(dataset)]
    strangers = [{**boxes[0], "image_id": 12345}, {**boxes[0], "bbox": [1, 2, 0, 4]}]
    elsewhere = [
        {**boxes[0], "image_id": 2, "bbox": [1, 1, 9, 9]}
    ]  # a photo without annotations: a false alarm there counts
    file, output = dataset.parent / "boxes.json", dataset.parent / "r.json"
    file.write_text(json.dumps([*boxes, *strangers, *elsewhere]))
    flags = [*base(dataset, checkpoint), "--prompt", "detections", "--detections", file]
    assert score(*flags, "--output", output) == 0
    found = json.loads(output.read_text())
    assert found["num_images"] == 4 and found["num_detections"] == 7
    assert {"AP", "AP50", "AP75", "APS", "APM", "APL"} <= set(found["ap"]) and "miou" not in found
    assert sum(found["skipped"]["counts"].values()) >= 3  # two detections, and the photo that is not there
    results = json.loads((dataset.parent / "r.results.json").read_text())
    assert len(results) == 7 and all("bbox" not in r and r["score"] == 0.9 for r in results)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = json.loads((dataset / "annotations.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if "bbox" in a]  # which pycocotools can't do without
    (dataset.parent / "official.json").write_text(json.dumps(content | {"info": {}}))
    truth = COCO(str(dataset.parent / "official.json"))
    official = COCOeval(truth, truth.loadRes(str(dataset.parent / "r.results.json")), "segm")
    official.params.imgIds = [1, 2, 3, 4]
    official.evaluate()
    official.accumulate()
    official.summarize()
    for name, value in zip(("AP", "AP50", "AP75", "APS", "APM", "APL"), official.stats, strict=False):
        assert found["ap"][name] == (None if value == -1 else value), name
    noisy = dataset.parent / "noisy.json"
    assert score(*flags, "--output", noisy, "--box-noise", 0.3, "--batch-size", 1) == 0
    assert json.loads((dataset.parent / "noisy.results.json").read_text()) != results


def test_several_systems_make_one_table(dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = dataset.parent / "truth.json", dataset.parent / "both.json"
    file.write_text(json.dumps(true_masks(dataset)))
    flags = [*base(dataset, checkpoint), "--predictions", file, "--prompt", "box"]
    assert score(*flags, "--output", output) == 0
    systems = json.loads(output.read_text())["systems"]
    assert [s["system"] for s in systems] == ["m.msgpack", "truth.json"] and systems[1]["miou"] == [1.0]
    text = (dataset.parent / "both.md").read_text()
    assert "m.msgpack" in text and "truth.json" in text
    out = capsys.readouterr().out
    assert "m.msgpack" in out and "truth.json" in out
    assert score("compare", f"{output}:m.msgpack", f"{output}:truth.json") == 0
    assert "truth.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset coco --prompt box", "--data-root"),
        ("--dataset coco --data-root /nonexistent --prompt box", "/nonexistent"),
        ("--dataset coco --data-root {root} --prompt mask", "--prompt"),
        ("--dataset coco --data-root {root} --prompt detections", "--detections"),
        ("--dataset coco --data-root {root} --prompt detections --detections {root}/no.json", "no.json: no such file"),
        ("--dataset scenes --prompt detections --detections {root}/annotations.json", "--dataset coco or lvis"),
        (
            "--dataset coco --data-root {root} --prompt detections --detections x --refine 1",
            "no ground truth",
        ),
        ("--dataset coco --data-root {root} --prompt box --detections x", "--detections x: only valid with"),
        (
            "--dataset coco --data-root {root} --prompt box --refine -1",
            "--refine: must be an integer of at least 0",
        ),
        ("--dataset coco --data-root {root} --prompt box --select score", "--select score: only one mask is decoded"),
        ("--dataset coco --data-root {root} --prompt center --box-noise 0.1", "center has no boxes"),
        ("--dataset coco --data-root {root} --prompt box --center published", "--center published: --prompt box"),
        ("--dataset coco --data-root {root} --prompt center --center nearest", "--center"),
        ("--dataset coco --data-root {root} --prompt box --checkpoint {root}/none", "none: no such file"),
        ("--dataset coco --data-root {root} --annotations {root}/none.json --prompt box", "none.json"),
        ("--dataset coco --data-root {root} --prompt box --output {root}", "--output"),
        ("--dataset coco --data-root {root} --prompt box --part 2/2", "--part"),
        ("--dataset coco --data-root {root} --prompt box --part 0/2", "--part: pass --output"),
        ("--dataset coco --data-root {root} --prompt box --predictions {root}/no.json", "no.json: no such file"),
        ("--dataset coco --data-root {root} --prompt box --onnx {root}/a {root}/b", "a: no such file"),
        ("--dataset scenes --prompt box --predictions x.json", "x.json: needs --dataset coco or lvis"),
        ("--dataset folder --data-root {root} --prompt box", "annotations"),
        ("compare {root}/a.json {root}/b.json", "a.json"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    dataset: Path, checkpoint: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not any(given in flags for given in ("--checkpoint", "--onnx", "compare")):
        flags += f" --checkpoint {checkpoint}"
    assert command.main(flags.format(root=dataset).split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0], error
