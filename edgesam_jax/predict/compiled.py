"""Compiled functions for inference, used by the predictor, the evaluation and the embedding command."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.models.anchors import anchors_of, propose
from edgesam_jax.models.fold import fold, folds
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.prompts import from_boxes, from_boxes_and_points, from_points
from edgesam_jax.models.sam import Sam, decode, preprocess
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, STABILITY_OFFSET
from edgesam_jax.types import MaskPrediction


def decode_chunk() -> int:
    """Return the number of prompts to decode at once; on a CPU 1 is fastest (docs/performance.md, "Decoder")."""
    if platforms.on_cpu():
        return 1
    return 8 if platforms.on_tpu() else 16


def check_priors(config: SamConfig, flag: str) -> None:
    """Check that a model has the proposal network that ``flag`` needs.

    Raises:
      UsageError: it has none.
    """
    if config.proposals is None:
        raise UsageError(
            f"{flag}: the checkpoint has no proposal network; train one for it with configs/proposals_coco.py"
        )


def check_mask_input(config: SamConfig) -> None:
    """Check that a model takes masks as prompts.

    Raises:
      UsageError: it doesn't.
    """
    if config.variant == "efficient_sam":
        raise UsageError("mask_input: EfficientSAM takes no masks; omit mask_input")


def for_inference(config: SamConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Put a model's variables on the device, with the encoder's batch norms and branches folded if it has any."""
    return jax.device_put(fold(config, variables))


@functools.lru_cache(maxsize=16)
def encoder(config: SamConfig) -> Callable[[Any, Array | np.ndarray, Array | np.ndarray], Array]:
    """Return the compiled function ``(variables, images, sizes) -> embedding``.

    ``variables``: from ``for_inference``; ``images`` (b s s 3) uint8 or float32, padded; ``sizes`` (b 2): the rows
    and columns that the photo fills. The embedding is (b g g c).
    """
    model = Sam(config, folded=folds(config))

    @jax.jit
    def encode(variables: Any, images: Array, sizes: Array) -> Array:
        return cast(Array, model.apply(variables, preprocess(images, sizes), method="encode_image"))

    return encode


@functools.lru_cache(maxsize=16)
def proposer(config: SamConfig) -> Callable[[Any, Array | np.ndarray, Array | np.ndarray], tuple[Array, Array, Array]]:
    """Return the compiled function ``(variables, images, sizes) -> embedding, boxes, scores``; see ``encoder``.

    Boxes (b n 4) in the frame and their scores (b n), sorted by falling score; unused entries have a score of 0.
    """
    model, settings = Sam(config, folded=folds(config)), config.proposals
    assert settings is not None
    anchors = anchors_of(config)

    @jax.jit
    def encode(variables: Any, images: Array, sizes: Array) -> tuple[Array, Array, Array]:
        outputs: Any = model.apply(variables, preprocess(images, sizes), method="propose")
        embedding, logits, codes = outputs
        limits = sizes[:, ::-1].astype(jnp.float32)

        def best(logits: Array, codes: Array, limit: Array) -> tuple[Array, Array]:
            return propose(logits, codes, jnp.asarray(anchors), limit, settings)

        boxes, scores = jax.vmap(best)(logits, codes, limits)
        return embedding, boxes, scores

    return encode


@functools.lru_cache(maxsize=16)
def decoder(config: SamConfig) -> Callable[..., MaskPrediction]:
    """Return a compiled function that decodes prompts on one photo to four masks each.

    Its signature is ``(variables, embedding, boxes, coords, labels, mask_input, slots=) -> MaskPrediction``:
    ``embedding`` (g g c) of one photo; ``boxes`` (p 4) or None; ``coords`` (p n 2) and ``labels`` (p n) or None, put
    into a buffer of ``slots`` slots; ``mask_input`` (p s s) or None.
    """

    @functools.partial(jax.jit, static_argnames="slots")
    def run(
        variables: Any,
        embedding: Array,
        boxes: Array | None,
        coords: Array | None,
        labels: Array | None,
        mask_input: Array | None,
        slots: int = 0,
    ) -> MaskPrediction:
        boxes, coords, labels, mask_input = jax.tree.map(lambda x: x[None], (boxes, coords, labels, mask_input))
        if coords is None or labels is None:
            prompts = from_boxes(boxes)
        elif boxes is None:
            prompts = from_points(coords, labels, slots)
        else:
            prompts = from_boxes_and_points(boxes, coords, labels, slots)
        has_mask = None if mask_input is None else jnp.ones(mask_input.shape[:2], bool)
        result = decode(
            config, variables, embedding[None], prompts, mask_input, has_mask, num_masks=4, chunk=decode_chunk()
        )
        return jax.tree.map(lambda x: x[0], result)

    return run


@functools.lru_cache(maxsize=16)
def point_decoder(config: SamConfig) -> Callable[[Any, Array, Array | np.ndarray], tuple[Array, Array, Array]]:
    """Return a compiled function that decodes clicks on one photo to three masks each.

    Its signature is ``(variables, embedding, points) -> logits, iou, stability``: ``embedding`` (g g c), ``points``
    (p 2) in the frame; logits (p 3 s s), the IoU head's scores (p 3) and the stability scores (p 3).
    """

    @jax.jit
    def run(variables: Any, embedding: Array, points: Array) -> tuple[Array, Array, Array]:
        prompts = from_points(points[None, :, None], jnp.ones((1, len(points), 1), jnp.int32))
        result = decode(config, variables, embedding[None], prompts, num_masks=3, chunk=decode_chunk())
        logits = result.logits[0]
        sure, possible = (
            (logits > MASK_THRESHOLD + offset).sum((-2, -1)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET)
        )
        return logits, result.iou[0], sure / jnp.maximum(possible, 1)

    return run
