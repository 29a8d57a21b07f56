"""The ablations at the paper's scale: SAM ViT-H as teacher, 1 % of SA-1B (3 and 10 % for Table 5d), 1024 px.

::

    python -m edgesam_jax.ablate --table 5a --scale full --set data.root=TARS --evaluate sa1b=DIR --evaluate coco=DIR

Every run uses the published recipe of its stage and all local devices.  Inputs: the teacher's weights
(``--set teacher=FILE``; default: weights/sam_vit_h_4b8939.pth), SA-1B's tars, and annotated photos to score on.  The
published stage 1 also starts from ImageNet weights of every student: name their files in ``IMAGENET`` in a copy of this
file, and pass the copy as ``--config``.

Expected: the paper's numbers, which every table prints next to those measured.  Not run here yet.
"""

import dataclasses
from pathlib import Path

from edgesam_jax.ablate.arms import Overrides, Recipe, arms, encoder
from edgesam_jax.config import Config, EfficientVitConfig, EvalConfig, RepVitConfig, TinyVitConfig, load_config

IMAGENET = {"repvit": "", "tiny_vit": "", "efficient_vit": ""}  # empty: from scratch
PERCENT = (1, 3, 10)  # of SA-1B (Table 5d)


def _named(name: str, **arguments: int) -> Config:
    return load_config(Path(__file__).with_name(f"{name}.py"), **arguments)


def _data_of(config: Config) -> Overrides:
    return (f"data.subset={','.join(config.data.subset)}", f"train.steps={config.train.steps}")


def _recipe_of(config: Config) -> Overrides:
    optim = (f"optim.{name}={value}" for name, value in dataclasses.asdict(config.optim).items())
    return (f"data.batch_size={config.data.batch_size}", *optim, f"train.steps={config.train.steps}")


def _start(kind: str) -> Overrides:
    return (f"train.init_from={IMAGENET[kind]}",) if IMAGENET[kind] else ()


def _student(config: RepVitConfig | TinyVitConfig | EfficientVitConfig) -> Overrides:
    return (*encoder(config), f"train.init_from={IMAGENET[config.kind]}")


def get_config() -> Config:
    """All runs as one study."""
    first, second = _named("edgesam_stage1"), _named("edgesam_stage2")
    recipe = Recipe(
        stage_1=(*_recipe_of(first), *_start("repvit")),
        short=(*_recipe_of(first), *_start("repvit")),
        stage_2=(),  # the base config is stage 2's
        students={
            "RepViT-M1, no down-sampling": _student(RepVitConfig(fuse=False)),
            "TinyViT-5M, fusion": _student(TinyVitConfig(fuse=True)),
            "TinyViT-5M, no down-sampling": _student(TinyVitConfig(fuse=False)),
            "EfficientViT-B1, fusion": _student(EfficientVitConfig(fuse=True)),
            "EfficientViT-B1, no down-sampling": _student(EfficientVitConfig(fuse=False)),
        },
        prompts=(8, 32),
        data={
            percent: (
                _data_of(_named("edgesam_stage1", percent=percent)),
                _data_of(_named("edgesam_stage2", percent=percent)),
            )
            for percent in PERCENT
        },
    )
    return dataclasses.replace(
        second,
        name="ablate_full",
        train=dataclasses.replace(second.train, init_from=""),
        eval=EvalConfig(images=1000, refine=2),
        study=arms(recipe),
    )
