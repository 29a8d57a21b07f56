"""What can be scored: our models, ONNX pairs with the published input names, and files of masks.

A system is asked for the masks of prompts on a photo and answers with bits: at its own low resolution, which random
refinement points are drawn on, and at the photo's size, which are compared.
"""

from __future__ import annotations

import functools
import queue
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edgesam_jax.checkpoints.digest import digest_of
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.mask_window import Window, crop
from edgesam_jax.data.readers.records import decode_window
from edgesam_jax.data.transforms import low_res_windows
from edgesam_jax.eval.scoring import device
from edgesam_jax.eval.scoring.device import PROMPTS, Bits
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.eval.scoring.protocol import Select, Slots
from edgesam_jax.files import sha256_of
from edgesam_jax.portable.frame import Frame, into_frame, target_size
from edgesam_jax.portable.onnx_model import OnnxModel
from edgesam_jax.predict import compiled
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, IGNORED, NEGATIVE, POSITIVE, MaskPrediction


@dataclass(frozen=True)
class Answer:
    """Masks for ``n`` prompts, ``k`` each: ``low`` (n k s s) bool, ``full`` n lists of k masks at the photo's size."""

    low: np.ndarray
    full: list[list[Bits]]


class System(Protocol):
    """What the evaluation asks.  ``start`` and ``masks`` may be called by several threads at once.

    ``name`` for tables; ``digest`` tells it from others where a stopped run goes on; ``image_size`` and
    ``mask_size``: sides of the frame that prompts are given in, and of the low-resolution masks; ``frame``: how photos
    come into it.
    """

    name: str
    image_size: int
    mask_size: int
    frame: Frame

    @property
    def digest(self) -> str:
        """A hash of what makes the answers."""
        ...

    def start(self, photo: Photo) -> Any:
        """Look at a photo; the result is for ``masks``."""
        ...

    def masks(self, state: Any, photo: Photo, slots: Slots) -> Answer:
        """The masks of some prompts on it."""
        ...

    def proposals(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n 4) in the frame and scores (n) for granularity priors."""
        ...


def input_size(photo: Photo, system: System) -> tuple[int, int]:
    """Rows and columns of a system's frame that a photo fills."""
    return target_size(*photo.size, system.image_size, system.frame)


def _upscaled(logits: Any, count: int, photo: Photo, system: System) -> list[list[Bits]]:
    """Logits (P k s s) of a device or of the host -> masks of the first ``count`` prompts at the photo's size."""
    filled, low = input_size(photo, system), logits.shape[-1]
    rows, columns = (
        device.resize_matrix(low, system.image_size, new, old, system.frame)
        for new, old in zip(filled, photo.size, strict=True)
    )
    bits = np.asarray(device.upscale(logits, rows, columns, count))[:count]
    return [[Bits(mask, photo.size) for mask in masks] for masks in bits]


class JaxSystem:
    """A model of this package, on each of some devices.

    Args:
      num_masks, select: which masks are decoded, and which of them is the answer (``oracle``: all).
      priors: whether granularity priors are asked for.

    Raises:
      UsageError: priors of a model without a proposal network.
    """

    def __init__(
        self, name: str, model: Model, num_masks: int = 1, select: Select = "first", devices: Sequence[Any] = (),
        priors: bool = False,
    ) -> None:  # fmt: skip
        self.name, self._config = name, model.config
        self.image_size, self.mask_size = model.config.image_size, model.config.mask_size
        self.frame = model.config.frame
        if priors:
            compiled.check_priors(model.config, f"--priors: {name}")
        self._encode: Any = (compiled.proposer if priors else compiled.encoder)(model.config)
        self._priors = priors
        self._decode = device.decoder(model.config, num_masks, select)
        folded = compiled.for_inference(model.config, model.variables)
        self._variables = {d: jax.device_put(folded, d) for d in devices or jax.local_devices()[:1]}
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._model = model
        for _ in range(8):  # threads take the devices in turn
            for one in self._variables:
                self._free.put(one)

    @functools.cached_property
    def digest(self) -> str:
        """Of the weights and the configuration."""
        return digest_of({"config": repr(self._config), "variables": self._model.variables})

    def start(self, photo: Photo) -> tuple[Any, Any, Any]:
        where = self._free.get()
        self._free.put(where)
        image, filled = into_frame(photo.image, self.image_size, self.frame)
        given = jax.device_put((image[None], np.asarray([filled], np.int32)), where)
        found = jax.block_until_ready(self._encode(self._variables[where], *given))
        if not self._priors:
            return where, found[0], None
        embedding, boxes, scores = found
        return where, embedding[0], (np.asarray(boxes[0]), np.asarray(scores[0]))

    def proposals(self, state: tuple[Any, Any, Any]) -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = state[2]
        return found

    def masks(self, state: tuple[Any, Any, Any], photo: Photo, slots: Slots) -> Answer:
        where, embedding, _ = state
        low: list[np.ndarray] = []
        full: list[list[Bits]] = []
        for first in range(0, len(slots.coords), PROMPTS):
            piece = [x[first : first + PROMPTS] for x in (slots.coords, slots.labels, slots.valid)]
            count = len(piece[0])
            piece = [np.concatenate([x, np.zeros((PROMPTS - count, *x.shape[1:]), x.dtype)]) for x in piece]
            given = jax.device_put(piece, where)
            logits, bits = self._decode(self._variables[where], embedding, *given, count)
            full += _upscaled(logits, count, photo, self)
            low.append(np.unpackbits(np.asarray(bits)[:count], axis=-1).view(bool))
        return Answer(np.concatenate(low), full)


class OnnxSystem:
    """An ONNX pair as ``portable.onnx_model`` takes it; the padding token after points is given as one of label -1.

    Raises:
      UsageError: onnxruntime is not installed, a file is missing or damaged, or names are others.
    """

    def __init__(
        self, encoder: Path, decoder: Path, num_masks: int = 1, select: Select = "first", priors: bool = False
    ) -> None:
        self.name = decoder.name.removesuffix(".onnx").removesuffix("_decoder")
        try:
            self._model = OnnxModel(encoder, decoder)
        except UsageError as error:
            raise UsageError(f"--onnx {error}") from None
        self.digest = sha256_of(encoder) + sha256_of(decoder)
        self._num_masks, self._select = num_masks, select
        self.image_size, self.mask_size = self._model.image_size, self._model.mask_size
        self.frame: Frame = "pad"
        if priors and not self._model.encoder.proposes:
            raise UsageError(f"--priors: {encoder} gives no proposals; export it with --priors")
        if select != "first" and self._model.num_masks != 4:
            raise UsageError(f"--select {select}: {decoder} gives {self._model.num_masks} masks, not SAM's four")

    def start(self, photo: Photo) -> tuple[np.ndarray, Any]:
        return self._model.encoder.run(*into_frame(photo.image, self.image_size))

    def proposals(self, state: tuple[np.ndarray, Any]) -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = state[1]
        return found

    def masks(self, state: tuple[np.ndarray, Any], photo: Photo, slots: Slots) -> Answer:
        low: list[np.ndarray] = []
        full: list[list[Bits]] = []
        while len(slots.coords):
            some = []
            for coords, labels, valid in zip(slots.coords, slots.labels, slots.valid, strict=True):
                used = valid & (labels != IGNORED)  # exports don't know it
                some.append(self._selected(*self._model.decoder.decode(state[0], coords[used], labels[used])))
                if len(some) == PROMPTS:
                    break
            logits = np.zeros((PROMPTS, *some[0].shape), np.float32)
            logits[: len(some)] = some
            full += _upscaled(logits, len(some), photo, self)
            low.append(logits[: len(some)] > 0)
            slots = Slots(slots.coords[PROMPTS:], slots.labels[PROMPTS:], slots.valid[PROMPTS:])
        return Answer(np.concatenate(low), full)

    def _selected(self, masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Masks (m s s) and scores (m) -> those selected (k s s)."""
        if len(masks) == 4:
            chosen = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}[self._num_masks]
            masks, scores = masks[chosen], scores[chosen]
        found = MaskPrediction(jnp.asarray(masks)[None, None], jnp.asarray(scores)[None, None])
        return np.asarray(device.choose(found, self._select)[0])


class PredictionsSystem:
    """Masks that some other system made of whole photos, in COCO's results format: FastSAM's, say.

    A prompt chooses among a photo's masks as FastSAM's do (facts, section 5): a box takes the mask of the best overlap
    with it; points take the union of all masks that a positive one hits, less those that a negative one hits.

    Args:
      results: entries with ``image_id`` and a ``segmentation`` of the photo's size.
      sizes: image id -> rows and columns of the photo.
    """

    image_size, mask_size = 1024, 256
    frame: Frame = "pad"

    def __init__(
        self,
        name: str,
        digest: str,
        results: Sequence[Mapping[str, Any]],
        sizes: Mapping[int | str, tuple[int, int]],
    ) -> None:
        self.name, self.digest, self.results, self._sizes = name, digest, list(results), sizes
        self._of: dict[int | str, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in self.results:
            self._of[entry["image_id"]].append(entry)

    def start(self, photo: Photo) -> list[Window]:
        size = self._sizes[photo.image_id]
        return [decode_window(e["segmentation"], *size, self.name) for e in self._of.get(photo.image_id, ())]

    def proposals(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Raises:
        UsageError: a file of masks has none."""
        raise UsageError(f"--priors: {self.name} is a file of masks; it has no proposals")

    def masks(self, state: Sequence[Window], photo: Photo, slots: Slots) -> Answer:
        filled = input_size(photo, self)
        scale = np.array(photo.size[::-1]) / filled[::-1]
        found: list[Window] = []
        for coords, labels, valid in zip(slots.coords * scale, slots.labels, slots.valid, strict=True):
            found.append(self._answer(state, photo.size, coords[valid], labels[valid]))
        low = low_res_windows(found, photo.size, filled, self.image_size, self.mask_size)
        full = []
        for window in found:
            mask = np.zeros(photo.size, bool)
            if window:
                window.paste(mask)
            full.append([Bits(device.pack(mask), photo.size)])
        return Answer(low[:, None], full)

    def _answer(self, masks: Sequence[Window], size: tuple[int, int], coords: np.ndarray, labels: np.ndarray) -> Window:
        corners = [coords[labels == kind] for kind in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)]
        hit = {
            label: [m for m in masks if any(_covers(m, x, y) for x, y in coords[labels == label])]
            for label in (POSITIVE, NEGATIVE)
        }
        out = np.zeros(size, bool)
        if len(corners[0]):
            overlaps = [_overlap_with_box(m, (*corners[0][0], *corners[1][0])) for m in masks]
            if any(overlaps):
                masks[int(np.argmax(overlaps))].paste(out)
        for mask in hit[POSITIVE]:
            out[mask.top :, mask.left :][: mask.pixels.shape[0], : mask.pixels.shape[1]] |= mask.pixels
        for mask in hit[NEGATIVE]:
            out[mask.top :, mask.left :][: mask.pixels.shape[0], : mask.pixels.shape[1]] &= ~mask.pixels
        return crop(out)


def _covers(mask: Window, x: float, y: float) -> bool:
    row, column = round(y) - mask.top, round(x) - mask.left
    inside = 0 <= row < mask.pixels.shape[0] and 0 <= column < mask.pixels.shape[1]
    return inside and bool(mask.pixels[row, column])


def _overlap_with_box(mask: Window, box: tuple[float, float, float, float]) -> float:
    """Intersection over union of a mask and the pixels whose centres lie in a box XYXY."""
    x0, y0, x1, y1 = (round(v) for v in box)
    rows = slice(max(0, y0 - mask.top), max(0, y1 - mask.top))
    columns = slice(max(0, x0 - mask.left), max(0, x1 - mask.left))
    common = int(mask.pixels[rows, columns].sum())
    union = int(mask.pixels.sum()) + max(0, x1 - x0) * max(0, y1 - y0) - common
    return common / union if union > 0 else 0.0
