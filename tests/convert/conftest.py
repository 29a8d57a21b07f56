"""What the tests of exports share: a model of the test file's ``CONFIG``, its checkpoint, and the gate's cases."""

from __future__ import annotations

from pathlib import Path

import deterministic_weights
import pytest

from convert.export import gate
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file


@pytest.fixture(scope="module")
def model(request) -> Model:
    config = request.module.CONFIG
    return Model(config, deterministic_weights.variables(config), {"licence": "Apache-2.0", "score": "stability"})


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return save_model_file(tmp_path_factory.mktemp("checkpoint") / "small.msgpack", model)


@pytest.fixture(scope="module")
def cases(model) -> list[gate.Case]:
    return gate.make_cases(model, gate.load_photos([]), 16, True)
