"""Learning-rate schedules, AdamW and SGD with their decay mask, clipping and freezing.

Sources: EdgeSAM section 4.1 (AdamW, rates), the published configs for schedules, batch scaling, clipping and the decay
mask, Table 6 for freezing and LoRA of the decoder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from edgesam_jax.config import Config, OptimConfig
from edgesam_jax.learning.freezing import FROZEN, TRAINED, label
from edgesam_jax.learning.objectives import objective_of

REFERENCE_BATCH = 512  # the batch that the published base rates are quoted for


def scaled_rates(optim: OptimConfig, batch_size: int) -> tuple[float, float, float]:
    """The base, minimum and warm-up learning rates after the optional scaling by ``batch_size / 512``."""
    scale = batch_size / REFERENCE_BATCH if optim.scale_by_batch else 1.0
    return optim.learning_rate * scale, optim.min_learning_rate * scale, optim.warmup_learning_rate * scale


def make_schedule(optim: OptimConfig, batch_size: int, steps: int) -> optax.Schedule:
    """Learning rate as a function of the optimiser step, counted from 0.

    ``cosine`` falls from the end of the warm-up to ``steps``.  ``cosine_unshifted`` is the published stage 1: its
    cosine runs over all steps, warm-up included, and takes over at its own value, so that with a warm-up of half the
    run the rate climbs to the base rate and then halves at once.  ``linear`` falls in a straight line; ``constant``
    stays; ``step`` falls to a tenth at each of ``milestones``, fractions of the run.
    """
    base, low, start = scaled_rates(optim, batch_size)
    warmup, kind = optim.warmup_steps, optim.schedule
    begin = 0 if kind == "cosine_unshifted" else warmup
    length = max(steps - begin, 1)

    def schedule(count: Any) -> jax.Array:
        t = jnp.asarray(count, jnp.float32)
        # Sums of positive terms, and the steps that are left as a difference of integers: 1 + cos(pi t / T) and
        # 1 - t / T would lose the last steps' digits in float32.
        left = jnp.clip(steps - t, 0, length) / length
        if kind in ("cosine", "cosine_unshifted"):
            rate = low + (base - low) * jnp.square(jnp.sin(0.5 * jnp.pi * left))
        elif kind == "linear":
            rate = low + (base - low) * left
        elif kind == "step":
            passed = jnp.asarray([milestone * steps for milestone in optim.milestones]) <= t[..., None]
            rate = base * 0.1 ** passed.sum(axis=-1)
        else:
            rate = jnp.full_like(t, base)
        climb = (start * (warmup - t) + base * t) / max(warmup, 1)
        return jnp.where(t < warmup, climb, rate)

    return schedule


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: all but vectors and scalars (biases, scales of norms)."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def labels(params: Any, config: Config) -> Any:
    """Label every leaf of ``params`` ``"trained"`` or ``"frozen"``, as the objective requires."""
    return label(params, objective_of(config).learns, config)


def make_optimizer(config: Config, params: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW or SGD for a run of ``config``: clipping by the global norm of the trained leaves, decay mask, schedule.

    Frozen leaves get no update, no decay and no optimiser state.

    Args:
      params: the model's parameter tree (arrays or shapes).

    Returns:
      The transformation and its schedule (step -> learning rate).
    """
    optim = config.optim
    schedule = make_schedule(optim, config.data.batch_size, config.train.steps)
    if optim.optimizer == "sgd":
        decay = optax.add_decayed_weights(optim.weight_decay, decay_mask)
        tx = optax.chain(decay, optax.sgd(schedule, momentum=optim.b1))
    else:
        tx = optax.adamw(
            schedule, b1=optim.b1, b2=optim.b2, eps=optim.eps, weight_decay=optim.weight_decay, mask=decay_mask
        )
    tx = optax.chain(optax.clip_by_global_norm(optim.clip_norm), tx) if optim.clip_norm > 0 else tx
    return optax.partition({TRAINED: tx, FROZEN: optax.set_to_zero()}, labels(params, config)), schedule
