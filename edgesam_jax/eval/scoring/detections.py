"""A detector's boxes as prompts: masks in COCO's results format, for average precision (EdgeSAM Table 4)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.transforms import jitter_boxes
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.eval.scoring.prompted import Watch, in_parallel
from edgesam_jax.eval.scoring.protocol import HEAD, Slots
from edgesam_jax.eval.scoring.results import result
from edgesam_jax.eval.scoring.rows import Row, Rows
from edgesam_jax.eval.scoring.systems import System, input_size
from edgesam_jax.portable.frame import scale_coords
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT

Detection = Mapping[str, Any]


def box_slots(boxes: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> Slots:
    """Boxes (n 4) XYXY in pixels of a photo of ``size`` -> prompts in the frame."""
    n = len(boxes)
    coords = scale_coords(boxes, size, frame).reshape(n, HEAD, 2)
    labels = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32), (n, 1))
    return Slots(coords, labels, np.ones((n, HEAD), bool))


def run_detections(
    system: System,
    photos: Iterable[tuple[int, Photo | BadExample]],
    detections: Mapping[int | str, Sequence[Detection]],
    rows: Rows,
    box_noise: float = 0.0,
    seed: int = 0,
    at_once: int = 2,
    on_photo: Callable[[], object] | None = None,
) -> None:
    """Give every box of a detector a mask, with the detector's score and category, and keep a row for each photo.

    Args:
      detections: image id -> results in COCO's format, each with ``bbox`` XYWH.
      box_noise: standard deviation of each corner as a share of the side, at most 20 px; drawn for each photo by
        ``seed`` and its id.

    Raises:
      UsageError: a row can't be written.
    """

    def work(item: tuple[int, Photo | BadExample]) -> Row:
        index, photo = item
        if isinstance(photo, BadExample):
            return {"photo": index, "skipped": [photo.kind, str(photo)]}
        watch = Watch()
        given = detections.get(photo.image_id, ())
        boxes = np.array([d["bbox"] for d in given], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if box_noise and len(boxes):
            rng = np.random.default_rng([seed, 5, zlib.crc32(f"{photo.image_id}".encode())])
            boxes = jitter_boxes(rng, boxes, photo.size, box_noise)
        results: list[dict[str, Any]] = []
        watch.lap("prompts")
        if len(boxes):
            state = system.start(photo)
            watch.lap("encode")
            slots = box_slots(boxes, photo.size, input_size(photo, system))
            answer = system.masks(state, photo, slots)
            watch.lap("decode")
            results = [
                result(photo.image_id, d["category_id"], d["score"], masks[0].mask)
                for d, masks in zip(given, answer.full, strict=True)
            ]
            watch.lap("encode masks")
        return {"photo": index, "image_id": photo.image_id, "results": results, "seconds": watch.rounded}

    for row in in_parallel(work, photos, at_once):
        rows.add(row)
        if on_photo is not None:
            on_photo()
