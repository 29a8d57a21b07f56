"""The feature loss between two embeddings: all of stage 1, and an optional term of stage 2 (EdgeSAM equation 1)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from edgesam_jax.config import Config, LossConfig
from edgesam_jax.learning import losses
from edgesam_jax.learning.objective import refuse
from edgesam_jax.types import Batch


def check_terms(loss: LossConfig) -> None:
    """Check that at least one feature term has a weight above 0.

    Raises:
      UsageError: all of them are 0.
    """
    none = not max(loss.pixel, loss.channel, loss.correlation) > 0
    refuse({"distill.loss.pixel, channel, correlation: at least one must be above 0": none})


def feature_loss(student: Array, teacher: Array, batch: Batch, config: Config) -> tuple[Array, dict[str, Array]]:
    """Weighted feature terms over the cells that show the photo, mean over images, and the terms by name.

    The terms are the squared error (``pixel``, EdgeSAM equation 1), channel-wise and structured distillation.

    Args:
      student, teacher: embeddings (b g g c).
    """
    model, weights = config.model, config.distill.loss
    valid = losses.valid_weights(batch.valid_size, model.grid, model.image_size) > 0.5
    terms = {}
    if weights.pixel:
        terms["pixel"] = losses.feature_error(student, teacher, valid).mean()
    if weights.channel:
        terms["channel"] = losses.channel_divergence(student, teacher, valid, weights.channel_temperature).mean()
    if weights.correlation:
        terms["correlation"] = losses.correlation_error(student, teacher, valid).mean()
    loss = jnp.asarray(sum(getattr(weights, name) * value for name, value in terms.items()))
    return loss, {"encoder": loss} | (terms if len(terms) > 1 else {})
