"""The ablations in miniature: the quickstart's student and teacher, every run a minute or two on two cores.

::

    python -m edgesam_jax.ablate --table all

Runs that continue to stage 2 have a stage 1 three times as long as the quickstart's; tables that train one stage 1 for
every row use a shorter one.

Expected: the tables in ``docs/ablations.md``.  One table with three seeds takes 20 to 30 minutes on two idle cores, all
ten about 2.7 hours.
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.ablate.arms import Recipe, arms, encoder
from edgesam_jax.config import Config, EfficientVitConfig, EvalConfig, TinyVitConfig, load_config
from edgesam_jax.models.sam import TINY_REPVIT

# About as large as the tiny RepViT, with its grid of 16 x 16 at 128 px.
TINY_VIT = TinyVitConfig(
    widths=(16, 24, 32, 48), depths=(1, 1, 2, 1), heads=(1, 2, 2, 3), windows=(7, 7, 8, 7),
    fuse=True, stem_strides=(2, 1),
)  # fmt: skip
TINY_EFFICIENT_VIT = EfficientVitConfig(
    widths=(8, 16, 24, 32, 48), depths=(1, 1, 2, 1, 1), head_dim=8, stem_stride=1
)  # fmt: skip

STEPS_1, STEPS_SHORT, STEPS_2 = 1000, 300, 100
RATE_2 = ("optim.learning_rate=1e-3", "optim.warmup_steps=0")
SCENES, SHORT_1, SHORT_2 = 60, 60, 20  # Table 5d, smallest data set: distinct scenes, steps of stage 1 and 2


def get_config() -> Config:
    """All runs as one study."""
    base = load_config(Path(__file__).with_name("quickstart.py"))
    recipe = Recipe(
        stage_1=(f"train.steps={STEPS_1}",),
        short=(f"train.steps={STEPS_SHORT}",),
        stage_2=(*RATE_2, f"train.steps={STEPS_2}"),
        students={
            "RepViT, no down-sampling": encoder(replace(TINY_REPVIT, fuse=False)),
            "TinyViT, fusion": encoder(TINY_VIT),
            "TinyViT, no down-sampling": encoder(replace(TINY_VIT, fuse=False)),
            "EfficientViT, fusion": encoder(TINY_EFFICIENT_VIT),
            "EfficientViT, no down-sampling": encoder(replace(TINY_EFFICIENT_VIT, fuse=False)),
        },
        prompts=(2, 8),
        data={
            times: (
                (f"data.limit={times * SCENES}", f"train.steps={times * SHORT_1}"),
                (f"data.limit={times * SCENES}", f"train.steps={times * SHORT_2}"),
            )
            for times in (1, 3, 10)
        },
    )
    return replace(
        base,
        name="ablate_tiny",
        train=replace(base.train, log_every=20, picture_every=0, checkpoint_every=500),
        eval=EvalConfig(images=60, refine=2),
        study=arms(recipe),
    )
