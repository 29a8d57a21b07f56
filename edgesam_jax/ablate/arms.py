"""The runs that the ablations compare, by name.  Tables share runs, and most start from the same stage 1.

``encoder``   the long stage 1, from which stage 2 starts
``loop1``     stage 2 as published, the reference of most tables
``short``     a short stage 1, the reference of tables in which every row trains its own stage 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from edgesam_jax.config import ArmConfig, EncoderConfig

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """The choices of a scale, as overrides of its base config.

    Attributes:
      stage_1, short, stage_2: lengths and learning rates.
      students: encoders of Table 5c in addition to the base config's, by title.
      prompts: fewer and more prompts per image than the base config's (Table 5i).
      data: multiples of the smallest number of photos, with the overrides of both stages (Table 5d).
    """

    stage_1: Overrides
    short: Overrides
    stage_2: Overrides
    students: Mapping[str, Overrides]
    prompts: tuple[int, int]
    data: Mapping[int, tuple[Overrides, Overrides]]


def arms(recipe: Recipe) -> tuple[ArmConfig, ...]:
    """Return all runs of a scale, in an order in which each follows the run it starts from."""
    only = "distill.mode=encoder_only"

    def stage_1(name: str, title: str, *overrides: str) -> ArmConfig:
        return ArmConfig(name, title, overrides=(only, *recipe.short, *overrides))

    def stage_2(name: str, title: str, *overrides: str, start: str = "encoder") -> ArmConfig:
        return ArmConfig(name, title, init_from=start, overrides=(*recipe.stage_2, *overrides))

    few, many = recipe.prompts
    runs = [
        ArmConfig("encoder", "encoder-only (stage 1)", overrides=(only, *recipe.stage_1)),
        stage_2("loop1", "stage 2, one loop"),
        ArmConfig(
            "encoder_longer", "encoder-only, for the time of both stages", overrides=(only, *recipe.stage_1),
            time_from=("encoder", "loop1"),
        ),
        stage_2("loop0", "stage 2, no loop", "distill.rounds=0"),
        stage_2("loop2", "stage 2, two loops", "distill.rounds=2"),
        stage_2("attention", "and attention maps", "distill.loss.attention=100"),
        stage_2("iou_head", "and IoU predictions", "distill.loss.iou=5"),
        stage_2("query", "and hypernetwork queries", "distill.loss.query=100"),
        stage_2("features", "upscaled features alone", *_ALONE, "distill.loss.features=5"),
        stage_2("prompts_few", f"{few} prompts an image", f"data.max_prompts={few}"),
        stage_2("prompts_many", f"{many} prompts an image", f"data.max_prompts={many}"),
        stage_2("frozen_encoder", "encoder frozen", "distill.freeze_image_encoder=true"),
        stage_2("frozen_decoder", "decoder frozen", "distill.freeze_mask_decoder=true"),
        stage_2("lora", "decoder by LoRA", "model.decoder.lora_rank=16"),
        ArmConfig(
            "joint", "both losses at once, for the time of both stages",
            overrides=(*recipe.stage_1, "distill.loss.encoder=1"), time_from=("loop1", "encoder"),
        ),
        stage_2("from_boxes", "starting with boxes", "distill.start=box"),
        stage_2("from_points", "starting with points", "distill.start=point"),
        stage_1("short", "pixel-wise"),
        stage_1("channel", "channel-wise", "distill.loss.pixel=0", "distill.loss.channel=1"),
        stage_1("correlation", "structured (pair-wise)", "distill.loss.pixel=0", "distill.loss.correlation=10"),
        stage_1("pixel_channel", "pixel-wise and channel-wise", "distill.loss.channel=1"),
        stage_1("pixel_correlation", "pixel-wise and structured", "distill.loss.correlation=10"),
    ]  # fmt: skip
    for title, overrides in recipe.students.items():
        name = "".join(c if c.isalnum() else "_" for c in title.lower()).replace("__", "_")
        runs.append(stage_1(f"student_{name}", title, *overrides))
    for times, (first, second) in recipe.data.items():
        runs.append(stage_1(f"data_{times}x_encoder", f"{times} times the photos, stage 1", *first))
        runs.append(stage_2(f"data_{times}x", f"{times} times the photos", *second, start=f"data_{times}x_encoder"))
    return tuple(runs)


_ALONE = ("distill.loss.bce=0", "distill.loss.dice=0")


def encoder(config: EncoderConfig) -> Overrides:
    """Return the override that replaces the student's image encoder."""
    return (f"model.encoder={dataclasses.asdict(config)!r}",)
