"""The ablations at the paper's scale: SAM ViT-H as teacher, 1 % of SA-1B (3 and 10 % for Table 5d), 1024 px.

Every run has the published recipe of its stage, on as many devices as there are.  It needs the teacher's weights and
SA-1B's tars (``--set teacher=FILE data.root=DIR``), photos to score on (``--evaluate sa1b=DIR --evaluate coco=DIR``),
and, to start stage 1 as published, ImageNet weights of every student: name their files in ``IMAGENET`` of a copy of
this file, and give that as ``--config``.
"""

import dataclasses
from pathlib import Path

from edgesam_jax.ablate.arms import Overrides, Recipe, arms, encoder
from edgesam_jax.config import Config, EfficientVitConfig, EvalConfig, RepVitConfig, TinyVitConfig, load_config

IMAGENET = {"repvit": "", "tiny_vit": "", "efficient_vit": ""}  # empty: from scratch
TARS = {1: "sa_000020..sa_000029", 3: "sa_000020..sa_000049", 10: "sa_000020..sa_000119"}


def _named(name: str) -> Config:
    return load_config(Path(__file__).with_name(f"{name}.py"))


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
    steps = {name: config.train.steps for name, config in (("first", first), ("second", second))}
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
            times: (
                (f"data.subset={tars}", f"train.steps={times * steps['first']}"),
                (f"data.subset={tars}", f"train.steps={times * steps['second']}"),
            )
            for times, tars in TARS.items()
        },
    )
    return dataclasses.replace(
        second,
        name="ablate_full",
        train=dataclasses.replace(second.train, init_from=""),
        eval=EvalConfig(images=1000, refine=2),
        study=arms(recipe),
    )
