"""Masks for one photo at a time, under the names that SAM's users know."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax import Array

from edgesam_jax import inference
from edgesam_jax.checkpoint import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.transforms import scale_coords
from edgesam_jax.postprocess import stability_score, upscale_masks

MASK_CHOICES = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}  # SAM: token 0 alone, tokens 1 to 3, all
PROMPT_BUCKETS = (1, 4, 16)  # prompt counts that are compiled; beyond, multiples of the last


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What the encoder made of one photo.  It belongs to that photo and to the model that made it.

    ``values`` (g g c); ``original_size`` and ``input_size``: rows and columns of the photo, and of its place in the
    model's frame.
    """

    values: Array
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    photo: bytes = field(repr=False)  # digest of the pixels
    model: Model = field(repr=False)


class Predictor:
    """``set_image`` once, then ``predict`` for any number of prompts.

    Scores are the IoU head's where that head was trained (``model.metadata["score"] == "iou"``), else the stability
    score, which is the default for EdgeSAM: its IoU head was not distilled.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._variables = inference.for_inference(model.config, model.variables)
        self._embedding: ImageEmbedding | None = None

    def set_image(self, image: np.ndarray, embedding: ImageEmbedding | None = None) -> ImageEmbedding:
        """Encode a photo, or take the embedding that an earlier call gave for the same photo.

        Args:
          image: (h w 3) uint8 RGB.
          embedding: what ``set_image`` returned for this photo, to spare the encoder.

        Raises:
          UsageError: not such an array; or an embedding of another photo or of another model.
        """
        image = np.ascontiguousarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UsageError(f"image: wants RGB (h w 3) uint8, got {image.shape} {image.dtype}")
        photo = hashlib.blake2b(image.data, digest_size=16).digest()
        if embedding is None:
            padded, input_size = inference.frame(image, self.model.config.image_size)
            encode = inference.encoder(self.model.config)
            values = encode(self._variables, padded[None], np.asarray([input_size], np.int32))[0]
            embedding = ImageEmbedding(values, (image.shape[0], image.shape[1]), input_size, photo, self.model)
        elif embedding.model is not self.model:
            raise UsageError("embedding: it was made by another model; call set_image without it")
        elif embedding.photo != photo or embedding.original_size != image.shape[:2]:
            raise UsageError("embedding: it belongs to another photo; call set_image without it")
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
        """Masks for one prompt: points, a box, or both.

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
        """As ``predict`` for p prompts in one decode: boxes (p 4), points (p n 2) with labels (p n), masks (p s s).

        Returns:
          masks (p m h w) bool, scores (p m) float32, low-resolution logits (p m s s) float32.
        """
        image = self.embedding
        if num_masks not in MASK_CHOICES:
            raise UsageError(f"num_masks: must be 1, 3 or 4, got {num_masks}")
        boxes, coords, labels = self._prompts(boxes, point_coords, point_labels)
        count = len(coords if boxes is None else boxes)
        slots = (
            0 if coords is None else 1 << (coords.shape[1] - 1).bit_length()
        )  # a power of two: few shapes to compile
        arrays = [_pad(x, _bucket(count)) for x in (boxes, coords, labels, self._mask_inputs(mask_inputs, count))]
        decode = inference.decoder(self.model.config)
        result = decode(self._variables, image.values, *arrays, slots=slots)
        chosen = MASK_CHOICES[num_masks]
        logits = np.asarray(result.logits[:count], np.float32)[:, chosen]
        if self.model.metadata.get("score", "stability") == "iou":
            scores = np.asarray(result.iou[:count], np.float32)[:, chosen]
        else:
            scores = stability_score(logits)
        masks = upscale_masks(logits, self.model.config.image_size, image.input_size, image.original_size)
        return masks, scores, logits

    def _prompts(self, boxes: Any, coords: Any, labels: Any) -> tuple[Any, Any, Any]:
        """Checked prompts in the model's frame: boxes (p 4) or None, points (p n 2) and labels (p n) or None."""
        size, frame = self.embedding.original_size, self.embedding.input_size
        if (coords is None) != (labels is None):
            raise UsageError("points: point_coords and point_labels go together")
        if coords is not None and not np.size(coords):
            coords = labels = None
        if boxes is None and coords is None:
            raise UsageError("no prompt: give a box or points")
        if boxes is not None:
            boxes = np.asarray(boxes, np.float64)
            if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
                raise UsageError(f"box: wants x0, y0, x1, y1, got an array of shape {boxes.shape}")
            for box in boxes:
                check_box(box, size)
            boxes = scale_coords(boxes, size, frame)
        if coords is not None:
            coords, labels = np.asarray(coords, np.float64), np.asarray(labels)
            if coords.ndim != 3 or coords.shape[2] != 2 or labels.shape != coords.shape[:2]:
                raise UsageError(
                    f"points: wants x, y with one label each, got shapes {coords.shape} and {labels.shape}"
                )
            for point, label in zip(coords.reshape(-1, 2), labels.reshape(-1), strict=True):
                check_point(point, label, size)
            coords, labels = scale_coords(coords, size, frame), labels.astype(np.int32)
            if boxes is not None and len(boxes) != len(coords):
                raise UsageError(f"prompts: {len(boxes)} boxes but {len(coords)} sets of points")
        return boxes, coords, labels

    def _mask_inputs(self, masks: np.ndarray | None, count: int) -> np.ndarray | None:
        if masks is None:
            return None
        side = self.model.config.mask_size
        if np.shape(masks) != (count, side, side) or not np.isfinite(masks).all():
            raise UsageError(f"mask_input: wants finite logits ({count} {side} {side}), got shape {np.shape(masks)}")
        return np.asarray(masks, np.float32)


def check_box(box: Sequence[float] | np.ndarray, size: tuple[int, int], name: str = "box") -> None:
    """Refuse a box x0, y0, x1, y1 that is empty or leaves the photo of ``size`` (rows, columns).

    Raises:
      UsageError: beginning with ``name``.
    """
    x0, y0, x1, y1 = box
    text = f"{name} {','.join(f'{v:g}' for v in box)}"
    if not np.isfinite(box).all():
        raise UsageError(f"{text}: wants four finite numbers")
    if x1 <= x0 or y1 <= y0:
        raise UsageError(f"{text}: wants x0 < x1 and y0 < y1")
    if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
        raise UsageError(f"{text}: leaves the photo, which is {size[1]} x {size[0]} pixels (width x height)")


def check_point(point: Sequence[float] | np.ndarray, label: Any, size: tuple[int, int], name: str = "point") -> None:
    """Refuse a point x, y outside the photo, or a label other than 1 and 0.

    Raises:
      UsageError: beginning with ``name``.
    """
    x, y = point
    text = f"{name} {x:g},{y:g},{label}"
    if label not in (0, 1):
        raise UsageError(f"{text}: the label must be 1 (inside the object) or 0 (outside)")
    if not (0 <= x <= size[1] and 0 <= y <= size[0]):  # also refuses NaN
        raise UsageError(f"{text}: not on the photo, which is {size[1]} x {size[0]} pixels (width x height)")


def _bucket(count: int) -> int:
    fits = [bucket for bucket in PROMPT_BUCKETS if bucket >= count]
    return fits[0] if fits else -(-count // PROMPT_BUCKETS[-1]) * PROMPT_BUCKETS[-1]


def _pad(array: np.ndarray | None, count: int) -> np.ndarray | None:
    """Repeat the first prompt up to ``count``."""
    return None if array is None else np.concatenate([array, np.repeat(array[:1], count - len(array), axis=0)])
