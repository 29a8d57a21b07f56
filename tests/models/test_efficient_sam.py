"""EfficientSAM: names, sizes, parity with the torch twin, its frame, its file both ways."""

from __future__ import annotations

import dataclasses
import functools

import deterministic_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from published_keys import read_keys

from edgesam_jax import Predictor, UsageError
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.published.guess import guess, published_shapes
from edgesam_jax.config import Config, DistillConfig, PlainVitConfig
from edgesam_jax.data.scenes.textures import photos
from edgesam_jax.learning.checks import check_teacher
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.prompts import from_boxes, from_boxes_and_points, from_points
from edgesam_jax.models.sam import MODELS, Sam, decode
from edgesam_jax.portable.frame import into_frame
from edgesam_jax.portable.postprocess import upscale_logits
from edgesam_jax.train.initialization import initial_variables

SMALL = dataclasses.replace(
    tiny.CONV, encoder=PlainVitConfig(width=24, depth=2, heads=3, patch_size=8, trained_grid=3), image_size=64,
    decoder=dataclasses.replace(tiny.CONV.decoder, depth=2), variant="efficient_sam",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(SMALL, deterministic_weights.variables(SMALL), {"score": "iou"})


def test_the_tree_is_the_published_list():
    keys = {name: shape for name, (shape, _) in read_keys("efficient_sam_ti").items()}
    assert len(keys) == 278 and published_shapes(MODELS["efficient_sam_ti"]) == keys


@pytest.mark.parametrize(
    ("name", "whole", "encoder"),
    [("efficient_sam_ti", 10_223_204, 6_163_840), ("efficient_sam_s", 26_413_028, 22_353_664)],
)
def test_sizes_are_the_published_ones(name, whole, encoder):
    params = abstract_variables(MODELS[name])["params"]
    size = {part: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert size == {"image_encoder": encoder, "prompt_encoder": 1024, "mask_decoder": 4_058_340}
    assert sum(size.values()) == whole and MODELS[name].grid == 64
    assert guess(published_shapes(MODELS[name]), "file") == (name, MODELS[name])


def test_the_encoder_is_the_torch_twins(model):
    torch = pytest.importorskip("torch")
    image = deterministic_weights.image(64)
    found = jax.jit(functools.partial(Sam(SMALL).apply, method="encode_image"))(model.variables, image)
    with torch.no_grad():
        want = twin(model).encode_image(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    assert found.shape == (1, 8, 8, 16)
    np.testing.assert_allclose(found, want.numpy().transpose(0, 2, 3, 1), atol=2e-5)


@functools.cache
def _twin(key):
    import torch

    from convert.torch_twin.efficient_sam import TorchEfficientSam

    sam = TorchEfficientSam(SMALL).eval()
    published = deterministic_weights.published(SMALL)
    sam.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in published.items()}, strict=True)
    return sam


def twin(model):
    return _twin(0)


EMBEDDING = (1.7 * deterministic_weights.uniform("embedding", (1, 8, 8, 16))).astype(np.float32)
RUN = functools.cache(lambda: jax.jit(functools.partial(decode, SMALL)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.booleans())
def test_any_prompt(seed, count, with_box):
    """Points of both labels and a box, fewer and more than six tokens: beyond them the rest is cut."""
    torch = pytest.importorskip("torch")
    if not count and not with_box:
        return
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 64, (1, 1, count, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (1, 1, count)).astype(np.int32)
    box = rng.uniform(0, 64, (1, 1, 4)).astype(np.float32)
    slots = 8
    if not with_box:
        prompts = from_points(points, labels, slots)
    else:
        prompts = from_boxes_and_points(box, points, labels, slots) if count else from_boxes(box, slots)
    coords = np.concatenate([*([box.reshape(1, 2, 2)] if with_box else []), points[0]], axis=1)
    kinds = np.concatenate([*([np.array([[2, 3]])] if with_box else []), labels[0]], axis=1)
    model = Model(SMALL, deterministic_weights.variables(SMALL))
    found = RUN()(model.variables, EMBEDDING, prompts)
    with torch.no_grad():
        planes = torch.from_numpy(EMBEDDING.transpose(0, 3, 1, 2).copy())
        logits, iou = twin(model).decode(planes, torch.from_numpy(coords), torch.from_numpy(kinds))
    np.testing.assert_allclose(found.logits[0], logits.numpy(), atol=2e-4 * max(1.0, float(logits.std())))
    np.testing.assert_allclose(found.iou[0], iou.numpy(), atol=1e-4)


def test_masks_come_in_sams_order(model):
    prompts = from_boxes(jnp.array([[[5.0, 6.0, 40.0, 50.0]]]))
    every = decode(SMALL, model.variables, EMBEDDING, prompts)
    for count, kept in ((1, slice(0, 1)), (3, slice(1, 4))):
        some = decode(SMALL, model.variables, EMBEDDING, prompts, num_masks=count)
        np.testing.assert_array_equal(some.logits, every.logits[:, :, kept])
        np.testing.assert_array_equal(some.iou, every.iou[..., kept])


# ------------------------------------------------------------------------------------------------------------ its frame


def test_photos_are_stretched_as_torch_does_it():
    torch = pytest.importorskip("torch")
    photo = photos()[1][0]
    framed, filled = into_frame(photo, 64, "stretch")
    planes = torch.from_numpy(photo.transpose(2, 0, 1)[None].copy()).float()
    want = torch.nn.functional.interpolate(planes, (64, 64), mode="bilinear", align_corners=False)
    assert filled == (64, 64) and framed.shape == (64, 64, 3)
    np.testing.assert_allclose(framed, want[0].numpy().transpose(1, 2, 0), atol=0.51)  # rounded to whole numbers
    logits = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    full = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], photo.shape[:2], mode="bicubic")[0].numpy()
    np.testing.assert_allclose(upscale_logits(logits, 64, (64, 64), photo.shape[:2], "stretch"), full, atol=1e-4)


def test_the_predictor_scales_each_axis_by_itself(model):
    torch = pytest.importorskip("torch")
    photo = photos()[1][0]
    predictor = Predictor(model)
    predictor.set_image(photo)
    masks, scores, logits = predictor.predict([[100, 50], [30, 90]], [1, 0], num_masks=4)
    assert masks.shape == (4, *photo.shape[:2])
    framed, _ = into_frame(photo, 64, "stretch")
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    planes = torch.from_numpy(((framed - mean) / std).astype(np.float32).transpose(2, 0, 1)[None].copy())
    scale = 64 / np.array(photo.shape[1::-1])
    coords = torch.from_numpy((np.array([[[100, 50], [30, 90]]]) * scale).astype(np.float32))
    with torch.no_grad():
        want, iou = twin(model).decode(twin(model).encode_image(planes), coords, torch.tensor([[1, 0]]))
    np.testing.assert_allclose(logits, want[0].numpy(), atol=1e-3 * max(1.0, float(want.std())))
    np.testing.assert_allclose(scores, iou[0].numpy(), atol=1e-3)
    with pytest.raises(UsageError, match="EfficientSAM takes no masks"):
        predictor.predict([[100, 50]], [1], mask_input=logits[0])


def test_the_evaluation_uses_the_same_frame(model):
    from edgesam_jax.data.schema import Example, boxes_of
    from edgesam_jax.eval.heldout import evaluate
    from edgesam_jax.eval.metrics import mask_iou

    photo = photos()[1][0]
    masks = np.zeros((1, *photo.shape[:2]), bool)
    masks[0, 40:180, 60:200] = True
    example = Example(photo, masks, boxes_of(masks), np.array([[120, 100]], np.float32))
    predictor = Predictor(model)
    predictor.set_image(photo)
    found = predictor.predict_prompts(example.boxes)[0][:, 0]
    scored = evaluate(model, [example])
    np.testing.assert_allclose(scored.iou[:, 0], mask_iou(found, masks), atol=1e-3)


# ------------------------------------------------------------------------------------------------------ files, teachers


def test_a_published_file_goes_both_ways(tmp_path):
    torch = pytest.importorskip("torch")
    from convert.to_torch import save_published
    from edgesam_jax.checkpoints.published.read import load_published

    entries = deterministic_weights.published(MODELS["efficient_sam_ti"])
    torch.save({"model": {n: torch.from_numpy(np.array(v)) for n, v in entries.items()}}, tmp_path / "vitt.pt")
    model = load_published(tmp_path / "vitt.pt")
    assert model.metadata["model"] == "efficient_sam_ti" and model.metadata["score"] == "iou"
    back = torch.load(save_published(tmp_path / "back.pth", model), weights_only=True)["model"]
    assert list(back) == list(TorchOrder(model.config)) and set(back) == set(entries)
    assert all(back[name].numpy().tobytes() == entries[name].tobytes() for name in entries)


def TorchOrder(config):
    import torch

    from convert.torch_twin.efficient_sam import TorchEfficientSam

    with torch.device("meta"):
        return TorchEfficientSam(config).state_dict()


def test_it_can_teach_but_not_lend_its_decoder(model):
    student = dataclasses.replace(SMALL, encoder=tiny.CONV.encoder, variant="sam", image_size=64)
    config = Config(model=student, teacher="t", distill=DistillConfig(mode="encoder_only"))
    check_teacher(config, SMALL)
    with pytest.raises(UsageError, match="teacher=t: its weights do not fit"):
        initial_variables(config, model, None)
    alone = dataclasses.replace(config, distill=dataclasses.replace(config.distill, init_decoder_from_teacher=False))
    assert initial_variables(alone, model, None)
    maps = dataclasses.replace(config.distill.loss, attention=1.0)
    with pytest.raises(UsageError, match="its variant is efficient_sam"):
        check_teacher(dataclasses.replace(config, distill=DistillConfig(loss=maps)), SMALL)
