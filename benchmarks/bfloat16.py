"""The price of bfloat16 activations, and of an accelerator's forms of the operations: embedding error and mIoU.

    XLA_FLAGS=--xla_allow_excess_precision=false python -m benchmarks.bfloat16 --data-root DIR [--annotations FILE]
        [--checkpoint FILE] [--limit N] [--refine 2] [--max-instances 8]

Each row scores the same instances with the same seed.  ``cpu`` and ``tpu`` are the forms that the operations take on
these platforms; both run on this machine.  Without the flag, XLA for the CPU may leave out roundings to bfloat16.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.eval.report.summary import summarise
from edgesam_jax.eval.scoring import device
from edgesam_jax.eval.scoring.photos import Photo, choose_instances, load
from edgesam_jax.eval.scoring.prompted import row_of, score_photo
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.systems import JaxSystem
from edgesam_jax.models.kernels import platforms
from edgesam_jax.portable.frame import pad_to_square, resize_longest_side
from edgesam_jax.predict import compiled
from edgesam_jax.reporting.tables import aligned_table

FLAG = "--xla_allow_excess_precision=false"
VARIANTS = (("cpu", "float32"), ("tpu", "float32"), ("cpu", "bfloat16"), ("tpu", "bfloat16"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder of a COCO-format data set")
    parser.add_argument("--annotations", default="", help="COCO-format JSON file; default: the one under --data-root")
    parser.add_argument("--checkpoint", default="tiny_teacher")
    parser.add_argument("--limit", type=int, default=20, help="maximum number of photos; 0 uses all")
    parser.add_argument("--refine", type=int, default=2, help="refinement points per instance")
    parser.add_argument("--max-instances", type=int, default=8, help="instances of a photo")
    arguments = parser.parse_args()
    model = load_model(arguments.checkpoint)
    source = CocoSource(arguments.data_root, arguments.annotations, arguments.limit)
    photos = [choose_instances(load(source, index), arguments.max_instances, 0) for index in range(len(source))]
    reference = [np.zeros(0)] * len(photos)
    rows = []
    for number, (platform, dtype) in enumerate(VARIANTS):
        variant = replace(model, config=replace(model.config, compute_dtype=dtype))
        _forget_programs()
        with platforms.traced_for(platform):
            embeddings = _embeddings(variant, photos)
            reference = embeddings if number == 0 else reference
            errors = [
                np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
                for found, exact in zip(embeddings, reference, strict=True)
            ]
            row = [f"{platform}, {dtype}", f"{np.mean(errors):.1e}", f"{np.max(errors):.1e}"]
            for prompt in ("box", "center"):
                row += _scores(variant, photos, Settings(prompt, arguments.refine), f"{platform}, {dtype}, {prompt}")
        rows.append(row)
    points = [f"+{i + 1}" for i in range(arguments.refine)]
    print(aligned_table(["", "embedding", "worst photo", "box", *points, "centre", *points], rows))
    flag = "set" if FLAG in os.environ.get("XLA_FLAGS", "") else "not set"
    print(
        f"\nEmbedding: RMS of the difference from the first row over RMS.  mIoU in %; {sum(map(len, photos))} instances"
        f" on {len(photos)} photos; {Path(arguments.checkpoint).name}; jax {jax.__version__}, {FLAG} {flag}."
    )


def _forget_programs() -> None:
    """Forget compiled programs: JAX does not know that the form of an operation depends on the platform."""
    for function in (compiled.encoder, device.decoder):
        function.cache_clear()
    jax.clear_caches()


def _embeddings(model: Model, photos: list[Photo]) -> list[np.ndarray]:
    variables, encode = compiled.for_inference(model.config, model.variables), compiled.encoder(model.config)
    found = []
    for photo in photos:
        resized, filled = resize_longest_side(photo.image, model.config.image_size, "pillow")
        image = pad_to_square(resized, model.config.image_size)
        found.append(np.asarray(encode(variables, image[None], np.int32([filled])), np.float32)[0])
    return found


def _scores(model: Model, photos: list[Photo], settings: Settings, label: str) -> list[str]:
    system = JaxSystem(label, model)
    instances = []
    for photo in tqdm(photos, desc=label, leave=False):
        instances += row_of(photo, score_photo(system, photo, settings))["instances"]
    return [f"{100 * value:.2f}" for value in summarise(instances, {})["miou"]]


if __name__ == "__main__":
    main()
