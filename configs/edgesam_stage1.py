"""Stage 1 of the paper: the encoder learns SAM ViT-H's embedding, pixel by pixel (section 3.2, equation 1).

10 epochs of 1 % of SA-1B at batch 64.  The rate climbs for 5 epochs to 0.1 * 64 / 512 = 1.25e-2 and then, as in the
published run, halves at once (``docs/deviations.md``, P5).  The paper starts from ImageNet weights of RepViT-M1; name
such a checkpoint with ``--set train.init_from=FILE``.
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, DistillConfig, load_config

BATCH, EPOCHS, WARMUP_EPOCHS = 64, 10, 5
STEPS_PER_EPOCH = 110_000 // BATCH


def get_config() -> Config:
    """Published stage 1."""
    base = load_config(Path(__file__).with_name("base.py"))
    return replace(
        base,
        name="edgesam_stage1",
        data=replace(base.data, batch_size=BATCH),
        distill=DistillConfig(mode="encoder_only"),
        optim=replace(
            base.optim,
            learning_rate=0.1,
            min_learning_rate=5e-6,
            warmup_learning_rate=5e-7,
            warmup_steps=WARMUP_EPOCHS * STEPS_PER_EPOCH,
            schedule="cosine_unshifted",
            weight_decay=0.01,
            clip_norm=5.0,
        ),
        train=replace(base.train, steps=EPOCHS * STEPS_PER_EPOCH),
    )
