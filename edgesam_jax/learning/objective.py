"""The interface of the modules in ``learning/objectives/``, the types they exchange, and code they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from edgesam_jax.config import Config, SamConfig, UsageError
from edgesam_jax.models.sam import Sam, preprocess
from edgesam_jax.types import Batch


@struct.dataclass
class Share:
    """Some images of the global batch, with quantities computed from the entire batch.

    Every leaf starts with (b).  ``keys`` (b) are random keys by the images' places in the global batch.  ``weights`` is
    each term's weight in the loss: their sum, averaged over all pieces of the batch, is 1.  They are (b p) for
    prompts, (b) for proposals, None if all images have equal weight.  ``targets`` is specific to the objective.
    """

    batch: Batch
    keys: Array
    weights: Array | None = None
    targets: Any = None


@dataclass(frozen=True)
class Setting:
    """The static arguments of a step.  ``axis_name`` is the mapped axis of the devices, None on a single device."""

    config: Config
    teacher: SamConfig | None = None
    axis_name: str | None = None


class Outcome(NamedTuple):
    """Loss of a share (a scalar whose mean over all shares is the batch's loss), new batch statistics, metrics.

    ``trace`` is the last round of the prompt loop, for pictures (``prompt_loop.Trace``); None for other objectives.
    """

    loss: Array
    batch_stats: Any
    metrics: dict[str, Array]
    trace: Any = None


class Objective(Protocol):
    """The functions of an objective's module; ``distill.mode`` is the module's name."""

    def check(self, config: Config) -> None:
        """Check that the objective can be computed from this config.

        Raises:
          UsageError: it can't; the message names the field.
        """
        ...

    def needs_annotations(self, config: Config) -> bool:
        """Whether only photos with annotated instances can be used."""
        ...

    def needs_true_masks(self, config: Config) -> bool:
        """Whether the instances' masks must be ground truth rather than boxes or guesses."""
        ...

    def reads_masks(self, config: Config) -> bool:
        """Whether ``Batch.masks`` is read; the data pipeline makes them only then."""
        ...

    def compares_embeddings(self, config: Config) -> bool:
        """Whether student and teacher embeddings are compared, so that their sizes must agree."""
        ...

    def keeps_decoder(self, config: Config) -> bool:
        """Whether the student keeps the teacher's prompt encoder and mask decoder, which must then fit."""
        ...

    def decodes(self, config: Config) -> int:
        """How many times a prompt is decoded in a step."""
        ...

    def learns(self, path: tuple[str, ...], config: Config) -> bool:
        """Whether the parameter at this path is trained; see ``freezing.Rule``."""
        ...

    def share(self, batch: Batch, keys: Array, config: Config, total: Callable[[Array], Array]) -> Share:
        """A device's share of the batch.

        Args:
          total: sum of an array over the global batch divided by the number of pieces, at least 1 if it is 0.
        """
        ...

    def loss(self, variables: Mapping[str, Any], teacher: Any, share: Share, key: Array, setting: Setting) -> Outcome:
        """Loss of a share.

        Args:
          variables: the student's ``params``, ``batch_stats`` and ``constants``.
          teacher: the teacher's variables, None for ground-truth targets.
          key: random key shared by all devices.
        """
        ...

    def statistics(self, before: Any, after: Any, config: Config) -> Any:
        """The batch statistics to keep after a step; those of frozen parts keep their values from ``before``."""
        ...


def refuse(faults: Mapping[str, bool]) -> None:
    """Raise an error with the first message whose condition is true.

    Raises:
      UsageError: a condition is true.
    """
    for message, wrong in faults.items():
        if wrong:
            raise UsageError(message)


def balance(counted: Array, config: Config) -> Array:
    """Weights (b n) of the terms that count: 1 each, or 1 in sum for each image (``distill.loss_over_prompts``)."""
    if config.distill.loss_over_prompts == "image":
        return counted / jnp.maximum(counted.sum(axis=1, keepdims=True), 1)
    return counted


def student_model(setting: Setting) -> Sam:
    """The student, with batch norm over all devices or per device (``train.batch_norm``)."""
    return Sam(
        setting.config.model, axis_name=setting.axis_name if setting.config.train.batch_norm == "global" else None
    )


@jax.named_scope("student")
def student_embedding(variables: Mapping[str, Any], images: Array, setting: Setting) -> tuple[Array, Any]:
    """The student's embedding (b g g c) of preprocessed images, and the batch statistics after it."""
    sam = student_model(setting)
    if setting.config.distill.freeze_image_encoder:
        return cast(Array, sam.apply(variables, images, method="encode_image")), variables["batch_stats"]
    embedding, updated = sam.apply(variables, images, True, method="encode_image", mutable=["batch_stats"])
    return embedding, updated.get("batch_stats", variables["batch_stats"])


@jax.named_scope("teacher")
def teacher_embedding(teacher: Any, batch: Batch, images: Array, setting: Setting) -> Array:
    """The teacher's embedding (b g g c) float32 without a gradient: the batch's if it has one, else computed."""
    assert setting.teacher is not None and teacher is not None
    embedding: Any = batch.teacher_embedding
    if embedding is None:
        embedding = Sam(setting.teacher).apply(teacher, images, method="encode_image")
    return lax.stop_gradient(embedding.astype(jnp.float32))


def frame(batch: Batch) -> Array:
    """The batch's photos as the encoders take them: normalised, zero outside the photo."""
    return preprocess(batch.image, batch.valid_size)


def encoder_statistics(before: Any, after: Any, config: Config) -> Any:
    """``Objective.statistics`` of objectives that train the image encoder unless it is frozen."""
    return before if config.distill.freeze_image_encoder else after
