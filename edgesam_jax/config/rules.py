"""What a config must satisfy before anything starts, and which fields may differ when a run goes on."""

from __future__ import annotations

import json
import operator
from typing import Any

from edgesam_jax.config.parse import to_json
from edgesam_jax.config.schema import Config, ConvEncoderConfig, SamConfig
from edgesam_jax.portable.errors import UsageError


def check_counts(config: Config) -> None:
    """Refuse numbers that no run can have.

    Raises:
      UsageError: the field, its value and the least it may be.
    """
    least = {
        "train.steps": 1, "train.log_every": 1, "train.checkpoint_every": 1, "train.keep_checkpoints": 1,
        "train.accumulate": 1, "train.keep_best": 0, "train.picture_every": 0, "train.prompt_chunk": 0,
        "train.profile_steps": 0, "train.devices": 0, "data.batch_size": 1, "data.max_prompts": 1, "data.workers": 0,
        "data.limit": 0, "data.shuffle_window": 0, "eval.every": 0, "eval.images": 0, "eval.batch_size": 1,
        "eval.refine": 0,
    }  # fmt: skip
    for name, value in least.items():
        part, field = name.split(".")
        if (given := getattr(getattr(config, part), field)) < value:
            raise UsageError(f"{name}={given}: it must be {value} or more")


# Fields that change how a run is watched or where it runs, but not what it computes.
FREE_FIELDS = {
    "train.devices",
    "model.encoder.remat",
    "train.log_every",
    "train.picture_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.profile_steps",
    "train.peak_tflops",
    "data.workers",
    "data.max_bad_share",
    "eval.every",
    "eval.images",
    "eval.batch_size",
    "eval.refine",
    "eval.seed",
}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: value}


def differing_fields(a: Config, b: Config) -> list[str]:
    """``field (value in a, value in b)`` for every field that changes the result of a run."""
    left, right = (_flat(json.loads(to_json(config))) for config in (a, b))
    names = sorted(set(left) | set(right))
    return [
        f"{name} ({left.get(name)!r} there, {right.get(name)!r} here)"
        for name in names
        if left.get(name) != right.get(name) and name not in FREE_FIELDS
    ]


def check_distillation(config: Config) -> None:
    """Refuse what cannot be computed, or what would silently have no effect.

    Raises:
      UsageError: the field that does not fit, and why.
    """
    check_counts(config)
    distill, loss = config.distill, config.distill.loss
    encoder_only, truth = distill.mode == "encoder_only", distill.targets == "ground_truth"
    proposals = distill.mode == "proposals"
    pyramid = isinstance(config.model.encoder, ConvEncoderConfig) or getattr(config.model.encoder, "fuse", False)
    faults = {
        "distill.mode=proposals: set distill.targets=ground_truth; it learns from boxes, not from a teacher": proposals
        and not truth,
        "distill.mode=proposals: the model has no proposal network; set model.proposals={}": proposals
        and config.model.proposals is None,
        "model.proposals: this encoder has no maps of three sizes; it needs model.encoder.fuse=true": not pyramid
        and config.model.proposals is not None,
        "optim.schedule=step: optim.milestones must be shares of the run between 0 and 1": config.optim.schedule
        == "step"
        and not (config.optim.milestones and all(0 < m < 1 for m in config.optim.milestones)),
        "distill.targets=ground_truth: distill.mode=encoder_only needs a teacher": encoder_only and truth,
        "distill.loss.encoder: there is no teacher's embedding with distill.targets=ground_truth": truth
        and loss.encoder > 0,
        "distill.loss.attention, features, query: distill.targets=ground_truth has no teacher's decoder to match": truth
        and max(loss.attention, loss.features, loss.query) > 0,
        "distill.loss.pixel, channel, correlation: at least one must be above 0": (encoder_only or loss.encoder > 0)
        and not max(loss.pixel, loss.channel, loss.correlation) > 0,
        "distill.loss.channel_temperature must be above 0": loss.channel_temperature <= 0,
        "teacher: name a checkpoint, or set distill.targets=ground_truth": not truth and not config.teacher,
        "distill.rounds must be 0 or more": distill.rounds < 0,
        "distill.points_per_round must be 1 or more": distill.points_per_round < 1,
        "distill.temperature must be above 0": distill.temperature <= 0,
        "distill.mask_feedback is a probability, 0 to 1": not 0 <= distill.mask_feedback <= 1,
    }
    for message, wrong in faults.items():
        if wrong:
            raise UsageError(message)


def check_teacher(config: Config, teacher: SamConfig) -> None:
    """A teacher must see the same frame as the student and answer on the same grid.

    Raises:
      UsageError: image, embedding or mask sizes differ.
    """
    student = config.model
    loss = config.distill.loss
    embeddings = config.distill.mode == "encoder_only" or loss.encoder > 0
    # The decoder's widths follow embed_dim; cosines between cells can be compared at any width.
    channels = (embeddings and max(loss.pixel, loss.channel) > 0) or max(loss.features, loss.query) > 0
    names = ["image_size", "grid", "mask_size", *(["embed_dim"] if channels else [])]
    names += ["variant", "decoder.depth", "decoder.heads"] if loss.attention > 0 else []
    for name in names:
        mine, theirs = operator.attrgetter(name)(student), operator.attrgetter(name)(teacher)
        if mine != theirs:
            raise UsageError(f"teacher={config.teacher}: its {name} is {theirs}, the model's {mine}; they must agree")
