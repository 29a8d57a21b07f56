"""The predictor for this package's models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jax import Array

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.pixels import AUTO
from edgesam_jax.portable.postprocess import stability_score
from edgesam_jax.portable.predictor import BasePredictor, ImageEmbedding, Proposals
from edgesam_jax.portable.priors import Rule
from edgesam_jax.portable.prompts import UNUSED
from edgesam_jax.portable.scanning import Limits, Measured
from edgesam_jax.predict import batching, compiled, measuring

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
        if masks is not None:
            compiled.check_mask_input(self.model.config)
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

    def predict_many(
        self,
        items: Iterable[batching.Item],
        num_masks: int = 1,
        *,
        batch_size: int = 0,
        fill_holes: int = 0,
        drop_islands: int = 0,
        pixel_range: str = AUTO,
    ) -> Iterator[batching.Result]:
        """Predict masks for the prompts of many photos; equals ``set_image`` and ``predict_prompts`` for each.

        Photos are read and resized in threads while the device works. A photo or prompt that can't be used costs its
        item alone: the result has the error. The photo of ``set_image`` stays.

        Args:
          items: photos with their prompts, any number on each; a generator is consumed as needed.
          num_masks, fill_holes, drop_islands: see ``predict``.
          batch_size: photos encoded at once; the last batch is padded. 0: 2 on a CPU, 16 elsewhere.
          pixel_range: for photos given as paths, ``auto`` or the range ``LO,HI`` of pixels that becomes 0 to 255.

        Returns:
          A generator of results in the order of the items.

        Raises:
          UsageError: an argument is out of range; while iterating, an element of ``items`` is not an ``Item``.
        """
        options = batching.Options(num_masks, batch_size, fill_holes, drop_islands, pixel_range)
        return batching.predict_many(self.model, self._variables, items, options, self.priors)


def _bucket(count: int) -> int:
    fits = [bucket for bucket in PROMPT_BUCKETS if bucket >= count]
    return fits[0] if fits else -(-count // PROMPT_BUCKETS[-1]) * PROMPT_BUCKETS[-1]


def _pad(array: np.ndarray | None, count: int) -> np.ndarray | None:
    """Pad to ``count`` prompts by repeating the first."""
    return None if array is None else np.concatenate([array, np.repeat(array[:1], count - len(array), axis=0)])
