"""The systems under test: our models, ONNX pairs with the published input names, and files of masks.

A system predicts the masks for prompts on a photo twice: at its own low resolution, on which random refinement points
are drawn, and at the photo's size, for scoring.
"""

from __future__ import annotations

import functools
import queue
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edgesam_jax.checkpoints.digest import digest_of
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.mask_window import Window, crop
from edgesam_jax.data.readers.annotations import is_integer
from edgesam_jax.data.readers.segmentations import decode_window
from edgesam_jax.data.transforms import low_res_windows
from edgesam_jax.eval.scoring import device
from edgesam_jax.eval.scoring.device import PROMPTS, Bits
from edgesam_jax.eval.scoring.photos import Photo
from edgesam_jax.eval.scoring.protocol import Select, Slots
from edgesam_jax.files import sha256_of
from edgesam_jax.portable.frame import Frame, Resize, into_frame, target_size
from edgesam_jax.portable.onnx_model import OnnxModel
from edgesam_jax.predict import compiled
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, IGNORED, NEGATIVE, POSITIVE, MaskPrediction


@dataclass(frozen=True)
class Answer:
    """``k`` masks for each of ``n`` prompts: ``low`` (n k s s) bool; ``full``, n lists of k at the photo's size."""

    low: np.ndarray
    full: list[list[Bits]]


class System(Protocol):
    """The interface that the evaluation uses.  ``start`` and ``masks`` may be called from several threads at once.

    Attributes:
      name: for tables.
      image_size: side of the frame, in which prompts are given.
      mask_size: side of the low-resolution masks.
      frame: how photos are placed in the frame.
      takes_float: whether photos may be resized without rounding (``Resize`` "torch").
    """

    name: str
    image_size: int
    mask_size: int
    frame: Frame
    takes_float: bool

    @property
    def digest(self) -> str:
        """A hash of everything that determines the masks; a stopped run resumes only with the same one."""
        ...

    def start(self, photo: Photo, resize: Resize = "pillow") -> Any:
        """Encode a photo, resized in one of two ways; returns the state for ``masks`` and ``proposals``."""
        ...

    def masks(self, state: Any, photo: Photo, slots: Slots) -> Answer:
        """Predict the masks for prompts on a photo."""
        ...

    def proposals(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n 4) in the frame and scores (n) for granularity priors."""
        ...


def input_size(photo: Photo, system: System) -> tuple[int, int]:
    """Rows and columns of the system's frame that a photo fills."""
    return target_size(*photo.size, system.image_size, system.frame)


def _upscaled(logits: Any, count: int, photo: Photo, system: System) -> list[list[Bits]]:
    """Upscale logits (P k s s), on a device or the host, to the photo's size: masks of the first ``count`` prompts."""
    filled, low = input_size(photo, system), logits.shape[-1]
    rows, columns = (
        device.resize_matrix(low, system.image_size, new, old, system.frame)
        for new, old in zip(filled, photo.size, strict=True)
    )
    bits = np.asarray(device.upscale(logits, rows, columns, count))[:count]
    return [[Bits(mask, photo.size) for mask in masks] for masks in bits]


class _JaxState(NamedTuple):
    """An encoded photo: the device, the embedding (g g c), and proposal boxes (n 4) with scores (n), or None."""

    device: Any
    embedding: Any
    proposals: tuple[np.ndarray, np.ndarray] | None


class JaxSystem:
    """A model of this package, replicated on one or more devices.

    Args:
      name: for tables.
      num_masks, select: how many masks are decoded, and which of them is returned (``oracle``: all).
      devices: threads use them in turn; the default is the first local device.
      priors: also compute proposals for granularity priors.

    Raises:
      UsageError: ``priors`` with a model without a proposal network.
    """

    takes_float = True

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
        self._devices: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._model = model
        for _ in range(8):  # threads take the devices in turn
            for one in self._variables:
                self._devices.put(one)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the weights and the configuration."""
        return digest_of({"config": repr(self._config), "variables": self._model.variables})

    def start(self, photo: Photo, resize: Resize = "pillow") -> _JaxState:
        """See ``System.start``."""
        where = self._devices.get()
        self._devices.put(where)
        image, filled = into_frame(photo.image, self.image_size, self.frame, resize)
        inputs = jax.device_put((image[None], np.asarray([filled], np.int32)), where)
        outputs = jax.block_until_ready(self._encode(self._variables[where], *inputs))
        if not self._priors:
            return _JaxState(where, outputs[0], None)
        embedding, boxes, scores = outputs
        return _JaxState(where, embedding[0], (np.asarray(boxes[0]), np.asarray(scores[0])))

    def proposals(self, state: _JaxState) -> tuple[np.ndarray, np.ndarray]:
        """See ``System.proposals``."""
        assert state.proposals is not None
        return state.proposals

    def masks(self, state: _JaxState, photo: Photo, slots: Slots) -> Answer:
        """See ``System.masks``."""
        where, embedding, _ = state
        low: list[np.ndarray] = []
        full: list[list[Bits]] = []
        for first in range(0, len(slots.coords), PROMPTS):
            piece = [x[first : first + PROMPTS] for x in (slots.coords, slots.labels, slots.valid)]
            count = len(piece[0])
            piece = [np.concatenate([x, np.zeros((PROMPTS - count, *x.shape[1:]), x.dtype)]) for x in piece]
            prompts = jax.device_put(piece, where)
            logits, bits = self._decode(self._variables[where], embedding, *prompts, count)
            full += _upscaled(logits, count, photo, self)
            low.append(np.unpackbits(np.asarray(bits)[:count], axis=-1).view(bool))
        return Answer(np.concatenate(low), full)


def name_of_pair(decoder: Path) -> str:
    """The name of an ONNX pair in tables."""
    return decoder.name.removesuffix(".onnx").removesuffix("_decoder")


class OnnxSystem:
    """A pair of ONNX files as for ``portable.onnx_model``; the padding token after points is a point of label -1.

    Args:
      num_masks, select: how many masks are decoded, and which of them is returned (``oracle``: all).
      priors: also compute proposals for granularity priors.

    Raises:
      UsageError: onnxruntime is not installed; a file is missing, damaged or has other input names; or the files
        don't support ``select`` or ``priors``.
    """

    def __init__(
        self, encoder: Path, decoder: Path, num_masks: int = 1, select: Select = "first", priors: bool = False
    ) -> None:
        self.name = name_of_pair(decoder)
        try:
            self._model = OnnxModel(encoder, decoder)
        except UsageError as error:
            raise UsageError(f"--onnx {error}") from None
        self.digest = "".join(map(sha256_of, [encoder, *self._model.decoder.files]))
        self._num_masks, self._select = num_masks, select
        self.image_size, self.mask_size = self._model.image_size, self._model.mask_size
        self.frame: Frame = "pad"
        self.takes_float = self._model.encoder.takes_float
        if priors and not self._model.encoder.proposes:
            raise UsageError(f"--priors: {encoder} has no proposals output; export the encoder with --priors")
        if select != "first" and self._model.num_masks != 4:
            raise UsageError(
                f"--select {select}: {decoder} returns {self._model.num_masks} masks per prompt, expected 4"
            )

    def start(self, photo: Photo, resize: Resize = "pillow") -> tuple[np.ndarray, Any]:
        """See ``System.start``."""
        return self._model.encoder.run(*into_frame(photo.image, self.image_size, resize=resize))

    def proposals(self, state: tuple[np.ndarray, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See ``System.proposals``."""
        boxes_and_scores: tuple[np.ndarray, np.ndarray] = state[1]
        return boxes_and_scores

    def masks(self, state: tuple[np.ndarray, Any], photo: Photo, slots: Slots) -> Answer:
        """See ``System.masks``."""
        low: list[np.ndarray] = []
        full: list[list[Bits]] = []
        while len(slots.coords):
            coords, labels, valid = (x[:PROMPTS] for x in (slots.coords, slots.labels, slots.valid))
            used = valid & (labels != IGNORED)  # exports don't support this label
            found = self._model.decoder.decode_prompts(state[0], coords, labels, used=used)
            selected = [self._select_masks(*each) for each in zip(*found, strict=True)]
            logits = np.zeros((PROMPTS, *selected[0].shape), np.float32)
            logits[: len(selected)] = selected
            full += _upscaled(logits, len(selected), photo, self)
            low.append(logits[: len(selected)] > 0)
            slots = Slots(slots.coords[PROMPTS:], slots.labels[PROMPTS:], slots.valid[PROMPTS:])
        return Answer(np.concatenate(low), full)

    def _select_masks(self, masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Select among logits (m s s) with scores (m): logits (k s s)."""
        if len(masks) == 4:
            decoded = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}[self._num_masks]
            masks, scores = masks[decoded], scores[decoded]
        prediction = MaskPrediction(jnp.asarray(masks)[None, None], jnp.asarray(scores)[None, None])
        return np.asarray(device.select_masks(prediction, self._select)[0])


class PredictionsSystem:
    """Masks that another system, such as FastSAM, predicted for entire photos, in COCO's results format.

    A prompt selects among a photo's masks as in FastSAM (docs/published_code.md, "Other models"): a box selects the
    mask with the highest IoU with it; points select the union of all masks that contain a positive point, minus those
    that contain a negative point.

    Args:
      name: for tables.
      digest: a hash of the file.
      results: entries with ``image_id`` and a ``segmentation`` of the photo's size.
      sizes: image id to rows and columns of the photo.
    """

    image_size, mask_size = 1024, 256
    frame: Frame = "pad"
    takes_float = True

    def __init__(
        self,
        name: str,
        digest: str,
        results: Sequence[Mapping[str, Any]],
        sizes: Mapping[int | str, tuple[int, int]],
    ) -> None:
        self.name, self.digest, self.results, self._sizes = name, digest, list(results), sizes
        self._by_photo: dict[int | str, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in self.results:
            self._by_photo[entry["image_id"]].append(entry)

    def start(self, photo: Photo, resize: Resize = "pillow") -> list[tuple[Any, Window]]:
        """Decode a photo's masks, each with its annotation's id or None; the photo's pixels are not used."""
        size = self._sizes[photo.image_id]
        return [
            (e.get("annotation_id"), decode_window(e["segmentation"], *size, self.name))
            for e in self._by_photo.get(photo.image_id, ())
        ]

    def proposals(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Not available.

        Raises:
          UsageError: always.
        """
        raise UsageError(f"--priors: {self.name} is a file of masks and has no proposals")

    def masks(self, state: Sequence[tuple[Any, Window]], photo: Photo, slots: Slots) -> Answer:
        """See ``System.masks``."""
        filled = input_size(photo, self)
        scale = np.array(photo.size[::-1]) / filled[::-1]
        masks = [mask for _, mask in state]
        answers = {number: mask for number, mask in reversed(state) if is_integer(number)}  # the first of several
        windows: list[Window] = []
        prompts = zip(slots.coords * scale, slots.labels, slots.valid, strict=True)
        for number, (coords, labels, valid) in zip(chain(photo.ids.tolist(), repeat(None)), prompts, strict=False):
            if number in answers and set(labels[valid].tolist()) == {BOX_TOP_LEFT, BOX_BOTTOM_RIGHT}:
                windows.append(answers[number])
            else:
                windows.append(self._select_mask(masks, photo.size, coords[valid], labels[valid]))
        low = low_res_windows(windows, photo.size, filled, self.image_size, self.mask_size)
        full = []
        for window in windows:
            mask = np.zeros(photo.size, bool)
            if window:
                window.paste(mask)
            full.append([Bits(device.pack(mask), photo.size)])
        return Answer(low[:, None], full)

    def _select_mask(
        self, masks: Sequence[Window], size: tuple[int, int], coords: np.ndarray, labels: np.ndarray
    ) -> Window:
        corners = [coords[labels == kind] for kind in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)]
        hit = {
            label: [m for m in masks if any(_contains(m, x, y) for x, y in coords[labels == label])]
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


def _contains(mask: Window, x: float, y: float) -> bool:
    row, column = round(y) - mask.top, round(x) - mask.left
    inside = 0 <= row < mask.pixels.shape[0] and 0 <= column < mask.pixels.shape[1]
    return inside and bool(mask.pixels[row, column])


def _overlap_with_box(mask: Window, box: tuple[float, float, float, float]) -> float:
    """Intersection over union of a mask with a box XYXY, whose edges are rounded to pixels."""
    x0, y0, x1, y1 = (round(v) for v in box)
    rows = slice(max(0, y0 - mask.top), max(0, y1 - mask.top))
    columns = slice(max(0, x0 - mask.left), max(0, x1 - mask.left))
    intersection = int(mask.pixels[rows, columns].sum())
    union = int(mask.pixels.sum()) + max(0, x1 - x0) * max(0, y1 - y0) - intersection
    return intersection / union if union > 0 else 0.0
