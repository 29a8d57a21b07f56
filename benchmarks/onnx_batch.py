"""Time of several prompts in one call of an ONNX decoder, compared with one call per prompt.

    python -m benchmarks.onnx_batch [CHECKPOINT] [--prompts 64] [--rounds 5]

Without a checkpoint: RepViT-M1 with the tests' deterministic weights. Both decoders are exported without a gate and
take turns on boxes; the time is the median of ``OnnxDecoder.decode_prompts``, without enlarging the masks.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.models import benchmark_model
from convert import to_onnx
from convert.export.common import ExportJob
from edgesam_jax.portable import onnx_model


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="edge_sam")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = benchmark_model(arguments.checkpoint)
    config, rng = model.config, np.random.default_rng(0)
    embedding = rng.normal(size=(1, config.embed_dim, config.grid, config.grid)).astype(np.float32)
    corners = np.sort(rng.uniform(0, config.image_size, (arguments.prompts, 2, 2)), axis=1).astype(np.float32)
    labels = np.tile(np.int32([2, 3]), (arguments.prompts, 1))
    job = ExportJob("m", ("decoder",), 16, True, "stability", model)
    with tempfile.TemporaryDirectory() as folder:
        decoders = {}
        for name, batched in (("one by one", False), ("batched", True)):
            (Path(folder) / name).mkdir()
            file = to_onnx.export(dataclasses.replace(job, batched=batched), Path(folder) / name, "tensor")["decoder"]
            decoders[name] = onnx_model.OnnxDecoder(file)
        results = {}
        for per_call in (1, 4, 16, 64):
            onnx_model.PROMPTS_PER_CALL = per_call
            times: dict[str, list[float]] = {name: [] for name in decoders}
            for _ in range(arguments.rounds):
                for name, decoder in decoders.items():
                    began = time.perf_counter()
                    results[name] = decoder.decode_prompts(embedding, corners, labels)[0]
                    times[name].append(1000 * (time.perf_counter() - began))
            milliseconds = {name: float(np.median(values)) for name, values in times.items()}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            difference = np.abs(results["batched"] - results["one by one"]).max() / np.abs(results["one by one"]).max()
            print(
                f"{per_call} a call: one by one {milliseconds['one by one']:.0f} ms, batched"
                f" {milliseconds['batched']:.0f} ms, largest difference {difference:.1g}, peak memory {peak:.1f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
