"""Schedules against the published formulas, the decay mask, clipping and freezing."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.config import Config, DataConfig, DecoderConfig, DistillConfig, OptimConfig, SamConfig, TrainConfig
from edgesam_jax.learning import optim


def params():
    """A tree with the names that decide decay and freezing."""
    ones = jnp.ones
    q_proj = {"kernel": ones((3, 3)), "bias": ones(3), "lora_A": ones((2, 3)), "lora_B": ones((3, 2))}
    return {
        "image_encoder": {"neck_0": {"kernel": ones((1, 1, 2, 3))}, "neck_1": {"scale": ones(3), "bias": ones(3)}},
        "prompt_encoder": {"no_mask_embed": {"embedding": ones((1, 3))}},
        "mask_decoder": {
            "iou_token": {"embedding": ones((1, 3))},
            "mask_tokens": {"embedding": ones((4, 3))},
            "transformer": {"layers_0": {"self_attn": {"q_proj": q_proj}}},
        },
    }


def names(tree, wanted):
    """Slash-joined paths of the leaves that equal ``wanted``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path) for path, leaf in leaves if leaf == wanted}


def formula(t, kind, base, low, start, warmup, steps):
    """The rate at step t in plain Python (docs/published_code.md, "Optimiser and schedules")."""
    if t < warmup:
        return start + t * (base - start) / warmup
    t = min(t, steps)
    if kind == "cosine_unshifted":
        return low + 0.5 * (base - low) * (1 + math.cos(math.pi * t / steps))
    share = (t - warmup) / (steps - warmup)
    if kind == "cosine":
        return low + 0.5 * (base - low) * (1 + math.cos(math.pi * share))
    return base + (low - base) * share if kind == "linear" else base


def test_step_schedule_is_the_1x_one():
    """12 epochs of 100 steps: 0.02 after a warm-up of 500 steps from a thousandth, a tenth after 8 and after 11."""
    config = OptimConfig(0.02, 0, 2e-5, 500, "step", milestones=(8 / 12, 11 / 12))
    rate = optim.make_schedule(config, 16, 1200)
    for step, want in ((0, 2e-5), (250, 0.01001), (500, 0.02), (799, 0.02), (800, 0.002), (1100, 2e-4), (1199, 2e-4)):
        assert float(rate(step)) == pytest.approx(want, rel=1e-5), step


def test_sgd_is_heavy_ball_with_decay_of_matrices():
    config = Config(optim=OptimConfig(0.1, schedule="constant", weight_decay=0.5, optimizer="sgd"))
    params = {"image_encoder": {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0)}}
    tx, _ = optim.make_optimizer(config, params)
    state = tx.init(params)
    for want_kernel, want_bias in ((-0.1 * (3 + 1), -0.1 * 3), (-0.1 * (0.9 * 4 + 4), -0.1 * (0.9 * 3 + 3))):
        updates, state = tx.update(jax.tree.map(lambda x: jnp.full_like(x, 3.0), params), state, params)
        assert float(updates["image_encoder"]["kernel"][0, 0]) == pytest.approx(want_kernel)
        assert float(updates["image_encoder"]["bias"][0]) == pytest.approx(want_bias)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["cosine", "cosine_unshifted", "linear", "constant"]),
    base=st.floats(1e-5, 1.0),
    low=st.floats(0, 1e-5),
    start=st.floats(0, 1e-5),
    warmup=st.integers(0, 50),
    more=st.integers(1, 100),
    where=st.floats(0, 1.2),
    batch=st.integers(1, 1024),
    scale=st.booleans(),
)
def test_schedule_equals_the_formula(kind, base, low, start, warmup, more, where, batch, scale):
    config = OptimConfig(base, low, start, warmup, kind, scale)
    steps, factor = warmup + more, batch / 512 if scale else 1.0
    t = int(where * steps)
    got = float(optim.make_schedule(config, batch, steps)(t))
    expected = formula(t, kind, base * factor, low * factor, start * factor, warmup, steps)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-12 * base * factor)


@pytest.mark.parametrize("kind", ["cosine", "cosine_unshifted", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1000), (500, 1000), (8592, 17184)])
@pytest.mark.parametrize("low", [0.0, 6.25e-7])
def test_every_step_has_its_rate_to_the_last_digit(kind, warmup, steps, low):
    """1 + cos(pi t / T) in float32 is 1.2e-4 off at the last of 1,000 steps, and 2.9e-4 in published stage 1."""
    config = OptimConfig(1.25e-2, low, 6.25e-8, warmup, kind)
    found = np.asarray(jax.jit(optim.make_schedule(config, 64, steps))(np.arange(steps + 1)), np.float64)
    expected = np.array([formula(t, kind, 1.25e-2, low, 6.25e-8, warmup, steps) for t in range(steps + 1)])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-15)


def test_published_stage_1_climbs_then_halves_at_once():
    config = OptimConfig(0.1, 5e-6, 5e-7, 500, "cosine_unshifted", scale_by_batch=True)
    schedule = optim.make_schedule(config, batch_size=64, steps=1000)
    assert float(schedule(0)) == pytest.approx(6.25e-8)
    assert float(schedule(499)) == pytest.approx(1.25e-2, rel=3e-3)
    assert float(schedule(500)) == pytest.approx(6.25e-3, rel=1e-3)
    assert float(schedule(1000)) == pytest.approx(6.25e-7, rel=1e-3)


def test_published_stage_2_goes_from_1e_4_to_1e_5():
    config = OptimConfig(3.2e-3, 3.2e-4, 3.2e-5, 0, "cosine", scale_by_batch=True)
    schedule = optim.make_schedule(config, batch_size=16, steps=200)
    assert float(schedule(0)) == pytest.approx(1e-4)
    assert float(schedule(100)) == pytest.approx(5.5e-5)
    assert float(schedule(200)) == pytest.approx(1e-5)


def test_decay_spares_vectors_only():
    assert names(optim.decay_mask(params()), False) == {
        "image_encoder/neck_1/scale",
        "image_encoder/neck_1/bias",
        "mask_decoder/transformer/layers_0/self_attn/q_proj/bias",
    }


TOKENS = {"mask_decoder/iou_token/embedding", "mask_decoder/mask_tokens/embedding"}
ENCODER = {"image_encoder/neck_0/kernel", "image_encoder/neck_1/scale", "image_encoder/neck_1/bias"}
PROMPT = {"prompt_encoder/no_mask_embed/embedding"}
Q_PROJ = "mask_decoder/transformer/layers_0/self_attn/q_proj/"
LORA = {Q_PROJ + "lora_A", Q_PROJ + "lora_B"}
DECODER = TOKENS | LORA | {Q_PROJ + "kernel", Q_PROJ + "bias"}


@pytest.mark.parametrize(
    ("distill", "rank", "trained"),
    [
        (DistillConfig(), 0, ENCODER | DECODER),
        (DistillConfig(freeze_tokens=True), 0, ENCODER | DECODER - TOKENS),
        (DistillConfig(freeze_image_encoder=True), 0, DECODER),
        (DistillConfig(freeze_mask_decoder=True), 0, ENCODER),
        (DistillConfig(freeze_prompt_encoder=False), 0, ENCODER | PROMPT | DECODER),
        (DistillConfig(mode="encoder_only", freeze_prompt_encoder=False), 0, ENCODER),
        (DistillConfig(), 16, ENCODER | LORA),
    ],
)
def test_frozen_leaves_stay_and_have_no_state(distill, rank, trained):
    config = Config(
        model=SamConfig(decoder=DecoderConfig(lora_rank=rank)),
        distill=distill,
        optim=OptimConfig(learning_rate=0.1, weight_decay=0.5),
    )
    before = params()
    tx, _ = optim.make_optimizer(config, before)
    state = tx.init(before)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, before), state, before)
    moved = jax.tree.map(lambda u: bool(np.any(np.asarray(u) != 0)), updates)
    assert names(moved, True) == trained
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state))
    learning = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(before)
                   if "/".join(str(k.key) for k in path) in trained)  # fmt: skip
    assert 2 * learning <= sizes <= 2 * learning + 4, "two moments per trained number, and the step counters"


def test_one_step_is_decoupled_adamw_with_clipping():
    config = Config(
        data=DataConfig(batch_size=8),
        train=TrainConfig(steps=10),
        distill=DistillConfig(freeze_prompt_encoder=False),
        optim=OptimConfig(learning_rate=0.1, schedule="constant", weight_decay=0.5, clip_norm=1e-3, eps=1e-3),
    )
    before = params()
    tx, _ = optim.make_optimizer(config, before)
    grads = jax.tree.map(lambda x: 2.0 * jnp.ones_like(x), before)
    updates, _ = tx.update(grads, tx.init(before), before)
    after = optax.apply_updates(before, updates)
    clipped = 2.0 * 1e-3 / float(optax.global_norm(grads))
    direction = clipped / (clipped + 1e-3)  # the first bias-corrected moments are g and g^2
    assert np.allclose(after["image_encoder"]["neck_0"]["kernel"], 1 - 0.1 * (direction + 0.5), atol=1e-5)
    assert np.allclose(after["image_encoder"]["neck_1"]["scale"], 1 - 0.1 * direction, atol=1e-5)


def test_clipping_ignores_frozen_gradients():
    config = Config(
        distill=dataclasses.replace(DistillConfig(), mode="encoder_only"),
        optim=OptimConfig(clip_norm=1.0, eps=1.0, weight_decay=0.0),
    )
    tx, _ = optim.make_optimizer(config, params())
    grads = jax.tree.map(jnp.ones_like, params())
    huge = {**grads, "mask_decoder": jax.tree.map(lambda x: 1e6 * x, grads["mask_decoder"])}
    small, _ = tx.update(grads, tx.init(params()), params())
    same, _ = tx.update(huge, tx.init(params()), params())
    assert np.array_equal(small["image_encoder"]["neck_0"]["kernel"], same["image_encoder"]["neck_0"]["kernel"])
