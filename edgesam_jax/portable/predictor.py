"""The base class of predictors, with the method names of SAM's predictor."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError, type_text
from edgesam_jax.portable.frame import Frame, into_frame, scale_coords
from edgesam_jax.portable.postprocess import upscale_masks
from edgesam_jax.portable.priors import RULES, Rule, merge
from edgesam_jax.portable.prompts import PromptArrays, number_text, read_numbers, read_prompts
from edgesam_jax.portable.regions import check_areas, clean
from edgesam_jax.portable.scanning import Limits, Measured, scan

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

    Threads may share a predictor, each with its own photo: ``set_image`` returns the photo's embedding, and
    ``predict(..., image=embedding)`` uses that one. Without ``image``, ``predict`` uses the photo that any thread set
    last.

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

        Returns:
          The embedding, which ``predict`` and ``predict_prompts`` take as ``image``.

        Raises:
          UsageError: ``image`` is not (h w 3) uint8; or the embedding is of another photo or another model.
        """
        image = read_photo(image)
        photo = hashlib.blake2b(image.data, digest_size=16).digest()
        if embedding is None:
            framed, input_size = into_frame(image, self.image_size, self.frame)
            values, proposals = self._encode(framed, input_size)
            size = image.shape[0], image.shape[1]
            embedding = ImageEmbedding(values, proposals, size, input_size, photo, self.model)
        self._check_embedding(embedding, "embedding")
        if embedding.photo != photo or embedding.original_size != image.shape[:2]:
            raise UsageError("embedding: computed from another photo; call set_image with the photo alone")
        self._embedding = embedding
        return embedding

    def _check_embedding(self, embedding: Any, name: str) -> None:
        if not isinstance(embedding, ImageEmbedding):
            raise UsageError(f"{name}: expected what set_image returns, got {type_text(embedding)}")
        if embedding.model is not self.model:
            raise UsageError(f"{name}: computed by another model; call set_image with the photo alone")
        if self.priors != "off" and embedding.proposals is None:
            raise UsageError(f"{name}: made without priors; call set_image with the photo alone")

    def reset_image(self) -> None:
        """Forget the photo."""
        self._embedding = None

    @property
    def embedding(self) -> ImageEmbedding:
        """The photo's embedding.

        Raises:
          UsageError: no photo is set.
        """
        embedding = self._embedding
        if embedding is None:
            raise UsageError("no photo is set: call set_image first")
        return embedding

    def predict(
        self,
        point_coords: np.ndarray | Sequence[Sequence[float]] | None = None,
        point_labels: np.ndarray | Sequence[int] | None = None,
        box: np.ndarray | Sequence[float] | None = None,
        mask_input: np.ndarray | None = None,
        num_masks: int = 1,
        *,
        image: ImageEmbedding | None = None,
        fill_holes: int = 0,
        drop_islands: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for one prompt: points, a box, or both.

        Args:
          point_coords: (n 2) x, y in pixels of the photo.
          point_labels: (n) 1 inside the object, 0 outside, -1 a slot that is not used.
          box: (4) x0, y0, x1, y1.
          mask_input: (s s) or (1 s s) low-resolution logits of an earlier prediction, together with points or a box.
          num_masks: 1: mask token 0; 3: tokens 1 to 3; 4: all, in the order 0 to 3.
          image: the photo's embedding from ``set_image``; default: the photo set last.
          fill_holes: holes in the masks of fewer pixels of the photo are filled; see ``portable.regions``.
          drop_islands: then, separate parts of fewer pixels are dropped; the largest part always stays.

        Returns:
          masks (m h w) bool, scores (m) float32, low-resolution logits (m s s) float32 (s = 256 for EdgeSAM and SAM).
          ``fill_holes`` and ``drop_islands`` change the masks alone.

        Raises:
          UsageError: no photo set, no prompt, an argument that is not as described, or a prompt that is not on the
            photo.
        """
        boxes, coords, labels, mask_inputs = (
            None if value is None else [value] for value in (box, point_coords, point_labels, mask_input)
        )
        masks, scores, logits = self.predict_prompts(
            boxes, coords, labels, mask_inputs, num_masks,
            image=image, fill_holes=fill_holes, drop_islands=drop_islands,
        )  # fmt: skip
        return masks[0], scores[0], logits[0]

    def predict_prompts(
        self,
        boxes: np.ndarray | Sequence[Any] | None = None,
        point_coords: np.ndarray | Sequence[Any] | None = None,
        point_labels: np.ndarray | Sequence[Any] | None = None,
        mask_inputs: np.ndarray | Sequence[Any] | None = None,
        num_masks: int = 1,
        *,
        image: ImageEmbedding | None = None,
        fill_holes: int = 0,
        drop_islands: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for p prompts at once.

        Args:
          boxes: (p 4); in a list, a prompt that has points may have None instead of a box.
          point_coords, point_labels: (p n 2) and (p n); or lists of p entries (n 2) and (n), whose n may differ. With
            boxes, a prompt may have no points.
          mask_inputs: (p s s).
          num_masks, image, fill_holes, drop_islands: see ``predict``.

        Returns:
          masks (p m h w) bool, scores (p m) float32, low-resolution logits (p m s s) float32.

        Raises:
          UsageError: see ``predict``.
        """
        if image is None:
            image = self.embedding
        self._check_embedding(image, "image")
        chosen = chosen_masks(num_masks)
        check_areas(fill_holes, drop_islands)
        prompts = read_prompts(
            boxes, point_coords, point_labels, mask_inputs, image.original_size, image.input_size, self.mask_size
        )  # fmt: skip
        logits, scores = self._decode_with_priors(image, prompts)
        logits, scores = logits[:, chosen], scores[:, chosen]
        full = upscale_masks(logits, self.image_size, image.input_size, image.original_size, self.frame)
        return clean(full, fill_holes, drop_islands), scores, logits

    def prior_boxes(self, points: np.ndarray, image: ImageEmbedding | None = None) -> np.ndarray:
        """Return the boxes (p 4) that clicks (p 2) get, both in pixels of the photo; NaN for clicks without a box.

        Raises:
          UsageError: no photo set, or something other than points.
        """
        if image is None:
            image = self.embedding
        self._check_embedding(image, "image")
        points = read_numbers(points, "points", "x, y of each click (p 2)")
        if not points.size or points.shape[-1] != 2 or not np.isfinite(points).all():
            raise UsageError(f"points: expected finite x, y of each click (p 2), got shape {points.shape}")
        found = self._prior_boxes(scale_coords(points.reshape(-1, 2), image.original_size, image.input_size), image)
        return scale_coords(found, image.input_size, image.original_size)

    def scan_points(self, image: ImageEmbedding, points: np.ndarray, limits: Limits, batch: int) -> list[Measured]:
        """Decode clicks to three masks each, and return the masks that pass the limits; for everything mode.

        Args:
          image: from ``set_image``.
          points: (p 2) x, y in the model's frame, p at most ``batch``. They get no prior boxes.
          limits: what a mask must reach.
          batch: the largest p of all calls.
        """
        logits, scores = self._decode(image.values, None, points[:, None], np.ones((len(points), 1), np.int32), None)
        return scan(
            logits[:, 1:], scores[:, 1:], limits, self.image_size, image.input_size, image.original_size, self.frame
        )

    def _prior_boxes(self, points: np.ndarray, image: ImageEmbedding) -> np.ndarray:
        """Return the boxes (p 4) of clicks (p 2), both in the frame; NaN for clicks without a box."""
        if self.priors == "off" or image.proposals is None:
            return np.full((len(points), 4), np.nan, np.float32)
        return merge(points, *image.proposals, self.priors)

    def _decode_with_priors(self, image: ImageEmbedding, prompts: PromptArrays) -> tuple[np.ndarray, np.ndarray]:
        """Decode all prompts; those that are a single click together with their prior box if they have one."""
        boxes = np.full((len(prompts), 4), np.nan, np.float32) if prompts.boxes is None else prompts.boxes.copy()
        clicks = prompts.single_clicks
        if clicks.any() and prompts.coords is not None:
            boxes[clicks] = self._prior_boxes(prompts.coords[clicks, 0], image)
        has_box = ~np.isnan(boxes[:, 0])
        if has_box.all() or not has_box.any():
            used = boxes if has_box.all() else None
            return self._decode(image.values, used, prompts.coords, prompts.labels, prompts.masks)
        parts = []
        for group, some in ((has_box, boxes[has_box]), (~has_box, None)):
            rest = (None if x is None else x[group] for x in (prompts.coords, prompts.labels, prompts.masks))
            parts.append((group, self._decode(image.values, some, *rest)))
        logits, scores = (np.zeros((len(prompts), *x.shape[1:]), x.dtype) for x in parts[0][1])
        for group, (group_logits, group_scores) in parts:
            logits[group], scores[group] = group_logits, group_scores
        return logits, scores


def read_photo(image: Any) -> np.ndarray:
    """Return a photo as a contiguous array (h w 3) uint8.

    Raises:
      UsageError: it isn't one.
    """
    expected = "image: expected RGB (h w 3) uint8"
    try:
        masked, array = np.ma.is_masked(image), np.asarray(image)
    except Exception:  # array-likes raise anything
        raise UsageError(f"{expected}, got {type_text(image)}") from None
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        what = f"{array.shape} {array.dtype}" if array.ndim else type_text(image)
        raise UsageError(f"{expected}, got {what}")
    if masked:
        raise UsageError(f"{expected}, got one with masked pixels; fill them")
    return np.ascontiguousarray(array)


def chosen_masks(num_masks: Any) -> slice:
    """Return the mask tokens that ``num_masks`` selects."""
    whole = isinstance(num_masks, int | np.integer)
    if not whole or num_masks not in MASK_CHOICES:
        text = number_text(num_masks) if whole and abs(num_masks) < 1 << 31 else type_text(num_masks)
        raise UsageError(f"num_masks: must be 1, 3 or 4, got {text}")
    return MASK_CHOICES[int(num_masks)]
