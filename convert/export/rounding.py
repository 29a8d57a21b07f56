"""The error of a smaller format: the JAX model, computed as a program with rounded weights and activations would.

``in_float16`` evaluates a JAX function equation by equation, and rounds what a float16 program rounds: weights when
they are used, and the result of every operation. As in such a program

- an operation accumulates in float32, and a product is rounded after its bias and its scale;
- constants (the positions of the cells, a merged low-rank update) are computed in float32 and rounded once;
- coordinates stay in float32 up to their sine (``convert.coreml.packages``).

Functions with a name (``jit``, ``custom_vjp``) count as one operation: GELU, the norms, softmax, convolutions.

``stored`` rounds weights as compression does: int8 per output channel, or palettes by k-means (in one dimension).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun

MIN_COMPRESSED = 512  # elements; as in convert.coreml.packages
KMEANS_STEPS = 50
COMPILER_OPTIONS = {"xla_allow_excess_precision": False}  # by default, XLA drops a pair of casts


class Kind(enum.IntEnum):
    """What a value was computed from; an operation on several values has the highest kind."""

    CONSTANT = 0  # weights, constants and integers
    EXACT = 1  # coordinates, before their sine
    ROUNDED = 2  # activations
    PENDING = 3  # activations before rounding: a product may still get its bias and scale


Value = tuple[Any, Kind]
MOVES = frozenset(("reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "rev"))
CALLS = frozenset(("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))
ACCUMULATES = CALLS | {"dot_general", "conv_general_dilated", "reduce_sum"}


def to_float16(x: Array) -> Array:
    """Round to float16 and back, in a program compiled with ``COMPILER_OPTIONS``."""
    return x.astype(jnp.float16).astype(jnp.float32)


def in_float16(function: Callable[..., Any], kinds: Sequence[Kind]) -> Callable[..., Any]:
    """Compile ``function`` in float16; ``kinds`` has an entry per argument, which may be a tree of arrays."""

    def run(*arguments: Any) -> Any:
        leaves = [(x, kind) for tree, kind in zip(arguments, kinds, strict=True) for x in jax.tree.leaves(tree)]
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = [_settled(value)[0] for value in _evaluate(closed.jaxpr, closed.consts, leaves)]
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return cast(Callable[..., Any], jax.jit(run, compiler_options=COMPILER_OPTIONS))


def _evaluate(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    values: dict[Any, Value] = {var: (x, Kind.CONSTANT) for var, x in zip(jaxpr.constvars, constants, strict=True)}
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom: Any) -> Value:
        return (atom.val, Kind.CONSTANT) if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        apply = _scan if equation.primitive.name == "scan" else _apply
        values |= zip(equation.outvars, apply(equation, inputs), strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Value]) -> list[Value]:
    name, kinds = equation.primitive.name, [kind for _, kind in inputs]
    kind = max(kinds, default=Kind.CONSTANT)
    if kind <= Kind.EXACT:
        after = Kind.PENDING if kind == Kind.EXACT and name in ("sin", "cos") else kind
        return [_typed(x, after) for x in _bind(equation, [x for x, _ in inputs])]
    scaled = name in ("mul", "div") and any(k == Kind.CONSTANT and np.ndim(x) == 0 for x, k in inputs)
    waits = name in MOVES or scaled
    biased = name == "add" and sorted(kinds) == [Kind.CONSTANT, Kind.PENDING]
    ready = [value if (waits or biased) and value[1] == Kind.PENDING else _settled(value) for value in inputs]
    outputs = _bind(equation, [x for x, _ in ready])
    pending = name in ACCUMULATES or (waits and kind == Kind.PENDING)
    return [_typed(x, Kind.PENDING) if pending else _settled(_typed(x, Kind.PENDING)) for x in outputs]


def _scan(equation: Any, inputs: list[Value]) -> list[Value]:
    p = equation.params
    inside = p["jaxpr"].jaxpr
    # The params name the numbers of constants and carried values differently in every version of JAX; a loop's rows
    # have an axis more outside.
    collects = sum(_axes(a) > _axes(b) for a, b in zip(equation.outvars, inside.outvars, strict=True))
    reads = sum(_axes(a) > _axes(b) for a, b in zip(equation.invars, inside.invars, strict=True))
    last = len(inputs) - reads
    first = last - (len(equation.outvars) - collects)
    constants, carry, rows = inputs[:first], inputs[first:last], [_waiting(v) for v in inputs[last:]]
    kinds = [kind for _, kind in rows]

    def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        arguments = [*constants, *(_typed(x, Kind.ROUNDED) for x in carry), *zip(row, kinds, strict=True)]
        outputs = [_settled(v)[0] for v in _evaluate(p["jaxpr"].jaxpr, p["jaxpr"].consts, arguments)]
        return outputs[: len(carry)], outputs[len(carry) :]

    start = [_settled(v)[0] for v in carry]
    end, collected = lax.scan(step, start, [x for x, _ in rows], length=p["length"], reverse=p["reverse"])
    return [_typed(x, Kind.ROUNDED) for x in (*end, *collected)]


def _axes(variable: Any) -> int:
    return len(variable.aval.shape)


def _bind(equation: Any, arrays: list[Any]) -> list[Any]:
    inner = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    if equation.primitive.name in CALLS and inner is not None:
        return list(jaxpr_as_fun(inner)(*arrays))
    outputs = equation.primitive.bind(*arrays, **equation.params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _typed(x: Any, kind: Kind) -> Value:
    """Return a value; integers and booleans are exact in any format, and count as constants."""
    return x, kind if jnp.issubdtype(x.dtype, jnp.floating) else Kind.CONSTANT


def _settled(value: Value) -> Value:
    """Round a value where an operation uses it. Single constants, such as an epsilon, belong to an operation."""
    x, kind = value
    floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    if kind == Kind.ROUNDED or not floating or (kind == Kind.CONSTANT and np.ndim(x) == 0):
        return value
    return to_float16(x), Kind.CONSTANT if kind == Kind.CONSTANT else Kind.ROUNDED


def _waiting(value: Value) -> Value:
    return _settled(value) if value[1] == Kind.PENDING else value


# ------------------------------------------------------------------------------------------------ compressed weights


def stored(variables: Mapping[str, Any], compression: str) -> dict[str, Any]:
    """Return the (folded) variables with the parameters as a compressed program stores them."""
    if compression == "none":
        return dict(variables)

    def compressed(path: Any, leaf: Any) -> np.ndarray:
        values = np.asarray(leaf, np.float32)
        if values.size < MIN_COMPRESSED:
            return values
        if compression == "float16":
            return values.astype(np.float16).astype(np.float32)
        if compression != "int8":
            return palette(values, int(compression.removeprefix("palette")))
        return int8(values, per_channel=path[-1].key == "kernel") if values.ndim > 1 else values

    return {**variables, "params": jax.tree.map_with_path(compressed, variables["params"])}


def int8(values: np.ndarray, per_channel: bool) -> np.ndarray:
    """Round to 255 equidistant values, symmetric around 0; a kernel's output channels are its last axis."""
    axes = tuple(range(values.ndim - 1)) if per_channel else None
    step = np.maximum(np.abs(values).max(axes, keepdims=True), 1e-30) / 127
    return (np.round(values / step) * step).astype(np.float32)


def palette(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to the nearest of 2 ** bits values, which Lloyd's k-means places."""
    ordered = np.sort(values, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.quantile(ordered, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(KMEANS_STEPS):
        bounds = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
        counts, totals = np.diff(bounds), np.diff(sums[bounds])
        centres = np.where(counts > 0, totals / np.maximum(counts, 1), centres)
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return centres[nearest].astype(np.float32)
