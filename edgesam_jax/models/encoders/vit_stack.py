"""The blocks of a ViT in the form for accelerators, for ``Vit`` and ``PlainVit``.

The form for CPUs is in those modules, and both read the same parameters.  This form differs in the order of its work:

- One photo at a time: its activations then fit a TPU's vector memory (128 MiB from v5e on).
- Tokens stay sorted by window from the first to the last block of a run of windowed blocks.  Cells outside the grid,
  which fill up the windows at its lower and right edges, are no tokens: they are keys with the key and value of a zero.
- Blocks of equal shape are one loop over their stacked weights, which XLA compiles once.
- The sums that a layer norm needs are taken in the product that computes its input.

Attention is in ``kernels/attention.py``; measurements are in docs/accelerators.md.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from edgesam_jax.models.kernels import attention
from edgesam_jax.models.kernels.attention import Amplitudes, Waves, row_major
from edgesam_jax.models.kernels.ops import gelu

Grid = tuple[int, int]  # rows and columns of cells


class Setting(NamedTuple):
    """What the blocks have in common; ``logits_bytes`` bounds the logits that exist at once, in float32."""

    grid: Grid
    epsilon: float
    logits_bytes: int


# --------------------------------------------------------------------------------------------------------- weights


class Affine(NamedTuple):
    """A matrix and a vector that is added, or a norm's scale and bias."""

    kernel: Array
    bias: Array


class Normed(NamedTuple):
    """A layer norm and the matrix and vector after it, for a product with tokens that are not normalised.

    Attributes:
      kernel: the matrix (... c) times the norm's scale.
      sums: (...) over c of the kernel, in float32.
      bias: (...): the vector, plus the matrix times the norm's bias.
      outside: (...): the vector alone, which is the result for a token that is zero after the norm.
    """

    kernel: Array
    sums: Array
    bias: Array
    outside: Array


class Weights(NamedTuple):
    """Weights of a block; those of several blocks have further axes in front.

    Attributes:
      qkv: of scaled queries, keys and values, (3 h d c) and (3 h d), with the norm before them.
      proj: (h d, c) and (c).
      positions: tables of relative positions along rows and columns, (2 size - 1, d) each, or none; in a block that
        runs, the ``Amplitudes``: of both axes in one for windows, one for each axis otherwise.
    """

    qkv: Normed
    proj: Affine
    positions: tuple[Any, ...]
    norm2: Affine
    lin1: Affine
    lin2: Affine


def _weights(params: Mapping[str, Any], heads: int, dtype: Any) -> Weights:
    """The weights of a block from its parameters, matrices in ``dtype``."""

    def dense(p: Mapping[str, Any]) -> Affine:
        return Affine(p["kernel"].astype(dtype), p["bias"])

    attn, mlp, norm = params["attn"], params["mlp"], params["norm1"]
    bias = attn["qkv"]["bias"].reshape(3, heads, -1)
    scale = np.array([bias.shape[-1] ** -0.5, 1, 1], np.float32)[:, None, None]
    kernel = attn["qkv"]["kernel"].T.reshape(*bias.shape, -1) * scale[..., None]
    bias = bias * scale
    shift = jnp.matmul(kernel, norm["bias"], precision="highest")
    kernel = (kernel * norm["scale"]).astype(dtype)
    return Weights(
        Normed(kernel, kernel.astype(jnp.float32).sum(-1), bias + shift, bias),
        dense(attn["proj"]),
        tuple(attn[name] for name in ("rel_pos_h", "rel_pos_w") if name in attn),
        Affine(*(params["norm2"][name] for name in ("scale", "bias"))),
        *(dense(mlp[first if first in mlp else second]) for first, second in (("lin1", "fc1"), ("lin2", "fc2"))),
    )


def _stacked(blocks: Sequence[Weights], window: int) -> Weights:
    """The weights of equal blocks with an axis in front, and the ``Amplitudes`` of their positions."""
    out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    scale = out.qkv.kernel.shape[-2] ** -0.5
    # A table for a single position adds the same to all logits.
    tables = [table for table in out.positions if table.shape[-2] > 1]
    positions = tuple(attention.amplitudes(table, scale) for table in tables)
    if window and positions:
        positions = (Amplitudes(*(jnp.concatenate(both, axis=-1) for both in zip(*positions, strict=True))),)
    return out._replace(positions=positions)


# --------------------------------------------------------------------------------------------------------- windows


class Group(NamedTuple):
    """Windows that are attended to together; each has ``slots`` rows: its cells in order, then unused ones.

    Attributes:
      boxes: (top, left, height, width) of each window.
      keys: the first slots, which are attended to.
      outside: (n 1 1 area) bool: keys outside the grid, of all keys of a complete window; None without any.  The slots
        that are attended to come first.
      wave: of positions in the window.
    """

    boxes: tuple[tuple[int, int, int, int], ...]
    slots: int
    keys: int
    outside: np.ndarray | None
    wave: Waves


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


@functools.lru_cache(maxsize=32)
def window_groups(grid: Grid, window: int, most: int) -> tuple[Group, ...]:
    """The windows of a grid in groups of about equal size, at most ``most`` in a group of complete ones.

    Incomplete windows, at the lower and right edges, are in a group of their own.
    """
    rows, columns = ([(start, min(window, side - start)) for start in range(0, side, window)] for side in grid)
    boxes = [(top, left, height, width) for top, height in rows for left, width in columns]
    complete = [box for box in boxes if box[2] == box[3] == window]
    incomplete = [box for box in boxes if box not in complete]
    number = -(-len(complete) // most)
    parts = [complete[i * len(complete) // number : (i + 1) * len(complete) // number] for i in range(number)]
    groups = [_group(part, window, window * window) for part in parts]
    if incomplete:
        largest = max(height * width for _, _, height, width in incomplete)
        groups.append(_group(incomplete, window, min(window * window, _round_up(largest, attention.TILE_ROWS))))
    return tuple(groups)


def _group(boxes: Sequence[tuple[int, int, int, int]], window: int, keys: int) -> Group:
    area, slots = window * window, _round_up(keys, attention.TILE_ROWS)
    cells = np.arange(area).reshape(window, window)
    inside = [cells[:height, :width].ravel() for _, _, height, width in boxes]
    # A window's keys: its cells, then all other cells in any order.
    order = np.stack([np.concatenate([own, np.setdiff1d(cells, own)]) for own in inside])
    if (order == order[0]).all():
        order = order[0]
    else:
        order = order[:, None]  # (n 1 keys), as the logits are (n h keys queries)
    fill = [(0, 0)] * (order.ndim - 1) + [(0, max(0, slots - area))]
    queries = np.pad(order, fill)[..., :slots]
    axes = [
        attention.waves(window, along, across)
        for along, across in zip(np.divmod(queries, window), np.divmod(order, window), strict=True)
    ]
    wave = Waves(*(np.concatenate(both, axis=-2) for both in zip(*axes, strict=True)))
    outside = np.arange(area) >= np.array([len(own) for own in inside])[:, None, None, None]
    return Group(tuple(boxes), slots, keys, outside if outside.any() else None, wave)


def into_windows(x: Array, groups: Sequence[Group], grid: Grid) -> list[Array]:
    """Sort tokens (t c) by window: (n slots, c) for each group, zero in unused slots."""
    c = x.shape[-1]
    cells = x.reshape(*grid, c)

    def cut(group: Group, top: int, left: int, height: int, width: int) -> Array:
        own = cells[top : top + height, left : left + width].reshape(height * width, c)
        return jnp.pad(own, ((0, group.slots - len(own)), (0, 0)))

    return [jnp.concatenate([cut(group, *box) for box in group.boxes]) for group in groups]


def from_windows(parts: Sequence[Array], groups: Sequence[Group]) -> Array:
    """Invert ``into_windows``."""
    bands: dict[int, dict[int, Array]] = {}
    for x, group in zip(parts, groups, strict=True):
        for n, (top, left, height, width) in enumerate(group.boxes):
            first = n * group.slots
            bands.setdefault(top, {})[left] = x[first : first + height * width].reshape(height, width, -1)
    rows = [jnp.concatenate([band[left] for left in sorted(band)], axis=1) for _, band in sorted(bands.items())]
    cells = jnp.concatenate(rows)
    return cells.reshape(-1, cells.shape[-1])


# ----------------------------------------------------------------------------------------------------------- block


class Tokens(NamedTuple):
    """Tokens ``x`` (t c), and the sums (t) over c of ``x`` and of its square, in float32."""

    x: Array
    total: Array
    square: Array


def tokens(x: Array) -> Tokens:
    """``x`` with its sums, which XLA takes in the product that computes ``x``."""
    x = row_major(x)
    wide = x.astype(jnp.float32)
    return Tokens(*lax.optimization_barrier((x, wide.sum(-1), (wide * wide).sum(-1))))


def _moments(t: Tokens, epsilon: float) -> tuple[Array, Array]:
    """Mean and inverse standard deviation of each token (t).

    The variance is E[x^2] - E[x]^2 in float32, with a relative error of some 1e-7 (mean / deviation)^2.  In a ViT's
    residual stream a token's mean is smaller than its deviation.
    """
    mean = t.total / t.x.shape[-1]
    return mean, lax.rsqrt(jnp.maximum(t.square / t.x.shape[-1] - mean * mean, 0.0) + epsilon)


def normalise(t: Tokens, norm: Affine, epsilon: float) -> Array:
    """Layer norm."""
    mean, inverse = (x[:, None] for x in _moments(t, epsilon))
    return ((t.x.astype(jnp.float32) - mean) * inverse * norm.kernel + norm.bias).astype(t.x.dtype)


def _project(x: Array, affine: Affine) -> Array:
    """``x`` (... c) times a matrix, plus a vector, in float32."""
    return jnp.matmul(x, affine.kernel, preferred_element_type=jnp.float32) + affine.bias


def _heads(t: Tokens, qkv: Normed, epsilon: float, windows: int = 0) -> Array:
    """Queries, keys and values (h s d t) of all tokens, or (n h s d slots) of those of ``windows`` windows.

    ``qkv`` is (s h d c).
    """
    x, (mean, inverse) = t.x, _moments(t, epsilon)
    if windows:
        x, mean, inverse = x.reshape(windows, -1, x.shape[-1]), mean.reshape(windows, -1), inverse.reshape(windows, -1)
        mean, inverse = (v[:, None, None, None] for v in (mean, inverse))
    product = jnp.einsum("shdc,...tc->...hsdt", qkv.kernel, x, preferred_element_type=jnp.float32)
    sums, bias = (v.swapaxes(0, 1)[..., None] for v in (qkv.sums, qkv.bias))
    out = (product - sums * mean) * inverse + bias
    return row_major(lax.optimization_barrier(out.astype(x.dtype)))


def _merge_heads(o: Array, proj: Affine) -> Array:
    """(... h d t) to (... t c), in float32, without the bias."""
    rows = o.reshape(*o.shape[:-3], -1, o.shape[-1])
    return jnp.einsum("...kt,kc->...tc", rows, proj.kernel, preferred_element_type=jnp.float32)


def _attend_in_windows(t: Tokens, w: Weights, setting: Setting, group: Group) -> Array:
    """Tokens (n slots, c) plus their attention within windows, in float32."""
    dtype, wave, n = t.x.dtype, group.wave, len(group.boxes)
    if group.outside is None:
        qkv = _heads(t, w.qkv, setting.epsilon, n)
        parts = [qkv[:, :, i] for i in range(3)]
    else:
        # One product each: keys and values get their outside cells, which queries don't.
        each = [jax.tree.map(operator.itemgetter(slice(i, i + 1)), w.qkv) for i in range(3)]
        parts = [_heads(t, one, setting.epsilon, n)[:, :, 0] for one in each]
    q, k, v = (part[..., :size] for part, size in zip(parts, (group.slots, group.keys, group.keys), strict=True))
    if group.outside is not None:
        # Cells outside the grid are zeros after the norm, as in the training of the published weights.
        pads = ((0, 0), (0, 0), (0, 0), (0, group.outside.shape[-1] - group.keys))
        outside = w.qkv.outside.astype(dtype)[..., None]
        k, v = (jnp.where(group.outside, outside[i], jnp.pad(z, pads)) for i, z in ((1, k), (2, v)))

    @jax.checkpoint
    def attend(q: Array, k: Array, v: Array, positions: tuple[Amplitudes, ...]) -> Array:
        logits = attention.products(k, q)
        for amplitude in positions:
            turned = attention.turn(q, amplitude, wave)
            logits = lax.optimization_barrier(logits) + attention.products(jnp.asarray(wave.keys, dtype), turned)
        return attention.softmax_mix(logits, v)

    o = lax.optimization_barrier(attend(q, k, v, w.positions))
    # In this order XLA adds to the product and sums for the next norm in one pass.
    return t.x + (_merge_heads(o, w.proj).reshape(t.x.shape) + w.proj.bias)


def _attend_globally(t: Tokens, w: Weights, setting: Setting) -> Array:
    """Tokens (t c) plus their attention to each other, in float32; head by head."""
    (rows, columns), number, dtype = setting.grid, len(t.x), t.x.dtype
    step = _largest_divisor(number, setting.logits_bytes // (4 * number))
    places = np.divmod(np.arange(number), columns)

    @jax.checkpoint
    def attend(q: Array, k: Array, v: Array, biases: Sequence[Array]) -> Array:
        logits = attention.products(k, q)
        if biases:
            by_row, by_column = biases
            logits = (logits.reshape(rows, columns, -1) + by_row[:, None] + by_column).reshape(logits.shape)
        return attention.softmax_mix(logits, v)

    def head(qkv: Array) -> Array:
        q, k, v = qkv
        parts = []
        for first in range(0, number, step):
            part = slice(first, first + step)
            biases = []
            for amplitude, along, size in zip(w.positions, places, setting.grid, strict=False):
                wave = attention.waves(size, along[part], np.arange(size))
                turned = attention.turn(q[:, part], amplitude, wave)
                biases.append(lax.optimization_barrier(attention.products(jnp.asarray(wave.keys, dtype), turned)))
            parts.append(attend(q[:, part], k, v, biases))
        return jnp.concatenate(parts, axis=-1)

    return t.x + (_merge_heads(lax.map(head, _heads(t, w.qkv, setting.epsilon)), w.proj) + w.proj.bias)


def _block(t: Tokens, w: Weights, setting: Setting, attend: Callable[[Tokens, Weights, Setting], Array]) -> Tokens:
    """Pre-norm transformer block; ``attend`` adds to tokens their attention."""
    dtype = t.x.dtype
    with jax.named_scope("attn"):
        t = tokens(attend(t, w, setting).astype(dtype))
    with jax.named_scope("mlp"):
        hidden = gelu(_project(normalise(t, w.norm2, setting.epsilon), w.lin1).astype(dtype))
        # Without the barrier the GELU is an operand of the second product, computed again for each of its tiles.
        return tokens((t.x + _project(lax.optimization_barrier(hidden), w.lin2)).astype(dtype))


def _windowed_block(parts: list[Tokens], w: Weights, setting: Setting, groups: Sequence[Group]) -> list[Tokens]:
    out = []
    for t, group in zip(parts, groups, strict=True):
        out.append(_block(t, w, setting, functools.partial(_attend_in_windows, group=group)))
    return out


def _global_block(t: Tokens, w: Weights, setting: Setting) -> Tokens:
    return _block(t, w, setting, _attend_globally)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


# ----------------------------------------------------------------------------------------------------------- stack


class Run(NamedTuple):
    """Consecutive blocks with equal windows; ``window`` 0 attends over the entire grid."""

    window: int
    length: int


def _runs(windows: Sequence[int]) -> tuple[list[Run], int]:
    """The runs of a stack and how often they repeat: the shortest sequence of runs whose repetition is the stack."""
    runs = [Run(window, len(list(same))) for window, same in groupby(windows)]
    for period in range(1, len(runs) + 1):
        times = len(runs) // period
        if runs == runs[:period] * times:
            return runs[:period], times
    raise AssertionError("a sequence repeats itself once")


def apply_blocks(
    params: Sequence[Mapping[str, Any]],
    x: Array,
    windows: Sequence[int],
    heads: int,
    epsilon: float,
    logits_bytes: int,
    remat: bool = False,
) -> Array:
    """Apply a ViT's blocks to tokens (b rows columns c).

    Args:
      params: of each block, as ``vit.Block`` and ``plain_vit.Block`` name them.
      windows: of each block the side of its windows, 0 for global attention.
      logits_bytes: limit for the logits of global attention that exist at once, in float32; at least one query's.
      remat: recompute each block in the backward pass.
    """
    b, rows, columns, c = x.shape
    setting = Setting((rows, columns), epsilon, logits_bytes)
    runs, times = _runs(windows)
    blocks = [_weights(p, heads, x.dtype) for p in params]
    period = len(blocks) // times
    stacks, first = [], 0
    for run in runs:
        own = [blocks[repeat * period + first + i] for repeat in range(times) for i in range(run.length)]
        stacks.append(_stacked(own, run.window))
        first += run.length

    def photo(x: Array, pick: Callable[[int, Any], Weights], keys: Sequence[Any]) -> Array:
        for number, run in enumerate(runs):
            x = _apply_run(x, run, functools.partial(pick, number), keys[number], setting, heads, remat)
        return x

    # Weights are taken from the stacks by their index, which XLA does within the products.
    def infer(x: Array, stacks: Sequence[Weights]) -> Array:
        def pick(number: int, index: Array) -> Weights:
            return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacks[number])

        def repeat(x: Array, t: Array) -> tuple[Array, None]:
            return photo(x, pick, [t * run.length + jnp.arange(run.length) for run in runs]), None

        return _map(lambda x: lax.scan(repeat, x, jnp.arange(times))[0], x)

    # The gradient of an index would be as large as the stack.  Here the weights are what the loops run over.
    def train(x: Array, stacks: Sequence[Weights]) -> Array:
        def repeat(x: Array, stacks: Sequence[Weights]) -> tuple[Array, None]:
            return _map(lambda x: photo(x, lambda _, weights: weights, stacks), x), None

        by_run = [
            jax.tree.map(lambda leaf, n=run.length: leaf.reshape(times, n, *leaf.shape[1:]), stack)
            for run, stack in zip(runs, stacks, strict=True)
        ]
        return lax.scan(repeat, x, by_run)[0]

    apply = jax.custom_vjp(infer)
    apply.defvjp(functools.partial(jax.vjp, train), lambda pullback, g: pullback(g))
    return apply(x.reshape(b, rows * columns, c), stacks).reshape(b, rows, columns, c)


def _map(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x[0])[None] if len(x) == 1 else lax.map(function, x)


def _apply_run(
    x: Array, run: Run, pick: Callable[[Any], Weights], keys: Any, setting: Setting, heads: int, remat: bool
) -> Array:
    """Apply equal blocks to the tokens (t c) of a photo; ``pick`` gives a block's weights for one of the ``keys``."""
    block: Callable[..., Any]
    if run.window:
        area = run.window * run.window
        groups = window_groups(setting.grid, run.window, max(1, setting.logits_bytes // (4 * heads * area * area)))
        state: Any = [tokens(part) for part in into_windows(x, groups, setting.grid)]
        block = functools.partial(_windowed_block, setting=setting, groups=groups)
    else:
        state, block = tokens(x), functools.partial(_global_block, setting=setting)
    block = jax.checkpoint(block) if remat else block
    state, _ = lax.scan(lambda state, key: (block(state, pick(key)), None), state, keys)
    return from_windows([part.x for part in state], groups) if run.window else state.x
