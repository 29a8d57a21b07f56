"""The predictor for this package's models."""

from __future__ import annotations

import numpy as np
from jax import Array

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.portable.postprocess import stability_score
from edgesam_jax.portable.predictor import BasePredictor, ImageEmbedding, Proposals
from edgesam_jax.portable.priors import Rule
from edgesam_jax.portable.prompts import UNUSED
from edgesam_jax.portable.scanning import Limits, Measured
from edgesam_jax.predict import compiled, measuring

PROMPT_BUCKETS = (1, 4, 16)  # numbers of prompts to compile for; above the last, its multiples


class Predictor(BasePredictor):
    """Call ``set_image`` once, then ``predict`` for any number of prompts. Embeddings are (g g c).

    Scores are the IoU head's if that head was trained (``model.metadata["score"] == "iou"``), else the stability score.
    EdgeSAM uses the stability score, because its IoU head was not distilled.

    Threads may share a predictor, each with its own photo: ``predict(..., image=predictor.set_image(photo))``.

    Args:
      priors: granularity priors for single clicks: "nearest" (the paper's rule), "published" or "off".

    Raises:
      UsageError: priors are on and the model has no proposal network.
    """

    model: Model

    def __init__(self, model: Model, priors: Rule = "off") -> None:
        config = model.config
        super().__init__(model, config.image_size, config.mask_size, priors, config.frame)
        if priors != "off":
            compiled.check_priors(config, "priors")
        self._variables = compiled.for_inference(config, model.variables)

    def _encode(self, frame: np.ndarray, input_size: tuple[int, int]) -> tuple[Array, Proposals | None]:
        inputs = self._variables, frame[None], np.asarray([input_size], np.int32)
        if self.priors == "off":
            return compiled.encoder(self.model.config)(*inputs)[0], None
        embedding, boxes, scores = compiled.proposer(self.model.config)(*inputs)
        return embedding[0], (np.asarray(boxes[0]), np.asarray(scores[0]))

    def _decode(
        self,
        embedding: Array,
        boxes: np.ndarray | None,
        coords: np.ndarray | None,
        labels: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if masks is not None and self.model.config.variant == "efficient_sam":
            raise UsageError("mask_input: EfficientSAM takes no masks; omit mask_input")
        count = next(len(x) for x in (boxes, coords) if x is not None)
        slots = 0
        if coords is not None and labels is not None:
            slots = 1 << (coords.shape[1] - 1).bit_length()  # powers of two: few shapes to compile
            unused = ((0, 0), (0, slots - coords.shape[1]))
            coords = np.pad(coords, (*unused, (0, 0)))
            labels = np.pad(labels, unused, constant_values=UNUSED)
        arrays = [_pad(x, _bucket(count)) for x in (boxes, coords, labels, masks)]
        result = compiled.decoder(self.model.config)(self._variables, embedding, *arrays, slots=slots)
        logits = np.asarray(result.logits[:count], np.float32)
        if self.model.metadata.get("score", "stability") == "iou":
            return logits, np.asarray(result.iou[:count], np.float32)
        return logits, stability_score(logits)

    def scan_points(self, image: ImageEmbedding, points: np.ndarray, limits: Limits, batch: int) -> list[Measured]:
        """Decode and measure clicks on the device; see ``BasePredictor``."""
        tile, config = min(batch, measuring.point_tile()), self.model.config
        by_iou = self.model.metadata.get("score", "stability") == "iou"
        resizing = measuring.resizing_of(
            config.mask_size, config.image_size, image.input_size, image.original_size, config.frame
        )
        found: list[Measured] = []
        for first in range(0, len(points), tile):
            some = points[first : first + tile]
            padded = np.resize(some, (tile, 2))
            logits, iou, stability = compiled.point_decoder(config)(self._variables, image.values, padded)
            scores = np.asarray(iou if by_iou else stability, np.float32)[: len(some)]
            found += measuring.measure(logits, scores, limits, resizing, first)
        return found


def _bucket(count: int) -> int:
    fits = [bucket for bucket in PROMPT_BUCKETS if bucket >= count]
    return fits[0] if fits else -(-count // PROMPT_BUCKETS[-1]) * PROMPT_BUCKETS[-1]


def _pad(array: np.ndarray | None, count: int) -> np.ndarray | None:
    """Pad to ``count`` prompts by repeating the first."""
    return None if array is None else np.concatenate([array, np.repeat(array[:1], count - len(array), axis=0)])
