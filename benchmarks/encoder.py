"""The folded image encoders of the students against our torch models (eager, unfolded) and ONNX Runtime.

    python -m benchmarks.encoder [--models edge_sam ...] [--size 1024] [--rounds 5] [--onnx FOLDER]

With torch, ``--onnx FOLDER`` exports the torch encoders to the folder and times ONNX Runtime on them; without torch
(Python 3.13), it times the existing files.  Prints the predicted times first: multiply-accumulates divided by the rate
of matrix products, and the traffic of writing and reading each activation once divided by the rate of copies, with
both rates measured in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from benchmarks import timing
from edgesam_jax.config import SamConfig
from edgesam_jax.eval.efficiency.model_cost import counts
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import MODELS, Sam

STUDENTS = ("edge_sam", "edge_sam_tiny_vit", "edge_sam_efficient_vit")


def activations(config: SamConfig, variables: Any) -> int:
    """Number of output elements of all layers with a kernel in the folded encoder."""
    total = 0

    def count(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal total
        out = call(*args, **kwargs)
        params = context.module.variables.get("params", {}) if context.method_name == "__call__" else {}
        total += out.size if "kernel" in params else 0
        return out

    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    with nn.intercept_methods(count):
        jax.eval_shape(lambda x: Sam(config, folded=True).apply(variables, x, method="encode_image"), image)
    return total


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=STUDENTS, choices=STUDENTS)
    parser.add_argument("--size", type=int, default=1024, help="image size in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each contender")
    parser.add_argument("--onnx", type=Path, metavar="FOLDER", help="folder of the exported encoders")
    arguments = parser.parse_args()
    product, copy = timing.machine()
    print(f"machine: {product / 1e9:.0f} GFLOP/s, {copy / 1e9:.0f} GB/s, {timing.cores()} cores; jax {jax.__version__}")
    for name in arguments.models:
        measure(name, arguments.size, arguments.rounds, arguments.onnx, product, copy)


def measure(name: str, size: int, rounds: int, onnx: Path | None, product: float, copy: float) -> None:
    """Print the lower bounds of a model and the times of the contenders."""
    config = dataclasses.replace(MODELS[name], image_size=size)
    folded = fold(config, init_variables(config))
    gmac = counts(config)["gmac"]["encoder"]
    work, traffic = 2e9 * gmac / product, 2 * 4 * activations(config, folded) / copy
    print(f"\n{name}: {gmac:.2f} G multiply-accumulates")
    print(f"lower bound: {work:.3f} s of products + {traffic:.3f} s of memory traffic without fusion")
    images = np.random.default_rng(0).standard_normal((1, size, size, 3)).astype(np.float32)
    variables = jax.device_put(folded)
    encode = jax.jit(lambda v, x: Sam(config, folded=True).apply(v, x, method="encode_image"))
    compiled = encode.lower(variables, images).compile()
    print(f"XLA's temporary memory: {timing.temporary_bytes(compiled) / 2**20:.0f} MiB")
    file = onnx and onnx / f"{name}.onnx"
    contenders: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("torch"):
        contenders["torch eager, unfolded"] = torch_run(config, images, file)
    contenders["jax, folded"] = timing.compiled_run(compiled, variables, jax.device_put(images))
    if file and file.is_file() and importlib.util.find_spec("onnxruntime"):
        contenders["ONNX Runtime"] = onnx_run(file, images)
    times = timing.in_turn(contenders, rounds)
    timing.report(times, "ONNX Runtime" if "torch eager, unfolded" not in contenders else "torch eager, unfolded")


def torch_run(config: Any, images: np.ndarray, export_to: Path | None) -> Callable[[], object]:
    """A function that runs the torch encoder in eager mode; also exports the encoder to ``export_to``."""
    import torch

    from convert.torch_twin.model import TorchSam

    torch.manual_seed(0)
    torch.set_num_threads(timing.cores())
    encoder = TorchSam(config).eval().image_encoder
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if export_to is not None:
        export_to.parent.mkdir(parents=True, exist_ok=True)
        torch.onnx.export(encoder, (x,), str(export_to), dynamo=False, opset_version=17)

    def run() -> object:
        with torch.inference_mode():
            return encoder(x)

    return run


def onnx_run(path: Path, images: np.ndarray) -> Callable[[], object]:
    """A function that runs an exported encoder in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = timing.cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    main()
