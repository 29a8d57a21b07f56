"""Call one program's own class with ONNX files. Run by ``benchmarks.clients`` in that program's environment.

    python client_calls.py NAME JOB.json OUTPUT.npz

The job names the files, the photos (PNG) and their prompts in pixels: ``points`` (x, y), ``labels`` 0 or 1, ``box``.
The output has the program's first mask of each photo and prompt, as ``PHOTO/PROMPT``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def marks(prompt: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a prompt as samexporter and AnyLabeling write it."""
    found = [{"type": "rectangle", "data": prompt["box"]}] if "box" in prompt else []
    points = zip(prompt.get("points", []), prompt.get("labels", []), strict=True)
    return found + [{"type": "point", "data": list(point), "label": label} for point, label in points]


def samexporter(encoder: str, decoder: str) -> Callable[[Path, list[dict[str, Any]]], Iterator[np.ndarray]]:
    """Return samexporter's inference: ``SegmentAnythingONNX``."""
    import cv2
    from samexporter.sam_onnx import SegmentAnythingONNX

    model = SegmentAnythingONNX(encoder, decoder, providers="cpu")

    def run(photo: Path, prompts: list[dict[str, Any]]) -> Iterator[np.ndarray]:
        embedding = model.encode(cv2.imread(str(photo)))
        for prompt in prompts:
            yield model.predict_masks(embedding, marks(prompt))[0, 0] > 0

    return run


def anylabeling(encoder: str, decoder: str) -> Callable[[Path, list[dict[str, Any]]], Iterator[np.ndarray]]:
    """Return AnyLabeling's model ``SegmentAnything``, as its application calls it; its shapes are checked, too."""
    from anylabeling.services.auto_labeling.segment_anything import SegmentAnything
    from PyQt6.QtGui import QImage
    from PyQt6.QtWidgets import QApplication

    application = QApplication([])
    names = {"encoder_model_path": encoder, "decoder_model_path": decoder, "config_file": encoder}
    config = {"type": "segment_anything", "name": "edgesam", "display_name": "EdgeSAM", "input_size": 1024}
    model = SegmentAnything({**config, **names, "max_width": 1024, "max_height": 682}, print)

    def run(photo: Path, prompts: list[dict[str, Any]]) -> Iterator[np.ndarray]:
        assert application is not None
        for prompt in prompts:
            model.set_auto_labeling_marks(marks(prompt))
            shapes = model.predict_shapes(QImage(str(photo)), str(photo)).shapes
            embedding = model.image_embedding_cache.get(str(photo))
            assert embedding is not None, "the application's own call failed; its traceback is above"
            mask = model.model.predict_masks(embedding, model.marks)[0, 0] > 0
            assert shapes or not mask.any(), "the application made no shape of the mask"
            yield mask

    return run


def osam(encoder: str, decoder: str) -> Callable[[Path, list[dict[str, Any]]], Iterator[np.ndarray]]:
    """Return osam's ``Sam`` with files in its cache, which it then doesn't download; HOME must be a folder of ours."""
    from osam import types
    from osam._models.sam import Sam100m

    def cached(file: str) -> types.Blob:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        blob = types.Blob(url=Path(file).as_uri(), hash=f"sha256:{digest}")
        Path(blob.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob.path)
        return blob

    class EdgeSam(Sam100m):
        name = "edgesam"
        _blobs = {"encoder": cached(encoder), "decoder": cached(decoder)}  # noqa: RUF012

    model = EdgeSam()

    def run(photo: Path, prompts: list[dict[str, Any]]) -> Iterator[np.ndarray]:
        image = np.asarray(Image.open(photo).convert("RGB"))
        embedding = model.encode_image(image)
        for prompt in prompts:
            corners = np.reshape(prompt.get("box", []), (-1, 2))
            points = np.concatenate([corners, np.reshape(prompt.get("points", []), (-1, 2))])
            labels = np.array([2, 3][: len(corners)] + prompt.get("labels", []))
            given = types.Prompt(points=points, point_labels=labels)
            response = model.generate(types.GenerateRequest(model=model.name, image_embedding=embedding, prompt=given))
            [annotation] = response.annotations
            mask, place = np.zeros(image.shape[:2], bool), annotation.bounding_box
            mask[place.ymin : place.ymax + 1, place.xmin : place.xmax + 1] = annotation.mask
            yield mask

    return run


def main() -> None:
    """Run one job."""
    name, job_file, output = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    run = {"samexporter": samexporter, "anylabeling": anylabeling, "osam": osam}[name](job["encoder"], job["decoder"])
    found = {}
    for photo, prompts in job["photos"].items():
        masks = run(Path(photo), list(prompts.values()))
        found |= {f"{Path(photo).stem}/{prompt}": mask for prompt, mask in zip(prompts, masks, strict=True)}
    np.savez_compressed(output, **found)


if __name__ == "__main__":
    main()
