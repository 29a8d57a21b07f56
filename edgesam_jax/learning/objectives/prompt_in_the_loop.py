"""Stage 2: student and teacher decode the same prompts, and new points are drawn where their masks differ.

EdgeSAM section 3.2 and algorithm 1 (appendix D).  The rounds are in ``learning.prompt_loop``; with
``distill.targets=ground_truth`` the masks are the annotations' and no teacher runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from edgesam_jax.config import Config
from edgesam_jax.learning import losses, prompt_loop
from edgesam_jax.learning.feature_loss import check_terms, feature_loss
from edgesam_jax.learning.objective import (
    Outcome,
    Setting,
    Share,
    balance,
    encoder_statistics,
    frame,
    student_embedding,
    teacher_embedding,
)
from edgesam_jax.types import Batch


def check(config: Config) -> None:
    """Check that the feature loss, if it is kept in stage 2, has a term with a weight above 0."""
    if config.distill.loss.encoder > 0:
        check_terms(config.distill.loss)


def needs_annotations(config: Config) -> bool:
    """The first prompts come from annotated instances."""
    return True


def needs_true_masks(config: Config) -> bool:
    """Masks are targets only without a teacher."""
    return config.distill.targets == "ground_truth"


def reads_masks(config: Config) -> bool:
    """As targets, for the grouping loss, and to draw the first point."""
    distill = config.distill
    return needs_true_masks(config) or distill.loss.grouping > 0 or distill.point_start == "interior"


def compares_embeddings(config: Config) -> bool:
    """Only if the feature loss of stage 1 is kept."""
    return config.distill.loss.encoder > 0


def keeps_decoder(config: Config) -> bool:
    """The decoder is trained."""
    return False


def decodes(config: Config) -> int:
    """Once in the first round, and once in each of ``distill.rounds`` more."""
    return config.distill.rounds + 1


learns = prompt_loop.learns


def share(batch: Batch, keys: Array, config: Config, total: Callable[[Array], Array]) -> Share:
    """Weights (b p) of the valid prompts."""
    weights = balance(batch.prompt_valid.astype(jnp.float32), config)
    return Share(batch, keys, weights / total(weights))


def loss(variables: Mapping[str, Any], teacher: Any, share: Share, key: Array, setting: Setting) -> Outcome:
    """Loss of the masks over all rounds, plus the feature and the grouping loss if they have weights."""
    config, batch, weights = setting.config, share.batch, share.weights
    assert weights is not None
    terms = config.distill.loss
    images = frame(batch)
    embedding, batch_stats = student_embedding(variables, images, setting)
    target = None
    if config.distill.targets == "teacher":
        target = prompt_loop.TeacherSide(teacher, teacher_embedding(teacher, batch, images, setting))
    inputs = prompt_loop.LoopInputs(variables["constants"], target, batch, weights, key, share.keys)
    value, metrics, trace = prompt_loop.prompt_in_the_loop_loss(
        variables["params"], embedding, inputs, config, setting.teacher
    )
    if terms.encoder:
        assert target is not None
        feature, named = feature_loss(embedding, target.embedding, batch, config)
        value, metrics = value + terms.encoder * feature, metrics | named
    if terms.grouping:
        assert batch.masks is not None
        group = jnp.sum(weights * losses.grouping(embedding, batch.masks, batch.prompt_valid))
        value, metrics = value + terms.grouping * group, metrics | {"grouping": group}
    return Outcome(value, batch_stats, {"loss": value, **metrics}, trace)


statistics = encoder_statistics
