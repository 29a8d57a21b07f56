"""Core ML packages as the gate runs them: Apple's own ``predict`` on macOS, op by op in torch elsewhere."""

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


def runner(path: Path) -> Any:
    """A callable from named arrays to named arrays: ``MLModel.predict`` where there is one, else ``MilProgram``."""
    if sys.platform != "darwin":
        return mil_evaluator.load(path)
    with quiet():
        import coremltools as ct

        model = ct.models.MLModel(str(path))

    def predict(**inputs: Any) -> dict[str, np.ndarray]:
        return model.predict(inputs)

    return predict


class CoremlEncoder:
    """``image`` (a normalised tensor, or with ``image_input`` a picture) to the ``names`` of outputs."""

    def __init__(self, path: Path, image_input: bool, names: Sequence[str] = ("image_embeddings",)) -> None:
        self._run, self._image_input, self._names = runner(path), image_input, names

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]:
        """Embedding (1 c g g), and maybe anchors' boxes (1 n 4) and scores (1 n), of a padded frame (s s 3) uint8.

        The photo fills rows and columns ``filled``.
        """
        found = self._answer(frame, filled)
        return [found[name] for name in self._names]

    def _answer(self, frame: np.ndarray, filled: Sequence[int]) -> Any:
        if not self._image_input:
            return self._run(image=normalised(frame, filled))
        picture = np.empty_like(frame)
        picture[:] = LETTERBOX
        picture[: filled[0], : filled[1]] = frame[: filled[0], : filled[1]]
        if sys.platform == "darwin":
            from PIL import Image

            return self._run(image=Image.fromarray(picture))
        return self._run(image=picture.transpose(2, 0, 1)[None])


class CoremlDecoder:
    """Prompt slots on an embedding to ``masks`` and ``scores``."""

    def __init__(self, path: Path, slots: int, mask_input: bool) -> None:
        self._run, self._path, self._slots, self._takes = runner(path), path, slots, mask_input

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One prompt: logits (m s s), scores (m)."""
        given = prompt_inputs(embedding, coords, labels, mask, self._slots, str(self._path))
        out = self._run(**{n: value for n, value in given.items() if self._takes or "mask_input" not in n})
        return out["masks"][0], out["scores"][0]
