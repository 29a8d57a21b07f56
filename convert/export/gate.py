"""The gate: compares an export with the JAX model on photos and a variety of prompts.

The encoder must reproduce the model's embedding. The decoder must reproduce the model's logits and masks, once from the
model's embedding and once from the exported encoder's. Stability scores are compared with those of the exported logits
and must not be NaN. The limits are those of ``convert.export.limits``, and a failure names the worst comparison.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from convert.export.tolerance import END_TO_END, TOLERANCES, Tolerance
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.data.scenes.textures import photos as wheel_photos
from edgesam_jax.data.transforms import PHOTO_SUFFIXES, load_image
from edgesam_jax.models.anchors import anchors_of
from edgesam_jax.models.anchors import decode as decode_boxes
from edgesam_jax.models.fold import folds
from edgesam_jax.models.sam import Sam, decode
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.portable.onnx_model import normalised
from edgesam_jax.portable.postprocess import stability_score
from edgesam_jax.predict import compiled
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, MaskPrediction, Prompts

__all__ = [
    "TOLERANCES", "Case", "Decoder", "Encoder", "Finding", "Prompt", "Tolerance", "Verdict", "decode_function",
    "encode_function", "load_photos", "make_cases", "prompt_decoder", "propose_function", "report", "sample_prompts",
    "verify",
]  # fmt: skip

COMPARED_ANCHORS = 100  # highest-scoring anchors whose boxes are compared
MIN_UNION = 64  # pixels in the union of two low-resolution masks; below that, one pixel weighs too much
UNDECIDED = 1e-4  # of the logits' root mean square: pixels nearer to the threshold don't enter overlaps


class Encoder(Protocol):
    """An exported encoder, callable from Python.

    ``outputs`` takes a padded frame (s s 3) uint8 and the (rows, columns) that the photo fills. It returns the
    embedding (1 c g g) and, with priors, the boxes (1 n 4) and scores (1 n) of all anchors.
    """

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]: ...


class Decoder(Protocol):
    """An exported decoder, callable from Python.

    ``decode`` takes an embedding (1 c g g), one prompt (n 2), (n) and optionally an earlier mask (s s); it returns
    logits (m s s) and scores (m).
    """

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


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
      anchors: with priors, boxes (n 4) in the frame and scores (n) of all anchors.
    """

    name: str
    frame: np.ndarray
    filled: tuple[int, int]
    prompts: tuple[Prompt, ...]
    embedding: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    anchors: tuple[np.ndarray, np.ndarray] | None = None

    def without_masks(self) -> Case:
        """Return the case without prompts that need a mask input."""
        kept = [i for i, prompt in enumerate(self.prompts) if prompt.after is None]
        prompts = tuple(self.prompts[i] for i in kept)
        return dataclasses.replace(self, prompts=prompts, logits=self.logits[kept], scores=self.scores[kept])


@dataclass(frozen=True)
class Finding:
    """One comparison of a value with its limit: a minimum for an ``overlap``, otherwise a maximum."""

    quantity: str
    where: str
    value: float
    limit: float
    overlap: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is finite and within the limit."""
        return bool(np.isfinite(self.value)) and (
            self.value >= self.limit if self.overlap else self.value <= self.limit
        )

    @property
    def severity(self) -> float:
        """The error as a multiple of the accepted error; above 1 for a failure."""
        if not np.isfinite(self.value):
            return float("inf")
        return (1 - self.value) / max(1 - self.limit, 1e-9) if self.overlap else self.value / max(self.limit, 1e-12)

    def __str__(self) -> str:
        sign = ">=" if self.overlap else "<="
        return f"{self.quantity} of {self.where}: {self.value:.4g}, must be {sign} {self.limit:.4g}"


@dataclass
class Verdict:
    """All findings of an export, and the seconds they took."""

    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether at least one comparison was made and all passed."""
        return bool(self.findings) and all(f.passed for f in self.findings)

    @property
    def worst(self) -> Finding:
        """The finding with the highest severity."""
        return max(self.findings, key=lambda f: f.severity)

    def summary(self) -> dict[str, Any]:
        """Return the count, mean and worst value of each quantity, for the contract."""
        out: dict[str, Any] = {"passed": self.passed, "seconds": round(self.seconds, 1)}
        for quantity in dict.fromkeys(f.quantity for f in self.findings):
            findings = [f for f in self.findings if f.quantity == quantity]
            worst = max(findings, key=lambda f: f.severity)
            out[quantity] = {
                "count": len(findings), "mean": float(np.mean([f.value for f in findings])), "worst": worst.value,
                "limit": worst.limit, "at": worst.where,
            }  # fmt: skip
        return out


# ------------------------------------------------------------------------------------------------ photos and prompts


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
    return {name: load_image(file, f"--photos {file}") for name, file in zip(names, files, strict=True)}


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
    for number, (name, photo) in enumerate(_progress(photos.items(), "running the JAX model")):
        frame, filled = into_frame(photo, model.config.image_size)
        embedding = encode(variables, frame[None], np.asarray([filled], np.int32))[0]
        prompts = tuple(
            Prompt(p.name, scale_coords(p.coords, (photo.shape[0], photo.shape[1]), filled), p.labels, p.after)
            for p in sample_prompts((photo.shape[0], photo.shape[1]), slots, with_mask, number)
        )
        logits: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for prompt in prompts:
            mask = None if prompt.after is None else logits[prompt.after][0]
            one_logits, iou = decode_prompt(variables, embedding, prompt, mask, max(16, slots))
            stable = model.metadata.get("score", "stability") != "iou"
            logits.append(one_logits)
            scores.append(stability_score(one_logits) if stable else iou)
        channels_first = np.asarray(embedding).transpose(2, 0, 1)[None]
        anchors = None
        if propose is not None:
            _, boxes, anchor_scores = propose(variables, normalised(frame, filled).transpose(0, 2, 3, 1))
            anchors = np.asarray(boxes), np.asarray(anchor_scores)
        cases.append(Case(name, frame, filled, prompts, channels_first, np.stack(logits), np.stack(scores), anchors))
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
    config: SamConfig, transform: Callable[..., Any] = lambda function: function
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return the model's decoder, compiled once for all prompts: it gives logits (4 s s) and predicted IoU (4).

    ``transform`` replaces the function to compile, ``decode_function(config)``.
    """
    run = jax.jit(transform(decode_function(config)))

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


# ------------------------------------------------------------------------------------------------------- comparing


def verify(
    cases: Sequence[Case],
    encoder: Encoder | None,
    decoder: Decoder | None,
    tolerance: Tolerance,
    score: str,
) -> Verdict:
    """Compare an export with the model; either part may be None.

    ``score`` is the meaning of the decoder's scores, ``stability`` or ``iou``.
    """
    began, verdict = time.perf_counter(), Verdict()
    for case in _progress(cases, "verifying"):
        embedding = None
        if encoder is not None:
            embedding, *anchors = encoder.outputs(case.frame, case.filled)
            verdict.findings.append(
                Finding("embedding", case.name, _relative(embedding, case.embedding), tolerance.limit("embedding"))
            )
            if case.anchors is not None:
                verdict.findings += _compare_anchors(case, anchors, tolerance)
        if decoder is not None:
            verdict.findings += _compare(case, decoder, case.embedding, "", tolerance, score)
            if embedding is not None and np.isfinite(embedding).all():
                verdict.findings += _compare(case, decoder, embedding, END_TO_END, tolerance, score)
    verdict.seconds = time.perf_counter() - began
    return verdict


def _compare_anchors(case: Case, outputs: Sequence[np.ndarray], tolerance: Tolerance) -> Iterator[Finding]:
    """Compare the scores of all anchors and the boxes of the highest-scoring ones, in sides of the frame."""
    assert case.anchors is not None
    boxes, scores = case.anchors
    if [x.shape for x in outputs] != [(1, *boxes.shape), (1, *scores.shape)]:
        yield Finding("proposals", f"{case.name}: outputs of other shapes", float("inf"), 0)
        return
    yield Finding(
        "proposal scores", case.name, float(np.abs(outputs[1][0] - scores).max()), tolerance.limit("proposal scores")
    )
    best = np.argsort(-scores)[:COMPARED_ANCHORS]
    side = case.frame.shape[0]
    exported, reference = np.clip(outputs[0][0][best], 0, side), np.clip(boxes[best], 0, side)
    error = float(np.abs(exported - reference).max()) / side
    yield Finding("proposal boxes", case.name, error, tolerance.limit("proposal boxes"))


def _progress(items: Collection[Any], label: str) -> Iterable[Any]:
    return tqdm(items, desc=label, unit="photo", leave=False, disable=None)  # None: only on a terminal


def _compare(
    case: Case, decoder: Decoder, embedding: np.ndarray, suffix: str, tolerance: Tolerance, score: str
) -> Iterator[Finding]:
    """Compare the decoder on every prompt; a ``suffix`` marks findings from the exported encoder's embedding."""
    for i, prompt in enumerate(case.prompts):
        mask = None if prompt.after is None else case.logits[prompt.after][0]
        logits, scores = decoder.decode(embedding, prompt.coords, prompt.labels, mask)
        where = f"{case.name}, {prompt.name}"
        for quantity, place, value in _differences(case, i, logits, scores, score):
            name = quantity + suffix
            overlap = quantity == "mask IoU"
            yield Finding(name, where + place, value, tolerance.limit(name, score), overlap)


def _differences(
    case: Case, i: int, logits: np.ndarray, scores: np.ndarray, score: str
) -> Iterator[tuple[str, str, float]]:
    """Yield quantity, place in the prompt and value of each comparison of a prompt's logits and scores."""
    reference = case.logits[i]
    yield "logits", "", _relative(logits, reference)
    decided = np.abs(reference) > UNDECIDED * np.sqrt(np.mean(reference**2))
    exported, expected = (logits > 0) & decided, (reference > 0) & decided
    for m, union in enumerate((exported | expected).sum((1, 2))):
        if union >= MIN_UNION:
            yield "mask IoU", f", mask {m}", int((exported[m] & expected[m]).sum()) / int(union)
    right = stability_score(logits) if score == "stability" else case.scores[i]
    yield "score", "", float(np.abs(np.asarray(scores, np.float64) - right).max())


def _relative(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the root mean square of the difference over that of the reference; infinite if the shapes differ."""
    if values.shape != reference.shape:
        return float("inf")
    difference = np.asarray(values, np.float64) - reference
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.asarray(reference, np.float64) ** 2)))


def report(verdict: Verdict, name: str) -> str:
    """Format the verdict: a headline, with the worst finding if it failed, and a line per quantity."""
    lines = []
    for quantity, figures in verdict.summary().items():
        if isinstance(figures, dict):
            lines.append(
                f"  {quantity}: worst {figures['worst']:.4g} (limit {figures['limit']:.4g}; {figures['at']}), mean"
                f" {figures['mean']:.4g} of {figures['count']}"
            )
    head = f"{name}: {'equals' if verdict.passed else 'DIFFERS FROM'} the JAX model ({verdict.seconds:.1f} s)"
    if not verdict.passed:
        failed = sum(not f.passed for f in verdict.findings)
        head += f"; {failed} of {len(verdict.findings)} comparisons fail; worst: {verdict.worst}"
    return "\n".join([head, *lines])
