"""Stage 1: the image encoder learns the teacher's embedding (EdgeSAM section 3.2, equation 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from edgesam_jax.config import Config
from edgesam_jax.learning.feature_loss import check_terms, feature_loss
from edgesam_jax.learning.objective import (
    Outcome,
    Setting,
    Share,
    encoder_statistics,
    frame,
    refuse,
    student_embedding,
    teacher_embedding,
)
from edgesam_jax.types import Batch


def check(config: Config) -> None:
    """Check that the targets are a teacher's, and that at least one feature term has a weight above 0."""
    truth = config.distill.targets == "ground_truth"
    refuse({"distill.targets=ground_truth: distill.mode=encoder_only needs a teacher": truth})
    check_terms(config.distill.loss)


def needs_annotations(config: Config) -> bool:
    """Photos alone are enough."""
    return False


def needs_true_masks(config: Config) -> bool:
    """No mask is read."""
    return False


def reads_masks(config: Config) -> bool:
    """No mask is read."""
    return False


def compares_embeddings(config: Config) -> bool:
    """Only embeddings are compared."""
    return True


def keeps_decoder(config: Config) -> bool:
    """The decoder gets no gradient, so it must be the teacher's."""
    return True


def decodes(config: Config) -> int:
    """Nothing is decoded."""
    return 0


def learns(path: tuple[str, ...], config: Config) -> bool:
    """The image encoder only: weight decay must not shrink a decoder that gets no gradient."""
    return path[0] == "image_encoder" and not config.distill.freeze_image_encoder


def share(batch: Batch, keys: Array, config: Config, total: Callable[[Array], Array]) -> Share:
    """All images have equal weight."""
    return Share(batch, keys)


def loss(variables: Mapping[str, Any], teacher: Any, share: Share, key: Array, setting: Setting) -> Outcome:
    """Feature error over the cells that show the photo, mean over images."""
    images = frame(share.batch)
    embedding, batch_stats = student_embedding(variables, images, setting)
    target = teacher_embedding(teacher, share.batch, images, setting)
    value, metrics = feature_loss(embedding, target, share.batch, setting.config)
    return Outcome(value, batch_stats, {"loss": value, **metrics})


statistics = encoder_statistics
