"""Re-parameterisation for inference: each convolution with its batch norm and branches becomes one biased convolution.

With s = scale / sqrt(var + 1e-5), a convolution followed by batch norm equals a convolution with kernel * s (per output
channel) and bias - mean * s.  The depthwise unit (3x3 + 1x1 + identity; RepVGG, CVPR 2021) equals its 3x3 kernel with
the 1x1 kernel and 1 added to the centre.  The folded encoder of RepViT-M1 has 5,485,896 parameters
(docs/published_code.md, "Architecture").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesam_jax.config import STUDENTS, SamConfig

EPSILON = 1e-5


def folds(config: SamConfig) -> bool:
    """Whether the image encoder has batch norms to fold."""
    return isinstance(config.encoder, STUDENTS)


def fold(config: SamConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the variables of ``Sam(config)`` to those of ``Sam(config, folded=True)``.

    Computed in float64, returned as float32 NumPy arrays; the folded encoder has no ``batch_stats``.  Encoders without
    batch norm, and variables that are already folded, are returned unchanged.
    """
    if not folds(config):
        return dict(variables)
    params = dict(variables["params"])
    stats = variables.get("batch_stats", {}).get("image_encoder", {})
    params["image_encoder"] = _fold_tree(params["image_encoder"], stats)
    rest = {part: tree for part, tree in variables.get("batch_stats", {}).items() if part != "image_encoder"}
    return {**variables, "params": params, "batch_stats": rest}


def _fold_tree(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for name, branch in params.items():
        if not isinstance(branch, Mapping):
            folded[name] = branch
        elif set(branch) == {"conv", "conv1"}:
            folded[name] = {"conv": _depthwise_unit(branch, stats[name])}
        elif set(branch) in ({"c", "bn"}, {"conv", "norm"}):  # ConvBN; EfficientViT's ConvLayer
            kernel, bias = _conv_bn(branch, stats[name])
            folded[name] = {"c" if "c" in branch else "conv": _as_float32(kernel, bias)}
        else:
            folded[name] = _fold_tree(branch, stats.get(name, {}))
    return folded


def _conv_bn(params: Mapping[str, Any], stats: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (k k i o) and bias (o) in float64; the last axis of a depthwise kernel is the output channels too."""
    conv, norm = ("c", "bn") if "c" in params else ("conv", "norm")
    leaves = (
        params[conv]["kernel"],
        *(params[norm][n] for n in ("scale", "bias")),
        *(stats[norm][n] for n in ("mean", "var")),
    )
    kernel, scale, bias, mean, var = (np.asarray(leaf, np.float64) for leaf in leaves)
    factor = scale / np.sqrt(var + EPSILON)
    return kernel * factor, bias - mean * factor


def _depthwise_unit(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
    kernel, bias = _conv_bn(params["conv"], stats["conv"])
    point, point_bias = _conv_bn(params["conv1"], stats["conv1"])
    centre = kernel.shape[0] // 2
    kernel[centre, centre] += point[0, 0] + 1.0
    return _as_float32(kernel, bias + point_bias)


def _as_float32(kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
