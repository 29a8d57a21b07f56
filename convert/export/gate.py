"""The gate: compares an export with the JAX model on photos and a variety of prompts.

The encoder must reproduce the model's embedding. The decoder must reproduce the model's logits and masks, once from the
model's embedding and once from the exported encoder's. Stability scores are compared with those of the exported logits
and must not be NaN. The limits are those of ``convert.export.limits``, and a failure names the worst comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from convert.export.cases import Case, Prompt, load_photos, make_cases, progress, sample_prompts
from convert.export.tolerance import END_TO_END, TOLERANCES, Tolerance
from edgesam_jax.portable.onnx_model import UNUSED
from edgesam_jax.portable.postprocess import stability_score

__all__ = [
    "TOLERANCES", "Case", "Decoder", "Encoder", "Finding", "Prompt", "Tolerance", "Verdict", "load_photos",
    "make_cases", "relative_error", "report", "sample_prompts", "verify",
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
    for case in progress(cases, "verifying"):
        embedding = None
        if encoder is not None:
            embedding, *anchors = encoder.outputs(case.frame, case.filled)
            verdict.findings.append(
                Finding("embedding", case.name, relative_error(embedding, case.embedding), tolerance.limit("embedding"))
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


def _compare(
    case: Case, decoder: Decoder, embedding: np.ndarray, suffix: str, tolerance: Tolerance, score: str
) -> Iterator[Finding]:
    """Compare the decoder on every prompt; a ``suffix`` marks findings from the exported encoder's embedding.

    With a suffix, a batched decoder decodes prompts together: both its ways are compared.
    """
    together = _decode_together(decoder, embedding, case) if suffix else None
    for i, prompt in enumerate(case.prompts):
        if together is None:
            logits, scores = decoder.decode(embedding, prompt.coords, prompt.labels, case.masks[i])
        else:
            logits, scores = together[i]
        where = f"{case.name}, {prompt.name}"
        for quantity, place, value in _differences(case, i, logits, scores, score):
            name = quantity + suffix
            overlap = quantity == "mask IoU"
            yield Finding(name, where + place, value, tolerance.limit(name, score), overlap)


def _decode_together(decoder: Any, embedding: np.ndarray, case: Case) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Decode prompts in two calls, without and with masks, if the decoder is batched; unused slots fill them up."""
    if not getattr(decoder, "batched", False):
        return None
    prompts, masks = case.prompts, case.masks
    most = max(len(p.coords) for p in prompts)
    coords, labels = np.zeros((len(prompts), most, 2), np.float32), np.full((len(prompts), most), UNUSED, np.int32)
    for i, prompt in enumerate(prompts):
        coords[i, : len(prompt.coords)], labels[i, : len(prompt.labels)] = prompt.coords, prompt.labels
    results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for masked in (False, True):
        rows = [i for i, mask in enumerate(masks) if (mask is not None) == masked]
        if rows:
            given = np.stack([masks[i] for i in rows]) if masked else None  # type: ignore[misc]
            answer = decoder.decode_prompts(embedding, coords[rows], labels[rows], given)
            results |= zip(rows, zip(*answer, strict=True), strict=True)
    return [results[i] for i in range(len(prompts))]


def _differences(
    case: Case, i: int, logits: np.ndarray, scores: np.ndarray, score: str
) -> Iterator[tuple[str, str, float]]:
    """Yield quantity, place in the prompt and value of each comparison of a prompt's logits and scores."""
    reference = case.logits[i]
    yield "logits", "", relative_error(logits, reference)
    decided = np.abs(reference) > UNDECIDED * np.sqrt(np.mean(reference**2))
    exported, expected = (logits > 0) & decided, (reference > 0) & decided
    for m, union in enumerate((exported | expected).sum((1, 2))):
        if union >= MIN_UNION:
            yield "mask IoU", f", mask {m}", int((exported[m] & expected[m]).sum()) / int(union)
    right = stability_score(logits) if score == "stability" else case.scores[i]
    yield "score", "", float(np.abs(np.asarray(scores, np.float64) - right).max())


def relative_error(values: np.ndarray, reference: np.ndarray) -> float:
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
