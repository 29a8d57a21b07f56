"""Converts torch modules to Core ML packages, and compresses their weights.

The conversion uses ``torch.export`` with decompositions and makes an ML Program. Float16 programs compute in float16
except between the coordinates and their sines. docs/export.md gives the reasons.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

Precision = Literal["float16", "float32"]
Compression = Literal["none", "int8", "palette8", "palette6", "palette4"]
COORDINATES = "point_coords"
MIN_COMPRESSED = 512  # elements; smaller weights aren't compressed, since that saves little and costs accuracy
MAX_POINTS = 16  # of a decoder with a flexible number of points, as in the published package
FLEXIBLE = 0  # a length in ``Shapes``: 1 to ``MAX_POINTS``
Shapes = dict[str, tuple[int, ...]]
Ios = Literal[15, 16, 17]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence coremltools' progress bars, and its notes on untested libraries and those that exist only on macOS."""
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
    module: Any,
    inputs: Shapes,
    outputs: Sequence[str],
    precision: Precision,
    image: bool = False,
    ios: Ios = 17,
    maps: Collection[str] = (),
) -> Any:  # coremltools.models.MLModel
    """Convert a torch module to an ML Program.

    Args:
      module: in evaluation mode; takes the inputs in order, those that are ``maps`` as one list before the others.
      inputs: names and shapes, with at most one ``FLEXIBLE`` axis each.
      outputs: names, in the order the module returns them.
      precision: of the computation; inputs and outputs are float32, except maps.
      image: the only input is an RGB image.
      ios: the oldest version of iOS that the program runs on.
      maps: inputs and outputs that pass from one half of a split decoder to the other. They have the type of the
        computation, but iOS 15 knows float32 only.
    """
    import torch

    with quiet(), torch.no_grad():
        import coremltools as ct

        # Two axes with one symbol have the same length; the default is the published one.
        axis = ct.RangeDim(lower_bound=1, upper_bound=MAX_POINTS, default=1, symbol="num_points")
        points: Any = torch.export.Dim.DYNAMIC(min=1, max=MAX_POINTS)  # a named one fails on a guard that always holds
        given = {name: torch.zeros([n or 3 for n in shape]) for name, shape in inputs.items()}
        shared = [x for name, x in given.items() if name in maps]
        example: tuple[Any, ...] = tuple(x for name, x in given.items() if name not in maps)
        example = (shared, *example) if shared else example
        axes = [{i: points for i, n in enumerate(shape) if n == FLEXIBLE} for shape in inputs.values()]
        dynamic = axes if any(axes) else None
        program = torch.export.export(module, example, dynamic_shapes=dynamic).run_decompositions({})
        # Without an explicit type, float16 programs take all inputs in float16, including the coordinates.
        half = precision == "float16" and ios > 15
        kinds = {name: np.float16 if half and name in maps else np.float32 for name in [*inputs, *outputs]}
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
            inputs=[
                (ct.ImageType if image else functools.partial(ct.TensorType, dtype=kinds[name]))(
                    name=name, shape=[n or axis for n in shape]
                )
                for name, shape in inputs.items()
            ],
            outputs=[ct.TensorType(name=name, dtype=kinds[name]) for name in outputs],
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=_may_be_float16)
            if precision == "float16"
            else ct.precision.FLOAT32,
            skip_model_load=True,
        )


def _may_be_float16(op: Any) -> bool:
    """Return whether an operation may compute in float16: all but those between the coordinates and their sines."""
    pending, seen = _operands(op), set()
    while pending:
        value = pending.pop()
        if value.op is None:
            if value.name == COORDINATES:
                return False
        elif id(value.op) not in seen and value.op.op_type not in ("sin", "cos"):
            seen.add(id(value.op))
            pending += _operands(value.op)
    return True


def _operands(op: Any) -> list[Any]:
    values = op.inputs.values()
    return [v for x in values for v in (x if isinstance(x, (list, tuple)) else (x,)) if v is not None]


def compress(model: Any, method: Compression) -> Any:
    """Compress the weights of a package.

    ``int8``: 8 bits, per channel, symmetric. ``palette8``, ``palette6``, ``palette4``: 256, 64 or 16 values per tensor.
    """
    if method == "none":
        return model
    with quiet():
        from coremltools.optimize import coreml as optimize

        if method == "int8":
            linear = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=MIN_COMPRESSED)
            return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=linear))
        bits = int(method.removeprefix("palette"))
        palette = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=MIN_COMPRESSED)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=palette))


def save(model: Any, path: Path, description: str, licence: str) -> Path:
    """Write a .mlpackage; return its path."""
    with quiet():
        model.short_description, model.license, model.author = description, licence, "edgesam_jax"
        model.save(str(path))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # for debuggers; not part of the package
    return path
