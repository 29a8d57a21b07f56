"""The teacher of ``ablate --scale small``: a small SAM at 512 px, trained on the masks of scenes and optional photos.

::

    python -m edgesam_jax.train --config configs/small_teacher.py --workdir runs/small_teacher

For one GPU.  ``ablate_small.py`` shows how to add photos.

Expected: unknown; not run here yet.
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, ConvEncoderConfig, DecoderConfig, SamConfig, load_config

MODEL = SamConfig(
    encoder=ConvEncoderConfig(widths=(32, 48, 64, 128, 192), depths=(1, 1, 2, 3, 3)),
    decoder=DecoderConfig(heads=8, mlp_dim=512, tie_cross_keys=True),
    image_size=512,
    embed_dim=128,
    position_std=0.3,
)


def get_config() -> Config:
    """The tiny teacher's recipe, in one run instead of four."""
    base = load_config(Path(__file__).with_name("tiny_teacher.py"))
    return replace(
        base,
        name="small_teacher",
        model=MODEL,
        data=replace(base.data, batch_size=16, max_prompts=16, workers=8, scene_difficulty=1.0),
        distill=replace(
            base.distill, rounds_from=0.5, loss=replace(base.distill.loss, grouping=1.0, grouping_until=0.2)
        ),
        optim=replace(base.optim, learning_rate=1e-3, min_learning_rate=1e-5, warmup_steps=500),
        train=replace(base.train, steps=20_000, prompt_chunk=0, checkpoint_every=1000, picture_every=2000),
        study=(),
    )
