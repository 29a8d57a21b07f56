"""Examples in memory scored by the ``exact`` protocol: what a training run does by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config, SamConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.schema import Example
from edgesam_jax.eval.metrics import filled_box, inscribed_ellipse, mask_iou, mean_iou
from edgesam_jax.eval.scoring.photos import Photo, of_example
from edgesam_jax.eval.scoring.prompted import Scored, in_parallel, score_photo
from edgesam_jax.eval.scoring.protocol import PromptKind, Settings
from edgesam_jax.eval.scoring.systems import JaxSystem
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
        agreement if teacher is not None else None,
    )  # fmt: skip


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
