"""The base class of predictors, with the method names of SAM's predictor."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.frame import Frame, into_frame, scale_coords
from edgesam_jax.portable.postprocess import upscale_masks
from edgesam_jax.portable.priors import RULES, Rule, merge
from edgesam_jax.portable.prompts import check_masks, check_prompts

Proposals = tuple[np.ndarray, np.ndarray]  # boxes (n 4) in the frame, scores (n); 0 marks an unused entry
MASK_CHOICES = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}  # SAM: token 0 alone, tokens 1 to 3, all


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The encoder's output for one photo. Valid for that photo and for the model that computed it.

    ``values``: the embedding; ``proposals``: set if granularity priors are on; ``original_size``: rows and columns of
    the photo; ``input_size``: the rows and columns of the model's frame that the photo fills.
    """

    values: Any
    proposals: Proposals | None = field(repr=False)
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    photo: bytes = field(repr=False)  # digest of the pixels
    model: Any = field(repr=False)


class BasePredictor(ABC):
    """Call ``set_image`` once, then ``predict`` for any number of prompts.

    Args:
      model: identifies the embeddings' model.
      image_size, mask_size: sides of the model's frame and of its low-resolution masks.
      frame: kind of frame (``portable.frame``).
      priors: rule by which a prompt that is a single click inside an object gets a box from the proposals around it
        (``priors.merge``).

    Raises:
      UsageError: unknown ``priors``.
    """

    def __init__(self, model: Any, image_size: int, mask_size: int, priors: Rule = "off", frame: Frame = "pad") -> None:
        if priors not in RULES:
            raise UsageError(f"priors: must be one of {', '.join(RULES)}, not {priors!r}")
        self.model, self.image_size, self.mask_size = model, image_size, mask_size
        self.priors, self.frame = priors, frame
        self._embedding: ImageEmbedding | None = None

    @abstractmethod
    def _encode(self, frame: np.ndarray, input_size: tuple[int, int]) -> tuple[Any, Proposals | None]:
        """Encode a padded frame (s s 3) uint8, of which the photo fills ``input_size``; return embedding, proposals."""

    @abstractmethod
    def _decode(
        self,
        embedding: Any,
        boxes: np.ndarray | None,
        coords: np.ndarray | None,
        labels: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode prompts in the frame; return logits (p 4 s s) and scores (p 4) float32."""

    def set_image(self, image: np.ndarray, embedding: ImageEmbedding | None = None) -> ImageEmbedding:
        """Encode a photo, or reuse the embedding that an earlier call returned for the same photo.

        Args:
          image: (h w 3) uint8 RGB.
          embedding: returned by an earlier ``set_image`` of this photo; skips the encoder.

        Raises:
          UsageError: ``image`` is not (h w 3) uint8; or the embedding is of another photo or another model.
        """
        image = np.ascontiguousarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UsageError(f"image: expected RGB (h w 3) uint8, got {image.shape} {image.dtype}")
        photo = hashlib.blake2b(image.data, digest_size=16).digest()
        if embedding is None:
            framed, input_size = into_frame(image, self.image_size, self.frame)
            values, proposals = self._encode(framed, input_size)
            size = image.shape[0], image.shape[1]
            embedding = ImageEmbedding(values, proposals, size, input_size, photo, self.model)
        elif embedding.model is not self.model:
            raise UsageError("embedding: computed by another model; call set_image without it")
        elif embedding.photo != photo or embedding.original_size != image.shape[:2]:
            raise UsageError("embedding: computed from another photo; call set_image without it")
        elif self.priors != "off" and embedding.proposals is None:
            raise UsageError("embedding: made without priors; call set_image without it")
        self._embedding = embedding
        return embedding

    def reset_image(self) -> None:
        """Forget the photo."""
        self._embedding = None

    @property
    def embedding(self) -> ImageEmbedding:
        """The photo's embedding.

        Raises:
          UsageError: no photo is set.
        """
        if self._embedding is None:
            raise UsageError("no photo is set: call set_image first")
        return self._embedding

    def predict(
        self,
        point_coords: np.ndarray | Sequence[Sequence[float]] | None = None,
        point_labels: np.ndarray | Sequence[int] | None = None,
        box: np.ndarray | Sequence[float] | None = None,
        mask_input: np.ndarray | None = None,
        num_masks: int = 1,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for one prompt: points, a box, or both.

        Args:
          point_coords: (n 2) x, y in pixels of the photo.
          point_labels: (n) 1 inside the object, 0 outside.
          box: (4) x0, y0, x1, y1.
          mask_input: (s s) or (1 s s) low-resolution logits of an earlier prediction.
          num_masks: 1: mask token 0; 3: tokens 1 to 3; 4: all, in the order 0 to 3.

        Returns:
          masks (m h w) bool, scores (m) float32, low-resolution logits (m s s) float32 (s = 256 for EdgeSAM and SAM).

        Raises:
          UsageError: no photo set, no prompt, or a prompt that is not on the photo.
        """
        masks, scores, logits = self.predict_prompts(
            None if box is None else np.asarray(box, np.float64)[None],
            None if point_coords is None else np.asarray(point_coords, np.float64)[None],
            None if point_labels is None else np.asarray(point_labels)[None],
            None if mask_input is None else np.asarray(mask_input, np.float32).reshape(1, *np.shape(mask_input)[-2:]),
            num_masks,
        )
        return masks[0], scores[0], logits[0]

    def predict_prompts(
        self,
        boxes: np.ndarray | None = None,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        mask_inputs: np.ndarray | None = None,
        num_masks: int = 1,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for p prompts at once: boxes (p 4), points (p n 2) with labels (p n), masks (p s s).

        Returns:
          masks (p m h w) bool, scores (p m) float32, low-resolution logits (p m s s) float32.
        """
        image = self.embedding
        if num_masks not in MASK_CHOICES:
            raise UsageError(f"num_masks: must be 1, 3 or 4, got {num_masks}")
        boxes, coords, labels = check_prompts(
            boxes, point_coords, point_labels, image.original_size, image.input_size
        )  # fmt: skip
        count = len(boxes) if boxes is not None else len(coords) if coords is not None else 0
        masks = check_masks(mask_inputs, count, self.mask_size)
        priors = None
        if boxes is None and coords is not None and labels is not None and coords.shape[1] == 1 and (labels == 1).all():
            priors = self._prior_boxes(coords[:, 0])
        if priors is None:
            logits, scores = self._decode(image.values, boxes, coords, labels, masks)
        else:
            logits, scores = self._decode_with_priors(image.values, priors, coords, labels, masks)
        chosen = MASK_CHOICES[num_masks]
        logits, scores = logits[:, chosen], scores[:, chosen]
        full = upscale_masks(logits, self.image_size, image.input_size, image.original_size, self.frame)
        return full, scores, logits

    def prior_boxes(self, points: np.ndarray) -> np.ndarray:
        """Return the boxes (p 4) that clicks (p 2) get, both in pixels of the photo; NaN for clicks without a box.

        Raises:
          UsageError: no photo set.
        """
        image = self.embedding
        points = np.asarray(points, np.float32).reshape(-1, 2)
        found = self._prior_boxes(scale_coords(points, image.original_size, image.input_size))
        if found is None:
            return np.full((len(points), 4), np.nan, np.float32)
        return scale_coords(found, image.input_size, image.original_size)

    def _prior_boxes(self, points: np.ndarray) -> np.ndarray | None:
        proposals = self.embedding.proposals
        return None if self.priors == "off" or proposals is None else merge(points, *proposals, self.priors)

    def _decode_with_priors(
        self, embedding: Any, priors: np.ndarray, coords: Any, labels: Any, masks: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode clicks together with their box if they have one, else alone."""
        parts = []
        has_box = ~np.isnan(priors[:, 0])
        for group in (has_box, ~has_box):
            if group.any():
                group_masks = None if masks is None else masks[group]
                boxes = priors[group] if group is has_box else None
                parts.append((group, self._decode(embedding, boxes, coords[group], labels[group], group_masks)))
        first = parts[0][1]
        logits, scores = (np.zeros((len(priors), *x.shape[1:]), x.dtype) for x in first)
        for group, (group_logits, group_scores) in parts:
            logits[group], scores[group] = group_logits, group_scores
        return logits, scores
