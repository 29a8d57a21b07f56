"""The compiled pieces of inference, shared by the predictor and the evaluation: encode photos, decode prompts."""

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
from edgesam_jax.models.prompts import from_boxes, from_boxes_and_points, from_points
from edgesam_jax.models.sam import Sam, decode, preprocess
from edgesam_jax.types import MaskPrediction


def decode_chunk() -> int:
    """Prompts decoded at a time: on a CPU one at a time is fastest (docs/performance.md, "Decoder")."""
    return 1 if jax.default_backend() == "cpu" else 16


def check_priors(config: SamConfig, flag: str) -> None:
    """Raises:
    UsageError: the model has no proposal network, which ``flag`` needs."""
    if config.proposals is None:
        raise UsageError(
            f"{flag}: the checkpoint has no proposal network; train one on it with configs/proposals_coco.py"
        )


def for_inference(config: SamConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables on the device, batch norms and branches folded where the encoder has them."""
    return jax.device_put(fold(config, variables))


@functools.lru_cache(maxsize=16)
def encoder(config: SamConfig) -> Callable[[Any, Array | np.ndarray, Array | np.ndarray], Array]:
    """Compiled ``(variables, images, sizes) -> embedding``.

    ``variables`` are those of ``for_inference``, ``images`` (b s s 3) uint8 padded, ``sizes`` (b 2) the rows and
    columns that hold the photo; the embedding is (b g g c).
    """
    model = Sam(config, folded=folds(config))

    @jax.jit
    def encode(variables: Any, images: Array, sizes: Array) -> Array:
        return cast(Array, model.apply(variables, preprocess(images, sizes), method="encode_image"))

    return encode


@functools.lru_cache(maxsize=16)
def proposer(config: SamConfig) -> Callable[[Any, Array | np.ndarray, Array | np.ndarray], tuple[Array, Array, Array]]:
    """As ``encoder``, with proposals: ``(variables, images, sizes) -> embedding, boxes, scores``.

    Boxes (b n 4) in the frame and their scores (b n), falling; places that are not used have a score of 0.
    """
    model, settings = Sam(config, folded=folds(config)), config.proposals
    assert settings is not None
    anchors = anchors_of(config)

    @jax.jit
    def encode(variables: Any, images: Array, sizes: Array) -> tuple[Array, Array, Array]:
        found: Any = model.apply(variables, preprocess(images, sizes), method="propose")
        embedding, logits, codes = found
        limits = sizes[:, ::-1].astype(jnp.float32)

        def best(logits: Array, codes: Array, limit: Array) -> tuple[Array, Array]:
            return propose(logits, codes, jnp.asarray(anchors), limit, settings)

        boxes, scores = jax.vmap(best)(logits, codes, limits)
        return embedding, boxes, scores

    return encode


@functools.lru_cache(maxsize=16)
def decoder(config: SamConfig) -> Callable[..., MaskPrediction]:
    """Compiled ``(variables, embedding, boxes, coords, labels, mask_input, slots=) -> MaskPrediction``, all four masks.

    ``embedding`` (g g c) of one photo; ``boxes`` (p 4) or None; ``coords`` (p n 2) and ``labels`` (p n) or None, put
    into a buffer with ``slots`` places; ``mask_input`` (p s s) or None.
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
        given = None if mask_input is None else jnp.ones(mask_input.shape[:2], bool)
        result = decode(
            config, variables, embedding[None], prompts, mask_input, given, num_masks=4, chunk=decode_chunk()
        )
        return jax.tree.map(lambda x: x[0], result)

    return run
