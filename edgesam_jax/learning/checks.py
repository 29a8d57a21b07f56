"""Checks that a config can be trained, before data is read or a device initialised."""

from __future__ import annotations

import operator

from edgesam_jax.config import Config, ConvEncoderConfig, SamConfig, UsageError
from edgesam_jax.config.derive import Length, arm_config
from edgesam_jax.config.rules import check_values
from edgesam_jax.learning.objective import refuse
from edgesam_jax.learning.objectives import objective_of


def check_distillation(config: Config) -> None:
    """Check that the objective can be computed, and that no setting would silently have no effect.

    Raises:
      UsageError: a field has an unusable value; the message names the field.
    """
    check_values(config)
    objective_of(config).check(config)
    distill, loss, optim = config.distill, config.distill.loss, config.optim
    truth = distill.targets == "ground_truth"
    pyramid = isinstance(config.model.encoder, ConvEncoderConfig) or getattr(config.model.encoder, "fuse", False)
    milestones = bool(optim.milestones) and all(0 < milestone < 1 for milestone in optim.milestones)
    refuse(
        {
            "model.proposals: this encoder has no maps of three sizes; set model.encoder.fuse=true": (
                not pyramid and config.model.proposals is not None
            ),
            "optim.schedule=step: optim.milestones must be fractions of the run between 0 and 1": (
                optim.schedule == "step" and not milestones
            ),
            "distill.loss.encoder: there is no teacher's embedding with distill.targets=ground_truth": (
                truth and loss.encoder > 0
            ),
            "distill.loss.attention, features, query: distill.targets=ground_truth has no teacher's decoder to match": (
                truth and max(loss.attention, loss.features, loss.query) > 0
            ),
            "teacher: name a checkpoint, or set distill.targets=ground_truth": not truth and not config.teacher,
        }
    )


def check_arms(config: Config) -> None:
    """Check every arm of a study, so that none fails after hours of training.

    Raises:
      UsageError: an arm's name isn't a valid identifier or isn't unique, an arm precedes one that it needs, or an
        override is wrong.
    """
    seen: dict[str, Length] = {}
    for arm in config.study:
        if not arm.name.isidentifier():
            raise UsageError(f"study: arm name {arm.name!r} must be a valid identifier")
        if arm.name in seen:
            raise UsageError(f"study: arm name {arm.name!r} must be unique; another arm has the same name")
        check_distillation(arm_config(config, arm, seen))
        seen[arm.name] = Length(1, 1.0)


def check_teacher(config: Config, teacher: SamConfig) -> None:
    """Check that teacher and student have the same input frame, and masks and embeddings of the same size.

    Raises:
      UsageError: image, embedding or mask sizes differ.
    """
    student, loss = config.model, config.distill.loss
    # The decoder's widths follow embed_dim; cosines between cells can be compared at any width.
    channels = objective_of(config).compares_embeddings(config) and max(loss.pixel, loss.channel) > 0
    channels = channels or max(loss.features, loss.query) > 0
    names = ["image_size", "grid", "mask_size", *(["embed_dim"] if channels else [])]
    names += ["variant", "decoder.depth", "decoder.heads"] if loss.attention > 0 else []
    for name in names:
        mine, theirs = operator.attrgetter(name)(student), operator.attrgetter(name)(teacher)
        if mine != theirs:
            raise UsageError(
                f"teacher={config.teacher}: its {name} is {theirs}, the model's is {mine}; they must be equal"
            )
