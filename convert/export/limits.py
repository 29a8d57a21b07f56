"""The limits of the gate, computed from the weights.

A correct export of a smaller format differs from the model by the rounding of weights and activations. How much depends
on the weights, by a factor of ten between two networks of the same shape. So the JAX model itself is run with the
format's rounding (``convert.export.rounding``) on the photos and prompts of the gate, and a limit is

    floor + FACTOR * largest error of the rounded model        (of 1 - IoU for masks),

per quantity, and at most the ceiling. ``FACTOR`` allows for another order of operations, ``tolerance.FLOOR`` for
single pixels. The ceiling, ``tolerance.TOLERANCES``, is what the format may cost at all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from convert.export import gate
from convert.export.cases import encode_function, prompt_decoder, propose_function
from convert.export.rounding import Kind, in_float16, stored
from convert.export.tolerance import FLOOR, TOLERANCES, Tolerance
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.models.fold import fold
from edgesam_jax.portable.onnx_model import normalised
from edgesam_jax.portable.postprocess import STABILITY_OFFSET, stability_score

FACTOR = 2.0
ANYTHING = Tolerance(1e9, 1e9, 0.0, 1e9)  # finite, because the worst finding is the largest multiple of its limit
ENCODER = (Kind.CONSTANT, Kind.PENDING)  # variables, image
# The arguments of ``cases.decode_function``: variables, embedding, coords, labels, valid, mask, has_mask.
DECODER = (Kind.CONSTANT, Kind.PENDING, Kind.EXACT, Kind.CONSTANT, Kind.CONSTANT, Kind.PENDING, Kind.CONSTANT)


@dataclass(frozen=True)
class Limit:
    """The limit of one quantity. ``error``: the largest of the rounded model; for masks all values are 1 - IoU."""

    error: float
    floor: float
    ceiling: float

    @property
    def value(self) -> float:
        """The limit."""
        computed = self.floor + FACTOR * self.error
        return min(computed, self.ceiling) if np.isfinite(computed) else self.ceiling

    @property
    def exceeded(self) -> bool:
        """Whether rounding alone costs more than the ceiling, or overflows."""
        return not self.error <= self.ceiling


@dataclass(frozen=True)
class Limits:
    """The limits of an export. ``rounding``: of the weights and activations, in words; none for float32."""

    tolerance: Tolerance
    rounding: str = ""
    limits: dict[str, Limit] | None = None
    seconds: float = 0.0

    def content(self) -> dict[str, Any]:
        """Return how each limit was found, for the contract."""
        if self.limits is None:
            return {"how": "fixed, for float32"}
        return {
            "how": f"floor + {FACTOR:g} x the largest error of the JAX model with {self.rounding}, at most the ceiling",
            **{
                name: {"error": x.error, "floor": x.floor, "ceiling": x.ceiling, "limit": x.value}
                for name, x in self.limits.items()
            },
        }

    def report(self) -> str:
        """Return the content as lines for the terminal."""
        if self.limits is None:
            return "  limits: fixed, for float32"
        lines = [f"  limits: floor + {FACTOR:g} x error of the JAX model with {self.rounding} ({self.seconds:.1f} s)"]
        for name, x in self.limits.items():
            shown = f"1 - {name}" if name.startswith("mask IoU") else name
            note = f"; more than {x.ceiling:g}: use --precision float32 or more bits" if x.exceeded else ""
            lines.append(f"    {shown}: {x.floor:g} + {FACTOR:g} x {x.error:.3g} = {x.value:.3g}{note}")
        return "\n".join(lines)


def compute_limits(
    model: Model,
    cases: Sequence[gate.Case],
    precision: str,
    compression: str,
    parts: Sequence[str],
    score: str,
    every: bool = False,
    masks: int = 4,
) -> Limits:
    """Return the limits for an export of the ``parts`` of a model, verified on ``cases``.

    Args:
      precision: of the activations, ``float32`` or ``float16``.
      compression: of the weights: ``none``, ``float16``, ``int8``, ``palette8``, ``palette6`` or ``palette4``.
      score: meaning of the decoder's scores, ``stability`` or ``iou``.
      every: measure every prompt on every photo. Otherwise each prompt on one: mostly enough for the largest error, and
        a third of the time.
      masks: how many of the four the decoder returns.
    """
    if precision == "float32" and compression == "none":
        return Limits(TOLERANCES["float32"])
    began = time.perf_counter()
    priors = any(case.anchors is not None for case in cases)
    rounded = RoundedModel(model, precision == "float16", compression, score, priors, masks)
    encoder, decoder = (rounded if part in parts else None for part in ("encoder", "decoder"))
    step = 1 if every else len(cases)
    some = [
        case.only(range(i % step % len(case.prompts), len(case.prompts), step)).first_masks(masks)
        for i, case in enumerate(cases)
    ]
    errors = gate.verify(some, encoder, decoder, ANYTHING, score).summary()
    ceiling = TOLERANCES[precision if compression == "none" else compression]
    found: dict[str, Limit] = {}
    for name, figures in errors.items():
        if isinstance(figures, dict):
            low, high, worst = FLOOR.limit(name, score), ceiling.limit(name, score), figures["worst"]
            if name.startswith("mask IoU"):
                low, high, worst = 1 - low, 1 - high, 1 - worst
            found[name] = Limit(worst, low, high)
    computed = {name: 1 - x.value if name.startswith("mask IoU") else x.value for name, x in found.items()}
    weights = "float16" if compression == "none" else compression
    rounding = f"weights in {weights} and activations in {precision}"
    tolerance = Tolerance(ceiling.embedding, ceiling.logits, ceiling.iou, ceiling.score, computed)
    return Limits(tolerance, rounding, found, time.perf_counter() - began)


class RoundedModel:
    """The JAX model with rounded weights and activations, as an encoder and decoder that the gate can run.

    Args:
      half: compute in float16. ``compression``: of the weights.
      score: meaning of the scores, ``stability`` or ``iou``.
      priors: also compute the boxes and scores of all anchors.
      masks: how many of the four masks ``decode`` returns.
    """

    def __init__(self, model: Model, half: bool, compression: str, score: str, priors: bool, masks: int = 4) -> None:
        config = model.config
        self._half, self._score, self._masks = half, score, masks
        self._variables = jax.device_put(stored(fold(config, model.variables), compression))
        encode = propose_function(config) if priors else encode_function(config)
        self._encode = in_float16(encode, ENCODER) if half else jax.jit(encode)
        self._decode = prompt_decoder(config, (lambda function: in_float16(function, DECODER)) if half else jax.jit)

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]:
        """See ``gate.Encoder``."""
        image = normalised(frame, filled).transpose(0, 2, 3, 1)
        embedding, *anchors = self._encode(self._variables, image)
        return [np.asarray(embedding).transpose(0, 3, 1, 2), *(np.asarray(x)[None] for x in anchors)]

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``gate.Decoder``."""
        prompt = gate.Prompt("", coords, labels)
        found = self._decode(self._variables, embedding[0].transpose(1, 2, 0), prompt, mask)
        logits, iou = (x[: self._masks] for x in found)
        if self._score == "iou":
            return logits, iou
        return logits, _float16_score(logits) if self._half else stability_score(logits)


def _float16_score(logits: np.ndarray) -> np.ndarray:
    """Return the stability scores (m) of logits (m s s), with every mean and the quotient rounded to float16."""
    inner, outer = (
        (logits > offset).mean(2).astype(np.float16).mean(1, dtype=np.float32).astype(np.float16)
        for offset in (STABILITY_OFFSET, -STABILITY_OFFSET)
    )
    return np.asarray(inner / np.maximum(outer, np.float16(1 / logits[0].size)), np.float32)
