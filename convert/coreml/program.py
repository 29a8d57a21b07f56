"""Runs Core ML packages for the gate: with Core ML's ``predict`` on macOS, op by op in torch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.coreml import mil_evaluator
from convert.coreml.packages import quiet
from convert.export.encoder import LETTERBOX
from edgesam_jax.portable.onnx_model import normalised, prompt_inputs
from edgesam_jax.portable.per_photo import PHOTO_INPUTS, PerPhoto


def runner(path: Path) -> Any:
    """Return a callable from named arrays to named arrays: ``MLModel.predict`` on macOS, otherwise a ``MilProgram``."""
    if sys.platform != "darwin":
        return mil_evaluator.load(path)
    with quiet():
        import coremltools as ct

        model = ct.models.MLModel(str(path))

    def predict(**inputs: Any) -> dict[str, np.ndarray]:
        return model.predict(inputs)

    return predict


class CoremlEncoder:
    """A Core ML encoder that the gate can run.

    ``image_input``: the package takes an RGB image, not a normalised tensor. ``names``: of the outputs to return.
    """

    def __init__(self, path: Path, image_input: bool, names: Sequence[str] = ("image_embeddings",)) -> None:
        self._run, self._image_input, self._names = runner(path), image_input, names

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]:
        """Encode a padded frame (s s 3) uint8, whose rows and columns ``filled`` hold the photo.

        Returns:
          the embedding (1 c g g), and with priors the boxes (1 n 4) and scores (1 n) of all anchors.
        """
        outputs = self._predict(frame, filled)
        return [outputs[name] for name in self._names]

    def _predict(self, frame: np.ndarray, filled: Sequence[int]) -> Any:
        if not self._image_input:
            return self._run(image=normalised(frame, filled))
        letterboxed = np.empty_like(frame)
        letterboxed[:] = LETTERBOX
        letterboxed[: filled[0], : filled[1]] = frame[: filled[0], : filled[1]]
        if sys.platform == "darwin":
            from PIL import Image

            return self._run(image=Image.fromarray(letterboxed))
        return self._run(image=letterboxed.transpose(2, 0, 1)[None])


class CoremlDecoder:
    """A Core ML decoder that the gate can run. ``photo``: the package that runs once per photo, of a split decoder."""

    def __init__(self, path: Path, slots: int, mask_input: bool, photo: Path | None = None) -> None:
        self._run, self._path, self._slots, self._mask_input = runner(path), path, slots, mask_input
        self._photo = None
        if photo is not None:
            run = runner(photo)
            self._photo = PerPhoto(lambda inputs: run(**inputs))

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode one prompt; return logits (m s s) and scores (m)."""
        inputs = prompt_inputs(
            embedding, coords[None], labels[None], None if mask is None else mask[None], self._slots, str(self._path)
        )
        if self._photo is not None:
            of_prompt = {n: value for n, value in inputs.items() if n not in PHOTO_INPUTS}
            out = self._run(**self._photo.maps(inputs), **of_prompt)
        else:
            out = self._run(**{n: value for n, value in inputs.items() if self._mask_input or "mask_input" not in n})
        return out["masks"][0], out["scores"][0]
