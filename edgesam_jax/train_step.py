"""The one body of a training step.  Pure: the wrapper in ``parallel`` decides how many devices run it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from edgesam_jax import distill, losses
from edgesam_jax.config import Config, SamConfig
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.optim import hold_frozen
from edgesam_jax.types import Batch, TrainState


def train_step(
    state: TrainState,
    teacher: Any | None,
    batch: Batch,
    key: Array,
    *,
    config: Config,
    teacher_config: SamConfig | None,
    tx: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on this device's share of the batch.

    ``teacher`` holds the teacher's variables (None for ground-truth targets).  ``key`` is the run's only key: the step
    is folded in here, then the image's place in the global batch, so the result does not depend on how many devices
    share the batch.  Metrics are means over the global batch.
    """

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        # Nothing is computed for leaves that do not learn, and grad_norm is the norm that clipping sees.
        params = hold_frozen(params, config)
        loss, batch_stats, metrics, _ = total_loss(
            params, state, teacher, batch, key, config=config, teacher_config=teacher_config, axis_name=axis_name
        )
        return loss, (batch_stats, metrics)

    grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
    if axis_name is not None:
        # The one place where devices meet.  Losses are normalised by global counts, so the mean is the global gradient.
        grads, batch_stats, metrics = lax.pmean((grads, batch_stats, metrics), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.global_norm(grads)
    new = TrainState(state.step + 1, params, batch_stats, state.constants, opt_state)
    return new, metrics


def total_loss(
    params: Any,
    state: TrainState,
    teacher: Any | None,
    batch: Batch,
    key: Array,
    *,
    config: Config,
    teacher_config: SamConfig | None,
    axis_name: str | None = None,
) -> tuple[Array, Any, dict[str, Array], distill.Trace | None]:
    """Loss, new batch statistics, metrics and, of the prompt loop, the last round's trace."""
    cfg, model = config.distill, config.model
    key, image_key = jax.random.split(jax.random.fold_in(key, state.step))
    b = batch.image.shape[0]
    first = 0 if axis_name is None else lax.axis_index(axis_name) * b
    keys = jax.vmap(lambda i: jax.random.fold_in(image_key, i))(first + jnp.arange(b))

    images = preprocess(batch.image, batch.valid_size)
    variables = {"params": params, "batch_stats": state.batch_stats, "constants": state.constants}
    train_encoder = not cfg.freeze_image_encoder
    sam = Sam(model, axis_name=axis_name)
    if train_encoder:
        embedding, updated = sam.apply(variables, images, True, method="encode_image", mutable=["batch_stats"])
        batch_stats = updated.get("batch_stats", state.batch_stats)
    else:
        embedding, batch_stats = sam.apply(variables, images, method="encode_image"), state.batch_stats

    teacher_side = None
    if cfg.targets == "teacher":
        assert teacher_config is not None and teacher is not None
        seen: Any = batch.teacher_embedding
        if seen is None:
            seen = Sam(teacher_config).apply(teacher, images, method="encode_image")
        teacher_side = (teacher_config, teacher, lax.stop_gradient(seen.astype(jnp.float32)))

    if cfg.mode == "encoder_only":
        assert teacher_side is not None
        loss, metrics = distill.encoder_only_loss(embedding, teacher_side[2], batch, config)
        return loss, batch_stats, {"loss": loss, **metrics}, None

    weights = batch.prompt_valid.astype(jnp.float32)
    if cfg.loss_over_prompts == "image":
        weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
    total = weights.sum()
    if axis_name is not None:
        total = lax.pmean(total, axis_name)
    weights = weights / jnp.where(total > 0, total, 1)  # total may be below 1: it is a mean over devices
    loss, metrics, trace = distill.prompt_in_the_loop_loss(
        variables, embedding, teacher_side, batch, weights, key, keys, config
    )
    if cfg.loss.encoder:
        assert teacher_side is not None
        feature, named = distill.encoder_only_loss(embedding, teacher_side[2], batch, config)
        loss, metrics = loss + cfg.loss.encoder * feature, metrics | named
    if cfg.loss.grouping:
        assert batch.masks is not None
        group = jnp.sum(weights * losses.grouping(embedding, batch.masks, batch.prompt_valid))
        loss, metrics = loss + cfg.loss.grouping * group, metrics | {"grouping": group}
    return loss, batch_stats, {"loss": loss, **metrics}, trace
