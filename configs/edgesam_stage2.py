"""Stage 2 of the paper: prompt-in-the-loop distillation of encoder and decoder (section 3.2, appendix D).

::

    python -m edgesam_jax.train --config configs/edgesam_stage2.py --workdir runs/edgesam_stage2
    python -m edgesam_jax.train --config configs/edgesam_stage2.py:percent=3 --workdir runs/edgesam_stage2_3pct

5 epochs of 1 % of SA-1B at batch 16 (``percent``: 1, 3 or 10), 16 prompts per image, one box or point and one
refinement point, learning rate from 3.2e-3 * 16 / 512 = 1e-4 to 1e-5, gradients clipped at 0.01.  The run starts from
the finished stage 1 of the same percentage in ``runs/edgesam_stage1`` (``_3pct``, ``_10pct``); name another with
``--set train.init_from=RUN``.

Expected (the paper's Table 5a, mIoU in percent on SA-1K): 83.0 with a box and 67.5 with a centre click; 84.1 and 79.0
after two more points.  Not reproduced here yet.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from edgesam_jax.config import Config, DistillConfig, LossConfig, load_config

BATCH, EPOCHS = 16, 5
STEPS_PER_EPOCH = 110_000 // BATCH  # of 1 %


def get_config(percent: Literal[1, 3, 10] = 1) -> Config:
    """Published stage 2.  The number of epochs is the same for every ``percent``, so steps grow with it."""
    base = load_config(Path(__file__).with_name("base.py"), percent=percent)
    share = "" if percent == 1 else f"_{percent}pct"
    return replace(
        base,
        name=f"edgesam_stage2{share}",
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
        train=replace(base.train, steps=EPOCHS * STEPS_PER_EPOCH * percent, init_from=f"runs/edgesam_stage1{share}"),
    )
