"""The ablations on one GPU: RepViT-M1 at 512 px, with a teacher trained for it, on scenes or a mixture with photos.

::

    python -m edgesam_jax.train --config configs/small_teacher.py --workdir runs/small_teacher
    python -m edgesam_jax.ablate --table all --scale small

To train on photos too, pass the first line below to both commands; to score on photos that neither model has seen, pass
the second line to ``ablate``::

    --set "data.mixture=[{'source':'scenes'},{'source':'coco','root':'DIR'}]"
    --evaluate coco=DIR

Expected: unknown; not run here yet (no GPU was available).
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.ablate.arms import Recipe, arms, encoder
from edgesam_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EfficientVitConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    RepVitConfig,
    TinyVitConfig,
    TrainConfig,
    load_config,
)

STEPS_1, STEPS_SHORT, STEPS_2 = 6000, 2000, 1500
PHOTOS, FIRST, SECOND = 2000, 600, 150  # Table 5d, smallest data set: distinct photos, steps of stage 1 and 2


def get_config() -> Config:
    """All runs as one study."""
    teacher = load_config(Path(__file__).with_name("small_teacher.py"))
    decoder = replace(teacher.model.decoder, tie_cross_keys=False)
    recipe = Recipe(
        stage_1=(f"train.steps={STEPS_1}",),
        short=(f"train.steps={STEPS_SHORT}",),
        stage_2=("optim.learning_rate=3e-4", "optim.warmup_steps=0", f"train.steps={STEPS_2}"),
        students={
            "RepViT-M1, no down-sampling": encoder(RepVitConfig(fuse=False)),
            "TinyViT-5M, fusion": encoder(TinyVitConfig(fuse=True)),
            "TinyViT-5M, no down-sampling": encoder(TinyVitConfig(fuse=False)),
            "EfficientViT-B1, fusion": encoder(EfficientVitConfig(fuse=True)),
            "EfficientViT-B1, no down-sampling": encoder(EfficientVitConfig(fuse=False)),
        },
        prompts=(4, 16),
        data={
            times: (
                (f"data.limit={times * PHOTOS}", f"train.steps={times * FIRST}"),
                (f"data.limit={times * PHOTOS}", f"train.steps={times * SECOND}"),
            )
            for times in (1, 3, 10)
        },
    )
    return Config(
        name="ablate_small",
        model=replace(teacher.model, encoder=RepVitConfig(), decoder=decoder),
        teacher="runs/small_teacher",
        data=DataConfig(source="scenes", batch_size=16, max_prompts=8, workers=8, scene_difficulty=1.0),
        distill=DistillConfig(rounds=1, loss=LossConfig(bce=5.0, dice=5.0)),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=200, b2=0.99, weight_decay=0.02, clip_norm=1.0),
        train=TrainConfig(log_every=50, picture_every=0, checkpoint_every=500),
        eval=EvalConfig(images=200, refine=2),
        study=arms(recipe),
    )
