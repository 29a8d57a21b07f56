"""The models that benchmarks run on: checkpoints, or full-size architectures with the tests' deterministic weights."""

from __future__ import annotations

import sys
from pathlib import Path

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.models.sam import MODELS


def benchmark_model(name: str = "edge_sam") -> Model:
    """Return the model of a checkpoint; for an architecture's name, one with deterministic weights."""
    if name not in MODELS or name == "tiny_teacher":
        return load_model(name)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import deterministic_weights

    return Model(MODELS[name], deterministic_weights.variables(MODELS[name]), {"score": "stability"})
