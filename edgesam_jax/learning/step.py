"""The one body of a training step.  Pure: the wrapper in ``parallel`` decides how many devices run it.

How a batch is cut, into devices and into micro-batches, is decided in one place: what depends on the whole of it is
computed first (``_share``), and the loss of a piece is such that the mean over all pieces is the loss of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax

from edgesam_jax.config import Config, SamConfig
from edgesam_jax.learning import losses, prompt_loop
from edgesam_jax.learning.optim import hold_frozen
from edgesam_jax.learning.proposal_loss import Targets, proposal_loss, targets_of
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.types import Batch, TrainState

AXIS = "data"  # name of the axis that pmap maps the devices over


@struct.dataclass
class Share:
    """Images of a piece of the global batch, with what they get from the whole of it; every leaf starts with (b)."""

    batch: Batch
    keys: Array  # (b) random keys, by the images' places in the global batch
    # (b p) of the prompts in the loss; their mean sum over all pieces is 1.  (b) of positive anchors, with ``targets``.
    weights: Array | None
    targets: Targets | None = None


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
    """One optimiser step on this device's share of the batch, in ``train.accumulate`` micro-batches.

    ``teacher`` holds the teacher's variables (None for ground-truth targets).  ``key`` is the run's only key: the step
    is folded in here, then the image's place in the global batch, so the result does not depend on how many devices
    or micro-batches share the batch.  Metrics are means over the global batch.

    Batch norm alone sees the cut: a micro-batch, over all devices or on each (``train.batch_norm``), is normalised with
    its own statistics, and the running ones move by their mean.  A layer's statistics of the whole batch are not known
    before every micro-batch has passed the layers below it, so what one micro-batch needs would have to be kept for
    all: ``model.encoder.remat`` and ``train.prompt_chunk`` save memory at the statistics of the whole batch.
    """
    pieces = config.train.accumulate
    key, share = _share(batch, key, state.step, config, axis_name, pieces)

    def gradient(share: Share) -> tuple[Any, tuple[Any, dict[str, Array]]]:
        def loss_fn(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            # Nothing is computed for leaves that do not learn, and grad_norm is the norm that clipping sees.
            params = hold_frozen(params, config)
            loss, batch_stats, metrics, _ = _loss(params, state, teacher, share, key, config, teacher_config, axis_name)
            return loss, (batch_stats, metrics)

        return jax.grad(loss_fn, has_aux=True)(state.params)

    grads, (batch_stats, metrics) = (
        gradient(share) if pieces == 1 else _mean_over_pieces(gradient, share, pieces, state.params)
    )
    if axis_name is not None:
        # The one place where devices meet.  Losses are normalised by global counts, so the mean is the global gradient.
        grads, batch_stats, metrics = lax.pmean((grads, batch_stats, metrics), axis_name)
    # What is frozen keeps its statistics: not a mean of equal numbers, which may be rounded.
    if config.distill.mode == "proposals":
        batch_stats = {**state.batch_stats, "proposals": batch_stats["proposals"]}
    elif config.distill.freeze_image_encoder:
        batch_stats = state.batch_stats
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.global_norm(grads)
    if config.train.nonfinite == "skip":  # only the step is counted, so that the next one draws other numbers
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        params, batch_stats, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, batch_stats, opt_state),
            (state.params, state.batch_stats, state.opt_state),
        )
    new = TrainState(state.step + 1, params, batch_stats, state.constants, opt_state)
    return new, metrics


def _mean_over_pieces(
    gradient: Callable[[Share], tuple[Any, Any]], share: Share, pieces: int, params: Any
) -> tuple[Any, Any]:
    """``gradient`` of each of ``pieces`` consecutive parts, one after the other: the means of what it returns.

    Gradients, of the shapes of ``params``, are added up in float32 in one buffer.
    """
    parts = jax.tree.map(lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:]), share)

    def add(total: Any, part: Share) -> tuple[Any, Any]:
        grads, rest = gradient(part)
        return jax.tree.map(jnp.add, total, grads), rest

    total, rest = lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), parts)
    return jax.tree.map(lambda x: x / pieces, total), jax.tree.map(lambda x: x.mean(axis=0), rest)


def _share(
    batch: Batch, key: Array, step: Array, config: Config, axis_name: str | None, pieces: int = 1
) -> tuple[Array, Share]:
    """The key that all images of a step share, and this device's share, of which ``pieces`` will be made."""
    key, image_key = jax.random.split(jax.random.fold_in(key, step))
    b = batch.image.shape[0]
    first = 0 if axis_name is None else lax.axis_index(axis_name) * b
    keys = jax.vmap(lambda i: jax.random.fold_in(image_key, i))(first + jnp.arange(b))
    if config.distill.mode == "encoder_only":
        return key, Share(batch, keys, None)
    targets = None
    if config.distill.mode == "proposals":
        targets = targets_of(batch, config.model)
        weights = (targets.kind == 1).astype(jnp.float32)
    else:
        weights = batch.prompt_valid.astype(jnp.float32)
    if config.distill.loss_over_prompts == "image":
        weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
    total = weights.sum() / pieces
    if axis_name is not None:
        total = lax.pmean(total, axis_name)
    total = jnp.where(total > 0, total, 1)  # it may be below 1: it is a mean over pieces
    if targets is not None:
        return key, Share(batch, keys, jnp.full(b, 1 / total), targets)
    return key, Share(batch, keys, weights / total)


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
) -> tuple[Array, Any, dict[str, Array], prompt_loop.Trace | None]:
    """Loss of a batch as one piece, new batch statistics, metrics and, of the prompt loop, the last round's trace."""
    key, share = _share(batch, key, state.step, config, axis_name)
    return _loss(params, state, teacher, share, key, config, teacher_config, axis_name)


def _loss(
    params: Any,
    state: TrainState,
    teacher: Any | None,
    share: Share,
    key: Array,
    config: Config,
    teacher_config: SamConfig | None,
    axis_name: str | None,
) -> tuple[Array, Any, dict[str, Array], prompt_loop.Trace | None]:
    cfg, model, batch, weights = config.distill, config.model, share.batch, share.weights
    images = preprocess(batch.image, batch.valid_size)
    variables = {"params": params, "batch_stats": state.batch_stats, "constants": state.constants}
    train_encoder = not cfg.freeze_image_encoder
    sam = Sam(model, axis_name=axis_name if config.train.batch_norm == "global" else None)
    if cfg.mode == "proposals":
        assert share.targets is not None and weights is not None and model.proposals is not None
        (_, logits, codes), updated = sam.apply(variables, images, True, method="propose", mutable=["batch_stats"])
        loss, metrics = proposal_loss(logits, codes, share.targets, weights[0], model.proposals)
        return loss, updated["batch_stats"], {"loss": loss, **metrics}, None
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
        loss, metrics = prompt_loop.encoder_only_loss(embedding, teacher_side[2], batch, config)
        return loss, batch_stats, {"loss": loss, **metrics}, None

    assert weights is not None
    loss, metrics, trace = prompt_loop.prompt_in_the_loop_loss(
        variables, embedding, teacher_side, batch, weights, key, share.keys, config
    )
    if cfg.loss.encoder:
        assert teacher_side is not None
        feature, named = prompt_loop.encoder_only_loss(embedding, teacher_side[2], batch, config)
        loss, metrics = loss + cfg.loss.encoder * feature, metrics | named
    if cfg.loss.grouping:
        assert batch.masks is not None
        group = jnp.sum(weights * losses.grouping(embedding, batch.masks, batch.prompt_valid))
        loss, metrics = loss + cfg.loss.grouping * group, metrics | {"grouping": group}
    return loss, batch_stats, {"loss": loss, **metrics}, trace


def of_teacher_needed(config: Config, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's variables that a step reads: where a store has its embeddings, not those of its encoder."""
    unread = ("image_encoder",) if config.data.embeddings else ()
    return {name: {k: v for k, v in parts.items() if k not in unread} for name, parts in variables.items()}
