"""Size, time and masks of ONNX files with smaller weights; on request in onnxruntime-web, too.

    python -m benchmarks.onnx_precision [CHECKPOINT] [--weights float16,half] [--rounds 5] [--node_modules DIR]

Without a checkpoint: EdgeSAM at full size with the tests' deterministic weights. The files come from ``to_onnx.build``,
with its gate, on eight photos of scikit-image. ``--node_modules`` names a folder with npm's onnxruntime-web, whose
WebAssembly runtime then runs the same files with one thread (``onnx_precision.mjs``). ``half`` computes in float16, too
(``--arithmetic float16``); its errors are those with every result rounded, its times those of float32 arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.models import benchmark_model
from convert import to_onnx
from convert.export import gate, precision
from convert.export.common import ExportJob, Refused
from edgesam_jax.portable.onnx_model import normalised, prompt_inputs

PARTS = ("encoder", "decoder")
WEIGHTS = {name: {"precision": name} for name in precision.PRECISIONS}
WEIGHTS["half"] = {"precision": "float16", "arithmetic": "float16"}


def calls(case: gate.Case) -> dict[str, dict[str, np.ndarray]]:
    """Return the inputs of each part: the photo, and its first box."""
    prompt = case.prompts[0]
    given = prompt_inputs(case.embedding, prompt.coords[None], prompt.labels[None], None, 16, "decoder")
    return {"encoder": {"image": normalised(case.frame, case.filled)}, "decoder": given}


def native_times(folder: Path, inputs: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each part in ONNX Runtime, with its own number of threads."""
    found = {}
    for part in PARTS:
        session = onnxruntime.InferenceSession(str(folder / f"m_{part}.onnx"), providers=["CPUExecutionProvider"])
        times = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            session.run(None, inputs[part])
            times.append(1000 * (time.perf_counter() - began))
        found[part] = float(np.median(times[1:]))
    return found


def web(folder: Path, inputs: dict[str, Any], rounds: int, modules: Path) -> dict[str, Any]:
    """Run the files in onnxruntime-web; return milliseconds and the largest relative difference from native."""
    found: dict[str, Any] = {}
    for part in PARTS:
        path = folder / f"m_{part}.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = {"encoder": "image_embeddings", "decoder": "masks"}[part]
        [expected] = session.run([name], inputs[part])
        tensors = {}
        for key, values in inputs[part].items():
            values.astype(np.float32).tofile(folder / f"{key}.bin")
            tensors[key] = {"file": str(folder / f"{key}.bin"), "dims": list(values.shape)}
        job = {
            "model": str(path),
            "inputs": tensors,
            "output": name,
            "result": str(folder / "out.bin"),
            "rounds": rounds,
        }
        (folder / "job.json").write_text(json.dumps(job))
        script = Path(__file__).with_suffix(".mjs")
        command = ["node", str(script), str(modules.absolute()), str(folder / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        values = np.fromfile(folder / "out.bin", np.float32).reshape(expected.shape)
        found[part] = json.loads(done.stdout.splitlines()[-1])["milliseconds"]
        found[f"{part} difference"] = float(np.abs(values - expected).max() / np.abs(expected).max())
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="edge_sam")
    parser.add_argument("--weights", default=",".join(WEIGHTS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--node_modules", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    model = benchmark_model(arguments.checkpoint)
    job = ExportJob("m", PARTS, 16, True, str(model.metadata.get("score", "stability")), model)
    cases = gate.make_cases(model, precision.load_photos("int8", []), job.slots, job.mask_input)
    inputs, rows = calls(cases[1]), []
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.weights.split(","):
            folder = Path(temporary) / name
            folder.mkdir()
            try:
                content = to_onnx.build(dataclasses.replace(job, **WEIGHTS[name]), folder, "tensor", cases)
            except Refused as refusal:
                rows.append(f"| {name} | {refusal} |")
                continue
            verified = content.get("verified_rounded", content["verified"])
            masks, logits = (verified[f"{q} from end to end"] for q in ("mask IoU", "logits"))
            sizes = [f"{(folder / f'm_{part}.onnx').stat().st_size / 1e6:.1f}" for part in PARTS]
            times = native_times(folder, inputs, arguments.rounds)
            cells = [name, *sizes, f"{verified['embedding']['mean']:.2g}", f"{logits['mean']:.2g}"]
            cells += [f"{masks['mean']:.4f}", f"{masks['worst']:.3f}", *(f"{times[part]:.0f}" for part in PARTS)]
            if arguments.node_modules:
                found = web(folder, inputs, arguments.rounds, arguments.node_modules)
                cells += [f"{found[part]:.0f}" for part in PARTS]
                cells.append(f"{max(found[f'{part} difference'] for part in PARTS):.1g}")
            rows.append(f"| {' | '.join(cells)} |")
    columns = "weights, encoder MB, decoder MB, embedding, logits, mask IoU mean, worst, encoder ms, decoder ms"
    if arguments.node_modules:
        columns += ", encoder ms in WebAssembly, decoder ms there, difference from native"
    print(f"\n{len(cases)} photos, {sum(len(c.prompts) for c in cases)} prompts, four masks each")
    print("| " + columns.replace(", ", " | ") + " |")
    print("|---|" + "--:|" * columns.count(","))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
