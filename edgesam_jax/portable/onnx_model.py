"""An encoder and a decoder in ONNX, with the names of the published EdgeSAM or SAM exports, or ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD
from edgesam_jax.portable.priors import select

NOT_A_POINT, UNUSED = -1, -2  # labels: SAM's learned padding; a slot that is not there
LABELS = (UNUSED, NOT_A_POINT, 0, 1, 2, 3)
METADATA = "edgesam_jax"  # key of our contract, as JSON, in a file's metadata


class OnnxEncoder:
    """One input: a normalised and padded photo (1 3 s s) float32, or RGB (1 3 h w) uint8, unpadded, its longest side s.

    ``image_size`` is the side of the frame, s; ``proposes`` whether it gives proposals beside the embedding.

    Raises:
      UsageError: onnxruntime is not installed; the file is missing, damaged or has other inputs.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ()) -> None:
        self._session = _session(Path(path), providers)
        [image, *others] = self._session.get_inputs()
        self._image, self._raw = image.name, "uint8" in image.type
        if others or len(image.shape) != 4 or not (self._raw or "float" in image.type):
            raise UsageError(
                f"{path}: the encoder must have one input, a photo (1 3 size size) in float32 or (1 3 h w) in uint8"
            )
        self._selection: dict[str, Any] = _contract(self._session).get("proposals", {})
        self.proposes = bool(self._selection)
        side = image.shape[-1] if isinstance(image.shape[-1], int) else 1024
        self.image_size = int(_contract(self._session).get("image_size", side))

    def embed(self, frame: np.ndarray, filled: Sequence[int]) -> np.ndarray:
        """Embedding (1 c g g) of a padded frame (s s 3) uint8, of which the photo fills rows and columns ``filled``."""
        return self.outputs(frame, filled)[0]

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]:
        """All that the encoder gives: the embedding, and with ``proposes`` all anchors' boxes (1 n 4), scores (1 n)."""
        if self._raw:
            x = frame[: filled[0], : filled[1]].transpose(2, 0, 1)[None]
        else:
            x = normalised(frame, filled)
        return [np.asarray(v) for v in self._session.run(None, {self._image: np.ascontiguousarray(x)})]

    def run(self, frame: np.ndarray, filled: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
        """As ``embed``, and the proposals where there are any: boxes (n 4) in the frame, scores (n)."""
        embedding, *anchors = self.outputs(frame, filled)
        if not self.proposes:
            return embedding, None
        boxes, scores = (x[0] for x in anchors)
        return embedding, select(boxes, scores, (filled[1], filled[0]), **self._selection)


class OnnxDecoder:
    """``image_embeddings``, ``point_coords`` (1 n 2) in the frame, ``point_labels`` (1 n), and where it has them SAM's
    ``mask_input``, ``has_mask_input`` and ``orig_im_size``, to ``masks`` or ``low_res_masks`` (1 m s s) logits and
    ``scores`` or ``iou_predictions`` (1 m).

    ``slots`` is the number of points it was compiled for (0: any), ``pads`` whether it adds SAM's learned padding token
    to prompts without a box by itself: ours do, the published ones do not (facts, section 8).

    Raises:
      UsageError: onnxruntime is not installed; the file is missing, damaged or has other names.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ()) -> None:
        self._path, self._session = path, _session(Path(path), providers)
        inputs = {i.name: i for i in self._session.get_inputs()}
        names = [o.name for o in self._session.get_outputs()]
        self._outputs = [
            next((n for n in wanted if n in names), "")
            for wanted in (("low_res_masks", "masks"), ("scores", "iou_predictions"))
        ]
        if not {"image_embeddings", "point_coords", "point_labels"} <= set(inputs) or not all(self._outputs):
            raise UsageError(
                f"{path}: inputs {', '.join(inputs)} and outputs {', '.join(names)} are not those of a"
                " published export: image_embeddings, point_coords, point_labels -> scores, masks"
            )
        contract = _contract(self._session)
        points = inputs["point_coords"].shape[1]
        self._inputs = set(inputs)
        self.slots = points if isinstance(points, int) else 0
        self.pads = bool(contract.get("adds_padding", False))
        self._image_size = float(contract.get("image_size", 1024))

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One prompt: logits (m s s), scores (m).

        Args:
          embedding: (1 c g g).  coords: (n 2) in the frame.  labels: (n) in -1 to 3.  mask: (s s) earlier logits.

        Raises:
          UsageError: more points than the decoder has slots, or a mask where it takes none.
        """
        if mask is not None and "mask_input" not in self._inputs:
            raise UsageError(f"mask_input: {self._path} takes none; export it again without --published")
        given = prompt_inputs(embedding, coords, labels, mask, self.slots, str(self._path))
        given["orig_im_size"] = np.full(2, self._image_size, np.float32)
        given = {name: value for name, value in given.items() if name in self._inputs}
        masks, scores = self._session.run(self._outputs, given)
        return masks[0], scores[0]


class OnnxModel:
    """Both: ``image_size`` and ``mask_size`` are the sides of the frame and of the ``num_masks`` masks.

    Raises:
      UsageError: see ``OnnxEncoder`` and ``OnnxDecoder``.
    """

    def __init__(self, encoder: str | Path, decoder: str | Path, providers: Sequence[str] = ()) -> None:
        self.encoder, self.decoder = OnnxEncoder(encoder, providers), OnnxDecoder(decoder, providers)
        self.image_size = self.encoder.image_size
        embedding = self.encoder.embed(np.zeros((self.image_size, self.image_size, 3), np.uint8), (1, self.image_size))
        probe, _ = self.decoder.decode(embedding, np.zeros((1, 2), np.float32), np.ones(1, np.int32))
        self.num_masks, self.mask_size = probe.shape[0], probe.shape[-1]


def normalised(frame: np.ndarray, filled: Sequence[int]) -> np.ndarray:
    """A padded frame (s s 3) uint8 -> (1 3 s s) float32: ImageNet's mean and deviation, then zeros beyond the photo."""
    mean, std = (np.array(v, np.float32) for v in (PIXEL_MEAN, PIXEL_STD))
    x = (frame.astype(np.float32) - mean) / std
    x[filled[0] :] = 0  # SAM pads after normalising
    x[:, filled[1] :] = 0
    return x.transpose(2, 0, 1)[None]


def prompt_inputs(
    embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None, slots: int, name: str
) -> dict[str, np.ndarray]:
    """One prompt as a decoder takes it, by the names of its inputs, those of a mask among them.

    Coords (n 2) and labels (n) become (1 slots 2) and (1 slots) float32; ``slots`` 0 takes them as they are.

    Raises:
      UsageError: an unknown label, or more points than slots.
    """
    if not np.isin(labels, LABELS).all():
        raise UsageError(
            f"labels: {sorted(set(np.asarray(labels).tolist()) - set(LABELS))} mean nothing; 1 is a point inside the"
            " object, 0 outside, 2 and 3 the corners of a box, -1 SAM's padding, -2 an unused slot"
        )
    if slots and len(coords) > slots:
        raise UsageError(
            f"prompt: {len(coords)} points and box corners, but {name} has {slots} slots; export it again with a"
            " larger --slots, or dynamic"
        )
    fill = max(0, slots - len(coords))
    coords = np.pad(coords.astype(np.float32), ((0, fill), (0, 0)))
    side = 4 * embedding.shape[-1]
    return {
        "image_embeddings": embedding,
        "point_coords": coords[None],
        "point_labels": np.pad(labels.astype(np.float32), (0, fill), constant_values=UNUSED)[None],
        "mask_input": np.zeros((1, 1, side, side), np.float32) if mask is None else mask[None, None],
        "has_mask_input": np.full(1, mask is not None, np.float32),
    }


def _contract(session: Any) -> dict[str, Any]:
    return json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))


def _session(path: Path, providers: Sequence[str]) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("needs ONNX Runtime: pip install 'edgesam-jax[onnx]'") from None
    try:
        return onnxruntime.InferenceSession(
            str(path), providers=list(providers) or onnxruntime.get_available_providers()
        )
    except Exception as error:  # onnxruntime's own types
        raise UsageError(f"{path}: not an ONNX model that can be run ({str(error).splitlines()[0]})") from None
