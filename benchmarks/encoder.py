"""RepViT-M1's encoder, folded, against our torch model (eager, unfolded) and ONNX Runtime.

    python -m benchmarks.encoder [--size 1024] [--rounds 5] [--onnx FILE]

With torch, ``--onnx FILE`` exports the torch encoder to FILE and times ONNX Runtime on it; without torch (Python 3.13)
it times the FILE that is there.  The prediction is printed first: convolution work over the rate of matrix products,
and each activation written once and read once over the rate of copying, both measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.repvit import REPVIT_M1, block_table
from edgesam_jax.models.sam import MODELS, Sam

MACS_AT_1024 = 20.05e9  # facts, section 1


def activations(size: int) -> int:
    """Elements of the outputs of all convolutions of the folded RepViT-M1 encoder, without the squeeze-excites."""
    total, before, side = 24 * (size // 2) ** 2 + 48 * (size // 4) ** 2, 48, size // 4
    for width, stride, _, _ in block_table(REPVIT_M1):
        side //= max(stride, 1)
        mixer = 3 * width
        total += (mixer + (before + width if stride else width)) * side**2
        before = width
    return total + 256 * (3 * (size // 16) ** 2 + (size // 32) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--onnx", type=Path)
    arguments = parser.parse_args()
    share = (arguments.size / 1024) ** 2
    product, copy = timing.machine()
    work, traffic = 2 * MACS_AT_1024 * share / product, 2 * 4 * activations(arguments.size) / copy
    print(f"machine: {product / 1e9:.0f} GFLOP/s, {copy / 1e9:.0f} GB/s, {timing.cores()} cores; jax {jax.__version__}")
    print(f"floor: {work:.3f} s of products + {traffic:.3f} s of traffic if no two convolutions are fused")

    config = MODELS["edge_sam"]
    images = np.random.default_rng(0).standard_normal((1, arguments.size, arguments.size, 3)).astype(np.float32)
    variables = jax.device_put(fold(config, init_variables(config)))
    encode = jax.jit(lambda v, x: Sam(config, folded=True).apply(v, x, method="encode_image"))
    compiled = encode.lower(variables, images).compile()
    contenders: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("torch"):
        contenders["torch eager, unfolded"] = torch_run(config, images, arguments.onnx)
    contenders["jax, folded"] = timing.compiled_run(compiled, variables, jax.device_put(images))
    if arguments.onnx and importlib.util.find_spec("onnxruntime"):
        contenders["ONNX Runtime"] = onnx_run(arguments.onnx, images)
    times = timing.in_turn(contenders, arguments.rounds)
    timing.report(times, "ONNX Runtime" if "torch eager, unfolded" not in contenders else "torch eager, unfolded")


def torch_run(config: Any, images: np.ndarray, export_to: Path | None) -> Callable[[], object]:
    """The torch encoder in eager mode; exported to ``export_to`` on the way."""
    import torch

    from convert.torch_model import TorchSam

    torch.manual_seed(0)
    torch.set_num_threads(timing.cores())
    encoder = TorchSam(config).eval().image_encoder
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if export_to is not None:
        torch.onnx.export(encoder, (x,), str(export_to), dynamo=False, opset_version=17)

    def run() -> object:
        with torch.inference_mode():
            return encoder(x)

    return run


def onnx_run(path: Path, images: np.ndarray) -> Callable[[], object]:
    """ONNX Runtime on an exported encoder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = timing.cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    main()
