"""The evaluation that a training run does by itself: mIoU on examples that training does not see.

For scenes these come from the held-out split, the same for every training seed.  A folder of annotated photos has no
such split: the first ``eval.images`` of it are used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config, SamConfig
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.schema import Example
from edgesam_jax.evaluation.in_memory import evaluate
from edgesam_jax.evaluation.protocol import PromptKind
from edgesam_jax.metrics import filled_box, inscribed_ellipse, mask_iou, mean_iou

PROMPTS: tuple[PromptKind, ...] = ("box", "center")
Scores = dict[str, list[float]]  # "box", "center", and these with "_teacher": [start, +1, +2, ...], fractions


def heldout_examples(config: Config) -> list[Example]:
    """At most ``eval.images`` scenes or photos of COCO's format; none for SA-1B in any form, or for a mixture.

    A hundred full-size masks on each of hundreds of photos do not fit in memory; ``edgesam_jax.eval`` streams them.

    Raises:
      UsageError: the data set can't be opened or read.
    """
    if config.data.source not in ("scenes", "coco") or config.data.mixture:
        return []
    data = dataclasses.replace(config.data, seed=config.eval.seed, limit=config.eval.images)
    source = open_source(data, config.model.image_size, "heldout")
    count = min(config.eval.images, len(source) or config.eval.images)
    return [source.load(i) for i in range(count)]


def measure(
    config: Config, model: SamConfig, variables: Any, examples: list[Example], teacher: Model | None, title: str
) -> Scores:
    """mIoU of box and centre prompts with ``eval.refine`` points, against the annotations and against a teacher."""
    scores: Scores = {}
    with tqdm(total=len(PROMPTS) * len(examples), unit="image", desc=f"evaluating {title}", leave=False) as bar:
        for prompt in PROMPTS:
            result = evaluate(
                model, variables, examples, prompt=prompt, refine=config.eval.refine, seed=config.eval.seed,
                at_once=config.eval.batch_size, teacher=teacher,
                on_image=bar.update,
            )  # fmt: skip
            scores[prompt] = result.miou
            if result.teacher_miou is not None:
                scores[f"{prompt}_teacher"] = result.teacher_miou
    return scores


def trivial_baselines(examples: list[Example]) -> dict[str, float]:
    """Box mIoU of the two masks that need no photo: the filled box, and the ellipse inscribed in it."""
    shapes = {"filled box": filled_box, "inscribed ellipse": inscribed_ellipse}
    overlaps = {
        name: np.concatenate([mask_iou(shape(e.boxes, *e.image.shape[:2]), e.masks) for e in examples if len(e)])
        for name, shape in shapes.items()
    }
    return {name: float(mean_iou(values)) for name, values in overlaps.items()}


def headings(refine: int) -> list[str]:
    """Column heads of a table row made by ``cells``: box, +1, +2, centre, +1, +2."""
    return [text for prompt in ("box", "centre") for text in (prompt, *(f"+{i + 1}" for i in range(refine)))]


def cells(scores: Scores, suffix: str, refine: int) -> list[str]:
    """Percentages with one decimal in the order of ``headings``; a dash where nothing was measured."""
    out = []
    for prompt in PROMPTS:
        values = scores.get(prompt + suffix, [])
        out += [f"{100 * values[i]:.1f}" if i < len(values) else "-" for i in range(1 + refine)]
    return out
