"""Evaluates a Core ML ML Program op by op in torch on the CPU, to check a ``.mlpackage`` without Core ML.

The evaluation shows whether the converted graph, its weights and their quantisation compute the same as the model,
under the semantics documented by coremltools. It can't show the arithmetic of the Neural Engine.

Every op computes in float32 from its stored inputs, and its output is rounded to its declared type: float16 programs
lose the same precision as on a device at the outputs of ops. Nothing is rounded *inside* an op: convolutions, products,
reductions, softmax, attention and norms accumulate in float32. Rounding is IEEE nearest-even with subnormals; values of
65520 or more (which would round past 65504) become inf. Integers stay integers and wrap in their declared width.
Behaviour that is undefined on a device (an index out of range, a float too large for its integer type) is an error.

Image inputs (``coremltools.ImageType``) are float32 tensors (1, 3, h, w) of pixels 0 to 255 in the channel order of
the package's colour space. The scale and bias of an image are the first ops of the program, a float32 ``mul`` and
``add``: pass raw pixels.

The ops are in ``convert.coreml.mil_ops``.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.coreml.mil_ops import NUMPY, OPERATIONS, Arguments, rounded
from edgesam_jax.config import UsageError


@dataclass(frozen=True)
class Operation:
    """One op, for reports. ``shapes`` and ``dtypes`` have an entry per output; -1 is an axis of flexible length.

    ``products``: multiply-adds of a convolution or matrix product; 0 for other ops and with flexible lengths.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]  # as coremltools writes them: fp16, fp32, int32, uint4, bool, string, ...
    constant: bool  # a stored value: const, or constexpr_* (compressed weights)
    products: int = 0

    @property
    def rank(self) -> int:
        """The largest rank among the outputs."""
        return max(map(len, self.shapes), default=0)


class MilProgram:
    """A Core ML ML Program that runs on any machine, op by op, in torch on the CPU.

    Attributes:
      inputs: shape and dtype of each input, by name; -1 is an axis of flexible length, images are uint8.
      outputs: names of the outputs.
    """

    def __init__(self, name: str, function: Any, images: set[str]) -> None:
        self._name, self._ops = name, list(function.operations)
        self._sources, self._images, self._results = dict(function.inputs), images, list(function.outputs)
        self.inputs = {
            key: (_shape(var), np.dtype(np.uint8 if key in images else NUMPY[_dtype(var)]))
            for key, var in self._sources.items()
        }
        self.outputs = [var.name for var in self._results]
        self._steps = [op for op in self._ops if not _is_constant(op)]
        self._uses = Counter(id(var) for op in self._steps for var in _arguments(op))
        self._uses.update(id(var) for var in self._results)  # the results are never freed
        constants = {id(op.outputs[0]): op for op in self._ops if _is_constant(op)}
        self._constants = {key: _constant(op) for key, op in constants.items() if key in self._uses}

    def operations(self) -> list[Operation]:
        """Return every op in program order, including constants and ops that can't be evaluated."""
        return [
            Operation(
                op.name,
                op.op_type,
                tuple(_shape(var) for var in op.outputs),
                tuple(_dtype(var) for var in op.outputs),
                _is_constant(op),
                _products(op),
            )
            for op in self._ops
        ]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the program; return the outputs by name, in their declared types.

        Floats are first rounded to the type of the input.

        Raises:
          UsageError: inputs that don't match the program, or an op or mode that isn't supported. Unknown ops are
            reported before anything is computed.
        """
        for op in self._steps:
            if op.op_type not in OPERATIONS:
                raise UsageError(f"{self._name}: Core ML op {op.op_type} ({op.name}) is not supported by the evaluator")
        values: dict[int, Any] = dict(self._constants)
        for key, value in self._checked(inputs).items():
            values[id(self._sources[key])] = value
        remaining = self._uses.copy()
        with torch.inference_mode():
            for op in self._steps:
                try:
                    self._evaluate(op, values)
                except (ValueError, TypeError, RuntimeError, IndexError) as error:
                    raise UsageError(f"{self._name}: Core ML op {op.op_type} ({op.name}): {error}") from error
                remaining.subtract(id(var) for var in _arguments(op))
                for var in (*_arguments(op), *op.outputs):
                    if not remaining[id(var)]:
                        values.pop(id(var), None)
        return {var.name: _to_numpy(values[id(var)], _dtype(var)) for var in self._results}

    def _checked(self, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        if set(inputs) != set(self.inputs):
            raise UsageError(f"{self._name}: the inputs are {sorted(self.inputs)}, not {sorted(inputs)}")
        checked = {}
        for key, (shape, dtype) in self.inputs.items():
            value = np.asarray(inputs[key])
            if not _fits(value.shape, shape):
                raise UsageError(f"{self._name}: input {key} has shape {shape}, not {value.shape}")
            if key in self._images and not ((value >= 0) & (value <= 255) & (value == np.floor(value))).all():
                raise UsageError(f"{self._name}: input {key} is an image: expected integers from 0 to 255")
            if dtype.kind in "iu" and key not in self._images and value.dtype.kind not in "iu":
                raise UsageError(f"{self._name}: input {key} has dtype {dtype}, not {value.dtype}")
            checked[key] = rounded(_to_tensor(value), _dtype(self._sources[key]))
        return checked

    def _evaluate(self, op: Any, values: dict[int, Any]) -> None:
        results = OPERATIONS[op.op_type](Arguments(op, values))
        for var, result in zip(op.outputs, [results] if isinstance(results, Tensor) else results, strict=True):
            if not _fits(result.shape, _shape(var)):  # a bug in this evaluator or in the converter
                raise ValueError(f"declares the shape {_shape(var)} but returns {tuple(result.shape)}")
            values[id(var)] = rounded(result, _dtype(var))


def load(path: str | Path) -> MilProgram:
    """Load the main function of the ML Program in a ``.mlpackage``.

    Raises:
      UsageError: coremltools is not installed; the package is missing, damaged or another kind of model.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such Core ML package")
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)  # outside macOS, its import warns eight times about libraries that exist only there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path)
    except ImportError as error:
        raise UsageError("reading Core ML packages requires coremltools: pip install 'edgesam-jax[export]'") from error
    except UsageError:
        raise
    except Exception as error:  # a damaged file fails anywhere in protobuf, coremltools or its weight reader
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path}: can't be read as a Core ML package ({reason})") from error
    finally:
        logger.setLevel(level)


def _read(path: Path) -> MilProgram:
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as load_mil

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    if spec.WhichOneof("Type") != "mlProgram":
        raise UsageError(f"{path}: expected an ML Program, not {spec.WhichOneof('Type')}")
    version = spec.specificationVersion
    program = load_mil(spec, specification_version=version, file_weights_dir=model.weights_dir or "")
    function = program.functions[spec.description.defaultFunctionName or "main"]
    if len(spec.description.state):
        raise UsageError(f"{path}: models with state are not supported")
    repeated = [name for name, count in Counter(var.name for var in function.outputs).items() if count > 1]
    if repeated:
        raise UsageError(f"{path}: more than one output is named {repeated[0]}")
    images = {item.name for item in spec.description.input if item.type.WhichOneof("Type") == "imageType"}
    return MilProgram(str(path), function, images)


def _is_constant(op: Any) -> bool:
    return op.op_type == "const" or op.op_type.startswith("constexpr_")


def _products(op: Any) -> int:
    if op.op_type in ("conv", "linear"):
        sides = *_shape(op.outputs[0]), *_shape(op.inputs["weight"])[1:]
    elif op.op_type == "conv_transpose":
        sides = *_shape(op.inputs["x"]), *_shape(op.inputs["weight"])[1:]
    elif op.op_type == "matmul":
        transposed = op.inputs["transpose_x"] is not None and bool(op.inputs["transpose_x"].val)
        sides = *_shape(op.outputs[0]), _shape(op.inputs["x"])[-2 if transposed else -1]
    else:
        return 0
    return math.prod(sides) if min(sides) >= 0 else 0


def _constant(op: Any) -> Any:
    """Return the value of a constant: a tensor or a string. Compressed weights are expanded."""
    value = op.outputs[0].val if op.op_type == "const" else op.materialized_val_inference()
    return value if isinstance(value, str) else rounded(_to_tensor(np.asarray(value)), _dtype(op.outputs[0]))


def _arguments(op: Any) -> list[Any]:
    """Return the variables that the op reads, each once per read."""
    groups = [value if isinstance(value, list | tuple) else [value] for value in op.inputs.values()]
    return [var for group in groups for var in group if var is not None]


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(int(n) if isinstance(n, int | np.integer) else -1 for n in var.shape)


def _fits(shape: Sequence[int], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(n in (m, -1) for m, n in zip(shape, declared, strict=True))


def _dtype(var: Any) -> str:
    from coremltools.converters.mil.mil import types

    return types.builtin_to_string(var.dtype)


def _to_tensor(value: np.ndarray) -> Tensor:
    """Convert floats to float32 and everything else to int64."""
    return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))


def _to_numpy(value: Tensor, dtype: str) -> np.ndarray:
    return value.numpy().astype(NUMPY[dtype])
