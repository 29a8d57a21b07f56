"""Time per prompt of the ONNX decoder in one graph and in two, natively and in WebAssembly.

    python -m benchmarks.split_decoder [CHECKPOINT] [--rounds 20] [--threads 1,2] [--web]

Without a checkpoint: RepViT-M1 with the tests' deterministic weights. The decoders are exported without a gate and take
turns in every round; the table has the shortest times, and the median over the rounds of the ratio within a round, so
that other work on the machine affects both alike. ``--web`` installs onnxruntime-web with npm in a temporary folder
and runs its WebAssembly under node, with times that include the copies of inputs and outputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import benchmark_model
from convert import to_onnx
from convert.export.common import ExportJob
from convert.export.decoder import ExportDecoder
from convert.export.split import form_of, split
from convert.torch_twin.loading import load_twin
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.portable.onnx_model import prompt_inputs
from edgesam_jax.portable.per_photo import PHOTO_INPUTS

RUNTIME = "onnxruntime-web@1.30.0"
# Name, points and corners, slots of the export (0: any number of points).
PROMPTS = [
    ("click", 1, 0), ("box", 2, 0), ("5 points", 5, 0), ("8 points", 8, 0), ("10 points", 10, 0), ("16 points", 16, 0),
    ("16 slots", 1, 16),
]  # fmt: skip
Call = tuple[str, Path, dict[str, np.ndarray]]  # name, file, inputs


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="edge_sam")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", default="1,2", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--web", action="store_true", help="also in WebAssembly, under node")
    arguments = parser.parse_args()
    model = benchmark_model(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        calls, products = make_calls(model, Path(folder))
        print("multiply-adds in millions: " + ", ".join(f"{name} {value:.0f}" for name, value in products.items()))
        for threads in map(int, arguments.threads.split(",")):
            report(f"native, {threads} threads", native(calls, threads, arguments.rounds), products)
        if arguments.web:
            module = install(Path(folder) / "npm")
            for threads in map(int, arguments.threads.split(",")):
                times = web(calls, threads, arguments.rounds, module, Path(folder))
                report(f"WebAssembly, {threads} threads", times, products)


def make_calls(model: Model, folder: Path) -> tuple[list[Call], dict[str, float]]:
    """Export the decoders; return the calls to time, and the multiply-adds of each in millions."""
    config, rng = model.config, np.random.default_rng(0)
    embedding = rng.normal(size=(1, config.embed_dim, config.grid, config.grid)).astype(np.float32)
    calls: list[Call] = []
    products: dict[str, float] = {}
    for slots in (0, 16):
        files = {}
        for name in ("whole", "split"):
            (folder / f"{name}{slots}").mkdir()
            job = ExportJob("m", ("decoder",), slots, True, "stability", model, split=name == "split")
            files |= {(name, part): f for part, f in to_onnx.export(job, folder / f"{name}{slots}", "tensor").items()}
        whole = ExportDecoder(load_twin(model), "stability", True)
        form = form_of(config, slots)
        halves = split(whole, form, flat=True)
        given, example = halves.example(config)
        inputs = prompt_inputs(embedding, np.zeros((1, 1, 2)), np.ones((1, 1)), None, slots, "")
        of_photo = {name: inputs[name] for name in PHOTO_INPUTS}
        calls.append((f"image, {form}", files["split", "image"], of_photo))
        products[f"image, {form}"] = counted(lambda halves=halves, given=given: halves.image(*given))
        maps = dict(zip(halves.maps, session(files["split", "image"], 0).run(halves.maps, of_photo), strict=True))
        for name, points, size in PROMPTS:
            if size != slots:
                continue
            coords, labels = rng.uniform(0, config.image_size, (1, points, 2)), np.ones((1, points))
            inputs = prompt_inputs(embedding, coords, labels, None, slots, "")
            prompt = {k: v for k, v in inputs.items() if k not in PHOTO_INPUTS}
            calls.append((f"{name}, whole", files["whole", "decoder"], inputs))
            calls.append((f"{name}, split", files["split", "decoder"], maps | prompt))
            tensors = tuple(torch.from_numpy(x) for x in prompt.values())
            products[f"{name}, whole"] = counted(
                lambda whole=whole, given=given, tensors=tensors: whole(given[0], *tensors, *given[1:])
            )
            products[f"{name}, split"] = counted(
                lambda halves=halves, example=example, tensors=tensors: halves.decoder(example, *tensors)
            )
            a, b = (session(file, 0).run(["masks"], values)[0] for _, file, values in calls[-2:])
            print(f"{name}: largest difference {np.abs(a - b).max() / np.abs(a).max():.1g} of the largest logit")
    return calls, products


def counted(run: Callable[[], object]) -> float:
    """Return the multiply-adds of a function of torch, in millions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2e6


def session(path: Path, threads: int) -> Any:
    """Open a file; 0 threads: as many as ONNX Runtime chooses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def native(calls: Sequence[Call], threads: int, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds per round of each call, after one that isn't counted."""
    sessions = {name: session(path, threads) for name, path, _ in calls}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(rounds + 1):
        for name, _, inputs in calls:
            began = time.perf_counter()
            sessions[name].run(None, inputs)
            if i:
                times[name].append(1000 * (time.perf_counter() - began))
    return times


def install(folder: Path) -> Path:
    """Install onnxruntime-web; return its module for node."""
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--silent", "--ignore-scripts", RUNTIME], cwd=folder, check=True)
    return folder / "node_modules/onnxruntime-web/dist/ort.node.min.mjs"


def web(calls: Sequence[Call], threads: int, rounds: int, module: Path, folder: Path) -> dict[str, list[float]]:
    """Return the same as ``native``, from ``split_decoder.mjs``."""
    entries = []
    for i, (name, path, inputs) in enumerate(calls):
        entry: dict[str, Any] = {"name": name, "file": str(path), "inputs": {}}
        for key, value in inputs.items():
            file = folder / f"{i}_{key}.bin"
            file.write_bytes(np.ascontiguousarray(value, np.float32).tobytes())
            entry["inputs"][key] = {"dims": value.shape, "file": str(file)}
        entries.append(entry)
    task = {"module": str(module), "threads": threads, "rounds": rounds, "calls": entries}
    (folder / "task.json").write_text(json.dumps(task))
    script = Path(__file__).with_suffix(".mjs")
    done = subprocess.run(["node", script, folder / "task.json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def report(title: str, times: dict[str, list[float]], products: dict[str, float]) -> None:
    """Print a table of one runtime."""
    print(f"\n{title}\n\n| prompt | whole, ms | split, ms | split / whole | by multiply-adds |\n|---|--:|--:|--:|--:|")
    for name, _, _ in PROMPTS:
        whole, halves = times[f"{name}, whole"], times[f"{name}, split"]
        ratio = median(b / a for a, b in zip(whole, halves, strict=True))
        ideal = products[f"{name}, split"] / products[f"{name}, whole"]
        print(f"| {name} | {min(whole):.0f} | {min(halves):.0f} | {ratio:.2f} | {ideal:.2f} |")
    for name, values in times.items():
        if name.startswith("image"):
            print(f"{name}: {min(values):.0f} ms", flush=True)


if __name__ == "__main__":
    main()
