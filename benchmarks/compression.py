"""The effect of compressed Core ML weights on size, logits and masks, measured on photos.

    python -m benchmarks.compression CHECKPOINT [--photos FOLDER] [--limit 8]

Each format of both parts is evaluated op by op, as in the export's verification, and compared with the JAX model.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from convert import to_coreml
from convert.coreml import packages
from convert.coreml.program import CoremlDecoder, CoremlEncoder
from convert.export import common, gate
from convert.export.decoder import ExportDecoder
from convert.export.encoder import ExportEncoder
from convert.torch_twin.loading import load_twin
from edgesam_jax.checkpoints.load import load_model

ANYTHING = gate.Tolerance(np.inf, np.inf, 0.0, np.inf)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--photos", action="append", default=[], help="folder of photos; may be repeated")
    parser.add_argument("--limit", type=int, default=8, help="maximum number of photos")
    arguments = parser.parse_args()
    model = load_model(arguments.checkpoint)
    job = common.ExportJob("m", ("encoder", "decoder"), 16, True, str(model.metadata.get("score", "stability")), model)
    photos = dict(itertools.islice(gate.load_photos(arguments.photos).items(), arguments.limit))
    cases = gate.make_cases(model, photos, job.slots, job.mask_input)
    print(f"{len(photos)} photos, {sum(len(c.prompts) for c in cases)} prompts, four masks each")
    print("| weights | encoder MB | decoder MB | embedding | logits | mask IoU, mean | worst | conversion seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    modules = {
        "encoder": ExportEncoder(model.config, model.variables),
        "decoder": ExportDecoder(load_twin(model), "stability", True),
    }
    plain = {
        (part, precision): packages.convert(module, to_coreml.shapes(job)[part], to_coreml.OUTPUTS[part], precision)
        for part, module in modules.items()
        for precision in ("float32", "float16")
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("float32", "float16", *to_coreml.COMPRESSIONS[1:]):
            began, paths = time.perf_counter(), {}
            for part in modules:
                package = plain[part, "float32" if name == "float32" else "float16"]
                package = package if name.startswith("float") else packages.compress(package, name)
                paths[part] = packages.save(package, Path(folder) / f"{name}_{part}.mlpackage", "", "")
            seconds = time.perf_counter() - began
            encoder = CoremlEncoder(paths["encoder"], False)
            decoder = CoremlDecoder(paths["decoder"], job.slots, True)
            summary = gate.verify(cases, encoder, decoder, ANYTHING, "stability").summary()
            masks, logits = summary["mask IoU from end to end"], summary["logits from end to end"]
            sizes = [f"{common.size_of(paths[part]) / 1e6:.1f}" for part in modules]
            print(
                f"| {name} | {sizes[0]} | {sizes[1]} | {summary['embedding']['mean']:.2g} | {logits['mean']:.2g} |"
                f" {masks['mean']:.4f} | {masks['worst']:.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
