"""What a program costs, read from its jaxpr: operations, bytes that devices exchange, and temporary memory.

Nothing is compiled or computed, so a program far too large for this machine costs a walk over its operations.
Products (``dot_general``, ``conv_general_dilated``) are counted as XLA counts them: a multiply-add is two operations,
and taps that fall on a convolution's padding are none.  XLA's own count differs where it fuses, shares or drops work,
and in loops, whose body it counts once: here a ``scan`` counts as often as it runs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

CALLS = ("jaxpr", "call_jaxpr")  # parameters that hold the program of an operation that only calls it
COLLECTIVES = ("psum", "psum_invariant", "all_reduce")
# One pass over memory at most, so XLA computes them where their result is read.
MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "expand_dims", "iota", "pad", "reshape", "rev",
    "slice", "squeeze", "stack", "stop_gradient", "transpose",
}  # fmt: skip
ELEMENTWISE = {
    "abs", "add", "add_any", "and", "ceil", "clamp", "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge",
    "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not",
    "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "sub", "tanh", "xor",
}  # fmt: skip
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "cumsum", "reduce_and"}


@dataclass(frozen=True)
class Work:
    """Operations and traffic of one run of a program on one device.

    ``products`` FLOPs of matrix products and convolutions; ``others`` one for each element that another arithmetic
    operation writes or a reduction reads; ``reduced`` bytes summed over devices; ``waits`` the longest chain of such
    sums that wait for one another; ``open_loops`` loops whose number of passes is not known, counted once.
    """

    products: float = 0.0
    others: float = 0.0
    reduced: float = 0.0
    waits: int = 0
    open_loops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.others + other.others,
            self.reduced + other.reduced,
            self.waits + other.waits,
            self.open_loops + other.open_loops,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.products * times, self.others * times, self.reduced * times, self.waits * times, self.open_loops
        )


def work(program: ClosedJaxpr) -> Work:
    """Count a program, as ``jax.make_jaxpr`` gives it."""
    total = Work()
    depth: dict[int, int] = {}  # sums over devices that a value waits for
    zeros: set[int] = set()
    for op in _flat(program.jaxpr)[0]:
        before = max((depth.get(key, 0) for key in op.reads), default=0)
        own = _work_of(op.eqn)
        if op.eqn.primitive.name in COLLECTIVES:
            # Gradients of what doesn't learn are zeros, which XLA does not send.
            sent = [
                v for v, key in zip(op.eqn.invars, op.reads_of, strict=True) if key not in zeros and key is not None
            ]
            own = Work(reduced=sum(size_of(v.aval) for v in sent), waits=1 if sent else 0)
        elif op.eqn.primitive.name == "broadcast_in_dim" and isinstance(op.eqn.invars[0], Literal):
            zeros.update(op.writes)
        total += Work(own.products, own.others, own.reduced, 0, own.open_loops)
        depth.update(dict.fromkeys(op.writes, before + own.waits))
    longest = max(depth.values(), default=0)
    return total + Work(waits=longest)


def _work_of(eqn: Any) -> Work:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return Work(products=2.0 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted))
    if name == "conv_general_dilated":
        return Work(products=_convolution(eqn))
    if name == "scan":
        return work(eqn.params["jaxpr"]) * eqn.params["length"]
    if name == "while":
        return work(eqn.params["body_jaxpr"]) + Work(open_loops=1)
    if name == "cond":
        return max((work(branch) for branch in eqn.params["branches"]), key=lambda w: w.products + w.others)
    if name in ELEMENTWISE:
        return Work(others=float(eqn.outvars[0].aval.size))
    if name in REDUCTIONS:
        return Work(others=float(eqn.invars[0].aval.size))
    return Work()


def _convolution(eqn: Any) -> float:
    p, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars)
    numbers, out = p["dimension_numbers"], eqn.outvars[0].aval.shape
    taps = 1
    for i, padding in enumerate(p["padding"]):
        taps *= _taps_inside(
            lhs[numbers.lhs_spec[2 + i]], rhs[numbers.rhs_spec[2 + i]], out[numbers.out_spec[2 + i]],
            p["window_strides"][i], padding[0], p["lhs_dilation"][i], p["rhs_dilation"][i],
        )  # fmt: skip
    return 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]] * taps


@functools.cache
def _taps_inside(size: int, kernel: int, out: int, stride: int, low: int, spread: int, kernel_spread: int) -> int:
    """Pairs of an output and a tap along one axis that meet a pixel, not padding or the space between pixels."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_spread - low
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def size_of(aval: Any) -> int:
    """Bytes of an array."""
    return int(math.prod(aval.shape)) * aval.dtype.itemsize


# ------------------------------------------------------------------------------------------------------------ memory


def peak_temporary(program: ClosedJaxpr) -> int:
    """Bytes that a program holds at its worst moment beside arguments and results: an estimate, in its own order.

    A value lives from the operation that writes it to the last that reads it.  Results of elementwise operations that
    one other operation reads, and everything that only moves data, are taken to be computed where they are read, as
    XLA fuses them.  XLA chooses another order and other fusions; ``docs/scale.md`` has the factor that was found.
    """
    return _peak(program.jaxpr, count_results=False)


def _peak(jaxpr: Jaxpr, count_results: bool = True) -> int:
    ops, results = _flat(jaxpr)
    ignored = set() if count_results else results
    readers = Counter(key for op in ops for key in op.reads)
    roots: dict[int, tuple[int, ...]] = {}  # values that never exist -> those they are computed from
    sizes: dict[int, int] = {}
    needs: list[tuple[int, ...]] = []
    for op in ops:
        needs.append(tuple({root for key in op.reads for root in roots.get(key, (key,))}))
        name = op.eqn.primitive.name
        once = name in ELEMENTWISE and readers[op.writes[0]] <= 1
        if (once or name in MOVES) and op.writes[0] not in results:
            roots[op.writes[0]] = needs[-1]
        else:
            written = zip(op.writes, op.eqn.outvars, strict=True)
            sizes.update({key: size_of(v.aval) for key, v in written if key not in ignored})
    last = {key: i for i, keys in enumerate(needs) for key in keys}
    dying: list[list[int]] = [[] for _ in ops]
    for key, i in last.items():
        if key in sizes:
            dying[i].append(key)
    live = peak = 0
    for op, gone in zip(ops, dying, strict=True):
        made = sum(sizes.get(key, 0) for key in op.writes)
        freed = sum(sizes[key] for key in gone)
        within = max((_peak(inner) for inner in _inner(op.eqn)), default=0)
        # An elementwise operation may write over what it reads for the last time.
        in_place = freed if op.eqn.primitive.name in ELEMENTWISE else 0
        peak = max(peak, live + max(made - in_place, 0) + within)
        live += made - freed
        unread = sum(sizes.get(key, 0) for key in op.writes if key not in last)
        live -= unread
    return peak


# ------------------------------------------------------------------------------------------------- one list of steps


@dataclass
class _Op:
    """An operation with its values as numbers that are unique over all the programs it was called through."""

    eqn: Any
    reads_of: list[int | None]  # None: a literal
    writes: list[int]
    reads: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.reads = [key for key in self.reads_of if key is not None]


def _flat(jaxpr: Jaxpr) -> tuple[list[_Op], set[int]]:
    """The operations in order, with those that only call a program replaced by its operations; and the results."""
    ops: list[_Op] = []
    names: dict[Any, int | None] = {}
    _collect(jaxpr, names, itertools.count(), ops)
    results = {key for v in jaxpr.outvars if not isinstance(v, Literal) and (key := names.get(v)) is not None}
    kept, needed = [], set(results)
    for op in reversed(ops):  # what nobody reads, XLA drops
        if needed.intersection(op.writes) or op.eqn.effects:
            needed.update(op.reads)
            kept.append(op)
    return kept[::-1], results


def _collect(jaxpr: Jaxpr, names: dict[Any, int | None], fresh: Iterator[int], ops: list[_Op]) -> None:
    def key(v: Any) -> int | None:
        if isinstance(v, Literal):
            return None
        if v not in names:
            names[v] = next(fresh)
        return names[v]

    for eqn in jaxpr.eqns:
        reads = [key(v) for v in eqn.invars]
        inner = _called(eqn)
        if inner is None:
            ops.append(_Op(eqn, reads, [k for v in eqn.outvars if (k := key(v)) is not None]))
            continue
        own: dict[Any, int | None] = dict(zip(inner.invars, reads, strict=True))
        _collect(inner, own, fresh, ops)
        for outer, v in zip(eqn.outvars, inner.outvars, strict=True):
            names[outer] = None if isinstance(v, Literal) else own.get(v)


def _called(eqn: Any) -> Jaxpr | None:
    """The program that an operation merely calls (a nested jit, a function with its own derivative)."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    found = next((eqn.params[name] for name in CALLS if name in eqn.params), None)
    found = getattr(found, "jaxpr", found)
    return found if isinstance(found, Jaxpr) and len(found.invars) == len(eqn.invars) else None


def _inner(eqn: Any) -> list[Jaxpr]:
    """The programs inside a loop or a choice."""
    name = eqn.primitive.name
    if name == "scan":
        return [eqn.params["jaxpr"].jaxpr]
    if name == "while":
        return [eqn.params["body_jaxpr"].jaxpr]
    return [branch.jaxpr for branch in eqn.params["branches"]] if name == "cond" else []
