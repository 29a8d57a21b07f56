"""The path rule and the leaf table, against the published key lists."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_keys import read_keys

from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.guess import published_shapes
from edgesam_jax.config import DecoderConfig, UsageError
from edgesam_jax.models.sam import MODELS

LISTS = {"edge_sam": 821, "sam_vit_b": 314}


@pytest.mark.parametrize("name", LISTS)
def test_the_tree_of_the_model_is_the_published_list(name):
    keys = read_keys(name)
    assert len(keys) == LISTS[name]
    assert published_shapes(MODELS[name]) == {key: shape for key, (shape, _) in keys.items()}


@pytest.mark.parametrize("name", LISTS)
def test_round_trip_is_exact(name):
    rng = np.random.default_rng(0)
    source = {}
    for key, (shape, dtype) in read_keys(name).items():
        value = rng.integers(1, 9999, shape) if dtype == "int64" else rng.standard_normal(shape, np.float32)
        source[key] = np.asarray(value, dtype)
    tree, counts = names.to_tree(source)
    back = names.to_published(tree, counts)
    assert set(back) == set(source)
    for key, value in source.items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape
        assert back[key].tobytes() == value.tobytes(), key


def test_layouts():
    """Each kind of leaf, by its index arithmetic."""
    rng = np.random.default_rng(0)
    arrays = {
        "image_encoder.features.0.0.c.weight": rng.normal(size=(5, 3, 2, 2)),
        "image_encoder.features.1.token_mixer.0.conv.c.weight": rng.normal(size=(6, 1, 3, 3)),
        "mask_decoder.output_upscaling.0.weight": rng.normal(size=(4, 7, 2, 2)),
        "mask_decoder.transformer.layers.0.self_attn.q_proj.weight": rng.normal(size=(4, 6)),
        "mask_decoder.transformer.layers.0.self_attn.q_proj.lora_A": rng.normal(size=(2, 6)),
        "mask_decoder.mask_tokens.weight": rng.normal(size=(4, 8)),
        "image_encoder.neck.1.weight": rng.normal(size=(4,)),
        "image_encoder.features.0.0.bn.running_var": rng.normal(size=(4,)),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": rng.normal(size=(2, 8)),
    }
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    tree, counts = names.to_tree(arrays)
    assert counts == {}
    flat = names.flatten(tree)
    conv, depthwise, transposed, dense, lora, tokens, norm, var, gaussian = arrays.values()
    kernel = flat["params/image_encoder/features_0_0/c/kernel"]
    assert kernel.shape == (2, 2, 3, 5) and kernel[1, 0, 2, 4] == conv[4, 2, 1, 0]
    kernel = flat["params/image_encoder/features_1/token_mixer_0/conv/c/kernel"]
    assert kernel.shape == (3, 3, 1, 6) and kernel[2, 1, 0, 5] == depthwise[5, 0, 2, 1]
    kernel = flat["params/mask_decoder/output_upscaling_0/kernel"]
    assert kernel.shape == (2, 2, 4, 7) and kernel[1, 0, 3, 6] == transposed[3, 6, 1, 0]
    attention = "params/mask_decoder/transformer/layers_0/self_attn/q_proj"
    assert (flat[f"{attention}/kernel"] == dense.T).all()
    assert (flat[f"{attention}/lora_A"] == lora).all()
    assert (flat["params/mask_decoder/mask_tokens/embedding"] == tokens).all()
    assert (flat["params/image_encoder/neck_1/scale"] == norm).all()
    assert (flat["batch_stats/image_encoder/features_0_0/bn/var"] == var).all()
    assert (flat["constants/prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"] == gaussian).all()


segment = st.from_regex(r"[a-z][a-z0-9]{0,6}(_[a-z]+)?", fullmatch=True)


@given(st.lists(st.tuples(segment, st.lists(st.integers(0, 40), max_size=3)), min_size=1, max_size=5))
def test_the_path_rule_has_an_inverse(segments):
    published = ".".join(".".join([name, *map(str, numbers)]) for name, numbers in segments)
    assert names.unfold_path(names.fold_path(published)) == published


@pytest.mark.parametrize("name", ["edge_sam_m3", "tiny_student", "tiny_teacher"])
def test_every_model_has_published_names(name):
    shapes = published_shapes(MODELS[name])
    tree, counts = names.to_tree(
        {k: np.zeros(s, np.int64 if k.endswith("tracked") else np.float32) for k, s in shapes.items()}
    )
    assert names.expected_shapes(tree) == shapes
    assert len(counts) == sum(k.endswith("tracked") for k in shapes)


def test_lora_entries_have_names():
    config = dataclasses.replace(MODELS["tiny_student"], decoder=DecoderConfig(heads=4, mlp_dim=128, lora_rank=16))
    shapes = published_shapes(config)
    assert shapes["mask_decoder.transformer.layers.1.self_attn.v_proj.lora_B"] == (64, 16)
    assert shapes["mask_decoder.transformer.final_attn_token_to_image.q_proj.lora_A"] == (16, 64)


def test_one_report_of_everything_wrong():
    shapes = {"a.weight": (2, 3), "b.bias": (4,), "c.bias": (1,), "bn.num_batches_tracked": ()}
    source = {
        "a.weight": np.zeros((3, 2), np.float32),
        "c.bias": np.array([np.nan], np.float32),
        "bn.num_batches_tracked": np.zeros((), np.float32),
        "extra.weight": np.zeros(2, np.float32),
    }
    with pytest.raises(UsageError) as caught:
        names.check(source, shapes, "file.pth")
    text = str(caught.value)
    for part in (
        "file.pth: 1 missing, 1 left over, 1 misshapen, 1 not finite, 1 wrong type",
        "missing: b.bias [4]",
        "left over: extra.weight [2]",
        "misshapen: a.weight is [3, 2], the model has [2, 3]",
        "not finite: c.bias",
        "wrong type: bn.num_batches_tracked is float32",
    ):
        assert part in text


def test_unknown_leaves_are_refused():
    with pytest.raises(UsageError, match="not an entry"):
        names.to_tree({"image_encoder.blocks.0.gamma": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="no published model"):
        names.to_published({"params": {"x": {"gamma": np.zeros(3, np.float32)}}})
