"""Everything mode: masks of whole photos, without prompts, matched with the annotations of any category.

Average recall as in Hosang et al., What makes for effective detection proposals? (PAMI 2016), by pycocotools with
``useCats`` off: https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgesam_jax.checkpoints.digest import digest_of
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.threads import in_threads
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.eval.scoring.prompted import StageTimer, description
from edgesam_jax.eval.scoring.results import compressed
from edgesam_jax.eval.scoring.systems import name_of_pair
from edgesam_jax.everything import EverythingGenerator
from edgesam_jax.files import sha256_of
from edgesam_jax.portable import run_lengths
from edgesam_jax.portable.onnx_predictor import OnnxPredictor
from edgesam_jax.portable.predictor import BasePredictor
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.reporting.rows import Row, Rows

COUNTS = (1, 10, 100, 1000)  # masks of a photo that a recall counts
GENERATE = "generate"  # stage of a photo's row

Code = Mapping[str, Any]
"""A mask as COCO's compressed run-length code."""


@dataclass(frozen=True)
class Generation:
    """Options of ``EverythingGenerator``, under its names; the others have its defaults."""

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    coarse_to_fine: bool = False


class ScoredMask(NamedTuple):
    """A mask of a photo, at the photo's size."""

    score: float
    code: Code


class GeneratorSystem:
    """A model or an ONNX pair in everything mode; its score of a mask is the record's ``predicted_iou``.

    Args:
      name: for tables.
      predictors: one or more of the same model, each with JAX's device (None without JAX); threads use them in turn.
      digest: a hash of everything that determines the masks, apart from ``options``.
      options: of the generator.
    """

    stage = GENERATE

    def __init__(
        self, name: str, predictors: Sequence[tuple[BasePredictor, Any]], digest: str, options: Generation
    ) -> None:
        self.name, self.digest, self.image_size = name, digest, predictors[0][0].image_size
        self.options: dict[str, Any] = asdict(options)
        generators = [
            (EverythingGenerator(predictor, output_mode="coco_rle", **self.options), device)
            for predictor, device in predictors
        ]
        self._in_turn, self._lock = itertools.cycle(generators), threading.Lock()

    @classmethod
    def of_model(cls, name: str, model: Model, options: Generation, devices: Sequence[Any] = ()) -> GeneratorSystem:
        """A model of this package, on one or more devices; the default is the first local device."""
        # The two kinds of score select different masks.
        kind = {"config": repr(model.config), "score": model.metadata.get("score", "stability")}
        predictors = []
        for device in devices or jax.local_devices()[:1]:
            with jax.default_device(device):
                predictors.append((Predictor(model), device))
        return cls(name, predictors, digest_of({**kind, "variables": model.variables}), options)

    @classmethod
    def of_pair(cls, encoder: Path, decoder: Path, options: Generation) -> GeneratorSystem:
        """A pair of ONNX files.

        Raises:
          UsageError: see ``OnnxPredictor``.
        """
        try:
            predictor = OnnxPredictor(encoder, decoder)
        except UsageError as error:
            raise UsageError(f"--onnx {error}") from None
        return cls(name_of_pair(decoder), [(predictor, None)], sha256_of(encoder) + sha256_of(decoder), options)

    def masks_of(self, photo: Photo) -> list[ScoredMask]:
        """All masks of a photo."""
        with self._lock:
            generator, device = next(self._in_turn)
        with jax.default_device(device):
            records = generator.generate(photo.image)
        return [ScoredMask(record["predicted_iou"], record["segmentation"]) for record in records]


class ResultsSystem:
    """The masks of a file in COCO's results format; categories don't matter.

    Args:
      name: for tables.
      digest: a hash of the file.
      results: entries with ``image_id``, ``score`` and a ``segmentation`` of the photo's size.
    """

    stage = "read masks"
    image_size = 1024

    def __init__(self, name: str, digest: str, results: Sequence[Mapping[str, Any]]) -> None:
        self.name, self.digest = name, digest
        self.options: dict[str, Any] = {}
        self._by_photo: dict[int | str, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in results:
            self._by_photo[entry["image_id"]].append(entry)

    def masks_of(self, photo: Photo) -> list[ScoredMask]:
        """All masks of a photo."""
        entries = self._by_photo.get(photo.image_id, ())
        return [ScoredMask(e["score"], compressed(e["segmentation"], *photo.size, self.name)) for e in entries]


EverythingSystem = GeneratorSystem | ResultsSystem


def match(photo: Photo, masks: Sequence[ScoredMask]) -> tuple[np.ndarray, np.ndarray]:
    """Match masks with a photo's n annotations, one to one, by falling score; equal scores keep their order.

    Returns:
      The IoU of each annotation with the mask that overlaps it most, (n) float64; and the number of annotations that
      the first 1, 10, 100 and 1000 masks match (``COUNTS``) at IoU 0.50, 0.55, ..., 0.95: (4 10) int64.
    """
    if not len(photo) or not masks:
        return np.zeros(len(photo)), np.zeros((len(COUNTS), 10), np.int64)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        truth = _indexed(photo, [{"segmentation": _code_of(mask, photo.size)} for mask in photo.masks])
        found = _indexed(photo, [{"segmentation": mask.code, "score": mask.score} for mask in masks])
        evaluation = COCOeval(truth, found, "segm")
        settings = evaluation.params
        settings.useCats, settings.maxDets = 0, [len(masks)]  # matching is greedy: fewer masks match as they do here
        settings.areaRng, settings.areaRngLbl = settings.areaRng[:1], settings.areaRngLbl[:1]  # all sizes
        evaluation.evaluate()
    matched = evaluation.evalImgs[0]["dtMatches"] > 0  # (10 masks), by falling score
    best = np.asarray(evaluation.ious[1, -1], np.float64).max(0)
    return best, np.stack([matched[:, :count].sum(1) for count in COUNTS])


def _code_of(mask: Window, size: tuple[int, int]) -> Code:
    return run_lengths.compressed(run_lengths.runs_of(mask.pixels, (mask.left, mask.top), size), size)


def _indexed(photo: Photo, annotations: Sequence[Mapping[str, Any]]) -> COCO:
    """pycocotools' data set of one photo and one category; ids begin at 1, because 0 means no match."""
    data = COCO()
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 0}
    data.dataset = {
        "images": [{"id": 1, "height": photo.size[0], "width": photo.size[1]}],
        "categories": [{"id": 1}],
        "annotations": [{**common, "id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
    }
    data.createIndex()
    return data


def run_everything(
    system: EverythingSystem,
    photos: Iterable[tuple[int, Photo | BadExample]],
    rows: Rows,
    at_once: int = 2,
    on_photo: Callable[[], object] | None = None,
) -> None:
    """Match all masks of photos with their annotations, and add a row for each photo.

    Args:
      photos: index in the data set and photo, without those that already have a row.
      at_once: photos in flight; affects speed, not results.
      on_photo: called after each photo.

    Raises:
      UsageError: a row can't be written.
    """

    def work(item: tuple[int, Photo | BadExample]) -> tuple[int, Photo | BadExample, list[ScoredMask], StageTimer]:
        timer = StageTimer()
        masks = [] if isinstance(item[1], BadExample) else system.masks_of(item[1])
        timer.lap(system.stage)
        return *item, masks, timer

    for index, photo, masks, timer in in_threads(work, photos, at_once, at_once, "scoring"):
        if isinstance(photo, BadExample):
            rows.add({"photo": index, "skipped": [photo.kind, str(photo)]})
        else:
            rows.add(_row_of(photo, masks, timer))  # in this thread alone, because stdout is redirected
        if on_photo is not None:
            on_photo()


def _row_of(photo: Photo, masks: Sequence[ScoredMask], timer: StageTimer) -> Row:
    timer.skip()
    best, matched = match(photo, masks)
    timer.lap("match")
    instances = [description(photo, i) | {"iou": [float(iou)]} for i, iou in enumerate(best)]
    row: Row = {
        "photo": photo.index, "instances": instances, "masks": len(masks), "matched": matched.tolist(),
        "seconds": timer.rounded,
    }  # fmt: skip
    return row | ({"unused": [list(unused) for unused in photo.skipped]} if photo.skipped else {})


def recall(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a report from its rows, of which at least one has an instance.

    Returns:
      ``ar``: by number of masks per photo, the fraction of annotations that these match, averaged over IoU 0.50 to
      0.95; ``mean_best_iou``: the mean over annotations of the best IoU of any mask; ``masks_per_photo``.
    """
    scored = [row for row in rows if "masks" in row]
    best = [instance["iou"][0] for row in scored for instance in row["instances"]]
    matched = np.sum([row["matched"] for row in scored], axis=0)
    ar = {str(count): float(np.mean(found / len(best))) for count, found in zip(COUNTS, matched, strict=True)}
    return {
        "ar": ar,
        "mean_best_iou": math.fsum(best) / len(best),
        "masks_per_photo": sum(row["masks"] for row in scored) / len(scored),
    }
