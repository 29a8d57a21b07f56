"""Run by test_parallel.py in a process with four host devices."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgesam_jax import parallel
from edgesam_jax.config import (
    Config,
    DataConfig,
    DecoderConfig,
    DistillConfig,
    LossConfig,
    OptimConfig,
    RepVitConfig,
    SamConfig,
    TrainConfig,
)
from edgesam_jax.models.init import init_variables
from edgesam_jax.optim import make_optimizer
from edgesam_jax.types import Batch, TrainState

MODEL = SamConfig(
    encoder=RepVitConfig(widths=(8, 8, 16, 16), depths=(1, 2, 2, 2), stem_strides=(2, 1)),
    decoder=DecoderConfig(heads=2, mlp_dim=32),
    image_size=32,
    embed_dim=16,
    mask_in_chans=4,
)
BATCH, PROMPTS, STEPS = 8, 3, 3


def make_batch(rng: np.random.Generator) -> Batch:
    """Photos of different sizes and with different numbers of prompts, so that a mean of means would be wrong."""
    size = rng.integers(16, 33, (BATCH, 2)).astype(np.int32)
    low = rng.uniform(0, 10, (BATCH, PROMPTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 6, low.shape)], -1).astype(np.float32)
    valid = rng.random((BATCH, PROMPTS)) < 0.6
    valid[:, 0] = True
    valid[0] = True
    return Batch(
        image=rng.integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8),
        valid_size=size,
        boxes=boxes,
        points=boxes.reshape(BATCH, PROMPTS, 2, 2).mean(2),
        prompt_valid=valid,
        masks=rng.random((BATCH, PROMPTS, MODEL.mask_size, MODEL.mask_size)) < 0.4,
    )


def train(config: Config, teacher: dict, devices: list) -> tuple[TrainState, list[dict]]:
    """A few steps on the given devices."""
    variables = init_variables(config.model, 0)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    step = parallel.make_train_step(config, MODEL, tx, devices)
    state, teacher, key = (parallel.replicate(x, devices) for x in (state, teacher, jax.random.key(7)))
    rng, rows = np.random.default_rng(0), []
    for _ in range(STEPS):
        state, metrics = step(state, teacher, parallel.shard_batch(make_batch(rng), devices), key)
        rows.append(metrics)
    return state, rows


def check(config: Config) -> None:
    """Compare one device with four, and the four with each other."""
    teacher = init_variables(MODEL, 1)
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
    """Both stages, and ground-truth targets."""
    assert len(jax.devices()) == 4
    # SGD-like steps: Adam's division would turn rounding of a vanishing gradient into a full-size step.
    base = Config(
        model=MODEL,
        data=DataConfig(batch_size=BATCH, max_prompts=PROMPTS),
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
    check(dataclasses.replace(base, distill=truth))
    print("all equal")


if __name__ == "__main__":
    main()
