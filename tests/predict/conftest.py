"""A small model, a photo, and a predictor that has it."""

from __future__ import annotations

import numpy as np
import pytest

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import DecoderConfig, RepVitConfig, SamConfig
from edgesam_jax.models.init import init_variables
from edgesam_jax.predict.predictor import Predictor

CONFIG = SamConfig(
    encoder=RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 1, 2, 1)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_variables(CONFIG, 3), {"score": "iou"})


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture
def ready(model: Model, photo: np.ndarray) -> Predictor:
    predictor = Predictor(model)
    predictor.set_image(photo)
    return predictor
