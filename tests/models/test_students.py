"""TinyViT and EfficientViT: parity with the torch twins, folding, gradients, sizes, half precision."""

from __future__ import annotations

import dataclasses
import functools

import deterministic_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from published_keys import read_keys

from edgesam_jax.checkpoints.published.guess import guess, published_shapes
from edgesam_jax.config import Config, DistillConfig, EfficientVitConfig, RepVitConfig, TinyVitConfig
from edgesam_jax.eval.efficiency.model_cost import counts
from edgesam_jax.learning.checks import check_teacher
from edgesam_jax.models.encoders.efficient_vit import linear_attention
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import abstract_variables, init_variables
from edgesam_jax.models.sam import MODELS, Sam

# 96 px: grids of 12, 6 and 6 (or 3), so that windows of 7, 4 and 7 are padded, and fit more than once.
TINY_VIT = TinyVitConfig(widths=(8, 16, 16, 24), depths=(1, 1, 2, 1), heads=(1, 2, 2, 3), windows=(7, 7, 4, 7))
EFFICIENT_VIT = EfficientVitConfig(widths=(4, 8, 8, 16, 24), depths=(1, 1, 2, 1, 2), head_dim=8)


def small(encoder, **changes):
    return dataclasses.replace(tiny.CONV, encoder=dataclasses.replace(encoder, **changes), image_size=96)


CONFIGS = {
    "mobile_sam": small(TINY_VIT),
    "tiny_vit": small(TINY_VIT, fuse=True),
    "tiny_vit_stem": small(TINY_VIT, fuse=True, stem_strides=(2, 1)),
    "efficient_vit": small(EFFICIENT_VIT),
    "efficient_vit_nodown": small(EFFICIENT_VIT, fuse=False),
    "efficient_vit_stem": small(EFFICIENT_VIT, stem_stride=1),
}
each = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def encode(config, variables, image, folded=False):
    return jax.jit(functools.partial(Sam(config, folded=folded).apply, method="encode_image"))(variables, image)


@each
def test_the_encoder_is_the_torch_twins(config):
    torch = pytest.importorskip("torch")
    from convert.export.encoder import ExportEncoder
    from convert.torch_twin.loading import load_twin
    from edgesam_jax.checkpoints.model import Model

    model, image = Model(config, deterministic_weights.variables(config)), deterministic_weights.image(96)
    found = np.asarray(encode(config, model.variables, image))
    assert found.shape == (1, config.grid, config.grid, 16)
    planes = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        twin = load_twin(model).encode_image(planes).numpy().transpose(0, 2, 3, 1)
        export = ExportEncoder(config, model.variables)(planes).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, twin, atol=2e-5)
    np.testing.assert_allclose(export, twin, atol=2e-5)


@each
def test_folding_changes_nothing(config):
    variables, image = deterministic_weights.variables(config), deterministic_weights.image(96)
    folded = fold(config, variables)
    assert not folded["batch_stats"]
    want = encode(config, variables, image)
    np.testing.assert_allclose(encode(config, folded, image, True), want, atol=2e-5)


@pytest.mark.parametrize("name", ["mobile_sam", "efficient_vit"])
def test_in_training_every_parameter_has_a_gradient_and_statistics_move(name):
    config = CONFIGS[name]
    variables = init_variables(config, 0)
    image = deterministic_weights.image(96)
    rest = {"batch_stats": variables["batch_stats"], "constants": variables["constants"]}

    @jax.jit
    def step(params):
        out, updated = Sam(config).apply(
            {"params": params, **rest}, image, True, method="encode_image", mutable=["batch_stats"]
        )
        return (out**2 * np.arange(out.shape[-1])).sum(), updated["batch_stats"]

    (_, stats), gradients = jax.value_and_grad(step, has_aux=True)(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(gradients["image_encoder"]):
        keys = jax.tree_util.keystr(path)
        assert np.isfinite(g).all()
        # A residual that ends in a norm of scale 0 passes nothing on to what is before it, at the start.
        behind = name == "mobile_sam" and "blocks_0" in keys and "layers_0" in keys
        assert np.abs(g).max() > 0 or behind, keys
    for path, new in jax.tree_util.tree_leaves_with_path(stats):
        old = variables["batch_stats"]
        for part in path:
            old = old[part.key]
        assert np.abs(np.asarray(new) - old).max() > 0, jax.tree_util.keystr(path)


def test_the_tree_of_efficient_vit_is_the_published_list_without_its_head():
    keys = {name: shape for name, (shape, _) in read_keys("efficientvit_b1").items()}
    ours = published_shapes(MODELS["edge_sam_efficient_vit"])
    own = ("image_encoder.input_stem.", "image_encoder.stages.")
    backbone = {name: shape for name, shape in ours.items() if name.startswith(own)}
    assert len(keys) == 272 and len(backbone) == 261
    assert backbone == {
        name.replace("backbone.", "image_encoder."): shape
        for name, shape in keys.items()
        if not name.startswith("head.")
    }


# Parameters, and multiply-accumulates in G at 1024 px counted by convolutions
# (docs/published_code.md, "Other models").
SIZES = {
    "repvit": (RepVitConfig(), 5_517_552, 20.05),
    "repvit_nodown": (RepVitConfig(fuse=False), 5_402_864, 25.57),
    "tiny_vit": (TinyVitConfig(fuse=True), 5_850_388, None),
    "tiny_vit_nodown": (TinyVitConfig(), 5_743_892, None),
    "efficient_vit": (EfficientVitConfig(), 5_398_624, 13.25 - 0.18),  # 0.18: linear attention, no layer's product
    "efficient_vit_nodown": (EfficientVitConfig(fuse=False), 4_643_936 + 656_384, None),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    encoder, parameters, gmac = SIZES[name]
    counted = counts(dataclasses.replace(MODELS["edge_sam"], encoder=encoder))
    assert counted["parameters"]["encoder"] == parameters
    if gmac is not None:
        assert counted["gmac"]["layers"]["encoder"] == pytest.approx(gmac, abs=0.006)


@each
def test_an_unnamed_file_is_recognised(config):
    """By its entries: which encoder, and with fusion or without."""
    name = {"tiny_vit": "edge_sam_tiny_vit", "efficient_vit": "edge_sam_efficient_vit"}[config.encoder.kind]
    known = dataclasses.replace(MODELS[name].encoder, fuse=config.encoder.fuse)
    whole = dataclasses.replace(MODELS[name], encoder=known)
    found, guessed = guess(published_shapes(whole), "file")
    assert guessed == whole
    assert found == ("mobile_sam" if known == MODELS["mobile_sam"].encoder else name)


def test_linear_attention_is_the_sum_over_pairs():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 10, 3, 4)).astype(np.float32)
    weights = np.einsum("bnhd,bmhd->bhnm", np.maximum(q, 0), np.maximum(k, 0)).astype(np.float64)
    want = np.einsum("bhnm,bmhd->bnhd", weights, v) / (weights.sum(-1) + 1e-15).transpose(0, 2, 1)[..., None]
    np.testing.assert_allclose(linear_attention(q, k, v), want, atol=1e-5)


def test_linear_attention_is_float32_whatever_it_is_given():
    """1e-15 is nothing beside bfloat16's and float16's numbers: a query that meets no key must give 0, not NaN."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 64, 2, 8)).astype(np.float32)
    q[:, 0] = -1
    for dtype in (jnp.bfloat16, jnp.float16):
        given = [jnp.asarray(x, dtype) for x in (q, k, v)]
        found = linear_attention(*given)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found[:, 0], 0)
        np.testing.assert_array_equal(found, linear_attention(*(x.astype(jnp.float32) for x in given)))


def test_half_precision_encoders_stay_close():
    for config in (CONFIGS["tiny_vit"], CONFIGS["efficient_vit"]):
        variables, image = deterministic_weights.variables(config), deterministic_weights.image(96)
        half = encode(dataclasses.replace(config, compute_dtype="bfloat16"), variables, image)
        assert half.dtype == jnp.bfloat16
        error = np.asarray(half, np.float32) - encode(config, variables, image)
        assert np.sqrt((error**2).mean()) < 0.05


@pytest.mark.parametrize("name", ["edge_sam", "mobile_sam", "edge_sam_efficient_vit", "efficient_sam_ti", "sam_vit_b"])
def test_any_registered_model_can_teach(name):
    """A step of stage 1 and one of stage 2 at full size, by its shapes."""
    from edgesam_jax.learning.step import total_loss
    from edgesam_jax.types import Batch, TrainState

    shallow = RepVitConfig(depths=(1, 1, 2, 1))
    student, teacher = dataclasses.replace(MODELS["edge_sam"], encoder=shallow), MODELS[name]
    for mode in ("encoder_only", "prompt_in_the_loop"):
        config = Config(model=student, teacher="t", distill=DistillConfig(mode=mode))
        check_teacher(config, teacher)
        array = jax.ShapeDtypeStruct
        batch = Batch(
            array((1, 1024, 1024, 3), np.uint8), array((1, 2), np.int32), array((1, 2, 4), np.float32),
            array((1, 2, 2), np.float32), array((1, 2), bool), array((1, 2, 256, 256), bool),
        )  # fmt: skip
        own, theirs = abstract_variables(student), abstract_variables(teacher)

        def loss(own, theirs, batch, config=config):
            state = TrainState(jnp.zeros((), jnp.int32), own["params"], own["batch_stats"], own["constants"], None)
            rest = {"config": config, "teacher_config": teacher}
            return total_loss(state.params, state, theirs, batch, jax.random.key(0), **rest)[0]

        assert jax.eval_shape(loss, own, theirs, batch).shape == ()


@pytest.mark.parametrize("name", ["sam_vit_l", "sam_vit_h"])
def test_large_teachers_fit_the_student(name):
    check_teacher(Config(model=MODELS["edge_sam"], teacher="t"), MODELS[name])
