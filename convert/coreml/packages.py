"""Torch modules to Core ML packages, and their compression.

``torch.export`` with decompositions, an ML Program for iOS 17, float16 everywhere but on the way of the coordinates,
fixed shapes.  docs/export.md says why.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

Precision = Literal["float16", "float32"]
Compression = Literal["none", "int8", "palette8", "palette6", "palette4"]
COORDINATES = "point_coords"
SMALLEST_COMPRESSED = 512  # weights with fewer elements stay as they are: little to gain, much to lose
Shapes = dict[str, tuple[int, ...]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without coremltools' bars, and its notes on libraries that it was not tried with or that only macOS has."""
    logger = logging.getLogger("coremltools")
    level, disabled = logger.level, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logging.disable(disabled)


def convert(
    module: Any, inputs: Shapes, outputs: Sequence[str], precision: Precision, image: bool = False
) -> Any:  # coremltools.models.MLModel
    """An ML Program of a torch module.

    Args:
      module: in evaluation mode; takes the inputs in order.
      inputs: names and fixed shapes, all float32; with ``image`` the only one is an RGB image.
      outputs: names, in the order the module returns them.
    """
    import torch

    with quiet(), torch.no_grad():
        import coremltools as ct

        example = tuple(torch.zeros(shape) for shape in inputs.values())
        program = torch.export.export(module, example).run_decompositions({})
        # A type must be given: else a program in float16 takes its inputs in float16, the coordinates with them.
        kind = ct.ImageType if image else functools.partial(ct.TensorType, dtype=np.float32)
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            inputs=[kind(name=name, shape=shape) for name, shape in inputs.items()],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in outputs],
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=_halves)
            if precision == "float16"
            else ct.precision.FLOAT32,
            skip_model_load=True,
        )


def _halves(op: Any) -> bool:
    """Whether an operation may compute in float16: all but those between the coordinates and their sines."""
    ahead, seen = _operands(op), set()
    while ahead:
        value = ahead.pop()
        if value.op is None:
            if value.name == COORDINATES:
                return False
        elif id(value.op) not in seen and value.op.op_type not in ("sin", "cos"):
            seen.add(id(value.op))
            ahead += _operands(value.op)
    return True


def _operands(op: Any) -> list[Any]:
    values = op.inputs.values()
    return [v for x in values for v in (x if isinstance(x, (list, tuple)) else (x,)) if v is not None]


def compress(model: Any, how: Compression) -> Any:
    """A package with weights of 8 bits (per channel, symmetric), or of a palette of 256, 64 or 16 values a tensor."""
    if how == "none":
        return model
    with quiet():
        from coremltools.optimize import coreml as optimize

        if how == "int8":
            linear = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST_COMPRESSED)
            return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=linear))
        bits = int(how.removeprefix("palette"))
        palette = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=SMALLEST_COMPRESSED)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=palette))


def save(model: Any, path: Path, description: str, licence: str) -> Path:
    """Write a .mlpackage."""
    with quiet():
        model.short_description, model.license, model.author = description, licence, "edgesam_jax"
        model.save(str(path))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # for debuggers; no part of the package
    return path
