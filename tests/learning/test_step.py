"""The body of a step: it learns, what is frozen stays as it is, and no batch upsets it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from tiny import CONV, PROPOSALS, REPVIT, configured, make_batch

from edgesam_jax.learning.objectives import objective_of
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.learning.step import train_step
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.types import TrainState

KEY = jax.random.key(0)
TEACHER = init_variables(CONV, 1)
# An image without any valid prompt is part of every batch.
BATCH = make_batch(seed=1, images=3, prompts=2)
BATCH = BATCH.replace(prompt_valid=BATCH.prompt_valid & (np.arange(3) != 1)[:, None])
RATE = ("optim.learning_rate=0.01", "optim.schedule=constant", "optim.weight_decay=0.01")
LORA = dataclasses.replace(REPVIT, decoder=dataclasses.replace(REPVIT.decoder, lora_rank=2))


def start(config):
    variables = init_variables(config.model, 0)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    truth = config.distill.targets == "ground_truth"
    body = functools.partial(train_step, config=config, teacher_config=None if truth else CONV, tx=tx)
    return state, None if truth else TEACHER, body


def train(config, steps, batch=BATCH):
    """First state, last state, metrics of every step.  The key's fold stays the same: the loss is of one function."""
    state, teacher, body = start(config)
    step = jax.jit(body)
    first, rows = state, []
    for _ in range(steps):
        state, metrics = step(state.replace(step=jnp.zeros((), jnp.int32)), teacher, batch, KEY)
        rows.append({name: float(value) for name, value in metrics.items()})
    assert int(state.step) == 1
    return first, state, rows


def changed(a, b):
    """Paths of the leaves that differ in any bit."""
    a, b = flatten_dict(a), flatten_dict(b)
    assert a.keys() == b.keys()
    return {path for path in a if np.asarray(a[path]).tobytes() != np.asarray(b[path]).tobytes()}


RUNS = {
    "stage 1": (configured("distill.mode=encoder_only", *RATE, model=REPVIT), 8, 0.9),
    "stage 2": (configured("distill.loss.encoder=0.1", *RATE, model=REPVIT), 8, 0.95),
    "stage 2, decoders matched": (
        configured(
            "distill.loss.attention=1", "distill.loss.features=0.1", "distill.loss.query=1", "distill.loss.iou=1",
            "distill.loss.encoder=0.1", "distill.loss.channel=0.1", "distill.loss.correlation=1", *RATE,
        ), 8, 0.95,
    ),
    "ground truth, everything": (
        configured(
            "distill.targets=ground_truth", "distill.freeze_prompt_encoder=false", "distill.rounds=0",
            "distill.loss.iou=1.0", "distill.loss.grouping=1.0", "distill.loss_over_prompts=image", *RATE,
        ), 8, 0.95,
    ),
    "frozen encoder and LoRA": (
        configured(
            "distill.targets=ground_truth", "distill.freeze_image_encoder=true", "distill.rounds=0", *RATE, model=LORA
        ), 20, 0.998,
    ),
    "proposals": (
        configured(
            "distill.mode=proposals", "distill.targets=ground_truth", "optim.optimizer=sgd", "optim.learning_rate=0.1",
            "optim.schedule=step", "optim.milestones=(0.9,)", "optim.weight_decay=0.001", model=PROPOSALS,
        ), 12, 0.8,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_loss_falls_and_what_is_frozen_stays(name):
    config, steps, falls_to = RUNS[name]
    first, last, rows = train(config, steps)
    assert all(np.isfinite(v) for row in rows for v in row.values())
    assert rows[-1]["loss"] < falls_to * rows[0]["loss"]
    moved, paths = changed(first.params, last.params), set(flatten_dict(first.params))
    trained = {p for p in paths if objective_of(config).learns(p, config)}
    assert moved <= trained
    # Tokens and weights whose gradient happens to vanish aside, everything that may learn does.
    assert len(moved) > 0.8 * len(trained)
    if config.model.decoder.lora_rank:
        assert {p[-1] for p in moved} == {"lora_A", "lora_B"}
    assert not changed(first.constants, last.constants)
    statistics = changed(first.batch_stats, last.batch_stats) if first.batch_stats else set()
    if config.distill.mode == "proposals":
        assert {path[0] for path in moved | statistics} == {"proposals"}
        assert statistics == {path for path in flatten_dict(first.batch_stats) if path[0] == "proposals"}
    elif config.distill.freeze_image_encoder or config.model.encoder.kind != "repvit":
        assert not statistics
    else:
        assert statistics == set(flatten_dict(first.batch_stats))


@pytest.mark.slow
def test_stored_teacher_embeddings_equal_those_computed_online():
    config = configured("distill.mode=encoder_only", *RATE)
    images = preprocess(BATCH.image, BATCH.valid_size)
    stored = Sam(CONV).apply(TEACHER, images, method="encode_image")
    _, online, a = train(config, 1)
    _, offline, b = train(config, 1, BATCH.replace(teacher_embedding=stored))
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-5)
    assert changed(online.params, init_variables(CONV, 0)["params"])
    wrong = train(config, 1, BATCH.replace(teacher_embedding=stored + 1))[2]
    assert abs(wrong[0]["loss"] - a[0]["loss"]) > 0.1
    # Adam's first step is the sign of the gradient, which rounding decides where it is nearly zero.
    distance = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).ravel(), online.params, offline.params)
    assert np.mean(np.concatenate(jax.tree.leaves(distance)) < 1e-4) > 0.95


@pytest.mark.slow
def test_a_batch_without_boxes_teaches_proposals_that_nothing_is_there():
    config = configured("distill.mode=proposals", "distill.targets=ground_truth", *RATE, model=PROPOSALS)
    _, _, rows = train(config, 3, BATCH.replace(prompt_valid=np.zeros_like(BATCH.prompt_valid)))
    assert all(np.isfinite(row["loss"]) and row["box"] == 0 for row in rows)
    assert rows[-1]["score"] < rows[0]["score"]


@pytest.mark.slow
def test_a_batch_without_any_prompt_changes_nothing_but_decay():
    config = configured("distill.targets=ground_truth", "distill.rounds=0", "optim.weight_decay=0.0")
    first, last, rows = train(config, 1, BATCH.replace(prompt_valid=np.zeros_like(BATCH.prompt_valid)))
    assert rows[0]["loss"] == 0 and rows[0]["grad_norm"] == 0
    assert not changed(first.params, last.params)


def test_prompts_weigh_the_same_or_images_do(monkeypatch):
    """B32: pooled, an image with few prompts has little say."""
    seen = {}

    def loss(params, embedding, inputs, config, teacher):
        seen[config.distill.loss_over_prompts] = np.asarray(inputs.weights)
        return jnp.sum(embedding), {}, None

    monkeypatch.setattr("edgesam_jax.learning.prompt_loop.prompt_in_the_loop_loss", loss)
    valid = np.array([[True, True], [False, False], [True, False]])
    from edgesam_jax.learning.step import total_loss

    for how in ("pooled", "image"):
        config = configured("distill.targets=ground_truth", f"distill.loss_over_prompts={how}")
        state, _, _ = start(config)
        total_loss(
            state.params, state, None, BATCH.replace(prompt_valid=valid), KEY, config=config, teacher_config=None
        )
    np.testing.assert_allclose(seen["pooled"], valid / 3)
    np.testing.assert_allclose(seen["image"], [[0.25, 0.25], [0, 0], [0.5, 0]])


# --------------------------------------------------------------------------------------------------- micro-batches

FOUR = make_batch(seed=2, images=4, prompts=2)
FOUR = FOUR.replace(prompt_valid=FOUR.prompt_valid & (np.arange(4) != 1)[:, None])
CUTS = {
    "stage 1": configured("distill.mode=encoder_only"),
    "stage 2": configured("distill.loss.encoder=0.1", "distill.min_disagreement=1", "train.prompt_chunk=1"),
    "ground truth, everything": configured(
        "distill.targets=ground_truth", "distill.coin=batch", "distill.mask_feedback=0.5", "distill.loss.iou=1.0",
        "distill.loss.grouping=1.0", "distill.loss_over_prompts=image", "distill.min_disagreement=1",
    ),
    "frozen encoder": configured(
        "distill.targets=ground_truth", "distill.rounds=0", "distill.freeze_image_encoder=true", model=REPVIT
    ),
}  # fmt: skip


def gradient(config, batch, pieces=1):
    """Gradient, new statistics and metrics of one step: plain descent at rate 1, from zero."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=pieces))
    state, teacher, _ = start(config)
    tx = optax.sgd(1.0)
    state = state.replace(opt_state=tx.init(state.params))
    body = functools.partial(train_step, config=config, teacher_config=CONV if teacher else None, tx=tx)
    after, metrics = jax.jit(body)(state, teacher, batch, KEY)
    grads = jax.tree.map(lambda new, old: np.asarray(old, np.float64) - new, after.params, state.params)
    return grads, after.batch_stats, {name: float(value) for name, value in metrics.items()}


def assert_near(a, b, rounding=2e-6):
    """Equal but for rounding: of the weights, from which the gradients were taken, and of the sums."""
    for path, x in flatten_dict(a).items():
        y = flatten_dict(b)[path]
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=rounding * max(1, np.abs(y).max()), err_msg="/".join(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTS)
def test_micro_batches_add_up_to_the_large_batch(name):
    whole, statistics, metrics = gradient(CUTS[name], FOUR)
    pieces, after, summed = gradient(CUTS[name], FOUR, pieces=4)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole)) > 1e-2
    assert_near(pieces, whole)
    assert summed == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert not changed(statistics, after) if statistics else not after


@pytest.mark.slow
def test_with_batch_norm_a_step_is_the_mean_of_its_micro_batches():
    config = configured("distill.mode=encoder_only", model=REPVIT)
    halves = [gradient(config, jax.tree.map(lambda x, i=i: x[i : i + 2], FOUR)) for i in (0, 2)]
    grads, statistics, metrics = gradient(config, FOUR, pieces=2)
    for got, parts in ((grads, [h[0] for h in halves]), (statistics, [h[1] for h in halves])):
        assert_near(got, jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, *parts))
    assert metrics["loss"] == pytest.approx((halves[0][2]["loss"] + halves[1][2]["loss"]) / 2, rel=1e-5)
    assert changed(statistics, gradient(config, FOUR)[1])


# -------------------------------------------------------------------------------------------------------- bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("distill.mode=encoder_only",), ("distill.rounds=0", "train.accumulate=2")])
def test_in_bfloat16_only_the_computation_is(overrides):
    config = configured(*overrides, model=REPVIT)
    half = dataclasses.replace(config, model=dataclasses.replace(REPVIT, compute_dtype="bfloat16"))
    state, teacher, body = start(half)
    program = str(jax.make_jaxpr(body)(state, teacher, FOUR, KEY))
    pieces = config.train.accumulate
    assert f"bf16[{4 // pieces},32,32,3]" in program
    after, _ = jax.eval_shape(body, state, teacher, FOUR, KEY)
    assert {x.dtype for x in jax.tree.leaves((after.params, after.batch_stats))} == {jnp.dtype(jnp.float32)}
    floats = [x.dtype for x in jax.tree.leaves(after.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype(jnp.float32)}
    exact, _, metrics = gradient(config, FOUR, pieces)
    near, _, rounded = gradient(half, FOUR, pieces)
    assert rounded["loss"] == pytest.approx(metrics["loss"], rel=0.02) and rounded["loss"] != metrics["loss"]
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (exact, near))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.95
