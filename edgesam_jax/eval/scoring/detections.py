"""A detector's boxes as prompts: masks in COCO's results format, for average precision (EdgeSAM, Table 4)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.threads import in_threads
from edgesam_jax.data.transforms import jitter_boxes
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.eval.scoring.prompted import StageTimer
from edgesam_jax.eval.scoring.protocol import HEAD, Settings, Slots
from edgesam_jax.eval.scoring.results import result
from edgesam_jax.eval.scoring.systems import System, input_size
from edgesam_jax.portable.frame import scale_coords
from edgesam_jax.reporting.rows import Row, Rows
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT

Detection = Mapping[str, Any]


def box_slots(boxes: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> Slots:
    """Convert boxes (n 4) XYXY, in pixels of a photo of ``size``, to prompts in the frame."""
    n = len(boxes)
    coords = scale_coords(boxes, size, frame).reshape(n, HEAD, 2)
    labels = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32), (n, 1))
    return Slots(coords, labels, np.ones((n, HEAD), bool))


def run_detections(
    system: System,
    photos: Iterable[tuple[int, Photo | BadExample]],
    detections: Mapping[int | str, Sequence[Detection]],
    settings: Settings,
    rows: Rows,
    at_once: int = 2,
    on_photo: Callable[[], object] | None = None,
) -> None:
    """Predict a mask for every box of a detector, with the detector's score and category, and add a row per photo.

    Args:
      detections: image id to results in COCO's format, each with ``bbox`` XYWH.
      settings: ``box_noise`` is used, at most 20 px per corner and seeded by ``seed`` and the image id, and ``resize``.
      at_once: photos in flight; affects speed, not results.
      on_photo: called after each photo.

    Raises:
      UsageError: a row can't be written.
    """

    def work(item: tuple[int, Photo | BadExample]) -> Row:
        index, photo = item
        if isinstance(photo, BadExample):
            return {"photo": index, "skipped": [photo.kind, str(photo)]}
        timer = StageTimer()
        entries = detections.get(photo.image_id, ())
        boxes = np.array([d["bbox"] for d in entries], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if settings.box_noise and len(boxes):
            rng = np.random.default_rng([settings.seed, 5, zlib.crc32(f"{photo.image_id}".encode())])
            boxes = jitter_boxes(rng, boxes, photo.size, settings.box_noise)
        results: list[dict[str, Any]] = []
        timer.lap("prompts")
        if len(boxes):
            state = system.start(photo, settings.resize)
            timer.lap("encode")
            slots = box_slots(boxes, photo.size, input_size(photo, system))
            answer = system.masks(state, photo, slots)
            timer.lap("decode")
            results = [
                result(photo.image_id, d["category_id"], d["score"], masks[0].mask)
                for d, masks in zip(entries, answer.full, strict=True)
            ]
            timer.lap("encode masks")
        return {"photo": index, "image_id": photo.image_id, "results": results, "seconds": timer.rounded}

    for row in in_threads(work, photos, at_once, at_once, "scoring"):
        rows.add(row)
        if on_photo is not None:
            on_photo()
