"""The photos and prompts of the gate, and what the JAX model makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.cli.command import print_note
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.data.photo import PHOTO_SUFFIXES, load_image
from edgesam_jax.data.scenes.textures import photos as wheel_photos
from edgesam_jax.models.anchors import anchors_of
from edgesam_jax.models.anchors import decode as decode_boxes
from edgesam_jax.models.fold import folds
from edgesam_jax.models.sam import Sam, decode
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.portable.onnx_model import normalised
from edgesam_jax.portable.postprocess import stability_score
from edgesam_jax.predict import compiled
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, MaskPrediction, Prompts


@dataclass(frozen=True)
class Prompt:
    """One prompt: coords (n 2) and labels (n) in -1 to 3.

    ``after``: index of an earlier prompt whose first mask is fed back as mask input.
    """

    name: str
    coords: np.ndarray
    labels: np.ndarray
    after: int | None = None


@dataclass(frozen=True)
class Case:
    """A photo in the frame, its prompts, and the JAX model's outputs for them.

    Attributes:
      name: the photo's name.
      frame: (s s 3) uint8, padded.
      filled: (rows, columns) that the photo fills.
      prompts: in the coordinates of the frame.
      embedding: (1 c g g).
      logits: (p 4 4g 4g).
      scores: (p 4).
      masks: the prompts' mask inputs (4g 4g), or None.
      anchors: with priors, boxes (n 4) in the frame and scores (n) of all anchors.
    """

    name: str
    frame: np.ndarray
    filled: tuple[int, int]
    prompts: tuple[Prompt, ...]
    embedding: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    masks: tuple[np.ndarray | None, ...]
    anchors: tuple[np.ndarray, np.ndarray] | None = None

    def without_masks(self) -> Case:
        """Return the case without prompts that need a mask input."""
        return self.only([i for i, prompt in enumerate(self.prompts) if prompt.after is None])

    def first_masks(self, count: int) -> Case:
        """Return the case with the first masks of each prompt."""
        return dataclasses.replace(self, logits=self.logits[:, :count], scores=self.scores[:, :count])

    def only(self, kept: Sequence[int]) -> Case:
        """Return the case with some of its prompts."""
        prompts, masks = tuple(self.prompts[i] for i in kept), tuple(self.masks[i] for i in kept)
        logits, scores = self.logits[list(kept)], self.scores[list(kept)]
        return dataclasses.replace(self, prompts=prompts, masks=masks, logits=logits, scores=scores)


def load_photos(paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Load photos from files and folders, by name; without paths, three photos of scikit-image.

    Raises:
      UsageError: a missing file, a file that isn't a photo, or a folder without photos.
    """
    if not paths:
        square, landscape, other = (wheel_photos()[i][0] for i in (0, 1, 2))
        return {"astronaut": square, "chelsea": landscape, "coffee, on end": np.rot90(other).copy()}
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"--photos {path}: contains no photos; pass files, or a folder of JPEG or PNG files")
        files += inside
    names = [file.name for file in files]
    names = [name if names.count(name) == 1 else str(file) for name, file in zip(names, files, strict=True)]
    notes: list[str] = []
    photos = {name: load_image(file, f"--photos {file}", notes=notes) for name, file in zip(names, files, strict=True)}
    for note in notes:
        print_note(note)
    return photos


def sample_prompts(size: tuple[int, int], slots: int, with_mask: bool, seed: int) -> list[Prompt]:
    """Return boxes, points and mixtures, up to all slots, in pixels of a photo of ``size`` (rows, columns).

    Args:
      slots: prompts with more points and corners are skipped; 0: with more than 16.
      with_mask: add prompts with the mask of an earlier prompt as mask input.
    """
    rng = np.random.default_rng(seed)
    h, w = size

    def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        return np.array([[x0 * w, y0 * h], [x1 * w, y1 * h]])

    def points(count: int) -> np.ndarray:
        return rng.uniform(0.05, 0.95, (count, 2)) * (w, h)

    def labels(count: int) -> np.ndarray:
        return np.where(np.arange(count) % 3 == 2, 0, 1)

    corners = np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    large, small = box(0.13, 0.08, 0.82, 0.91), box(0.55, 0.42, 0.71, 0.63)
    # Corners of the photo, and quarters of a pixel where float16 resolves only halves.
    extremes = np.array([[0.0, 0.0], [w, h], [w * 0.9 + 0.25, h * 0.7 + 0.75]])
    prompts = [
        Prompt("large box", large, corners),
        Prompt("small box", small, corners),
        Prompt("point", points(1), labels(1)),
        Prompt("point with its padding", np.concatenate([points(1), [[0, 0]]]), np.array([1, NOT_A_POINT])),
        Prompt("two points", points(2), np.array([1, 0])),
        Prompt("points in corners", extremes, np.array([1, 0, 1])),
        Prompt("five points", points(5), labels(5)),
        Prompt("box and a point", np.concatenate([small, points(1)]), np.append(corners, 0)),
        Prompt("box and three points", np.concatenate([large, points(3)]), np.append(corners, labels(3))),
    ]
    limit = slots or 16
    prompts.append(Prompt(f"{limit} points", points(limit), labels(limit)))
    if with_mask:
        prompts.append(Prompt("point on an earlier mask", prompts[2].coords, prompts[2].labels, after=2))
        prompts.append(Prompt("box on an earlier mask", small, corners, after=0))
    return [p for p in prompts if len(p.coords) <= limit]


def make_cases(
    model: Model, photos: dict[str, np.ndarray], slots: int, with_mask: bool, priors: bool = False
) -> list[Case]:
    """Run the JAX model on photos and their prompts (``sample_prompts``)."""
    variables = compiled.for_inference(model.config, model.variables)
    encode, decode_prompt = compiled.encoder(model.config), prompt_decoder(model.config)
    propose = jax.jit(propose_function(model.config)) if priors else None
    cases = []
    for number, (name, photo) in enumerate(progress(photos.items(), "running the JAX model")):
        frame, filled = into_frame(photo, model.config.image_size)
        embedding = encode(variables, frame[None], np.asarray([filled], np.int32))[0]
        prompts = tuple(
            Prompt(p.name, scale_coords(p.coords, (photo.shape[0], photo.shape[1]), filled), p.labels, p.after)
            for p in sample_prompts((photo.shape[0], photo.shape[1]), slots, with_mask, number)
        )
        logits: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        masks = []
        for prompt in prompts:
            masks.append(None if prompt.after is None else logits[prompt.after][0])
            one_logits, iou = decode_prompt(variables, embedding, prompt, masks[-1], max(16, slots))
            stable = model.metadata.get("score", "stability") != "iou"
            logits.append(one_logits)
            scores.append(stability_score(one_logits) if stable else iou)
        channels_first = np.asarray(embedding).transpose(2, 0, 1)[None]
        anchors = None
        if propose is not None:
            _, boxes, anchor_scores = propose(variables, normalised(frame, filled).transpose(0, 2, 3, 1))
            anchors = np.asarray(boxes), np.asarray(anchor_scores)
        arrays = channels_first, np.stack(logits), np.stack(scores)
        cases.append(Case(name, frame, filled, prompts, *arrays, tuple(masks), anchors))
    return cases


def encode_function(config: SamConfig) -> Callable[[Any, Any], Any]:
    """Return the encoder: folded variables and a normalised image (1 s s 3) to the embedding, in a tuple."""

    def encode(variables: Any, image: Any) -> Any:
        return (Sam(config, folded=folds(config)).apply(variables, image, method="encode_image"),)

    return encode


def propose_function(config: SamConfig) -> Callable[[Any, Any], Any]:
    """Return the encoder with proposals: embedding, boxes (n 4) and scores (n) of all anchors, before selection."""

    def propose(variables: Any, image: Any) -> Any:
        outputs: Any = Sam(config, folded=folds(config)).apply(variables, image, method="propose")
        embedding, logits, codes = outputs
        boxes = decode_boxes(jnp.asarray(anchors_of(config)), codes[0], jnp.full(2, config.image_size, jnp.float32))
        return embedding, boxes, jax.nn.sigmoid(logits[0])

    return propose


def decode_function(config: SamConfig) -> Callable[..., MaskPrediction]:
    """Return the decoder as a function of arrays.

    Its arguments are variables, embedding (1 g g c), coords (1 1 n 2), labels and valid (1 1 n), mask (1 1 s s),
    has_mask (1 1).
    """

    def run(variables: Any, embedding: Any, coords: Any, labels: Any, valid: Any, mask: Any, has: Any) -> Any:
        return decode(config, variables, embedding, Prompts(coords, labels, valid), mask, has, num_masks=4)

    return run


def prompt_decoder(
    config: SamConfig, compile: Callable[..., Any] = jax.jit
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return the model's decoder, compiled once for all prompts: it gives logits (4 s s) and predicted IoU (4)."""
    run = compile(decode_function(config))

    def decode_prompt(
        variables: Any, embedding: Any, prompt: Prompt, mask: np.ndarray | None, slots: int = 16
    ) -> tuple[np.ndarray, np.ndarray]:
        coords, labels = np.zeros((slots + 1, 2), np.float32), np.full(slots + 1, NOT_A_POINT, np.int32)
        n = len(prompt.coords)
        coords[:n], labels[:n] = prompt.coords, prompt.labels
        valid = np.arange(slots + 1) < n
        valid[-1] = not np.isin(prompt.labels, (NOT_A_POINT, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)).any()  # SAM's padding
        side = config.mask_size
        prediction = run(
            variables, embedding[None], *(x[None, None] for x in (coords, labels, valid)),
            np.zeros((1, 1, side, side), np.float32) if mask is None else mask[None, None],
            np.full((1, 1), mask is not None),
        )  # fmt: skip
        return np.asarray(prediction.logits[0, 0]), np.asarray(prediction.iou[0, 0])

    return decode_prompt


def progress(items: Collection[Any], label: str) -> Iterable[Any]:
    return tqdm(items, desc=label, unit="photo", leave=False, disable=None)  # None: only on a terminal
