"""ONNX encoders and decoders: this project's exports, and the published EdgeSAM and SAM exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD
from edgesam_jax.portable.per_photo import PHOTO_INPUTS, PerPhoto
from edgesam_jax.portable.priors import select

NOT_A_POINT, UNUSED = -1, -2  # labels: SAM's learned padding; an unused slot
LABELS = (UNUSED, NOT_A_POINT, 0, 1, 2, 3)
PROMPT_INPUTS = ("point_coords", "point_labels", "mask_input", "has_mask_input")
PROMPTS_PER_CALL = 16  # bounds the memory of a call: docs/export.md, "Measured: prompts per call"
METADATA = "edgesam_jax"  # key of this project's contract (JSON) in a file's metadata


class OnnxEncoder:
    """An encoder of one input: a normalised, padded photo (1 3 s s) float32, or an unpadded RGB photo, (1 3 h w) uint8
    or (h w 3) float32.

    ``image_size`` is s, the side of the frame and the longest side of an unpadded photo. ``proposes``: whether the
    encoder also returns proposals. ``takes_float``: whether it can be given a frame of float values.

    Raises:
      UsageError: onnxruntime is not installed; the file is missing, damaged or has other inputs.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ()) -> None:
        self._session = _session(Path(path), providers)
        [image, *others] = self._session.get_inputs()
        self._image, self.takes_float = image.name, "float" in image.type
        self._rank = len(image.shape)
        known = self.takes_float or (self._rank == 4 and "uint8" in image.type)
        if others or self._rank not in (3, 4) or not known:
            raise UsageError(
                f"{path}: the encoder must have one input, a photo (1 3 size size) in float32 or (1 3 h w) in uint8"
            )
        self._selection: dict[str, Any] = _contract(self._session).get("proposals", {})
        self.proposes = bool(self._selection)
        side = image.shape[-1] if isinstance(image.shape[-1], int) else 1024
        self.image_size = int(_contract(self._session).get("image_size", side))

    def embed(self, frame: np.ndarray, filled: Sequence[int]) -> np.ndarray:
        """Encode a padded frame (s s 3) uint8, whose rows and columns ``filled`` hold the photo; return (1 c g g).

        With ``takes_float`` the frame may be float32.
        """
        return self.outputs(frame, filled)[0]

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]:
        """Return all outputs: the embedding, and with ``proposes`` all anchors' boxes (1 n 4) and scores (1 n)."""
        if self._rank == 3:
            x = frame[: filled[0], : filled[1]].astype(np.float32)
        elif self.takes_float:
            x = normalised(frame, filled)
        else:
            x = frame[: filled[0], : filled[1]].transpose(2, 0, 1)[None]
        return [np.asarray(v) for v in self._session.run(None, {self._image: np.ascontiguousarray(x)})]

    def run(self, frame: np.ndarray, filled: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
        """Return the embedding, and with ``proposes`` the proposals: boxes (n 4) in the frame, scores (n)."""
        embedding, *anchors = self.outputs(frame, filled)
        if not self.proposes:
            return embedding, None
        boxes, scores = (x[0] for x in anchors)
        return embedding, select(boxes, scores, (filled[1], filled[0]), **self._selection)


class OnnxDecoder:
    """A decoder from ``image_embeddings``, ``point_coords`` (1 n 2) in the frame and ``point_labels`` (1 n) to logits
    ``masks`` or ``low_res_masks`` (1 m s s) and ``scores`` or ``iou_predictions`` (1 m).

    A split decoder (docs/export.md, "A decoder in two graphs") takes maps in place of the embedding. Its contract names
    the graph that makes them, which is loaded from the same folder. ``files``: the paths of both, or of the one.

    SAM's ``mask_input``, ``has_mask_input`` and ``orig_im_size`` are optional inputs. ``slots``: number of points that
    the decoder was exported for (0: any). ``batched``: whether a call takes several prompts, which is the case if the
    first axis of all inputs that describe prompts has no fixed length. ``pads``: whether the decoder itself adds SAM's
    learned padding token to prompts without a box. This project's decoders do, the published ones don't
    (docs/published_code.md, "Exports").

    Raises:
      UsageError: onnxruntime is not installed; the file is missing, damaged or has other names.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ()) -> None:
        self._path, self._session = path, _session(Path(path), providers)
        inputs = {i.name: i for i in self._session.get_inputs()}
        names = [o.name for o in self._session.get_outputs()]
        self._outputs = [
            next((n for n in known if n in names), "")
            for known in (("low_res_masks", "masks"), ("scores", "iou_predictions"))
        ]
        contract = _contract(self._session)
        part = contract.get("parts", {}).get("image")
        needed = {"point_coords", "point_labels", *(part["outputs"] if part else ["image_embeddings"])}
        if not needed <= set(inputs) or not all(self._outputs):
            raise UsageError(
                f"{path}: inputs {', '.join(inputs)} and outputs {', '.join(names)} are not those of a"
                " published export: image_embeddings, point_coords, point_labels -> scores, masks"
            )
        self.files, self._photo = [Path(path)], None
        if part:
            self.files.append(Path(path).with_name(part["file"]))
            self._photo = PerPhoto(_photo_graph(self.files[1], part["outputs"], Path(path), providers))
        points = inputs["point_coords"].shape[1]
        self._inputs = set(inputs)
        self.slots = points if isinstance(points, int) else 0
        of_prompts = [i for name, i in inputs.items() if name in PROMPT_INPUTS]
        self.batched = all(i.shape and not isinstance(i.shape[0], int) for i in of_prompts)
        self.pads = bool(contract.get("adds_padding", False))
        self._image_size = float(contract.get("image_size", 1024))

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode one prompt; return logits (m s s) and scores (m).

        Args:
          embedding: (1 c g g).
          coords: (n 2) in the frame.
          labels: (n) -1 to 3.
          mask: (s s) logits of an earlier prediction.

        Raises:
          UsageError: more points than the decoder has slots, or a mask for a decoder without ``mask_input``.
        """
        logits, scores = self.decode_prompts(
            embedding, coords[None], labels[None], None if mask is None else mask[None]
        )
        return logits[0], scores[0]

    def decode_prompts(
        self,
        embedding: np.ndarray,
        coords: np.ndarray,
        labels: np.ndarray,
        masks: np.ndarray | None = None,
        used: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode p prompts of one photo; return logits (p m s s) and scores (p m).

        A ``batched`` decoder takes up to ``PROMPTS_PER_CALL`` prompts with equally many points in a call, others one.

        Args:
          embedding: (1 c g g).
          coords: (p n 2) in the frame.
          labels: (p n) -2 to 3.
          masks: (p s s) logits of earlier predictions.
          used: (p n) which points to pass on, because not every export supports unused slots; default: all.

        Raises:
          UsageError: see ``decode``.
        """
        if masks is not None and "mask_input" not in self._inputs and self._photo is None:
            raise UsageError(f"mask_input: {self._path} takes none; export the decoder again without --published")
        used = np.ones(labels.shape, bool) if used is None else used
        sizes, step = used.sum(1), PROMPTS_PER_CALL if self.batched else 1
        results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for size in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == size)
            for first in range(0, len(rows), step):
                some = rows[first : first + step]
                points, kinds = coords[some][used[some]], labels[some][used[some]]
                inputs = prompt_inputs(
                    embedding, points.reshape(len(some), size, 2), kinds.reshape(len(some), size),
                    None if masks is None else masks[some], self.slots, str(self._path),
                )  # fmt: skip
                if self._photo is not None:
                    inputs |= self._photo.maps(inputs)
                inputs["orig_im_size"] = np.full(2, self._image_size, np.float32)
                inputs = {name: value for name, value in inputs.items() if name in self._inputs}
                found = self._session.run(self._outputs, inputs)
                results |= {int(row): each for row, each in zip(some, zip(*found, strict=True), strict=True)}
        logits, scores = zip(*(results[row] for row in range(len(coords))), strict=True)
        return np.stack(logits), np.stack(scores)


class OnnxModel:
    """An encoder with its decoder. ``image_size`` and ``mask_size``: sides of the frame and of the ``num_masks`` masks.

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
    """Normalise a padded frame (s s 3) with ImageNet's statistics; (1 3 s s) float32, zeros beyond the photo.

    The frame has values from 0 to 255, in uint8 or float32.
    """
    mean, std = (np.array(v, np.float32) for v in (PIXEL_MEAN, PIXEL_STD))
    x = (frame.astype(np.float32) - mean) / std
    x[filled[0] :] = 0  # SAM pads after normalising
    x[:, filled[1] :] = 0
    return x.transpose(2, 0, 1)[None]


def prompt_inputs(
    embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, masks: np.ndarray | None, slots: int, name: str
) -> dict[str, np.ndarray]:
    """Return the decoder inputs of p prompts by name, including the masks'.

    Coords (p n 2) and labels (p n) become (p slots 2) and (p slots) float32; with ``slots`` 0 they aren't padded.

    Raises:
      UsageError: an unknown label, or more points than slots.
    """
    if not np.isin(labels, LABELS).all():
        raise UsageError(
            f"labels: {sorted(set(np.ravel(labels).tolist()) - set(LABELS))} are unknown; use 1 for a point inside"
            " the object, 0 outside, 2 and 3 for the corners of a box, -1 for SAM's padding, -2 for an unused slot"
        )
    count, points = labels.shape
    if slots and points > slots:
        raise UsageError(
            f"prompt: {points} points and box corners, but {name} has {slots} slots; export the model again with a"
            " larger --slots, or --slots dynamic"
        )
    fill, side = max(0, slots - points), 4 * embedding.shape[-1]
    return {
        "image_embeddings": embedding,
        "point_coords": np.pad(coords.astype(np.float32), ((0, 0), (0, fill), (0, 0))),
        "point_labels": np.pad(labels.astype(np.float32), ((0, 0), (0, fill)), constant_values=UNUSED),
        "mask_input": np.zeros((count, 1, side, side), np.float32) if masks is None else masks[:, None],
        "has_mask_input": np.full(count, masks is not None, np.float32),
    }


def _photo_graph(
    path: Path, outputs: list[str], decoder: Path, providers: Sequence[str]
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return the other graph of a split decoder.

    Raises:
      UsageError: it is missing, or isn't a graph from ``PHOTO_INPUTS`` to ``outputs``.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {decoder} is the half of a split decoder and needs it in its folder")
    session = _session(path, providers)
    names = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    if set(names[0]) != set(PHOTO_INPUTS) or not set(outputs) <= set(names[1]):
        raise UsageError(f"{path}: does not belong to {decoder}; copy both from one export")
    return lambda inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))


def _contract(session: Any) -> dict[str, Any]:
    return json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))


def _session(path: Path, providers: Sequence[str]) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("ONNX Runtime is not installed: pip install 'edgesam-jax[onnx]'") from None
    try:
        return onnxruntime.InferenceSession(
            str(path), providers=list(providers) or onnxruntime.get_available_providers()
        )
    except Exception as error:  # onnxruntime raises its own exception types
        raise UsageError(
            f"{path}: not an ONNX model that ONNX Runtime can run ({str(error).splitlines()[0]})"
        ) from None
