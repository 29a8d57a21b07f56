"""Stage 2 of the paper: prompt-in-the-loop distillation of encoder and decoder (section 3.2, appendix D).

5 epochs of 1 % of SA-1B at batch 16, 16 prompts per image, one box or point and one refinement point, rate from
3.2e-3 * 16 / 512 = 1e-4 to 1e-5, gradients clipped at 0.01.  Start it from a finished stage 1:
``--set train.init_from=RUNS/stage1``.
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, DistillConfig, LossConfig, load_config

BATCH, EPOCHS = 16, 5
STEPS_PER_EPOCH = 110_000 // BATCH


def get_config() -> Config:
    """Published stage 2."""
    base = load_config(Path(__file__).with_name("base.py"))
    return replace(
        base,
        name="edgesam_stage2",
        data=replace(base.data, batch_size=BATCH, max_prompts=16),
        distill=DistillConfig(
            mode="prompt_in_the_loop", rounds=1, points_per_round=1, loss=LossConfig(bce=5.0, dice=5.0)
        ),
        optim=replace(
            base.optim,
            learning_rate=3.2e-3,
            min_learning_rate=3.2e-4,
            schedule="cosine",
            weight_decay=0.05,
            clip_norm=0.01,
        ),
        train=replace(base.train, steps=EPOCHS * STEPS_PER_EPOCH, init_from="runs/edgesam_stage1"),
    )
