"""The largest differences that the gate accepts, by quantity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

END_TO_END = " from end to end"  # suffix of quantities whose embedding comes from the exported encoder


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted differences.

    Attributes:
      embedding, logits: root mean square of the difference over that of the reference.
      iou: minimum IoU of two masks whose union has at least ``gate.MIN_UNION`` pixels.
      score: maximum absolute error of a stability score, compared with that of the same logits.
      computed: limits of single quantities, named as in the gate's findings; they replace those that follow from the
        four numbers.
    """

    embedding: float
    logits: float
    iou: float
    score: float
    computed: Mapping[str, float] = field(default_factory=dict)

    def limit(self, quantity: str, meaning: str = "stability") -> float:
        """Return the limit of a quantity: a minimum for a mask IoU, otherwise a maximum.

        ``meaning``: of the scores, ``stability`` or ``iou``. Predicted IoUs, and the scores and boxes of proposals, are
        as exact as the logits.
        """
        if quantity in self.computed:
            return self.computed[quantity]
        name = quantity.removesuffix(END_TO_END)
        logits = self.logits + (self.embedding if name != quantity else 0)
        score = self.score if meaning == "stability" else 2 * logits
        return {"embedding": self.embedding, "mask IoU": self.iou, "score": score}.get(name, logits)


# The largest limits. Float32 has no others: limits from the weights would be a thousandth of these, which allow for the
# order of sums. For the other formats, ``convert.export.limits`` computes smaller ones.
TOLERANCES = {
    "float32": Tolerance(1e-4, 1e-4, 0.995, 1e-3),
    "float16": Tolerance(0.03, 0.05, 0.7, 5e-3),
    "int8": Tolerance(0.1, 0.15, 0.5, 5e-3),
    "palette8": Tolerance(0.1, 0.15, 0.5, 5e-3),
    "palette6": Tolerance(0.3, 0.5, 0.2, 5e-3),
    "palette4": Tolerance(0.8, 1.0, 0.0, 5e-3),
}
FLOOR = Tolerance(5e-4, 1e-3, 0.97, 2e-3)  # the smallest limits of formats other than float32
