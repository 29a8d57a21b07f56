"""The predictor: masks for prompts on one photo, and errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.predict import predictor as predictor_module
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.types import MaskPrediction, Prompts


def test_shapes_scores_and_thresholds(ready: Predictor) -> None:
    for num_masks in (1, 3, 4):
        masks, scores, logits = ready.predict(box=[10, 5, 60, 40], num_masks=num_masks)
        assert masks.shape == (num_masks, 48, 80) and masks.dtype == bool
        assert scores.shape == (num_masks,) and logits.shape == (num_masks, 16, 16)
    everything = ready.predict(box=[10, 5, 60, 40], num_masks=4)
    for num_masks, chosen in ((1, slice(0, 1)), (3, slice(1, 4))):
        for part, whole in zip(ready.predict(box=[10, 5, 60, 40], num_masks=num_masks), everything, strict=True):
            np.testing.assert_array_equal(part, whole[chosen])


def test_predictions_equal_the_model_with_sams_preprocessing(ready: Predictor, model: Model, photo: np.ndarray) -> None:
    """Compare with an unfolded pass over an unpadded buffer of prompts that are scaled by hand."""

    resized = np.asarray(Image.fromarray(photo).resize((64, 38), Image.Resampling.BILINEAR))  # 48 * 0.8 = 38.4
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[0, :38] = resized
    sam = Sam(model.config)
    sx, sy = 64 / 80, 38 / 48
    coords = np.array([[20 * sx, 30 * sy], [50 * sx, 10 * sy], [0, 0]], np.float32)[None, None]
    prompts = Prompts(coords, np.array([[[1, 0, -1]]]), np.ones((1, 1, 3), bool))

    @jax.jit
    def run(frame: np.ndarray, prompts: Prompts) -> tuple[jax.Array, MaskPrediction]:
        embedding = sam.apply(model.variables, preprocess(frame, np.array([[38, 64]])), method="encode_image")
        return embedding, sam.apply(model.variables, embedding, prompts, method="decode_masks")

    embedding, expected = run(frame, prompts)
    _, scores, logits = ready.predict([[20, 30], [50, 10]], [1, 0], num_masks=4)
    np.testing.assert_allclose(ready.embedding.values, embedding[0], atol=1e-4)
    np.testing.assert_allclose(logits, expected.logits[0, 0], atol=1e-4 * np.std(expected.logits))
    np.testing.assert_allclose(scores, expected.iou[0, 0], atol=1e-4)


@pytest.mark.parametrize("count", [3, 17])
def test_a_batch_of_prompts_equals_single_ones(ready: Predictor, count: int) -> None:
    rng = np.random.default_rng(count)
    corner = rng.uniform([0, 0], [40, 20], (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 25, (count, 2))], axis=1)
    masks, scores, logits = ready.predict_prompts(boxes, num_masks=4)
    assert masks.shape == (count, 4, 48, 80)
    for i in {0, count // 2, count - 1}:
        _, score, logit = ready.predict(box=boxes[i], num_masks=4)
        np.testing.assert_allclose(logits[i], logit, atol=1e-5)
        np.testing.assert_allclose(scores[i], score, atol=1e-5)


def test_points_with_boxes_and_mask_inputs_change_the_result(ready: Predictor) -> None:
    box = [10, 5, 60, 40]
    _, _, alone = ready.predict(box=box)
    _, _, joined = ready.predict([[30, 20]], [1], box=box)
    _, _, guided = ready.predict(box=box, mask_input=alone)
    assert abs(joined - alone).max() > 1e-4 and abs(guided - alone).max() > 1e-4


def test_stability_is_the_score_unless_the_iou_head_was_trained(model: Model, photo: np.ndarray) -> None:
    predictor = Predictor(Model(model.config, model.variables, {}))
    predictor.set_image(photo)
    _, scores, logits = predictor.predict([[20, 30]], [1], num_masks=4)
    np.testing.assert_array_equal(scores, predictor_module.stability_score(logits))
    assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()


def test_an_embedding_belongs_to_its_photo_and_its_model(model: Model, photo: np.ndarray) -> None:
    predictor = Predictor(model)
    with pytest.raises(UsageError, match="set_image"):
        predictor.predict(box=[1, 1, 5, 5])
    kept = predictor.set_image(photo)
    before = predictor.predict(box=[10, 5, 60, 40])[2]
    other = np.ascontiguousarray(photo[:, ::-1])
    predictor.set_image(other)
    with pytest.raises(UsageError, match="another photo"):
        predictor.set_image(other, embedding=kept)
    with pytest.raises(UsageError, match="another photo"):
        predictor.set_image(photo.reshape(80, 48, 3), embedding=kept)
    with pytest.raises(UsageError, match="another model"):
        Predictor(Model(model.config, model.variables)).set_image(photo, embedding=kept)
    assert predictor.set_image(photo, embedding=kept) is kept
    np.testing.assert_array_equal(predictor.predict(box=[10, 5, 60, 40])[2], before)
    predictor.reset_image()
    with pytest.raises(UsageError, match="set_image"):
        predictor.predict(box=[1, 1, 5, 5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no prompt"),
        ({"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)}, "no prompt"),
        ({"point_coords": [[1, 2]]}, "go together"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "one label each"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "label must be"),
        ({"point_coords": [[81, 2]], "point_labels": [1]}, "not on the photo, which is 80 x 48"),
        ({"point_coords": [[1, -0.5]], "point_labels": [1]}, "not on the photo"),
        ({"point_coords": [[np.nan, 2]], "point_labels": [1]}, "not on the photo"),
        ({"box": [5, 5, 5, 9]}, "x0 < x1"),
        ({"box": [9, 5, 5, 9]}, "x0 < x1"),
        ({"box": [5, 5, 81, 9]}, "not within the photo"),
        ({"box": [5, 5, np.inf, 9]}, "finite"),
        ({"box": [5, 5, 9]}, "x0, y0, x1, y1"),
        ({"box": [5, 5, 9, 9], "num_masks": 2}, "1, 3 or 4"),
        ({"box": [5, 5, 9, 9], "mask_input": np.zeros((8, 8))}, "16 16"),
        ({"box": [5, 5, 80.0001, 9]}, r"box 5,5,80\.0001,9: not within the photo, which is 80 x 48"),
        ({"box": [5, 5, 5 + 1e-9, 9]}, r"box 5,5,5\.000000001,9: only .* x 4 pixels; expected sides of at least 0\.01"),
        ({"box": "5,5,9,9"}, "box: expected four numbers x0, y0, x1, y1, got the text '5,5,9,9'"),
        ({"box": {"x0": 5}}, "box: expected four numbers .*, got a value of type dict"),
        ({"box": [5, 5, 9, None]}, "box: expected four numbers .*, got an array of shape .4,. of objects"),
        ({"box": [5, 5, 9, 9j]}, "box: .* of complex numbers"),
        ({"box": [5, 5, 9, "9"]}, "box: .* of texts"),
        ({"box": [5, 5, 9, 10**400]}, "box 5,5,9,inf: expected four finite numbers"),
        ({"box": (v for v in (5, 5, 9, 9))}, "box: .*, got a value of type generator"),
        ({"box": np.ma.array([5, 5, 9, 9], mask=[0, 0, 0, 1])}, "box: has masked entries"),
        ({"box": np.ones(4, bool)}, "box: .* of bools"),
        ({"box": 5}, "box: .*, got a value of type int"),
        ({"point_coords": [[1, 2], [3]], "point_labels": [1, 1]}, "point_coords: .* list whose parts differ in length"),
        ({"point_coords": [1, 2], "point_labels": [1]}, "one label each"),
        ({"point_coords": [[1, 2]], "point_labels": 1}, "one label each"),
        ({"point_coords": [[1, 2]], "point_labels": ["in"]}, "point_labels: expected one label per point"),
        ({"point_coords": [[1, 2]], "point_labels": [None]}, "point_labels: .* of objects"),
        ({"point_coords": [[1, 2]], "point_labels": [0.5]}, r"point 1,2,0\.5: the label must be"),
        ({"point_coords": [[1, 2]], "point_labels": [-1]}, "no prompt"),
        ({"point_coords": [[80.0001, 2]], "point_labels": [1]}, r"point 80\.0001,2,1: not on the photo"),
        ({"mask_input": np.zeros((16, 16))}, "mask_input: can't stand alone; pass a box or points"),
        (
            {"box": [5, 5, 9, 9], "mask_input": np.zeros((4, 16, 16))},
            r"expected one mask .16 16., got 4; pass one of them",
        ),
        ({"box": [5, 5, 9, 9], "mask_input": np.zeros((1, 48, 80), bool)}, "returns.*, got a mask of the photo's size"),
        ({"box": [5, 5, 9, 9], "mask_input": np.zeros((48, 80))}, "third value that predict returns.*photo's size"),
        (
            {"box": [5, 5, 9, 9], "mask_input": np.zeros((16, 16), bool)},
            "third value that predict returns.*, got a mask of True and False",
        ),
        ({"box": [5, 5, 9, 9], "mask_input": "m.png"}, "mask_input: .* the text 'm.png'"),
        ({"box": [5, 5, 9, 9], "mask_input": np.full((16, 16), 1e300)}, "not finite"),
        ({"box": [5, 5, 9, 9], "num_masks": "3"}, "num_masks: must be 1, 3 or 4, got a value of type str"),
        (
            {"box": [5, 5, 9, 9], "num_masks": np.array([1, 2])},
            "num_masks: must be 1, 3 or 4, got a value of type ndarray",
        ),
        ({"box": [5, 5, 9, 9], "num_masks": 10**5000}, "num_masks: must be 1, 3 or 4"),
        ({"box": [5, 5, 9, 9], "image": "a.jpg"}, "image: expected what set_image returns, got a value of type str"),
        ({"box": [5, 5, 9, 9], "fill_holes": -1}, "fill_holes: expected a whole number of pixels"),
        ({"box": [5, 5, 9, 9], "drop_islands": "9"}, "drop_islands: expected a whole number of pixels"),
    ],
)
def test_bad_prompts_are_one_clear_line(ready: Predictor, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ready.predict(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "photo.jpg",
        None,
        {"image": 1},
        [[1, 2], [3]],
        np.zeros((4, 4, 3), object),
        np.ma.array(np.zeros((4, 4, 3), np.uint8), mask=np.eye(4, dtype=bool)[..., None].repeat(3, 2)),
        np.zeros((4, 4, 3), np.complex64),
    ],
)
def test_images_other_than_rgb_are_refused(model: Model, image: object) -> None:
    with pytest.raises(UsageError, match="image: expected RGB") as caught:
        Predictor(model).set_image(image)
    assert "\n" not in str(caught.value)
    photo = np.zeros((8, 8, 3), np.uint8)
    if image is not None:
        with pytest.raises(UsageError, match="embedding: expected what set_image returns"):
            Predictor(model).set_image(photo, image)
