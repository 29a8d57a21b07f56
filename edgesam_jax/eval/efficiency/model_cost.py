"""Count parameters and multiply-accumulates of a model from its shapes, without weights and without compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from edgesam_jax.config import SamConfig
from edgesam_jax.models import layer_cost
from edgesam_jax.models.fold import folds
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.prompts import from_boxes
from edgesam_jax.models.sam import Sam, decode
from edgesam_jax.planning import jaxpr_cost


def counts(config: SamConfig) -> dict[str, dict[str, Any]]:
    """Count a model's parameters, and its multiply-accumulates for one photo and one box on it.

    Returns:
      ``parameters``: ``encoder``, ``decoder`` (including the prompt encoder), ``all``, and ``inference``, which is all
      after folding.  ``gmac``, in 10^9 multiply-accumulates: ``encoder`` and ``decoder`` in inference, and ``both``;
      ``unfolded``, the encoder before folding; ``activations``, products of two activations in a ViT
      (``layer_cost.vit_activation_products``; absent for other encoders); and ``layers``: ``encoder`` and ``decoder``
      layer by layer as published, ``norms`` with two operations for each element that a norm scales, and ``both``, the
      sum of the three (absent if a count of layers would miss part of the encoder).
    """
    has_norms = folds(config)
    variables = abstract_variables(config)
    folded = _folded(config) if has_norms else variables
    unfolded = _encoder(config, variables, False)
    encoder = _encoder(config, folded, True) if has_norms else unfolded
    decoder = _decoder(config, variables)
    gmac: dict[str, Any] = {"encoder": encoder, "decoder": decoder, "both": encoder + decoder, "unfolded": unfolded}
    if products := layer_cost.vit_activation_products(config):
        gmac["activations"] = {name: value / 1e9 for name, value in products.items()}
    encoder_layers, decoder_layers = layer_cost.encoder_layers(config, variables), layer_cost.decoder_layers(config)
    if encoder_layers is not None:
        norms = 2 * (encoder_layers.normed + decoder_layers.normed) / 1e9
        parts = {"encoder": encoder_layers.products / 1e9, "decoder": decoder_layers.products / 1e9, "norms": norms}
        gmac["layers"] = parts | {"both": sum(parts.values())}
    total, in_encoder = _size(variables["params"]), _size(variables["params"]["image_encoder"])
    parameters = {
        "encoder": in_encoder, "decoder": total - in_encoder, "all": total, "inference": _size(folded["params"]),
    }  # fmt: skip
    return {"parameters": parameters, "gmac": gmac}


def _folded(config: SamConfig) -> Any:
    def start(x: Any, boxes: Any) -> Any:
        return Sam(config, folded=True).init(jax.random.key(0), x, from_boxes(boxes))

    return jax.eval_shape(start, _photo(config), _array(1, 1, 4))


def _encoder(config: SamConfig, variables: Any, folded: bool) -> float:
    def encode(variables: Any, x: Any) -> Any:
        return Sam(config, folded=folded).apply(variables, x, method="encode_image")

    return _gmac(encode, variables, _photo(config))


def _decoder(config: SamConfig, variables: Any) -> float:
    def one(variables: Any, embedding: Any, boxes: Any) -> Any:
        return decode(config, variables, embedding, from_boxes(boxes))

    return _gmac(one, variables, _array(1, config.grid, config.grid, config.embed_dim), _array(1, 1, 4))


def _gmac(f: Callable[..., Any], *args: Any) -> float:
    # A CPU computes depthwise convolutions without products, and an accelerator's forms do more of them.
    with platforms.traced_for(platforms.PLAIN):
        return jaxpr_cost.work(jax.make_jaxpr(f)(*args)).products / 2e9


def _photo(config: SamConfig) -> Any:
    return _array(1, config.image_size, config.image_size, 3)


def _array(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, "float32")


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
