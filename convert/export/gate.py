"""The gate: an export is done when it gives what the JAX model gives, on photos and a spread of prompts.

The encoder is held to the model's embedding; the decoder to the model's logits, once on the model's embedding and once
on the exported encoder's; masks to the model's masks; stability scores to those of the exported logits, which must not
be NaN.  Every format has its tolerances, and a failure names the worst offender.
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

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.data.scenes.textures import photos as wheel_photos
from edgesam_jax.data.transforms import PHOTO_SUFFIXES, load_image
from edgesam_jax.models.anchors import anchors_of
from edgesam_jax.models.anchors import decode as decode_boxes
from edgesam_jax.models.fold import folds
from edgesam_jax.models.sam import Sam, decode, preprocess
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.portable.postprocess import stability_score
from edgesam_jax.predict import compiled
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, MaskPrediction, Prompts

HIGHEST = 100  # anchors whose boxes are compared
SMALLEST = 64  # pixels of a low-resolution mask below which its overlap says nothing: one pixel is too much of it
UNDECIDED = 1e-4  # of the logits' root mean square: a pixel so near the threshold is neither in the mask nor out of it


@dataclass(frozen=True)
class Tolerance:
    """What a format may differ by.

    ``embedding`` and ``logits``: root mean square of the difference over that of the reference.  ``iou``: least overlap
    of a mask of ``SMALLEST`` pixels or more.  ``score``: most a score may be off, from that of the same logits where it
    is the stability, else from the model's.
    """

    embedding: float
    logits: float
    iou: float
    score: float


TOLERANCES = {
    "float32": Tolerance(1e-4, 1e-4, 0.995, 1e-3),
    "float16": Tolerance(4e-3, 2e-2, 0.94, 5e-3),
    "int8": Tolerance(0.03, 0.05, 0.8, 5e-3),
    "palette8": Tolerance(0.03, 0.05, 0.8, 5e-3),
    "palette6": Tolerance(0.15, 0.25, 0.5, 5e-3),
    "palette4": Tolerance(0.5, 0.7, 0.0, 5e-3),
}


class Encoder(Protocol):
    """A program that turns a padded frame (s s 3) uint8 and its filled (rows, columns) into (1 c g g).

    With priors also into all anchors' boxes (1 n 4) and scores (1 n).
    """

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]: ...


class Decoder(Protocol):
    """A program that turns an embedding and one prompt into logits (m s s) and scores (m)."""

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Prompt:
    """One prompt in the frame: coords (n 2) and labels (n) in -1 to 3; ``after``: feed the mask of that prompt back."""

    name: str
    coords: np.ndarray
    labels: np.ndarray
    after: int | None = None


@dataclass(frozen=True)
class Case:
    """A framed photo, its prompts, and what the model answers: embedding (1 c g g), logits and scores (p 4 ...).

    With priors ``anchors`` has the boxes (n 4) in the frame and the scores (n) of all anchors.
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
        """For decoders that take no masks."""
        kept = [i for i, prompt in enumerate(self.prompts) if prompt.after is None]
        prompts = tuple(self.prompts[i] for i in kept)
        return dataclasses.replace(self, prompts=prompts, logits=self.logits[kept], scores=self.scores[kept])


@dataclass(frozen=True)
class Finding:
    """One comparison: what, where, the figure, and the limit it must keep.  ``overlap``: more is better."""

    what: str
    where: str
    value: float
    limit: float
    overlap: bool = False

    @property
    def kept(self) -> bool:
        """Whether the limit is kept; what is not finite never keeps it."""
        return bool(np.isfinite(self.value)) and (
            self.value >= self.limit if self.overlap else self.value <= self.limit
        )

    @property
    def badness(self) -> float:
        """How far beyond its limit, over 1 for a failure: what makes the worst."""
        if not np.isfinite(self.value):
            return float("inf")
        return (1 - self.value) / max(1 - self.limit, 1e-9) if self.overlap else self.value / max(self.limit, 1e-12)

    def __str__(self) -> str:
        sign = ">=" if self.overlap else "<="
        return f"{self.what} of {self.where}: {self.value:.4g}, must be {sign} {self.limit:g}"


@dataclass
class Verdict:
    """All findings of an export, and how long they took."""

    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every limit was kept, and there was something to keep."""
        return bool(self.findings) and all(f.kept for f in self.findings)

    @property
    def worst(self) -> Finding:
        """The finding nearest to, or furthest beyond, its limit."""
        return max(self.findings, key=lambda f: f.badness)

    def summary(self) -> dict[str, Any]:
        """For the contract: per kind of finding how many, the mean and the worst."""
        out: dict[str, Any] = {"passed": self.passed, "seconds": round(self.seconds, 1)}
        for what in dict.fromkeys(f.what for f in self.findings):
            some = [f for f in self.findings if f.what == what]
            worst = max(some, key=lambda f: f.badness)
            out[what] = {
                "count": len(some), "mean": float(np.mean([f.value for f in some])), "worst": worst.value,
                "limit": worst.limit, "at": worst.where,
            }  # fmt: skip
        return out


# ------------------------------------------------------------------------------------------------ photos and prompts


def load_photos(paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Photos by name: files and folders of them, or, where none are given, three that the package always has.

    Raises:
      UsageError: no such file, not a photo, or a folder without any.
    """
    if not paths:
        square, landscape, other = (wheel_photos()[i][0] for i in (0, 1, 2))
        return {"astronaut": square, "chelsea": landscape, "coffee, on end": np.rot90(other).copy()}
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"--photos {path}: no photo in there; name files or a folder of JPEG or PNG files")
        files += inside
    names = [file.name for file in files]
    names = [name if names.count(name) == 1 else str(file) for name, file in zip(names, files, strict=True)]
    return {name: load_image(file, f"--photos {file}") for name, file in zip(names, files, strict=True)}


def spread(size: tuple[int, int], slots: int, with_mask: bool, seed: int) -> list[Prompt]:
    """Prompts in pixels of a photo of ``size`` (rows, columns): boxes, points and mixtures up to all slots."""
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
    # Corners of the photo, and a quarter of a pixel where float16 knows halves.
    extremes = np.array([[0.0, 0.0], [w, h], [w * 0.9 + 0.25, h * 0.7 + 0.75]])
    found = [
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
    most = slots or 16
    found.append(Prompt(f"{most} points", points(most), labels(most)))
    if with_mask:
        found.append(Prompt("point on an earlier mask", found[2].coords, found[2].labels, after=2))
        found.append(Prompt("box on an earlier mask", small, corners, after=0))
    return [p for p in found if len(p.coords) <= most]


def make_cases(
    model: Model, photos: dict[str, np.ndarray], slots: int, with_mask: bool, priors: bool = False
) -> list[Case]:
    """The model's own answers on photos."""
    variables = compiled.for_inference(model.config, model.variables)
    encode, answer = compiled.encoder(model.config), _decoder(model.config)
    cases = []
    for number, (name, photo) in enumerate(_progress(photos.items(), "the model's answers")):
        frame, filled = into_frame(photo, model.config.image_size)
        embedding = encode(variables, frame[None], np.asarray([filled], np.int32))[0]
        prompts = tuple(
            Prompt(p.name, scale_coords(p.coords, (photo.shape[0], photo.shape[1]), filled), p.labels, p.after)
            for p in spread((photo.shape[0], photo.shape[1]), slots, with_mask, number)
        )
        logits: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for prompt in prompts:
            mask = None if prompt.after is None else logits[prompt.after][0]
            one_logits, iou = answer(variables, embedding, prompt, max(16, slots), mask)
            stable = model.metadata.get("score", "stability") != "iou"
            logits.append(one_logits)
            scores.append(stability_score(one_logits) if stable else iou)
        whole = np.asarray(embedding).transpose(2, 0, 1)[None]
        anchors = _anchors(model.config, variables, frame, filled) if priors else None
        cases.append(Case(name, frame, filled, prompts, whole, np.stack(logits), np.stack(scores), anchors))
    return cases


def _anchors(
    config: SamConfig, variables: Any, frame: np.ndarray, filled: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of all anchors, as the model has them before any are left out."""

    @jax.jit
    def run(variables: Any, image: Any, sizes: Any) -> Any:
        return Sam(config, folded=folds(config)).apply(variables, preprocess(image, sizes), method="propose")

    _, logits, codes = run(variables, frame[None], np.asarray([filled], np.int32))
    boxes = decode_boxes(jnp.asarray(anchors_of(config)), codes[0], jnp.full(2, config.image_size, jnp.float32))
    return np.asarray(boxes), np.asarray(jax.nn.sigmoid(logits[0]))


def _decoder(config: SamConfig) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The model's decoder, compiled once for all prompts: logits (4 s s) and predicted IoU (4) of one."""

    @jax.jit
    def run(variables: Any, embedding: Any, prompts: Prompts, mask: Any, given: Any) -> MaskPrediction:
        return decode(config, variables, embedding, prompts, mask, given, num_masks=4)

    def answer(
        variables: Any, embedding: Any, prompt: Prompt, slots: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        coords, labels = np.zeros((slots + 1, 2), np.float32), np.full(slots + 1, NOT_A_POINT, np.int32)
        n = len(prompt.coords)
        coords[:n], labels[:n] = prompt.coords, prompt.labels
        valid = np.arange(slots + 1) < n
        valid[-1] = not np.isin(prompt.labels, (NOT_A_POINT, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)).any()  # SAM's padding
        side = config.mask_size
        found = run(
            variables, embedding[None], Prompts(*(jnp.asarray(x)[None, None] for x in (coords, labels, valid))),
            np.zeros((1, 1, side, side), np.float32) if mask is None else mask[None, None],
            np.full((1, 1), mask is not None),
        )  # fmt: skip
        return np.asarray(found.logits[0, 0]), np.asarray(found.iou[0, 0])

    return answer


# ------------------------------------------------------------------------------------------------------- comparing


def verify(
    cases: Sequence[Case],
    encoder: Encoder | None,
    decoder: Decoder | None,
    tolerance: Tolerance,
    score: str,
) -> Verdict:
    """Compare an export with the model; either part may be missing."""
    began, verdict = time.perf_counter(), Verdict()
    for case in _progress(cases, "verifying"):
        embedding = None
        if encoder is not None:
            embedding, *anchors = encoder.outputs(case.frame, case.filled)
            verdict.findings.append(
                Finding("embedding", case.name, _relative(embedding, case.embedding), tolerance.embedding)
            )
            if case.anchors is not None:
                verdict.findings += _compare_anchors(case, anchors, tolerance)
        if decoder is not None:
            verdict.findings += _compare(case, decoder, case.embedding, "", tolerance, score)
            if embedding is not None and np.isfinite(embedding).all():
                verdict.findings += _compare(case, decoder, embedding, " from end to end", tolerance, score)
    verdict.seconds = time.perf_counter() - began
    return verdict


def _compare_anchors(case: Case, found: Sequence[np.ndarray], tolerance: Tolerance) -> Iterator[Finding]:
    """Scores of all anchors, and the boxes of those that score highest, in sides of the frame."""
    assert case.anchors is not None
    boxes, scores = case.anchors
    if [x.shape for x in found] != [(1, *boxes.shape), (1, *scores.shape)]:
        yield Finding("proposals", f"{case.name}: outputs of other shapes", float("inf"), 0)
        return
    yield Finding("proposal scores", case.name, float(np.abs(found[1][0] - scores).max()), tolerance.logits)
    best = np.argsort(-scores)[:HIGHEST]
    side = case.frame.shape[0]
    limits = np.clip(found[0][0][best], 0, side), np.clip(boxes[best], 0, side)
    off = float(np.abs(limits[0] - limits[1]).max()) / side
    yield Finding("proposal boxes", case.name, off, tolerance.logits)


def _progress(items: Collection[Any], what: str) -> Iterable[Any]:
    return tqdm(items, desc=what, unit="photo", leave=False, disable=None)  # none where nobody looks


def _compare(
    case: Case, decoder: Decoder, embedding: np.ndarray, how: str, tolerance: Tolerance, score: str
) -> Iterator[Finding]:
    for i, prompt in enumerate(case.prompts):
        mask = None if prompt.after is None else case.logits[prompt.after][0]
        logits, scores = decoder.decode(embedding, prompt.coords, prompt.labels, mask)
        where = f"{case.name}, {prompt.name}"
        limit = tolerance.logits + (tolerance.embedding if how else 0)
        yield Finding(f"logits{how}", where, _relative(logits, case.logits[i]), limit)
        decided = np.abs(case.logits[i]) > UNDECIDED * np.sqrt(np.mean(case.logits[i] ** 2))
        ours, theirs = (logits > 0) & decided, (case.logits[i] > 0) & decided
        for m, union in enumerate((ours | theirs).sum((1, 2))):
            if union >= SMALLEST:
                overlap = int((ours[m] & theirs[m]).sum()) / int(union)
                yield Finding(f"mask IoU{how}", f"{where}, mask {m}", overlap, tolerance.iou, overlap=True)
        expected = stability_score(logits) if score == "stability" else case.scores[i]
        off = np.abs(np.asarray(scores, np.float64) - expected).max()
        yield Finding(f"score{how}", where, float(off), tolerance.score if score == "stability" else 2 * limit)


def _relative(values: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square of the difference over that of the reference; infinite where shapes differ."""
    if values.shape != reference.shape:
        return float("inf")
    difference = np.asarray(values, np.float64) - reference
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.asarray(reference, np.float64) ** 2)))


def report(verdict: Verdict, name: str) -> str:
    """The verdict in one line per kind of finding, and the worst offender where it failed."""
    lines = []
    for what, figures in verdict.summary().items():
        if isinstance(figures, dict):
            lines.append(
                f"  {what}: worst {figures['worst']:.4g} (limit {figures['limit']:g}; {figures['at']}), mean"
                f" {figures['mean']:.4g} of {figures['count']}"
            )
    head = f"{name}: {'equals' if verdict.passed else 'DIFFERS FROM'} the JAX model ({verdict.seconds:.1f} s)"
    if not verdict.passed:
        failed = sum(not f.kept for f in verdict.findings)
        head += f"; {failed} of {len(verdict.findings)} comparisons fail; worst: {verdict.worst}"
    return "\n".join([head, *lines])
