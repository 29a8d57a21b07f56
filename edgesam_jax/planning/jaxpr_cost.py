"""The cost of a program, read from its jaxpr: operations, bytes exchanged between devices, and temporary memory.

Nothing is compiled or executed: the cost of a program far too large for this machine takes one pass over its
operations.  Products (``dot_general``, ``conv_general_dilated``) are counted as XLA counts them: a multiply-add is two
operations, and taps on a convolution's padding are not counted.  XLA's own count differs where it fuses, shares or
drops work, and in loops: XLA counts the body once, while this module counts a ``scan`` as often as it runs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

CALLS = ("jaxpr", "call_jaxpr")  # names of the parameter that holds the program of a call
COLLECTIVES = ("psum", "psum_invariant", "all_reduce")
# At most one pass over memory; XLA computes these where their result is read.
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

    Attributes:
      products: FLOPs of matrix products and convolutions.
      traffic: bytes of the operands and results of matrix products and convolutions, each read or written once: what
        has to pass through memory if everything else is fused into them.
      others: one operation for each element that other arithmetic operations write or reductions read.
      reduced: bytes that are summed over devices.
      waits: length of the longest chain of sums over devices that depend on one another.
      open_loops: number of loops with an unknown number of passes; their body is counted once.
    """

    products: float = 0.0
    others: float = 0.0
    reduced: float = 0.0
    waits: int = 0
    open_loops: int = 0
    traffic: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.others + other.others,
            self.reduced + other.reduced,
            self.waits + other.waits,
            self.open_loops + other.open_loops,
            self.traffic + other.traffic,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.products * times, self.others * times, self.reduced * times, self.waits * times, self.open_loops,
            self.traffic * times,
        )  # fmt: skip


def work(program: ClosedJaxpr) -> Work:
    """Count the work of a program from ``jax.make_jaxpr``."""
    total = Work()
    depth: dict[int, int] = {}  # number of successive sums over devices that a value depends on
    zeros: set[int] = set()
    for op in _flat(program.jaxpr)[0]:
        before = max((depth.get(key, 0) for key in op.reads), default=0)
        op_work = _work_of(op.eqn)
        if op.eqn.primitive.name in COLLECTIVES:
            # Gradients of frozen parameters are zeros, which XLA does not send.
            sent = [
                v for v, key in zip(op.eqn.invars, op.reads_of, strict=True) if key not in zeros and key is not None
            ]
            op_work = Work(reduced=sum(size_of(v.aval) for v in sent), waits=1 if sent else 0)
        elif op.eqn.primitive.name == "broadcast_in_dim" and isinstance(op.eqn.invars[0], Literal):
            zeros.update(op.writes)
        total += replace(op_work, waits=0)
        depth.update(dict.fromkeys(op.writes, before + op_work.waits))
    longest = max(depth.values(), default=0)
    return total + Work(waits=longest)


def _work_of(eqn: Any) -> Work:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return Work(
            products=2.0 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted), traffic=_operands(eqn)
        )
    if name == "conv_general_dilated":
        return Work(products=_convolution(eqn), traffic=_operands(eqn))
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


def _operands(eqn: Any) -> float:
    return float(sum(size_of(v.aval) for v in (*eqn.invars, *eqn.outvars)))


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
    """Count pairs of an output and a tap along one axis that read a pixel, not padding or dilation."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_spread - low
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def size_of(aval: Any, lanes: int = 1) -> int:
    """Return the bytes of an array.

    With ``lanes`` memory holds one of its axes in multiples of so many values; the one that wastes least is assumed.
    """
    waste = min((-(-n // lanes) * lanes / n for n in aval.shape if n), default=1.0)
    return int(math.prod(aval.shape) * waste) * aval.dtype.itemsize


# ------------------------------------------------------------------------------------------------------------ memory


def peak_temporary(program: ClosedJaxpr, lanes: int = 1) -> int:
    """Estimate the peak of a program's temporary memory in bytes, without arguments and results.

    Operations run in the program's order.  A value lives from the operation that writes it to the last one that reads
    it.  Results of elementwise operations with a single reader, and of operations that only move data, are assumed to
    be computed where they are read, as XLA fuses them.  XLA chooses another order and other fusions; ``docs/scale.md``
    compares this estimate with XLA's memory.  ``lanes``: see ``size_of``.
    """
    return _peak(program.jaxpr, lanes, count_results=False)


def _peak(jaxpr: Jaxpr, lanes: int, count_results: bool = True) -> int:
    ops, results = _flat(jaxpr)
    ignored = set() if count_results else results
    readers = Counter(key for op in ops for key in op.reads)
    roots: dict[int, tuple[int, ...]] = {}  # fused values -> the stored values they are computed from
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
            sizes.update({key: size_of(v.aval, lanes) for key, v in written if key not in ignored})
    last = {key: i for i, keys in enumerate(needs) for key in keys}
    dying: list[list[int]] = [[] for _ in ops]
    for key, i in last.items():
        if key in sizes:
            dying[i].append(key)
    live = peak = 0
    for op, gone in zip(ops, dying, strict=True):
        made = sum(sizes.get(key, 0) for key in op.writes)
        freed = sum(sizes[key] for key in gone)
        within = max((_peak(inner, lanes) for inner in _inner(op.eqn)), default=0)
        # An elementwise operation may overwrite an operand that it is the last to read.
        in_place = freed if op.eqn.primitive.name in ELEMENTWISE else 0
        peak = max(peak, live + max(made - in_place, 0) + within)
        live += made - freed
        unread = sum(sizes.get(key, 0) for key in op.writes if key not in last)
        live -= unread
    return peak


# ------------------------------------------------------------------------------------------------- one list of steps


@dataclass
class _Op:
    """An operation; its values are numbers that are unique across nested calls."""

    eqn: Any
    reads_of: list[int | None]  # None: a literal
    writes: list[int]
    reads: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.reads = [key for key in self.reads_of if key is not None]


def _flat(jaxpr: Jaxpr) -> tuple[list[_Op], set[int]]:
    """Return the operations in order, with calls replaced by the operations of their program, and the results."""
    ops: list[_Op] = []
    names: dict[Any, int | None] = {}
    _collect(jaxpr, names, itertools.count(), ops)
    results = {key for v in jaxpr.outvars if not isinstance(v, Literal) and (key := names.get(v)) is not None}
    kept, needed = [], set(results)
    for op in reversed(ops):  # XLA drops operations whose results are not used
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
        inner_names: dict[Any, int | None] = dict(zip(inner.invars, reads, strict=True))
        _collect(inner, inner_names, fresh, ops)
        for outer, v in zip(eqn.outvars, inner.outvars, strict=True):
            names[outer] = None if isinstance(v, Literal) else inner_names.get(v)


def _called(eqn: Any) -> Jaxpr | None:
    """Return the program of an operation that is only a call (a nested jit, a function with a custom derivative)."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    program = next((eqn.params[name] for name in CALLS if name in eqn.params), None)
    program = getattr(program, "jaxpr", program)
    return program if isinstance(program, Jaxpr) and len(program.invars) == len(eqn.invars) else None


def _inner(eqn: Any) -> list[Jaxpr]:
    """Return the programs inside a loop or a conditional."""
    name = eqn.primitive.name
    if name == "scan":
        return [eqn.params["jaxpr"].jaxpr]
    if name == "while":
        return [eqn.params["body_jaxpr"].jaxpr]
    return [branch.jaxpr for branch in eqn.params["branches"]] if name == "cond" else []
