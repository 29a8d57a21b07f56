"""The predictor for a pair of ONNX files. Needs numpy, Pillow and ONNX Runtime, but no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.onnx_model import NOT_A_POINT, OnnxModel
from edgesam_jax.portable.predictor import BasePredictor, Proposals
from edgesam_jax.portable.priors import Rule
from edgesam_jax.portable.prompts import UNUSED


class OnnxPredictor(BasePredictor):
    """Call ``set_image`` once, then ``predict`` for any number of prompts. Embeddings are (1 c g g).

    Scores are the decoder's. Points are padded as in SAM, here if the decoder doesn't pad them itself. Threads may
    share a predictor; see ``BasePredictor``.

    Args:
      encoder, decoder: paths of the ONNX files.
      providers: ONNX Runtime's execution providers in order of preference; default: all available ones.
      priors: granularity priors for single clicks; needs an encoder exported with ``--priors``.

    Raises:
      UsageError: see ``OnnxModel``; or the decoder doesn't return SAM's four masks; or priors are on and the encoder
        returns no proposals.
    """

    model: OnnxModel

    def __init__(
        self, encoder: str | Path, decoder: str | Path, providers: Sequence[str] = (), priors: Rule = "off"
    ) -> None:
        model = OnnxModel(encoder, decoder, providers)
        if model.num_masks != 4:
            raise UsageError(f"{decoder}: returns {model.num_masks} masks, expected SAM's four")
        super().__init__(model, model.image_size, model.mask_size, priors)
        if priors != "off" and not model.encoder.proposes:
            raise UsageError(f"{encoder}: returns no proposals for priors; export it with --priors")

    def _encode(self, frame: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, Proposals | None]:
        embedding, proposals = self.model.encoder.run(frame, input_size)
        return embedding, proposals if self.priors != "off" else None

    def _decode(
        self,
        embedding: np.ndarray,
        boxes: np.ndarray | None,
        coords: np.ndarray | None,
        labels: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        count = next(len(x) for x in (boxes, coords) if x is not None)
        places, kinds = np.zeros((count, 0, 2), np.float32), np.zeros((count, 0), np.int32)
        if boxes is not None:
            places, kinds = boxes.reshape(count, 2, 2), np.tile(np.array([2, 3], np.int32), (count, 1))
        elif not self.model.decoder.pads:
            places, kinds = np.zeros((count, 1, 2), np.float32), np.full((count, 1), NOT_A_POINT, np.int32)
        used = np.ones(kinds.shape, bool)
        if coords is not None and labels is not None:
            places, kinds = np.concatenate([places, coords], 1), np.concatenate([kinds, labels], 1)
            used = np.concatenate([used, labels != UNUSED], 1)
        return self.model.decoder.decode_prompts(embedding, places, kinds, masks, used)
