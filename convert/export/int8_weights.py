"""Weights of ONNX files in int8: which ones, along which axis, and their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MIN_INT8 = 4096  # elements; smaller ones are depthwise kernels for the most part, which take few bytes and cost much


def quantised(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values and their float32 scales, one per index of ``axis``; symmetric around 0."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.maximum(np.abs(values).max(others, keepdims=True), 1e-30) / 127
    return np.round(values / scale).astype(np.int8), scale.astype(np.float32)


def candidates(path: Path) -> dict[str, int]:
    """Return the elements of the weights that int8 may store, by name."""
    import onnx

    model = onnx.load(path)
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return {name: sizes[name] for name in channel_axes(model) if sizes.get(name, 0) >= MIN_INT8}


def channel_axes(model: Any) -> dict[str, int]:
    """Return the axis of the output channels of every weight of a convolution or a dense layer."""
    ranks = {t.name: len(t.dims) for t in model.graph.initializer}
    axes: dict[str, int] = {}
    for node in model.graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        for i, name in enumerate(node.input[:2]):
            if name not in ranks or name in axes or ranks[name] < 2:
                continue
            if node.op_type == "Conv" and i == 1:
                axes[name] = 0
            elif node.op_type == "ConvTranspose" and i == 1 and attributes.get("group", 1) == 1:
                axes[name] = 1
            elif node.op_type == "MatMul":
                axes[name] = ranks[name] - (1 if i else 2)
            elif node.op_type == "Gemm" and i == 1:
                axes[name] = 0 if attributes.get("transB") else 1
    return axes
