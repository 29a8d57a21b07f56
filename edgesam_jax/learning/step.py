"""The body of a training step: a pure function; ``device_step.py`` compiles it for one device or several.

Devices and micro-batches split a batch in one place: quantities of the global batch are computed first (``_share``),
and losses are normalised so that the mean over all pieces is the loss of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from edgesam_jax.config import Config, SamConfig
from edgesam_jax.learning.freezing import hold_frozen
from edgesam_jax.learning.objective import Outcome, Setting, Share
from edgesam_jax.learning.objectives import objective_of
from edgesam_jax.types import Batch, TrainState

AXIS = "data"  # name of the axis that pmap maps the devices over


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
    is folded in here, then the image's place in the global batch, so the result doesn't depend on the number of devices
    or micro-batches.  Metrics are means over the global batch.

    Batch norm is the exception: each micro-batch, over all devices or on each (``train.batch_norm``), is normalised
    with its own statistics, and the running statistics move by their mean.  Statistics of the entire batch would need
    the activations of all micro-batches at once: a layer's input is known only after every micro-batch has passed the
    layers below.  ``model.encoder.remat`` and ``train.prompt_chunk`` save memory and keep the batch's statistics.
    """
    pieces, objective = config.train.accumulate, objective_of(config)
    setting = Setting(config, teacher_config, axis_name)
    key, share = _share(batch, key, state.step, setting, pieces)

    def gradient(share: Share) -> tuple[Any, tuple[Any, dict[str, Array]]]:
        def loss_fn(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            # No gradient is computed for frozen leaves, and grad_norm is the norm that clipping sees.
            params = hold_frozen(params, objective.learns, config)
            outcome = objective.loss(_variables(state, params), teacher, share, key, setting)
            return outcome.loss, (outcome.batch_stats, outcome.metrics)

        return jax.grad(loss_fn, has_aux=True)(state.params)

    grads, (batch_stats, metrics) = (
        gradient(share) if pieces == 1 else _mean_over_pieces(gradient, share, pieces, state.params)
    )
    if axis_name is not None:
        # The only collective of gradients.  Losses are normalised by global counts, so the mean is the global gradient.
        grads, batch_stats, metrics = lax.pmean((grads, batch_stats, metrics), axis_name)
    # Frozen parts keep their statistics exactly: a mean of equal numbers may be rounded.
    batch_stats = objective.statistics(state.batch_stats, batch_stats, config)
    with jax.named_scope("optimiser"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.global_norm(grads)
    if config.train.nonfinite == "skip":  # the step counter still advances, so that the next step draws other numbers
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
    """Means of the outputs of ``gradient`` over ``pieces`` consecutive parts, one after the other.

    Gradients, shaped like ``params``, are accumulated in float32 in one buffer.
    """
    parts = jax.tree.map(lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:]), share)

    def add(total: Any, part: Share) -> tuple[Any, Any]:
        grads, rest = gradient(part)
        return jax.tree.map(jnp.add, total, grads), rest

    total, rest = lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), parts)
    return jax.tree.map(lambda x: x / pieces, total), jax.tree.map(lambda x: x.mean(axis=0), rest)


def _share(batch: Batch, key: Array, step: Array, setting: Setting, pieces: int = 1) -> tuple[Array, Share]:
    """The step's key, shared by all images, and this device's share, to be split into ``pieces`` by the caller."""
    key, image_key = jax.random.split(jax.random.fold_in(key, step))
    b, axis_name = batch.image.shape[0], setting.axis_name
    first = 0 if axis_name is None else lax.axis_index(axis_name) * b
    keys = jax.vmap(lambda i: jax.random.fold_in(image_key, i))(first + jnp.arange(b))

    def total(weights: Array) -> Array:
        mean = weights.sum() / pieces
        if axis_name is not None:
            mean = lax.pmean(mean, axis_name)
        return jnp.where(mean > 0, mean, 1)  # may be below 1: the sum is averaged over pieces

    return key, objective_of(setting.config).share(batch, keys, setting.config, total)


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
) -> Outcome:
    """Evaluate the objective of ``config`` on a batch as one piece, with ``params`` in place of the state's."""
    setting = Setting(config, teacher_config, axis_name)
    key, share = _share(batch, key, state.step, setting)
    return objective_of(config).loss(_variables(state, params), teacher, share, key, setting)


def _variables(state: TrainState, params: Any) -> dict[str, Any]:
    return {"params": params, "batch_stats": state.batch_stats, "constants": state.constants}


def needed_teacher_variables(config: Config, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's variables that a step reads: without the image encoder's if a store provides the embeddings."""
    unread = ("image_encoder",) if config.data.embeddings else ()
    return {name: {k: v for k, v in parts.items() if k not in unread} for name, parts in variables.items()}
