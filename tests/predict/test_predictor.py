"""The predictor: masks for prompts on one photo, and errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import DecoderConfig, RepVitConfig, SamConfig, UsageError
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.predict import predictor as predictor_module
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.types import MaskPrediction, Prompts

CONFIG = SamConfig(
    encoder=RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 1, 2, 1)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_variables(CONFIG, 3), {"score": "iou"})


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture
def ready(model: Model, photo: np.ndarray) -> Predictor:
    predictor = Predictor(model)
    predictor.set_image(photo)
    return predictor


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
    sam = Sam(CONFIG)
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
    predictor = Predictor(Model(CONFIG, model.variables, {}))
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
        Predictor(Model(CONFIG, model.variables)).set_image(photo, embedding=kept)
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
    ],
)
def test_bad_prompts_are_one_clear_line(ready: Predictor, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ready.predict(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_images_other_than_rgb_are_refused(model: Model, image: np.ndarray) -> None:
    with pytest.raises(UsageError, match="RGB"):
        Predictor(model).set_image(image)
