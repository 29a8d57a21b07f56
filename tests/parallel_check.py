"""Run by test_parallel.py in a process with four host devices."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import CONV, REPVIT, make_batch

from edgesam_jax import parallel
from edgesam_jax.config import Config, DataConfig, DistillConfig, LossConfig, OptimConfig, TrainConfig
from edgesam_jax.models.init import init_variables
from edgesam_jax.optim import make_optimizer
from edgesam_jax.types import TrainState

# Photos of different sizes and with different numbers of prompts, so that a mean of means would be wrong.
BATCH, STEPS = 8, 3


def train(config: Config, teacher: dict, devices: list) -> tuple[TrainState, list[dict]]:
    """A few steps on the given devices."""
    variables = init_variables(config.model, 0)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    step = parallel.make_train_step(config, CONV, tx, devices)
    state, teacher, key = (parallel.replicate(x, devices) for x in (state, teacher, jax.random.key(7)))
    rows = []
    for number in range(STEPS):
        state, metrics = step(state, teacher, parallel.shard_batch(make_batch(number, BATCH), devices), key)
        rows.append(metrics)
    return state, rows


def check(config: Config) -> None:
    """Compare one device with four, and the four with each other."""
    teacher = init_variables(CONV, 1)
    one, one_rows = train(config, teacher, jax.devices()[:1])
    four, four_rows = train(config, teacher, jax.devices())
    for leaf in jax.tree.leaves((four, four_rows)):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])
    moved = 0.0
    start = init_variables(config.model, 0)
    for path, a in jax.tree_util.tree_leaves_with_path({"params": one.params, "batch_stats": one.batch_stats}):
        b, first = four, start
        for part in path:
            b = getattr(b, part.key) if isinstance(b, TrainState) else b[part.key]
            first = first[part.key]
        a, b, first = np.asarray(a), np.asarray(b.addressable_data(0)), np.asarray(first)
        moved = max(moved, float(np.abs(a - first).max()))
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    assert moved > 1e-3, "nothing was trained"
    for a, b in zip(one_rows, four_rows, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                float(b[name].addressable_data(0)), float(a[name]), rtol=1e-4, atol=1e-6, err_msg=name
            )


def main() -> None:
    """The encoder with its batch statistics, the prompt loop with a teacher, and with everything that draws numbers."""
    assert len(jax.devices()) == 4
    # SGD-like steps: Adam's division would turn rounding of a vanishing gradient into a full-size step.
    base = Config(
        model=REPVIT,
        data=DataConfig(batch_size=BATCH),
        optim=OptimConfig(learning_rate=1e-2, eps=1e-1, weight_decay=0.01, schedule="constant", clip_norm=5.0),
        train=TrainConfig(steps=STEPS),
    )
    loop = DistillConfig(rounds=1, min_disagreement=1)
    check(dataclasses.replace(base, distill=dataclasses.replace(loop, mode="encoder_only")))
    check(dataclasses.replace(base, distill=loop))
    truth = dataclasses.replace(
        loop,
        targets="ground_truth",
        freeze_prompt_encoder=False,
        mask_feedback=0.5,
        loss=LossConfig(iou=1.0, grouping=1.0, grouping_until=1.0),
    )
    check(dataclasses.replace(base, model=CONV, distill=truth))
    print("all equal")


if __name__ == "__main__":
    main()
