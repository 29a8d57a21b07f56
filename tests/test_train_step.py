"""The body of a step: it learns, what is frozen stays as it is, and no batch upsets it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import CONV, FAST, REPVIT, configured, make_batch

from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.optim import is_trained, make_optimizer
from edgesam_jax.train_step import train_step
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
    step = jax.jit(body, compiler_options=FAST)
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
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_loss_falls_and_what_is_frozen_stays(name):
    config, steps, falls_to = RUNS[name]
    first, last, rows = train(config, steps)
    assert all(np.isfinite(v) for row in rows for v in row.values())
    assert rows[-1]["loss"] < falls_to * rows[0]["loss"]
    moved, paths = changed(first.params, last.params), set(flatten_dict(first.params))
    trained = {p for p in paths if is_trained(p, config.distill, config.model.decoder.lora_rank)}
    assert moved <= trained
    # Tokens and weights whose gradient happens to vanish aside, everything that may learn does.
    assert len(moved) > 0.8 * len(trained)
    if config.model.decoder.lora_rank:
        assert {p[-1] for p in moved} == {"lora_A", "lora_B"}
    assert not changed(first.constants, last.constants)
    statistics = changed(first.batch_stats, last.batch_stats) if first.batch_stats else set()
    if config.distill.freeze_image_encoder or config.model.encoder.kind != "repvit":
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
def test_a_batch_without_any_prompt_changes_nothing_but_decay():
    config = configured("distill.targets=ground_truth", "distill.rounds=0", "optim.weight_decay=0.0")
    first, last, rows = train(config, 1, BATCH.replace(prompt_valid=np.zeros_like(BATCH.prompt_valid)))
    assert rows[0]["loss"] == 0 and rows[0]["grad_norm"] == 0
    assert not changed(first.params, last.params)


def test_prompts_weigh_the_same_or_images_do(monkeypatch):
    """B32: pooled, an image with few prompts has little say."""
    seen = {}

    def loss(variables, embedding, teacher, batch, weights, key, keys, config):
        seen[config.distill.loss_over_prompts] = np.asarray(weights)
        return jnp.sum(embedding), {}, None

    monkeypatch.setattr("edgesam_jax.distill.prompt_in_the_loop_loss", loss)
    valid = np.array([[True, True], [False, False], [True, False]])
    from edgesam_jax.train_step import total_loss

    for how in ("pooled", "image"):
        config = configured("distill.targets=ground_truth", f"distill.loss_over_prompts={how}")
        state, _, _ = start(config)
        total_loss(
            state.params, state, None, BATCH.replace(prompt_valid=valid), KEY, config=config, teacher_config=None
        )
    np.testing.assert_allclose(seen["pooled"], valid / 3)
    np.testing.assert_allclose(seen["image"], [[0.25, 0.25], [0, 0], [0.5, 0]])
