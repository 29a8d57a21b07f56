"""Stage 1 of the paper: the encoder learns SAM ViT-H's embedding, pixel by pixel (section 3.2, equation 1).

::

    python -m edgesam_jax.train --config configs/edgesam_stage1.py --workdir runs/edgesam_stage1
    python -m edgesam_jax.train --config configs/edgesam_stage1.py:percent=3 --workdir runs/edgesam_stage1_3pct

10 epochs of 1 % of SA-1B at batch 64 (``percent``: 1, 3 or 10).  The learning rate climbs for 5 epochs to
0.1 * 64 / 512 = 1.25e-2 and then, as in the published run, halves at once (``docs/deviations.md``, P5).  The paper
starts from ImageNet weights of RepViT-M1; name such a checkpoint with ``--set train.init_from=FILE``.

Expected (the paper's Table 5a, encoder-only, mIoU in percent on SA-1K): 82.0 with a box, 64.6 with a centre click.  Not
reproduced here yet.  ``--dry-run`` prints the time, memory and disk space that the run needs.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from edgesam_jax.config import Config, DistillConfig, load_config

BATCH, EPOCHS, WARMUP_EPOCHS = 64, 10, 5
STEPS_PER_EPOCH = 110_000 // BATCH  # of 1 %


def get_config(percent: Literal[1, 3, 10] = 1) -> Config:
    """Published stage 1.  The number of epochs is the same for every ``percent``, so steps and warm-up grow with it."""
    base = load_config(Path(__file__).with_name("base.py"), percent=percent)
    return replace(
        base,
        name="edgesam_stage1" if percent == 1 else f"edgesam_stage1_{percent}pct",
        data=replace(base.data, batch_size=BATCH),
        distill=DistillConfig(mode="encoder_only"),
        optim=replace(
            base.optim,
            learning_rate=0.1,
            min_learning_rate=5e-6,
            warmup_learning_rate=5e-7,
            warmup_steps=WARMUP_EPOCHS * STEPS_PER_EPOCH * percent,
            schedule="cosine_unshifted",
            weight_decay=0.01,
            clip_norm=5.0,
        ),
        train=replace(base.train, steps=EPOCHS * STEPS_PER_EPOCH * percent),
    )
