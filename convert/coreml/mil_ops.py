"""The ops of Core ML's ML Programs in torch: ``OPERATIONS`` maps the kind of an op to a small function.

The functions take and return float32 and int64 tensors; ``rounded`` converts a result to its declared type. They raise
ValueError for modes whose documentation is incomplete, and for behaviour that is undefined on a device, such as an
index out of range.

Source: the op documentation in ``coremltools.converters.mil.mil.ops.defs`` (coremltools 9.0). Where it doesn't define
the padding (``same`` with strides): the shape rules in the same modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUMPY = {"fp16": np.float16, "fp32": np.float32, "bool": np.bool_}
NUMPY |= {f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32)}


def rounded(value: Tensor, dtype: str) -> Tensor:
    """Round ``value`` to a MIL type; floats stay in float32, integers in int64, bools in bool."""
    if dtype == "bool":
        return value != 0
    if dtype == "fp16":
        return value.to(torch.float16).float()
    if dtype == "fp32":
        return value.float()
    low, high = np.iinfo(NUMPY[dtype]).min, np.iinfo(NUMPY[dtype]).max
    if value.is_floating_point():
        value = value.double().trunc()
        if not bool(((value >= low) & (value <= high)).all()):
            raise ValueError(f"a value is out of range for {dtype}")
    return (value.long() - low) % (high - low + 1) + low


class Arguments:
    """The inputs of one op by name; ``values`` maps the ids of variables to tensors or strings."""

    def __init__(self, op: Any, values: dict[int, Any]) -> None:
        self.op, self._values = op, values

    def get(self, name: str) -> Any:
        """Return a tensor or a string; None for an omitted optional input."""
        var = self.op.inputs.get(name)
        return None if var is None else self._values[id(var)]

    def __getitem__(self, name: str) -> Tensor:
        return self.get(name)

    def many(self, name: str) -> list[Tensor]:
        """Return the tensors of a list input."""
        return [self._values[id(var)] for var in self.op.inputs[name]]

    def numbers(self, name: str) -> list[Any]:
        """Return the values of a tensor as a flat list."""
        return self[name].flatten().tolist()

    def one(self, name: str) -> Any:
        """Return the value of a tensor with one element."""
        return self[name].item()


Function = Callable[[Arguments], Tensor | Sequence[Tensor]]


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda a: function(a["x"])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda a: function(a["x"], a["y"])


# ------------------------------------------------------------------------------------------ convolution and pooling


def _padding(a: Arguments, kernel: list[int], strides: list[int], dilations: list[int]) -> list[tuple[int, int]]:
    """Return the padding before and after each spatial axis; an odd cell goes after (``same``) or before."""
    kind = a.get("pad_type").lower()
    if kind == "custom":
        pad = a.numbers("pad")
        return list(zip(pad[::2], pad[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind not in ("same", "same_lower"):
        raise ValueError(f"pad_type {kind} is not supported")
    pads = []
    for n, k, s, d in zip(a["x"].shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        smaller, larger = total // 2, total - total // 2
        pads.append((smaller, larger) if kind == "same" else (larger, smaller))
    return pads


def _pad(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes, in axis order; a negative count crops."""
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value) if any(map(any, pads)) else x


def _conv(a: Arguments) -> Tensor:
    x, weight, strides, dilations = a["x"], a["weight"], a.numbers("strides"), a.numbers("dilations")
    pads = _padding(a, list(weight.shape[2:]), strides, dilations)
    padding = [before for before, _ in pads]
    if any(before != after for before, after in pads):
        x, padding = _pad(x, pads), [0] * len(pads)
    convolve = getattr(F, f"conv{len(pads)}d")
    return convolve(x, weight, a.get("bias"), strides, padding, dilations, a.one("groups"))


def _conv_transpose(a: Arguments) -> Tensor:
    """Compute the full transposed convolution; crop or zero-fill it to the padded size or ``output_shape``."""
    x, weight, strides, dilations = a["x"], a["weight"], a.numbers("strides"), a.numbers("dilations")
    spatial = len(strides)
    full = getattr(F, f"conv_transpose{spatial}d")(x, weight, None, strides, 0, 0, a.one("groups"), dilations)
    kind, size = a.get("pad_type").lower(), list(full.shape[2:])
    before, after = [0] * spatial, [0] * spatial
    if kind == "custom":
        before, after = a.numbers("pad")[::2], a.numbers("pad")[1::2]
    out = [n - p - q for n, p, q in zip(size, before, after, strict=True)]
    if kind == "same":
        out = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if a.get("output_shape") is not None:
        out = a.numbers("output_shape")[2:]
    if kind == "same":
        before = [max(0, n - o) // 2 for n, o in zip(size, out, strict=True)]
    full = _pad(full, [(-p, o + p - n) for n, p, o in zip(size, before, out, strict=True)])
    return full if a.get("bias") is None else full + a["bias"].reshape(-1, *[1] * spatial)


def _pool(a: Arguments, average: bool) -> Tensor:
    """Pool with the padding -inf for a maximum and 0 for a mean.

    Zeros count in the mean unless ``exclude_padding_from_average``. ``ceil_mode`` adds windows that extend past the
    padded end; cells past that end never count, as in torch.
    """
    x, kernel, strides = a["x"], a.numbers("kernel_sizes"), a.numbers("strides")
    pads = _padding(a, kernel, strides, [1] * len(kernel))
    windows = []
    for n, k, s, (before, after) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        span = n + before + after - k
        out = (-(-span // s) if a.one("ceil_mode") else span // s) + 1
        if a.one("ceil_mode") and (out - 1) * s >= n + before and before + after > 0:
            out -= 1
        windows.append((before, (out - 1) * s + k - n - before))  # cells of the windows past the end
    pool = getattr(F, f"{'avg' if average else 'max'}_pool{len(kernel)}d")
    if not average:
        return pool(_pad(x, windows, -math.inf), kernel, strides)
    inside = [(before, min(after, end)) for (before, after), (_, end) in zip(pads, windows, strict=True)]
    outside = [(0, max(0, end - after)) for (_, after), (_, end) in zip(pads, windows, strict=True)]
    counted = _pad(torch.ones(1, 1, *x.shape[2:]), inside, 0.0 if a.one("exclude_padding_from_average") else 1.0)
    return pool(_pad(x, windows), kernel, strides) / pool(_pad(counted, outside), kernel, strides)


# -------------------------------------------------------------------------------------------------------- resizing


def _points(mode: str, old: int, new: int) -> Tensor:
    """Return the source positions, in cells, of ``new`` samples along an axis of ``old`` cells: float64 (new)."""
    at = torch.arange(new, dtype=torch.float64)
    if mode == "UNALIGN_CORNERS":
        points = (at + 0.5) * old / new - 0.5
    elif mode == "DEFAULT":
        points = at * old / new
    elif mode == "OFFSET_CORNERS":
        points = (at + 0.5) * max(1, old - 1) / new
    elif mode == "ALIGN_CORNERS" and new == 1:
        points = at + (old - 1) / 2
    elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        points = at * (old - 1) / max(1, new - 1)
    else:
        raise ValueError(f"sampling mode {mode} is not supported")
    return points.clamp(0, old - 1)


def _bilinear(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    for axis, new in zip((-2, -1), size, strict=True):
        points = _points(mode, x.shape[axis], new)
        low = points.long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        weight = (points - low).float().reshape(-1, *[1] * (-1 - axis))
        x = x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight
    return x


def _upsample_bilinear(a: Arguments) -> Tensor:
    align, half = bool(a.one("align_corners")), a.get("half_pixel_centers")
    if half is not None and bool(half.item()) == align:
        raise ValueError("half_pixel_centers is only supported as the opposite of align_corners")
    return _bilinear(a["x"], _scaled_size(a), "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS")


def _scaled_size(a: Arguments) -> list[int]:
    height, width = a["x"].shape[-2:]
    return [math.floor(height * a.one("scale_factor_height")), math.floor(width * a.one("scale_factor_width"))]


def _target_size(a: Arguments) -> list[int]:
    return [a.one("target_size_height"), a.one("target_size_width")]


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat cells; only integer factors, since the nearest cell isn't documented for others."""
    for axis, new in zip((-2, -1), size, strict=True):
        if new % x.shape[axis]:
            raise ValueError(
                f"nearest-neighbour resizing from {x.shape[axis]} to {new} cells: only integer factors are supported"
            )
        x = x.repeat_interleave(new // x.shape[axis], axis)
    return x


# -------------------------------------------------------------------------------------- norms, products, reductions


def _layer_norm(a: Arguments) -> Tensor:
    x = a["x"]
    axes = [axis % x.ndim for axis in a.numbers("axes")]
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    shape = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    return _affine(a, (x - mean) / torch.sqrt(var + a.one("epsilon")), shape)


def _instance_norm(a: Arguments) -> Tensor:
    var, mean = torch.var_mean(a["x"], list(range(2, a["x"].ndim)), correction=0, keepdim=True)
    return _affine(a, (a["x"] - mean) / torch.sqrt(var + a.one("epsilon")), _channels(a))


def _batch_norm(a: Arguments) -> Tensor:
    shape = _channels(a)
    deviation = torch.sqrt(a["variance"] + a.one("epsilon")).reshape(shape)
    return _affine(a, (a["x"] - a["mean"].reshape(shape)) / deviation, shape)


def _channels(a: Arguments) -> list[int]:
    return [1, -1] + [1] * (a["x"].ndim - 2)


def _affine(a: Arguments, x: Tensor, shape: list[int]) -> Tensor:
    x = x if a.get("gamma") is None else x * a["gamma"].reshape(shape)
    return x if a.get("beta") is None else x + a["beta"].reshape(shape)


def _linear(a: Arguments) -> Tensor:
    y = a["x"] @ a["weight"].mT
    return y if a.get("bias") is None else y + a["bias"]


def _matmul(a: Arguments) -> Tensor:
    x, y = a["x"], a["y"]
    x = x.mT if a.one("transpose_x") and x.ndim > 1 else x
    return x @ (y.mT if a.one("transpose_y") and y.ndim > 1 else y)


def _attention(a: Arguments) -> Tensor:
    mask = a.get("attn_mask")
    scores = a["query"] @ a["key"].mT / math.sqrt(a["query"].shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ a["value"]


def _gelu(a: Arguments) -> Tensor:
    mode = a.get("mode")
    if mode == "SIGMOID_APPROXIMATION":
        return a["x"] * torch.sigmoid(1.702 * a["x"])
    return F.gelu(a["x"], approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _reduce(function: Callable[..., Tensor]) -> Function:
    def reduce(a: Arguments) -> Tensor:
        x = a["x"]
        axes = list(range(x.ndim)) if a.get("axes") is None else a.numbers("axes")
        return function(x, axes, bool(a.one("keep_dims")))

    return reduce


# --------------------------------------------------------------------------------- shapes, slices, gathers, padding


def _expand_dims(a: Arguments) -> Tensor:
    x, axes = a["x"], a.numbers("axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _reshape(a: Arguments) -> Tensor:
    """Reshape; a 0 keeps the axis at the same index from the right (iOS17; earlier targets require equal ranks)."""
    x, shape = a["x"], a.numbers("shape")
    old = [1] * len(shape) + list(x.shape)
    return x.reshape([n or old[i - len(shape)] for i, n in enumerate(shape)])


def _concat(a: Arguments) -> Tensor:
    values, axis = a.many("values"), a.one("axis")
    if values[0].ndim == 0:  # scalars make a vector
        return torch.stack(values)
    if a.one("interleave"):
        axis %= values[0].ndim
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


def _split(a: Arguments) -> Sequence[Tensor]:
    x, axis = a["x"], a.one("axis")
    sizes = a.numbers("split_sizes") if a.get("split_sizes") is not None else x.shape[axis] // a.one("num_splits")
    return x.split(sizes, axis)


def _slice_by_index(a: Arguments) -> Tensor:
    """Slice as NumPy does; a masked begin or end is omitted, a squeezed axis is indexed at its begin."""
    x = a["x"]
    options = {name: [0] * x.ndim for name in ("begin_mask", "end_mask", "squeeze_mask")} | {"stride": [1] * x.ndim}
    options |= {name: a.numbers(name) for name in options if a.get(name) is not None}
    begins, ends = a.numbers("begin"), a.numbers("end")
    squeezed = [axis for axis in range(x.ndim) if options["squeeze_mask"][axis]]
    for axis in range(x.ndim):
        begin = None if options["begin_mask"][axis] else begins[axis]
        end = None if options["end_mask"][axis] else ends[axis]
        at = range(x.shape[axis])[begin : end : options["stride"][axis]]
        if axis in squeezed:
            at = range(x.shape[axis])[begin or 0 :][:1]
        if at.step == 1:
            x = x.narrow(axis, at.start, len(at))
        else:
            x = x.index_select(axis, torch.tensor(list(at), dtype=torch.long))
    return x.squeeze(tuple(squeezed)) if squeezed else x


def _slice_by_size(a: Arguments) -> Tensor:
    x = a["x"]
    for axis, (begin, size) in enumerate(zip(a.numbers("begin"), a.numbers("size"), strict=True)):
        begin += x.shape[axis] if begin < 0 else 0
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _indices(a: Arguments, size: Tensor | int) -> Tensor:
    """Return non-negative indices, checked; from iOS17 on (ops with ``validate_indices``) negative ones are invalid."""
    indices, low = a["indices"], 0 if "validate_indices" in a.op.inputs else -size
    if not bool(((indices >= low) & (indices < size)).all()):
        raise ValueError("an index is out of range, which is undefined on a device")
    return torch.where(indices < 0, indices + size, indices)


def _gather(a: Arguments) -> Tensor:
    x, axis = a["x"], a.one("axis") % a["x"].ndim
    indices, batch = _indices(a, x.shape[axis]), 0 if a.get("batch_dims") is None else a.one("batch_dims")
    inner, rest = x.shape[batch:], indices.shape[batch:]
    rows = zip(x.reshape(-1, *inner), indices.reshape(-1, rest.numel()), strict=True)  # one pair per batch index
    picked = torch.stack([row.index_select(axis - batch, at) for row, at in rows])
    return picked.reshape(x.shape[:axis] + rest + x.shape[axis + 1 :])


def _gather_nd(a: Arguments) -> Tensor:
    x, batch, depth = a["x"], 0 if a.get("batch_dims") is None else a.one("batch_dims"), a["indices"].shape[-1]
    indices = _indices(a, torch.tensor(x.shape[batch : batch + depth]))
    rows = zip(x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:]), strict=True)
    picked = torch.stack([row[tuple(at.unbind(-1))] for row, at in rows])
    return picked.reshape(indices.shape[:-1] + x.shape[batch + depth :])


def _one_hot(a: Arguments) -> Tensor:
    """Encode; indices out of range give vectors of ``off_value``."""
    indices, axis = a["indices"], a.one("axis") % (a["indices"].ndim + 1)
    steps = torch.arange(a.one("one_hot_vector_size")).reshape(-1, *[1] * (indices.ndim - axis))
    return torch.where(indices.unsqueeze(axis) == steps, a["on_value"], a["off_value"])


def _pad_op(a: Arguments) -> Tensor:
    x, pad, mode = a["x"], a.numbers("pad"), a.get("mode")
    pads = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return _pad(x, pads, a.one("constant_val"))
    for axis, pair in enumerate(pads, x.ndim - len(pads)):
        at = np.pad(np.arange(x.shape[axis]), pair, mode="reflect" if mode == "reflect" else "edge")
        x = x.index_select(axis, torch.from_numpy(at))
    return x


# Ops whose torch function has the same name.
UNARY = "abs sign ceil floor round exp exp2 sqrt square sin cos erf relu sigmoid tanh logical_not"
BINARY = (
    "add sub mul pow maximum minimum greater greater_equal less less_equal not_equal logical_and logical_or logical_xor"
)

OPERATIONS: dict[str, Function] = {
    **{kind: _unary(getattr(torch, kind)) for kind in UNARY.split()},
    **{kind: _binary(getattr(torch, kind)) for kind in BINARY.split()},
    "identity": _unary(lambda x: x),
    "cast": _unary(lambda x: x),  # the caller rounds to the declared type
    "real_div": _binary(torch.true_divide),
    "floor_div": _binary(torch.floor_divide),
    "mod": _binary(torch.remainder),
    "equal": _binary(torch.eq),
    "select": lambda a: torch.where(a["cond"], a["a"], a["b"]),
    "log": lambda a: torch.log(a["x"] + a.one("epsilon")),
    "inverse": lambda a: 1 / (a["x"] + a.one("epsilon")),
    "rsqrt": lambda a: torch.rsqrt(a["x"] + a.one("epsilon")),
    "clip": lambda a: a["x"].clamp(a.one("alpha"), a.one("beta")),
    "relu6": _unary(F.relu6),
    "leaky_relu": lambda a: F.leaky_relu(a["x"], a.one("alpha")),
    "gelu": _gelu,
    "silu": _unary(F.silu),
    "softmax": lambda a: a["x"].softmax(a.one("axis")),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": lambda a: _pool(a, average=False),
    "avg_pool": lambda a: _pool(a, average=True),
    "upsample_bilinear": _upsample_bilinear,
    "resize_bilinear": lambda a: _bilinear(a["x"], _target_size(a), a.get("sampling_mode")),
    "upsample_nearest_neighbor": lambda a: _nearest(a["x"], _scaled_size(a)),
    "resize_nearest_neighbor": lambda a: _nearest(a["x"], _target_size(a)),
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], int(a.one("upscale_factor"))),
    "layer_norm": _layer_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": lambda a: torch.einsum(a.get("equation"), *a.many("values")),
    "scaled_dot_product_attention": _attention,
    "reduce_mean": _reduce(torch.mean),
    "reduce_sum": _reduce(torch.sum),
    "reduce_max": _reduce(torch.amax),
    "reduce_min": _reduce(torch.amin),
    "reduce_argmax": lambda a: a["x"].argmax(a.one("axis"), bool(a.one("keep_dims"))),
    "reduce_argmin": lambda a: a["x"].argmin(a.one("axis"), bool(a.one("keep_dims"))),
    "shape": lambda a: torch.tensor(a["x"].shape, dtype=torch.long),
    "fill": lambda a: a["value"].expand(a.numbers("shape")),
    "range_1d": lambda a: torch.arange(a.one("start"), a.one("end"), a.one("step")),
    "expand_dims": _expand_dims,
    "squeeze": lambda a: a["x"].squeeze() if a.get("axes") is None else a["x"].squeeze(tuple(a.numbers("axes"))),
    "reshape": _reshape,
    "transpose": lambda a: a["x"].permute(a.numbers("perm")),
    "concat": _concat,
    "stack": lambda a: torch.stack(a.many("values"), a.one("axis")),
    "split": _split,
    "tile": lambda a: a["x"].tile(a.numbers("reps")),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "gather": _gather,
    "gather_along_axis": lambda a: a["x"].gather(a.one("axis"), _indices(a, a["x"].shape[a.one("axis")])),
    "gather_nd": _gather_nd,
    "one_hot": _one_hot,
    "crop": lambda a: _pad(a["x"], [tuple(-n for n in a.numbers(f"crop_{side}")) for side in ("height", "width")]),
    "pad": _pad_op,
}
