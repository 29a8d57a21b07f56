"""Score a model on examples in memory by the ``exact`` protocol, as a training run does between steps.

``heldout_examples`` loads the examples, ``evaluate`` scores one kind of prompt, ``measure`` scores box and centre
prompts, and ``headings`` and ``cells`` lay the scores out as a row of a table.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config, SamConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import SkippedRow, reasons
from edgesam_jax.data.threads import in_threads
from edgesam_jax.eval.metrics import filled_box, inscribed_ellipse, mask_iou, mean_iou
from edgesam_jax.eval.scoring.photos import Photo, from_example
from edgesam_jax.eval.scoring.prompted import Scored, score_photo
from edgesam_jax.eval.scoring.protocol import PromptKind, Settings
from edgesam_jax.eval.scoring.systems import JaxSystem

PROMPTS: tuple[PromptKind, ...] = ("box", "center")
Scores = dict[str, list[float]]  # "box", "center", and these with "_teacher": [first prompt, +1, +2, ...], fractions


# ---------------------------------------------------------------------------------------------------------- examples


def heldout_examples(config: Config) -> list[Example]:
    """At most ``eval.images`` scenes or COCO-format photos, or those of ``eval.ids``; none for a mixture.

    Without ``eval.ids`` there are none for other kinds of photos, whose data sets are large (SA-1B).

    A hundred full-size masks for each of hundreds of photos don't fit in memory; ``edgesam_jax.eval`` streams them.

    Photos and annotations that can't be used are left out, with a note on stderr.

    Raises:
      UsageError: the data set can't be opened, or none of the photos can be used.
    """
    if config.data.mixture or not (config.eval.ids or config.data.source in ("scenes", "coco")):
        return []
    ids = config.eval.ids or config.data.ids
    data = dataclasses.replace(config.data, seed=config.eval.seed, limit=config.eval.images, ids=ids)
    source = open_source(data, config.model.image_size, "heldout")
    count = min(config.eval.images, len(source) or config.eval.images)
    examples: list[Example] = []
    skipped: list[SkippedRow] = []
    for index in range(count):
        try:
            examples.append(source.load(index))
            skipped += examples[-1].skipped
        except BadExample as error:
            skipped.append((error.kind, str(error)))
    if skipped:
        if not examples:
            raise UsageError(f"none of the {count} photos to evaluate on can be used: {reasons(skipped)}")
        note = f"note: evaluation leaves out {len(skipped)} photos and annotations ({reasons(skipped)})"
        print(note, file=sys.stderr, flush=True)
    return examples


# ----------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Overlaps of all instances, in the order of the examples.

    Attributes:
      image_ids, annotation_ids: (n), one per instance.
      iou: (n 1+refine) float64, against the annotations; NaN where both masks are empty.
      teacher_iou: the same against a teacher's masks for the same prompts, or None without a teacher.
    """

    image_ids: list[int | str]
    annotation_ids: list[int]
    iou: np.ndarray
    teacher_iou: np.ndarray | None

    @property
    def miou(self) -> list[float]:
        """Mean over all instances: first prompt, +1 point, +2 points, ..."""
        return [float(v) for v in mean_iou(self.iou)]

    @property
    def teacher_miou(self) -> list[float] | None:
        """The same against the teacher's masks."""
        return None if self.teacher_iou is None else [float(v) for v in mean_iou(self.teacher_iou)]


def evaluate(
    model: Model,
    examples: Iterable[Example],
    settings: Settings | None = None,
    *,
    teacher: Model | None = None,
    at_once: int = 2,
    on_image: Callable[[], object] | None = None,
) -> Evaluation:
    """Score a model on examples.

    Args:
      model: with variables as in training; they are folded here where possible.
      examples: annotated photos; those without instances only count as images.
      settings: prompts and protocol; the default is a box prompt without refinement.
      teacher: also measure the agreement with this model's masks.
      at_once: photos in flight; affects speed, not results.
      on_image: called after each image.

    Raises:
      UsageError: the teacher's frame or mask size differs from the model's; or ``settings.priors`` with a model
        without a proposal network.
    """
    settings = settings or Settings()
    system = JaxSystem("model", model, priors=settings.priors != "off")
    teacher_system = JaxSystem("teacher", teacher) if teacher is not None else None
    if teacher_system is not None and (teacher_system.image_size, teacher_system.mask_size) != (
        system.image_size, system.mask_size
    ):  # fmt: skip
        raise UsageError(
            f"teacher: its frame of {teacher_system.image_size} px and masks of {teacher_system.mask_size} px differ"
            f" from the model's ({system.image_size} and {system.mask_size} px); use a teacher of the same sizes"
        )

    def work(example: Example) -> tuple[Photo, Scored]:
        photo = from_example(example)
        return photo, score_photo(system, photo, settings, teacher=teacher_system)

    image_ids: list[int | str] = []
    annotation_ids: list[int] = []
    results: list[Scored] = []
    for photo, scored in in_threads(work, examples, at_once, at_once, "scoring"):
        image_ids += [photo.image_id] * len(photo)
        annotation_ids += [int(v) for v in photo.ids]
        results.append(scored)
        if on_image is not None:
            on_image()
    empty = np.zeros((0, 1 + settings.refine))
    agreement = np.concatenate([empty, *(r.teacher_iou for r in results if r.teacher_iou is not None)])
    return Evaluation(
        image_ids=image_ids,
        annotation_ids=annotation_ids,
        iou=np.concatenate([empty, *(r.iou for r in results)]),
        teacher_iou=agreement if teacher is not None else None,
    )


def measure(
    config: Config, model: SamConfig, variables: Any, examples: list[Example], teacher: Model | None, title: str
) -> Scores:
    """mIoU of box and centre prompts with ``eval.refine`` points, against the annotations and against a teacher.

    Args:
      config: of the run; its ``eval`` group is used.
      model, variables: the model to score.
      title: for the progress bar.
    """
    scores: Scores = {}
    with tqdm(total=len(PROMPTS) * len(examples), unit="image", desc=f"evaluating {title}", leave=False) as bar:
        for prompt in PROMPTS:
            result = evaluate(
                Model(model, variables), examples, Settings(prompt, config.eval.refine, seed=config.eval.seed),
                teacher=teacher, at_once=config.eval.batch_size, on_image=bar.update,
            )  # fmt: skip
            scores[prompt] = result.miou
            if result.teacher_miou is not None:
                scores[f"{prompt}_teacher"] = result.teacher_miou
    return scores


def trivial_baselines(examples: list[Example]) -> dict[str, float]:
    """Box mIoU of two masks that ignore the photo: the filled box, and the ellipse inscribed in it."""
    shapes = {"filled box": filled_box, "inscribed ellipse": inscribed_ellipse}
    overlaps = {
        name: np.concatenate([mask_iou(shape(e.boxes, *e.image.shape[:2]), e.masks) for e in examples if len(e)])
        for name, shape in shapes.items()
    }
    return {name: float(mean_iou(values)) for name, values in overlaps.items()}


# ------------------------------------------------------------------------------------------------------------ tables


def headings(refine: int) -> list[str]:
    """Column headings for ``cells``: box, +1, +2, centre, +1, +2."""
    return [text for prompt in ("box", "centre") for text in (prompt, *(f"+{i + 1}" for i in range(refine)))]


def cells(scores: Scores, suffix: str, refine: int) -> list[str]:
    """Percentages with one decimal in the order of ``headings``; a dash where nothing was measured.

    Args:
      suffix: "" for scores against the annotations, "_teacher" for those against the teacher.
    """
    out = []
    for prompt in PROMPTS:
        values = scores.get(prompt + suffix, [])
        out += [f"{100 * values[i]:.1f}" if i < len(values) else "-" for i in range(1 + refine)]
    return out
