"""Run by test_parallel.py in a process with four host devices."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import CONV, PROPOSALS, SHALLOW, make_batch

from edgesam_jax.config import Config, DataConfig, DistillConfig, LossConfig, OptimConfig, TrainConfig
from edgesam_jax.learning.device_step import make_train_step
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.models.init import init_variables
from edgesam_jax.train import parallel
from edgesam_jax.types import TrainState

# Photos of different sizes and with different numbers of prompts, so that a mean of means would be wrong.
BATCH, STEPS = 8, 3


def train(config: Config, teacher: dict, devices: list, order: np.ndarray) -> tuple[TrainState, list[dict]]:
    """A few steps on the given devices, the images of every batch in this order."""
    variables = init_variables(config.model, 0)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    step = make_train_step(config, CONV, tx, devices)
    state, teacher, key = (parallel.replicate(x, devices) for x in (state, teacher, jax.random.key(7)))
    rows = []
    for number in range(STEPS):
        batch = jax.tree.map(lambda x: x[order], make_batch(number, BATCH))
        state, metrics = step(state, teacher, parallel.shard_batch(batch, devices), key)
        rows.append(metrics)
    return state, rows


def check(
    config: Config,
    other: Config | None = None,
    order: np.ndarray | None = None,
    rtol: float = 2e-4,
) -> TrainState:
    """Compare one device, maybe with the images in another order, with several, and these with each other.

    ``other`` is the config of the several devices if it is not the same.  Returns the last state of the one device.
    """
    teacher, same = init_variables(CONV, 1), np.arange(BATCH)
    one, one_rows = train(config, teacher, jax.devices()[:1], same if order is None else order)
    four, four_rows = train(other or config, teacher, jax.devices(), same)
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
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol / 10, err_msg=jax.tree_util.keystr(path))
    assert moved > 1e-3, "nothing was trained"
    for a, b in zip(one_rows, four_rows, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                float(b[name].addressable_data(0)), float(a[name]), rtol=rtol / 2, atol=rtol / 200, err_msg=name
            )
    return one


def cut(config: Config, pieces: int, norm: str = "global") -> Config:
    """The config with this many micro-batches, and batch norm over all devices or on each by itself."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=pieces, batch_norm=norm))


def main() -> None:
    """The encoder with its batch statistics, the prompt loop with a teacher, and with everything that draws numbers."""
    assert len(jax.devices()) == 4
    # SGD-like steps: Adam's division would turn rounding of a vanishing gradient into a full-size step.
    base = Config(
        model=SHALLOW,
        data=DataConfig(batch_size=BATCH),
        optim=OptimConfig(learning_rate=1e-2, eps=1e-1, weight_decay=0.01, schedule="constant", clip_norm=5.0),
        train=TrainConfig(steps=STEPS),
    )
    loop = DistillConfig(rounds=1, min_disagreement=1)
    encoder = dataclasses.replace(base, distill=dataclasses.replace(loop, mode="encoder_only"))
    stage2 = dataclasses.replace(base, distill=loop)
    check(dataclasses.replace(stage2, model=CONV))  # batch norm in the loop: test_multiprocess.py
    # Pieces of a batch are the same, whether they follow each other on one device or lie side by side on several.
    pieces = check(cut(encoder, 4), cut(encoder, 1, "device"), rtol=1e-5)
    # A micro-batch's statistics are over all devices: every second image here.
    halves = check(cut(encoder, 2), order=np.arange(BATCH).reshape(-1, 2).T.ravel())
    distance = jax.tree.map(lambda a, b: np.abs(a - b).max(), halves.batch_stats, pieces.batch_stats)
    assert max(jax.tree.leaves(distance)) > 1e-2, "statistics depend on the size of a piece"
    truth = dataclasses.replace(
        loop,
        targets="ground_truth",
        freeze_prompt_encoder=False,
        mask_feedback=0.5,
        loss=LossConfig(iou=1.0, grouping=1.0, grouping_until=1.0),
    )
    check(dataclasses.replace(base, model=CONV, distill=truth))
    boxes = DistillConfig(mode="proposals", targets="ground_truth")
    check(dataclasses.replace(base, model=dataclasses.replace(CONV, proposals=PROPOSALS.proposals), distill=boxes))
    print("all equal")


if __name__ == "__main__":
    main()
