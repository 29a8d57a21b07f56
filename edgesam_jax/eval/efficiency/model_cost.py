"""Parameters and multiply-accumulates of a model from its shapes: no weights, nothing compiled, nothing computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from edgesam_jax.config import SamConfig
from edgesam_jax.models import layer_cost
from edgesam_jax.models.fold import folds
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.kernels import ops
from edgesam_jax.models.prompts import from_boxes
from edgesam_jax.models.sam import Sam, decode
from edgesam_jax.planning import jaxpr_cost


def counts(config: SamConfig) -> dict[str, dict[str, Any]]:
    """Count a model for one photo of ``config.image_size`` and one box on it.

    Returns:
      ``parameters``: ``encoder``, ``decoder`` (with the prompt encoder), ``all``, and ``inference``: all after folding.
      ``gmac``, in G multiply-accumulates: ``encoder`` and ``decoder`` as inference runs them on an accelerator and
      ``both``; ``unfolded``: the encoder before folding; ``activations``: products of two activations in a ViT
      (``layer_cost.vit_activation_products``; absent for others).  ``layers``: ``encoder`` and ``decoder`` layer by
      layer as published, ``norms`` with two operations for each element that a norm scales, and ``both``, the sum of
      the three (absent where layers don't tell the whole of the encoder).
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
    ours, theirs = layer_cost.encoder_layers(config, variables), layer_cost.decoder_layers(config)
    if ours is not None:
        norms = 2 * (ours.normed + theirs.normed) / 1e9
        parts = {"encoder": ours.products / 1e9, "decoder": theirs.products / 1e9, "norms": norms}
        gmac["layers"] = parts | {"both": sum(parts.values())}
    own, everything = _size(variables["params"]["image_encoder"]), _size(variables["params"])
    parameters = {"encoder": own, "decoder": everything - own, "all": everything, "inference": _size(folded["params"])}
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
    # An accelerator's form: what a CPU does in place of a depthwise convolution is the same work without a product.
    with ops.traced_for("gpu"):
        return jaxpr_cost.work(jax.make_jaxpr(f)(*args)).products / 2e9


def _photo(config: SamConfig) -> Any:
    return _array(1, config.image_size, config.image_size, 3)


def _array(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, "float32")


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
