"""The recipe for a number of photos: what is trained, for how long, and at which rate (docs/finetune.md)."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgesam_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    SamConfig,
    TrainConfig,
)

Trained = Literal["all", "decoder", "lora", "iou_head"]
TRAINED: tuple[Trained, ...] = get_args(Trained)
LORA_RANK = 8
FEWEST_FOR_ALL = 50  # photos; with fewer the encoder stays as it is
EPOCHS, FEWEST_STEPS, MOST_STEPS = 30, 100, 3000
EVALUATIONS = 10  # of a run, where photos choose the best step
PATIENCE = 4  # evaluations without a better one, after which training ends
LARGEST_BATCH = 8
SHARE_OF_MEMORY = 0.6


@dataclass(frozen=True)
class Recipe:
    """How to train. ``learning_rate`` is the peak; ``batch`` photos a step; at most ``prompts`` masks of each photo."""

    trained: Trained
    steps: int
    batch: int
    learning_rate: float
    prompts: int = 8

    def text(self) -> str:
        """Return the recipe in words."""
        what = {
            "all": "all weights but the prompt encoder's", "decoder": "the mask decoder",
            "lora": f"low-rank updates of the mask decoder (LoRA, rank {LORA_RANK})", "iou_head": "the IoU head alone",
        }[self.trained]  # fmt: skip
        return f"{what}; {self.steps} steps of {self.batch} photos, learning rate {self.learning_rate:g}"


def choose(photos: int, batch: int, trained: Trained | None = None, steps: int = 0, rate: float = 0.0) -> Recipe:
    """Return the recipe for a number of photos; what is given is taken as it is.

    Args:
      batch: see ``batch_for``.
    """
    trained = trained or ("all" if photos >= FEWEST_FOR_ALL else "decoder")
    batch = min(batch, photos)
    steps = steps or min(MOST_STEPS, max(FEWEST_STEPS, EPOCHS * photos // batch))
    rate = rate or {"all": 3e-4, "decoder": 3e-4, "lora": 1e-3, "iou_head": 1e-3}[trained]
    return Recipe(trained, steps, batch, rate)


def config_for(
    recipe: Recipe, model: SamConfig, data: DataConfig, start: str, seed: int, choosing: Path | None
) -> Config:
    """Return the config of a training run.

    Args:
      model: of the checkpoint ``start``.
      data: the photos to train on.
      choosing: list of the photos that choose the best step; None: the last step is taken.
    """
    if recipe.trained == "lora":
        rank = model.decoder.lora_rank or LORA_RANK
        model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, lora_rank=rank))
    every = max(1, recipe.steps // EVALUATIONS)
    return Config(
        name="finetune",
        model=model,
        data=dataclasses.replace(
            data, batch_size=recipe.batch, max_prompts=recipe.prompts, seed=seed, augment=AugmentConfig(flip=0.5),
            max_bad_share=1.0,
        ),
        distill=DistillConfig(
            targets="ground_truth",
            loss=LossConfig(bce=5.0, dice=5.0, iou=1.0),
            point_start_masks="best",
            point_start="interior",
            freeze_image_encoder=recipe.trained != "all",
            iou_head_only=recipe.trained == "iou_head",
            init_decoder_from_teacher=False,
        ),
        optim=OptimConfig(
            learning_rate=recipe.learning_rate, min_learning_rate=recipe.learning_rate / 20,
            warmup_steps=min(50, recipe.steps // 10), weight_decay=0.02, clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=recipe.steps, seed=seed, init_from=start, devices=1, log_every=max(1, every // 2),
            picture_every=every, checkpoint_every=every, keep_best=1,
        ),
        eval=EvalConfig(every=every, images=200, refine=1, ids=str(choosing)) if choosing else EvalConfig(images=0),
    )  # fmt: skip


def batch_for(config: Config) -> int:
    """Return the largest batch, a power of two up to ``LARGEST_BATCH``, whose step fits this machine's memory."""
    from edgesam_jax.planning.plan import plan

    def needed(batch: int) -> int:
        sized = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))
        return sum(plan(sized, None, 1).memory.values())

    one, two = needed(1), needed(2)
    available = SHARE_OF_MEMORY * memory()
    batch = LARGEST_BATCH
    while batch > 1 and one + (batch - 1) * (two - one) > available:
        batch //= 2
    return batch


def memory() -> int:
    """Return the bytes of the first device's memory, or of this machine's on a CPU."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    return int(statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
