"""Every objective has the functions that the step, the plan and the checks call, and nothing else has to know it."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONV, configured, make_batch

from edgesam_jax.config import Config, DistillConfig, LossConfig, TrainConfig
from edgesam_jax.learning import objectives
from edgesam_jax.learning.objective import Objective, Outcome, Share
from edgesam_jax.learning.objectives import encoder_only, objective_of
from edgesam_jax.learning.step import train_step
from edgesam_jax.models.init import init_variables
from edgesam_jax.types import TrainState

MODES = typing.get_args(typing.get_type_hints(DistillConfig)["mode"])
FUNCTIONS = [name for name in vars(Objective) if not name.startswith("_")]


def test_a_module_for_every_mode():
    files = {path.stem for path in Path(objectives.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_every_objective_has_the_functions_of_the_protocol(mode):
    module = objective_of(configured(f"distill.mode={mode}"))
    for name in FUNCTIONS:
        wanted = list(inspect.signature(getattr(Objective, name)).parameters)[1:]  # without self
        assert list(inspect.signature(getattr(module, name)).parameters) == wanted, f"{mode}.{name}"


def test_no_other_module_compares_modes():
    """A new objective touches its own file: modes are compared nowhere."""
    package = Path(objectives.__file__).parents[2]
    found = [p for p in package.rglob("*.py") if ".mode ==" in (text := p.read_text()) and "distill.mode ==" in text]
    assert not found


def test_a_new_objective_is_one_module(monkeypatch):
    """An objective that only its own module knows is trained by the step as it is."""

    def loss(variables, teacher, share, key, setting):
        value = optax.tree.norm(variables["params"]["image_encoder"], squared=True)
        return Outcome(value, variables["batch_stats"], {"loss": value})

    def share(batch, keys, config, total):
        return Share(batch, keys)

    shrink = types.ModuleType("edgesam_jax.learning.objectives.shrink")
    vars(shrink).update({name: getattr(encoder_only, name) for name in FUNCTIONS}, loss=loss, share=share)
    monkeypatch.setitem(sys.modules, shrink.__name__, shrink)
    config = Config(model=CONV, distill=DistillConfig(mode="shrink"))  # type: ignore[arg-type]
    variables = init_variables(CONV, 0)
    tx = optax.sgd(0.1)
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    after, metrics = train_step(state, None, make_batch(), jax.random.key(0), config=config, teacher_config=None, tx=tx)
    before = variables["params"]["image_encoder"]
    assert metrics["loss"] == pytest.approx(float(optax.tree.norm(before, squared=True)), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.8 * b, rtol=1e-5), after.params["image_encoder"], before)


@pytest.mark.parametrize(
    ("distill", "pictures", "needed"),
    [
        ({"mode": "encoder_only"}, 0, False),
        ({"mode": "encoder_only", "point_start": "interior"}, 10, True),  # the pictures draw a first point
        ({"mode": "proposals", "targets": "ground_truth"}, 0, False),
        ({"mode": "proposals", "targets": "ground_truth"}, 10, True),
        ({}, 10, False),
        ({"targets": "ground_truth"}, 0, True),
        ({"point_start": "interior"}, 0, True),
        ({"loss": LossConfig(grouping=1.0)}, 0, True),
    ],
)
def test_masks_are_made_only_for_runs_that_read_them(distill, pictures, needed):
    config = Config(distill=DistillConfig(**distill), train=TrainConfig(picture_every=pictures))
    assert objectives.needs_masks(config) is needed
