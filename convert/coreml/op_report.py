"""Counts the operations of a Core ML program, and flags those that may not run on the Neural Engine.

Core ML decides on the device where an operation runs (Xcode's performance report and ``MLComputePlan`` show it). The
flags here follow Apple's documents and users' reports: the Neural Engine computes in float16, on fixed shapes of at
most four axes, and doesn't gather, sort or branch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

OUTSIDE = frozenset(
    {
        *("gather", "gather_along_axis", "gather_nd", "scatter", "scatter_along_axis", "scatter_nd", "one_hot"),
        *("argsort", "topk", "non_zero", "cumsum", "reduce_argmax", "reduce_argmin", "cond", "while_loop", "range_1d"),
        *("shape", "fill", "lstm", "gru", "rnn", "crop_resize", "resample", "non_maximum_suppression"),
    }
)
MOVES = ("reshape", "transpose", "expand_dims", "squeeze", "split", "concat", "slice_by_index", "slice_by_size")
MAX_AXES = 4


@dataclass(frozen=True)
class Census:
    """The operations of a program, without constants.

    Attributes:
      kinds: count by kind.
      axes: largest number of axes of an output.
      flagged: names of operations that may leave the Neural Engine, by kind and reason.
      products: multiply-adds of convolutions and matrix products.
    """

    kinds: dict[str, int]
    axes: int
    flagged: dict[str, list[str]]
    products: int = 0

    @property
    def total(self) -> int:
        """Number of operations."""
        return sum(self.kinds.values())

    @property
    def moves(self) -> int:
        """Number of operations that only move data."""
        return sum(self.kinds.get(kind, 0) for kind in MOVES)

    def content(self) -> dict[str, Any]:
        """Return the census for JSON."""
        return {
            "operations": self.total, "kinds": self.kinds, "moves": self.moves, "most_axes": self.axes,
            "may_leave_the_neural_engine": self.flagged,
        }  # fmt: skip


def census(operations: Iterable[Any]) -> Census:
    """Count ``MilProgram.operations()``."""
    kinds: Counter[str] = Counter()
    axes = products = 0
    flagged: dict[str, list[str]] = {}
    for op in operations:
        if op.constant:
            continue
        kinds[op.kind] += 1
        products += op.products
        axes = max([axes, *(len(shape) for shape in op.shapes)])
        reasons = []
        if op.kind in OUTSIDE:
            reasons.append("kind")
        if any(len(shape) > MAX_AXES for shape in op.shapes):
            reasons.append(f"more than {MAX_AXES} axes")
        if any(side < 0 for shape in op.shapes for side in shape):
            reasons.append("flexible shape")
        if op.kind != "cast" and any(dtype not in ("fp16", "bool") for dtype in op.dtypes):
            reasons.append("computes in " + "/".join(sorted(set(op.dtypes))))
        if reasons:
            flagged.setdefault(f"{op.kind}: {', '.join(reasons)}", []).append(op.name)
    return Census(dict(kinds.most_common()), axes, flagged, products)


def table(ours: Census, plain: Census | None, title: str) -> str:
    """Return a Markdown table of the operations of this export and of the plain conversion."""
    kinds = list(dict.fromkeys([*ours.kinds, *(plain.kinds if plain else ())]))
    lines = [f"### {title}", "", "| operation | this export | plain conversion |", "|---|--:|--:|"]

    def row(name: str, a: int, b: int | None) -> str:
        return f"| {name} | {a or ''} | {b or ''} |"

    lines += [row(k, ours.kinds.get(k, 0), plain.kinds.get(k, 0) if plain else None) for k in kinds]
    lines.append(row("**all**", ours.total, plain.total if plain else None))
    lines.append(row("of these, data movement", ours.moves, plain.moves if plain else None))
    lines.append(row("maximum number of axes", ours.axes, plain.axes if plain else None))
    for name, counts in (("This export", ours), ("The plain conversion", plain)):
        if counts is None:
            continue
        if counts.flagged:
            text = "; ".join(f"{len(names)} x {reason}" for reason, names in counts.flagged.items())
            lines += ["", f"{name} has operations that may leave the Neural Engine: {text}."]
        else:
            lines += ["", f"{name} has no operations that are known to leave the Neural Engine."]
    return "\n".join(lines) + "\n"
