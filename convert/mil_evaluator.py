"""Core ML programs without a Mac: the MIL operations of a package, one after the other, in torch on the CPU.

What it checks is the conversion, the weights and their compression, under our reading of the operations (coremltools'
documentation of MIL); not the arithmetic of the Neural Engine.  Values are held in float32.  What a program declares as
float16 is rounded to it after every operation, beyond 65504 to infinity; within an operation (a convolution, a sum, a
softmax, a norm) sums are float32, as Apple's units at least nearly have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convert.coreml import quiet
from edgesam_jax.config import UsageError

NAMES = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "int16": np.int16, "int8": np.int8,
         "uint8": np.uint8, "uint16": np.uint16, "bool": np.bool_}  # fmt: skip
SPATIAL = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@dataclass(frozen=True)
class Operation:
    """For reports: an operation's kind and name, the shapes and types of its outputs, and whether it is a constant."""

    kind: str
    name: str
    shapes: tuple[tuple[Any, ...], ...]
    dtypes: tuple[str, ...]
    constant: bool


class Call:
    """One operation with its operands: ``t`` gives a tensor, ``v`` a constant as Python or numpy has it."""

    def __init__(self, op: Any, values: dict[Any, Tensor]) -> None:
        self.op, self._values = op, values

    def has(self, name: str) -> bool:
        return self.op.inputs.get(name) is not None

    def t(self, name: str) -> Tensor:
        return self._tensor(self.op.inputs[name])

    def all(self, name: str) -> list[Tensor]:
        return [self._tensor(v) for v in self.op.inputs[name]]

    def v(self, name: str, default: Any = None) -> Any:
        variable = self.op.inputs.get(name)
        if variable is None:
            return default
        if variable.val is None:
            return self._tensor(variable).numpy()
        return variable.val.tolist() if isinstance(variable.val, (np.ndarray, np.generic)) else variable.val

    def _tensor(self, variable: Any) -> Tensor:
        found = self._values.get(variable)
        return _to_torch(variable.val) if found is None else found


def _to_torch(value: Any) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


# ------------------------------------------------------------------------------------------------------- operations


def _pads(
    c: Call, sides: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Padding of the spatial axes as [begin, end, begin, end, ...]."""
    kind = c.v("pad_type", "valid")
    if kind == "valid":
        return [0] * (2 * len(sides))
    if kind == "custom":
        return [int(p) for p in c.v("pad")]
    pads = []
    for side, k, stride, dilation in zip(sides, kernel, strides, dilations, strict=True):
        total = max(0, (-(-side // stride) - 1) * stride + dilation * (k - 1) + 1 - side)
        small, large = total // 2, total - total // 2
        pads += [large, small] if kind == "same_lower" else [small, large]
    return pads


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    last_first = [p for i in range(len(pads) - 2, -1, -2) for p in pads[i : i + 2]]
    return F.pad(x, last_first, value=value) if any(pads) else x


def _conv(c: Call) -> Tensor:
    x, w = c.t("x"), c.t("weight")
    n = x.ndim - 2
    strides, dilations = c.v("strides", [1] * n), c.v("dilations", [1] * n)
    x = _padded(x, _pads(c, x.shape[2:], w.shape[2:], strides, dilations))
    bias = c.t("bias") if c.has("bias") else None
    return SPATIAL[x.ndim](x, w, bias, strides, 0, dilations, c.v("groups", 1))


def _conv_transpose(c: Call) -> Tensor:
    x, w = c.t("x"), c.t("weight")
    n = x.ndim - 2
    strides, dilations = c.v("strides", [1] * n), c.v("dilations", [1] * n)
    bias = c.t("bias") if c.has("bias") else None
    full = TRANSPOSED[x.ndim](x, w, bias, strides, 0, 0, c.v("groups", 1), dilations)
    kind = c.v("pad_type", "valid")
    if kind not in ("valid", "custom"):
        raise NotImplementedError(f"pad_type {kind}")
    pads = c.v("pad") if kind == "custom" else [0] * (2 * n)
    wanted = c.op.outputs[0].shape[2:]
    for axis in range(n):
        begin, length = pads[2 * axis], int(wanted[axis])
        missing = begin + length - full.shape[2 + axis]
        if missing > 0:  # an output longer than the kernel reaches holds the bias alone
            fill = [0] * (2 * (n - 1 - axis)) + [0, missing]
            full = F.pad(full, fill)
            if bias is not None:
                at = full.narrow(2 + axis, full.shape[2 + axis] - missing, missing)
                at += bias.reshape(-1, *[1] * n)
        full = full.narrow(2 + axis, begin, length)
    return full


def _pool(c: Call) -> Tensor:
    x, kernel = c.t("x"), c.v("kernel_sizes")
    n = len(kernel)
    strides = c.v("strides", [1] * n)
    if c.v("ceil_mode", False) or n != 2:
        raise NotImplementedError("ceil_mode, or other than two axes")
    pads = _pads(c, x.shape[2:], kernel, strides, [1] * n)
    if c.op.op_type == "max_pool":
        return F.max_pool2d(_padded(x, pads, -torch.inf), kernel, strides)
    total = F.avg_pool2d(_padded(x, pads), kernel, strides)
    if not c.v("exclude_padding_from_average", False):
        return total
    return total / F.avg_pool2d(_padded(torch.ones_like(x), pads), kernel, strides)


def _matmul(c: Call) -> Tensor:
    x, y = c.t("x"), c.t("y")
    x = x.transpose(-1, -2) if c.v("transpose_x", False) else x
    return x @ (y.transpose(-1, -2) if c.v("transpose_y", False) else y)


def _layer_norm(c: Call) -> Tensor:
    x = c.t("x")
    axes = [a % x.ndim for a in c.v("axes", range(x.ndim))]
    d = x - x.mean(axes, keepdim=True)
    y = d * torch.rsqrt((d * d).mean(axes, keepdim=True) + c.v("epsilon", 1e-5))
    shape = [x.shape[a] if a in axes else 1 for a in range(x.ndim)]
    y = y * c.t("gamma").reshape(shape) if c.has("gamma") else y
    return y + c.t("beta").reshape(shape) if c.has("beta") else y


def _affine(c: Call, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    shape = [1, -1, *[1] * (x.ndim - 2)]
    y = (x - mean) * torch.rsqrt(variance + c.v("epsilon", 1e-5))
    y = y * c.t("gamma").reshape(shape) if c.has("gamma") else y
    return y + c.t("beta").reshape(shape) if c.has("beta") else y


def _batch_norm(c: Call) -> Tensor:
    x = c.t("x")
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return _affine(c, x, c.t("mean").reshape(shape), c.t("variance").reshape(shape))


def _instance_norm(c: Call) -> Tensor:
    x = c.t("x")
    axes = list(range(2, x.ndim))
    return _affine(c, x, x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True))


def _gelu(c: Call) -> Tensor:
    x, mode = c.t("x"), c.v("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _reduce(f: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Call], Tensor]:
    def run(c: Call) -> Tensor:
        x = c.t("x")
        axes = [int(a) for a in c.v("axes", range(x.ndim))]
        return f(x, axes, bool(c.v("keep_dims", False)))

    return run


def _extreme(f: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    def run(c: Call) -> Tensor:
        return f(c.t("x"), dim=int(c.v("axis", -1)), keepdim=bool(c.v("keep_dims", False)))

    return run


def _split(c: Call) -> list[Tensor]:
    x, axis = c.t("x"), c.v("axis")
    if c.has("split_sizes"):
        return list(torch.split(x, c.v("split_sizes"), axis))
    return list(torch.tensor_split(x, c.v("num_splits"), axis))


def _slice_by_index(c: Call) -> Tensor:
    x = c.t("x")
    none = [False] * x.ndim
    begin, end, stride = c.v("begin"), c.v("end"), c.v("stride", [1] * x.ndim)
    masks = [c.v(name, none) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    index: list[Any] = []
    for b, e, s, from_start, to_end, squeeze in zip(begin, end, stride, *masks, strict=True):
        if squeeze:
            index.append(int(b))
        else:
            index.append(slice(None if from_start else int(b), None if to_end else int(e), int(s)))
    return torch.from_numpy(np.ascontiguousarray(x.numpy()[tuple(index)]))  # torch has no negative strides


def _slice_by_size(c: Call) -> Tensor:
    x = c.t("x")
    parts = zip(c.v("begin"), c.v("size"), x.shape, strict=True)
    return x[tuple(slice(b, side if size == -1 else b + size) for b, size, side in parts)]


def _reshape(c: Call) -> Tensor:
    x = c.t("x")
    return x.reshape([x.shape[i] if side == 0 else int(side) for i, side in enumerate(c.v("shape"))])


def _expand_dims(c: Call) -> Tensor:
    x = c.t("x")
    for axis in sorted(a % (x.ndim + len(c.v("axes"))) for a in c.v("axes")):
        x = x.unsqueeze(axis)
    return x


def _squeeze(c: Call) -> Tensor:
    x = c.t("x")
    return x.squeeze(tuple(c.v("axes"))) if c.has("axes") else x.squeeze()


def _pad(c: Call) -> Tensor:
    x, pads, mode = c.t("x"), [int(p) for p in c.v("pad")], c.v("mode", "constant")
    if mode == "constant":
        return _padded(x, pads, float(c.v("constant_val", 0.0)))
    widths = [(0, 0)] * (x.ndim - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))
    return torch.from_numpy(np.pad(x.numpy(), widths, mode="edge" if mode == "replicate" else "reflect"))


def _crop(c: Call) -> Tensor:
    x, (top, bottom), (left, right) = c.t("x"), c.v("crop_height"), c.v("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _gather(c: Call) -> Tensor:
    x, indices, axis = c.t("x"), c.t("indices").long(), c.v("axis", 0)
    if c.v("batch_dims", 0):
        raise NotImplementedError("batch_dims")
    axis %= x.ndim
    flat = x.index_select(axis, torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1))
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _one_hot(c: Call) -> Tensor:
    if c.v("axis", -1) != -1:
        raise NotImplementedError("another axis")
    hot = F.one_hot(c.t("indices").long(), c.v("one_hot_vector_size")).float()
    on, off = c.v("on_value", 1), c.v("off_value", 0)
    return hot * (on - off) + off


def _upsample(c: Call) -> Tensor:
    x = c.t("x")
    factors = [c.v("scale_factor_height", 1), c.v("scale_factor_width", 1)]
    size = [int(side * f) for side, f in zip(x.shape[2:], factors, strict=True)]
    if c.op.op_type == "upsample_nearest_neighbor":
        return F.interpolate(x, size, mode="nearest")
    corners = bool(c.v("align_corners", True))
    if not corners and not c.v("half_pixel_centers", True):
        raise NotImplementedError("neither align_corners nor half_pixel_centers")
    return F.interpolate(x, size, mode="bilinear", align_corners=corners)


def _resize(c: Call) -> Tensor:
    x, mode = c.t("x"), c.v("sampling_mode", "DEFAULT")
    size = [int(c.v("target_size_height")), int(c.v("target_size_width"))]
    if c.op.op_type == "resize_nearest_neighbor":
        return F.interpolate(x, size, mode="nearest")
    if mode not in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):
        raise NotImplementedError(f"sampling_mode {mode}")
    return F.interpolate(x, size, mode="bilinear", align_corners=mode != "UNALIGN_CORNERS")


def _attention(c: Call) -> Tensor:
    q, k, v = c.t("query"), c.t("key"), c.t("value")
    mask = c.t("attn_mask") if c.has("attn_mask") else None
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def _divided(c: Call) -> Tensor:
    x, y = c.t("x"), c.t("y")
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _unary(f: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda c: f(c.t("x"))


def _binary(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda c: f(c.t("x"), c.t("y"))


OPERATIONS: dict[str, Callable[[Call], Tensor | list[Tensor]]] = {
    "conv": _conv, "conv_transpose": _conv_transpose, "avg_pool": _pool, "max_pool": _pool,
    "linear": lambda c: F.linear(c.t("x"), c.t("weight"), c.t("bias") if c.has("bias") else None),
    "matmul": _matmul, "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm, "batch_norm": _batch_norm, "instance_norm": _instance_norm,
    "softmax": lambda c: c.t("x").softmax(c.v("axis", -1)),
    "gelu": _gelu, "relu": _unary(F.relu), "sigmoid": _unary(torch.sigmoid), "tanh": _unary(torch.tanh),
    "silu": _unary(F.silu), "exp": _unary(torch.exp), "sin": _unary(torch.sin), "cos": _unary(torch.cos),
    "sqrt": _unary(torch.sqrt), "square": _unary(torch.square), "abs": _unary(torch.abs),
    "floor": _unary(torch.floor), "ceil": _unary(torch.ceil), "sign": _unary(torch.sign),
    "erf": _unary(torch.erf), "logical_not": _unary(torch.logical_not), "identity": _unary(lambda x: x),
    "relu6": _unary(F.relu6), "leaky_relu": lambda c: F.leaky_relu(c.t("x"), c.v("alpha", 0.01)),
    "sigmoid_hard": lambda c: (c.t("x") * c.v("alpha", 0.2) + c.v("beta", 0.5)).clamp(0, 1),
    "log": lambda c: torch.log(c.t("x") + c.v("epsilon", 1e-45)),
    "rsqrt": lambda c: torch.rsqrt(c.t("x") + c.v("epsilon", 1e-12)),
    "inverse": lambda c: 1 / (c.t("x") + c.v("epsilon", 1e-4)),
    "clip": lambda c: c.t("x").clamp(c.v("alpha"), c.v("beta")),
    "add": _binary(torch.add), "sub": _binary(torch.sub), "mul": _binary(torch.mul), "real_div": _divided,
    "floor_div": _binary(torch.floor_divide), "mod": _binary(torch.remainder), "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum), "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq), "not_equal": _binary(torch.ne), "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge), "less": _binary(torch.lt), "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and), "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "reduce_mean": _reduce(lambda x, a, k: x.mean(a, keepdim=k)),
    "reduce_sum": _reduce(lambda x, a, k: x.sum(a, keepdim=k)),
    "reduce_max": _reduce(lambda x, a, k: x.amax(a, keepdim=k)),
    "reduce_min": _reduce(lambda x, a, k: x.amin(a, keepdim=k)),
    "reduce_sum_square": _reduce(lambda x, a, k: (x * x).sum(a, keepdim=k)),
    "reduce_l2_norm": _reduce(lambda x, a, k: (x * x).sum(a, keepdim=k).sqrt()),
    "reduce_argmax": _extreme(torch.argmax), "reduce_argmin": _extreme(torch.argmin),
    "concat": lambda c: torch.cat(c.all("values"), c.v("axis")),
    "stack": lambda c: torch.stack(c.all("values"), c.v("axis")),
    "split": _split, "slice_by_index": _slice_by_index, "slice_by_size": _slice_by_size,
    "reshape": _reshape, "transpose": lambda c: c.t("x").permute(c.v("perm")),
    "expand_dims": _expand_dims, "squeeze": _squeeze, "tile": lambda c: c.t("x").repeat(c.v("reps")),
    "crop": _crop,
    "reverse": lambda c: c.t("x").flip([int(a) for a in c.v("axes", range(c.t("x").ndim))]),
    "pad": _pad, "gather": _gather, "one_hot": _one_hot,
    "gather_along_axis": lambda c: torch.take_along_dim(c.t("x"), c.t("indices").long(), c.v("axis", 0)),
    "select": lambda c: torch.where(c.t("cond"), c.t("a"), c.t("b")),
    "cast": _unary(lambda x: x),  # to the declared type, as everything is
    "shape": lambda c: torch.tensor(c.t("x").shape),
    "fill": lambda c: torch.full([int(s) for s in c.v("shape")], c.v("value", 0.0)),
    "range_1d": lambda c: torch.arange(c.v("start"), c.v("end"), c.v("step")),
    "upsample_bilinear": _upsample, "upsample_nearest_neighbor": _upsample,
    "resize_bilinear": _resize, "resize_nearest_neighbor": _resize,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- programs


class MilProgram:
    """A program that takes and gives named arrays.  ``inputs``: shape and type of each; ``outputs``: their names."""

    def __init__(self, main: Any) -> None:
        self._operations = list(main.operations)
        self._inputs = dict(main.inputs)
        self._results = list(main.outputs)
        self.inputs = {n: (tuple(v.shape), np.dtype(NAMES[_type(v)])) for n, v in self._inputs.items()}
        self.outputs = [v.name for v in self._results]
        self._constants: dict[Any, Tensor] = {}
        for op in self._operations:
            if op.op_type.startswith("constexpr_"):
                self._constants[op.outputs[0]] = _to_torch(op.materialized_val_inference())
            elif op.op_type == "const" and isinstance(op.outputs[0].val, np.ndarray):
                self._constants[op.outputs[0]] = _to_torch(op.outputs[0].val)
            elif op.op_type != "const" and op.op_type not in OPERATIONS:
                raise UsageError(f"{op.op_type} ({op.name}): an operation that the evaluator does not know")
        self._uses = Counter(v for op in self._working() for v in _operands(op))
        self._uses.update(self._results)

    def _working(self) -> list[Any]:
        return [op for op in self._operations if not op.op_type.startswith("const")]

    def operations(self) -> list[Operation]:
        """All operations, in order."""
        return [
            Operation(
                op.op_type, op.name, tuple(tuple(v.shape or ()) for v in op.outputs),
                tuple(_type(v) for v in op.outputs), op.op_type.startswith("const"),
            )
            for op in self._operations
        ]  # fmt: skip

    @torch.no_grad()
    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run.

        Raises:
          UsageError: inputs of other names or shapes, or an operation in a form that is not known here.
        """
        if set(inputs) != set(self.inputs):
            raise UsageError(f"inputs {', '.join(inputs)}: the program takes {', '.join(self.inputs)}")
        values = dict(self._constants)
        for name, variable in self._inputs.items():
            if tuple(inputs[name].shape) != self.inputs[name][0]:
                raise UsageError(f"{name}: shape {inputs[name].shape}, the program takes {self.inputs[name][0]}")
            values[variable] = _rounded(_to_torch(inputs[name]), variable)
        left = Counter(self._uses)
        for op in self._working():
            try:
                found = OPERATIONS[op.op_type](Call(op, values))
            except NotImplementedError as error:
                raise UsageError(f"{op.op_type} ({op.name}): the evaluator does not know {error}") from None
            for variable, value in zip(op.outputs, found if isinstance(found, list) else [found], strict=True):
                if variable.shape and tuple(value.shape) != tuple(variable.shape):
                    raise UsageError(f"{op.op_type} ({op.name}): made {tuple(value.shape)}, declared {variable.shape}")
                if left[variable]:
                    values[variable] = _rounded(value, variable)
            for variable in _operands(op):  # what nobody needs any more goes at once
                left[variable] -= 1
                if not left[variable] and variable not in self._constants:
                    values.pop(variable, None)
        return {v.name: values[v].numpy().astype(NAMES[_type(v)]) for v in self._results}


def _operands(op: Any) -> list[Any]:
    values = op.inputs.values()
    return [v for x in values for v in (x if isinstance(x, (list, tuple)) else (x,)) if v is not None]


def _type(variable: Any) -> str:
    from coremltools.converters.mil.mil import types

    return cast(str, types.builtin_to_string(variable.dtype))


def _rounded(value: Tensor, variable: Any) -> Tensor:
    """As the type that the program declares."""
    kind = _type(variable)
    if kind == "fp16":
        return value.float().half().float()
    if kind == "fp32":
        return value.float()
    return value.bool() if kind == "bool" else value.trunc().long() if value.is_floating_point() else value.long()


def load(path: str | Path) -> MilProgram:
    """Read a .mlpackage.

    Raises:
      UsageError: nothing there, damaged, not an ML Program, or with an operation that is not known here.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such package")
    try:
        with quiet():
            import coremltools as ct
            from coremltools.converters.mil.frontend.milproto import load as milproto

            model = ct.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            if spec.WhichOneof("Type") != "mlProgram":
                raise UsageError(f"{path}: not an ML Program; export it again with convert.to_coreml")
            program = milproto.load(spec, spec.specificationVersion, model.weights_dir)
    except UsageError:
        raise
    except Exception as error:  # coremltools raises what it likes
        raise UsageError(f"{path}: not a Core ML package that can be read ({str(error).splitlines()[0]})") from None
    try:
        return MilProgram(program.functions["main"])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
