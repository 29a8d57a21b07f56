"""Folded models give the unfolded models' numbers with fewer parameters."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import traverse_util

from edgesam_jax.config import VitConfig
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import MODELS, Sam


def lively_variables(config, seed=0):
    """Starting values with batch norms that do something."""
    rng = np.random.default_rng(seed)
    variables = init_variables(config, seed)
    flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    for path, value in flat.items():
        if "bn" in path:
            draw = rng.standard_normal(value.shape).astype(np.float32)
            flat[path] = 0.5 + 0.5 * np.abs(draw) if path[-1] in ("var", "scale") else 0.3 * draw
    return traverse_util.unflatten_dict(flat)


def encode(config, variables, images, folded):
    run = jax.jit(lambda v, x: Sam(config, folded=folded).apply(v, x, method="encode_image"))
    return np.asarray(run(variables, images))


def relative_rms(a, b):
    return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


@pytest.mark.parametrize("name", ["tiny_student", "edge_sam", "edge_sam_no_fuse"])
def test_folded_encoder_gives_the_same_embedding(name):
    config = MODELS[name.removesuffix("_no_fuse")]
    config = replace(config, image_size=64)
    if name.endswith("no_fuse"):
        config = replace(config, encoder=replace(config.encoder, fuse=False, depths=(2, 2, 3, 3)))
    variables = lively_variables(config)
    images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    folded = fold(config, variables)
    want, got = encode(config, variables, images, False), encode(config, folded, images, True)
    with jax.enable_x64(True):
        exactly = replace(config, compute_dtype="float64")
        wide = [jax.tree.map(np.float64, tree) for tree in (variables, folded, images)]
        exact = encode(exactly, wide[0], wide[2], False)
        assert relative_rms(encode(exactly, wide[1], wide[2], True), exact) < 5e-6
    # Against the float64 result: on jax 0.12 rounding alone takes either of them up to 7e-6 off it.
    assert relative_rms(got, exact) < 1e-5 and relative_rms(want, exact) < 1e-5
    assert folded["batch_stats"] == {}
    # The rest of the model is untouched, and so are the caller's arrays.
    assert folded["params"]["mask_decoder"] is variables["params"]["mask_decoder"]
    assert "bn" in variables["params"]["image_encoder"]["features_0_0"]


def test_parameters_are_those_the_folded_model_expects():
    config = MODELS["edge_sam"]
    folded = fold(config, init_variables(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(folded["params"]["image_encoder"])) == 5_485_896
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    expected = jax.eval_shape(
        lambda x: Sam(config, folded=True).init(jax.random.key(0), x, method="encode_image"), images
    )
    shapes = jax.tree.map(np.shape, folded["params"]["image_encoder"])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, expected["params"]["image_encoder"])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(folded["params"]))


def test_encoders_without_batch_norm_pass_through():
    config = replace(MODELS["tiny_student"], encoder=VitConfig(width=32, depth=1, heads=2, global_blocks=(0,)))
    variables = init_variables(config)
    assert fold(config, variables) == variables


def test_folding_twice_changes_nothing():
    config = MODELS["tiny_student"]
    once = fold(config, lively_variables(config))
    twice = fold(config, once)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
