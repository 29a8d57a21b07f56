"""EdgeSAM in JAX: promptable segmentation of photos, and the distillation that trains the small model.

    from edgesam_jax import load_model, Predictor

Public names are loaded on first use: importing the package is cheap and initialises no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.checkpoints.model import Model
    from edgesam_jax.config import UsageError
    from edgesam_jax.everything import EverythingGenerator
    from edgesam_jax.portable.onnx_predictor import OnnxPredictor
    from edgesam_jax.predict.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["EverythingGenerator", "Model", "OnnxPredictor", "Predictor", "UsageError", "__version__", "load_model"]

_HOMES = {
    "load_model": "checkpoints.load",
    "Model": "checkpoints.model",
    "Predictor": "predict.predictor",
    "OnnxPredictor": "portable.onnx_predictor",
    "EverythingGenerator": "everything",
    "UsageError": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
