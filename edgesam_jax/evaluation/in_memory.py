"""Examples in memory scored by the ``exact`` protocol: what a training run does by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.data.schema import Example
from edgesam_jax.evaluation.photos import Photo, of_example
from edgesam_jax.evaluation.prompted import Scored, in_parallel, score_photo
from edgesam_jax.evaluation.protocol import PromptKind, Settings
from edgesam_jax.evaluation.systems import JaxSystem
from edgesam_jax.metrics import mean_iou
from edgesam_jax.portable.priors import Rule


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Overlaps instance by instance, in the order of the examples.

    ``iou`` (n 1+refine) float64 against the annotation; ``teacher_iou`` the same against the masks that a teacher gives
    for the very same prompts, or None.  NaN where both masks are empty.
    """

    image_ids: list[int | str]
    annotation_ids: list[int]
    iou: np.ndarray
    teacher_iou: np.ndarray | None
    num_images: int

    @property
    def miou(self) -> list[float]:
        """Mean over all instances: initial prompt, +1 point, +2 points, ..."""
        return [float(v) for v in mean_iou(self.iou)]

    @property
    def teacher_miou(self) -> list[float] | None:
        """The same against the teacher's masks."""
        return None if self.teacher_iou is None else [float(v) for v in mean_iou(self.teacher_iou)]


def evaluate(
    config: SamConfig,
    variables: Any,
    examples: Iterable[Example],
    *,
    prompt: PromptKind = "box",
    refine: int = 0,
    seed: int = 0,
    at_once: int = 2,
    teacher: Model | None = None,
    priors: Rule = "off",
    on_image: Callable[[], object] | None = None,
) -> Evaluation:
    """Score a model on examples.

    Args:
      config, variables: the model; ``variables`` as for training, they are folded here where possible.
      examples: annotated photos; those without instances count as images only.
      at_once: photos under way: speed, not results.
      teacher: also measure the agreement with this model's masks.
      priors: how clicks get boxes from the model's proposals.
      on_image: called after each image.

    Raises:
      UsageError: a teacher of another frame or mask size.
    """
    system = JaxSystem("model", Model(config, variables), priors=priors != "off")
    guide = JaxSystem("teacher", teacher) if teacher is not None else None
    if guide is not None and (guide.image_size, guide.mask_size) != (system.image_size, system.mask_size):
        raise UsageError("teacher: its input frame or mask size differs from the model's")
    settings = Settings(prompt=prompt, refine=refine, seed=seed, priors=priors)

    def work(example: Example) -> tuple[Photo, Scored]:
        photo = of_example(example)
        return photo, score_photo(system, photo, settings, teacher=guide)

    image_ids: list[int | str] = []
    annotation_ids: list[int] = []
    tables: list[Scored] = []
    for photo, scored in in_parallel(work, examples, at_once):
        image_ids += [photo.image_id] * len(photo)
        annotation_ids += [int(v) for v in photo.ids]
        tables.append(scored)
        if on_image is not None:
            on_image()
    blank = np.zeros((0, 1 + refine))
    agreement = np.concatenate([blank, *(t.teacher_iou for t in tables if t.teacher_iou is not None)])
    return Evaluation(
        image_ids, annotation_ids, np.concatenate([blank, *(t.iou for t in tables)]),
        agreement if teacher is not None else None, len(tables),
    )  # fmt: skip
