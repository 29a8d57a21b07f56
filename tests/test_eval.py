"""The evaluation: its numbers do not depend on batching, and the command writes the report of the contract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax import eval as command
from edgesam_jax import evaluation
from edgesam_jax.checkpoint import Model, save_model_file
from edgesam_jax.config import DecoderConfig, SamConfig, UsageError, VitConfig
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.evaluation import center_in_frame, evaluate
from edgesam_jax.metrics import mask_iou
from edgesam_jax.models.init import init_variables
from edgesam_jax.predictor import Predictor

pytestmark = pytest.mark.usefixtures("quick_compile")

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


@pytest.mark.parametrize("prompt", ["box", "point", "center"])
def test_initial_overlap_is_the_predictors(model: Model, examples: list[Example], prompt: str) -> None:
    found = evaluate(CONFIG, model.variables, examples, prompt=prompt, batch_size=2, prompts=2)  # type: ignore[arg-type]
    assert found.num_images == 4 and found.iou.shape == (6, 1)
    assert found.annotation_ids == [100, 101, 102, 300, 400, 401] and found.image_ids == [1, 1, 1, 3, 4, 4]
    predictor, expected = Predictor(model), []
    for photo in examples:
        predictor.set_image(photo.image)
        h, w = predictor.embedding.input_size
        for i in range(len(photo)):
            if prompt == "box":
                masks, _, _ = predictor.predict(box=photo.boxes[i])
            else:
                point = photo.points[i]
                if prompt == "center":
                    size = np.array([w, h]) / (photo.image.shape[1], photo.image.shape[0])
                    point = np.array(center_in_frame(photo.masks[i], (h, w))) / size
                masks, _, _ = predictor.predict([point], [1])
            expected.append(mask_iou(masks[0], photo.masks[i]))
    np.testing.assert_allclose(found.iou[:, 0], expected, atol=2e-3)  # a pixel on the threshold may flip
    np.testing.assert_allclose(found.miou, [np.mean(expected)], atol=1e-3)


def test_results_do_not_depend_on_batching_but_on_the_seed(
    model: Model, teacher: Model, examples: list[Example]
) -> None:
    kwargs = {"prompt": "box", "refine": 1, "teacher": teacher}
    a = evaluate(CONFIG, model.variables, examples, batch_size=2, prompts=2, **kwargs)  # type: ignore[arg-type]
    b = evaluate(CONFIG, model.variables, examples[::-1], batch_size=3, prompts=4, **kwargs)  # type: ignore[arg-type]
    order = [b.annotation_ids.index(i) for i in a.annotation_ids]
    np.testing.assert_allclose(a.iou, b.iou[order], atol=2e-3)
    assert a.teacher_iou is not None and b.teacher_iou is not None
    np.testing.assert_allclose(a.teacher_iou, b.teacher_iou[order], atol=2e-3)
    other = evaluate(CONFIG, model.variables, examples, batch_size=2, prompts=2, seed=1, **kwargs)  # type: ignore[arg-type]
    np.testing.assert_array_equal(other.iou[:, 0], a.iou[:, 0])
    assert (other.iou[:, 1:] != a.iou[:, 1:]).any()


def test_a_model_is_its_own_perfect_teacher(model: Model, examples: list[Example]) -> None:
    found = evaluate(
        CONFIG, model.variables, examples, prompt="point", refine=1, teacher=model, batch_size=2, prompts=2
    )
    assert found.teacher_iou is not None
    known = ~np.isnan(found.teacher_iou)
    assert (found.teacher_iou[known] == 1.0).all() and found.teacher_miou == [1.0, 1.0]


def test_refinement_points_lie_where_the_prediction_is_wrong(
    model: Model, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments and the outcome of the sampler, seen from outside the compiled rollout."""
    import jax

    seen: list[tuple[np.ndarray, ...]] = []
    real = evaluation.sample_disagreement

    def spy(keys: jax.Array, student: jax.Array, truth: jax.Array, photo: jax.Array, *, cell: float) -> tuple:
        out = real(keys, student, truth, photo, cell=cell)
        jax.debug.callback(lambda *arrays: seen.append(tuple(map(np.asarray, arrays))), student, truth, photo, *out)
        return out

    monkeypatch.setattr(evaluation, "sample_disagreement", spy)
    evaluation._rollout.cache_clear()
    evaluate(CONFIG, model.variables, examples, prompt="box", refine=1, batch_size=2, prompts=2)
    jax.effects_barrier()
    evaluation._rollout.cache_clear()
    drawn = 0
    for student, truth, photo, coords, labels, valid in seen:
        wrong = (student[:, 0] != truth[:, 0]) & photo
        for i in np.flatnonzero(valid[:, 0, 0]):
            column, row = np.round((coords[i, 0, 0] + 0.5) / 4 - 0.5).astype(int)
            assert wrong[i, row, column] and labels[i, 0, 0] == truth[i, 0, row, column]
            drawn += 1
        few = wrong.sum((1, 2)) < 10
        assert not valid[few].any()
    assert drawn > 3


def test_a_teacher_of_another_frame_is_refused(model: Model, examples: list[Example]) -> None:
    other = Model(SamConfig(image_size=128), {}, {})
    with pytest.raises(UsageError, match="teacher"):
        evaluate(CONFIG, model.variables, examples, teacher=other)


@pytest.fixture
def dataset(tmp_path: Path, examples: list[Example]) -> Path:
    """The examples as a COCO-format folder."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for photo in examples:
        Image.fromarray(photo.image).save(tmp_path / "images" / f"{photo.image_id}.png")
        h, w = photo.image.shape[:2]
        images.append({"id": photo.image_id, "file_name": f"{photo.image_id}.png", "height": h, "width": w})
        for mask, box, index in zip(photo.masks, photo.boxes.tolist(), photo.annotation_ids, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": int(index),
                    "image_id": photo.image_id,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "category_id": 1,
                }
            )
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    return save_model_file(tmp_path_factory.mktemp("model") / "m.msgpack", model)


def test_the_command_writes_the_report(
    dataset: Path, checkpoint: Path, model: Model, examples: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    report = dataset / "out" / "report.json"
    flags = f"--checkpoint {checkpoint} --dataset coco --data-root {dataset} --prompt box --refine 1 --batch-size 2"
    assert command.main([*flags.split(), "--output", str(report)]) == 0
    found = json.loads(report.read_text())
    expected = evaluate(CONFIG, model.variables, examples, prompt="box", refine=1, batch_size=2)
    assert found["num_images"] == 3 and found["num_instances"] == 6  # the photo without annotations does not count
    assert found["dataset"] == "coco" and found["prompt"] == "box" and found["protocol"] == "exact"
    np.testing.assert_allclose(found["miou"], expected.miou, atol=2e-3)
    assert [i["annotation_id"] for i in found["instances"]] == expected.annotation_ids
    assert np.shape([i["iou"] for i in found["instances"]]) == (6, 2)
    assert [p.name for p in report.parent.iterdir()] == ["report.json"]
    assert "6 instances on 3 photos" in capsys.readouterr().out
    chosen = expected.image_ids[0]
    (dataset / "ids.txt").write_text(f"{chosen}\n")
    assert command.main([*flags.split(), "--output", str(report), "--ids", str(dataset / "ids.txt")]) == 0
    assert {i["image_id"] for i in json.loads(report.read_text())["instances"]} == {chosen}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset coco --prompt box", "--data-root"),
        ("--dataset coco --data-root /nonexistent --prompt box", "/nonexistent"),
        ("--dataset coco --data-root {root} --prompt mask", "--prompt"),
        ("--dataset coco --data-root {root} --prompt detections", "--prompt detections"),
        ("--dataset coco --data-root {root} --prompt box --protocol published", "--protocol published"),
        ("--dataset coco --data-root {root} --prompt box --refine -1", "--refine"),
        ("--dataset coco --data-root {root} --prompt box --checkpoint {root}/none", "none: no such file"),
        ("--dataset coco --data-root {root} --annotations {root}/none.json --prompt box", "none.json"),
        ("--dataset coco --data-root {root} --prompt box --output {root}", "--output"),
        ("--dataset folder --data-root {root} --prompt box", "annotations"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    dataset: Path, checkpoint: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--checkpoint" not in flags:
        flags += f" --checkpoint {checkpoint}"
    assert command.main(flags.format(root=dataset).split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]
