"""Everything mode against SAM's own generator (package ``segment-anything``) with the same weights, and its memory.

    python -m benchmarks.everything [--model edge_sam] [--points-per-side 32] [--size 640 480] [--kept 0.1] [--rounds 1]
    python -m benchmarks.everything --alone --size 4000 3000 --points-per-side 64

The weights are random, so the limit of the score is set to the quantile that a share ``--kept`` of the masks passes.
Prints the decoder's floor first: its floating-point operations at this machine's rate.  ``--alone`` runs our generator
only, and reports the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from benchmarks.decoder import flops_per_prompt
from benchmarks.sam_peer import generator_of
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.scenes.textures import photos
from edgesam_jax.everything import EverythingGenerator
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import MODELS
from edgesam_jax.portable.crops import point_grid
from edgesam_jax.portable.frame import scale_coords
from edgesam_jax.predict import compiled
from edgesam_jax.predict.predictor import Predictor

TOKENS = 7  # of a click: five of the output, the click, and SAM's padding


def score_limit(predictor: Predictor, photo: np.ndarray, kept: float) -> float:
    """Return the score that a share ``kept`` of the masks of an 8 x 8 grid exceeds."""
    size = (photo.shape[0], photo.shape[1])
    embedding = predictor.set_image(photo)
    points = scale_coords(point_grid(8) * [size[1], size[0]], size, embedding.input_size)
    decode = compiled.point_decoder(predictor.model.config)
    tiles = (decode(predictor._variables, embedding.values, points[i : i + 16]) for i in range(0, 64, 16))
    scores = np.concatenate([np.asarray(iou) for _, iou, _ in tiles])
    return float(np.clip(np.quantile(scores, 1 - kept), 1e-6, 1))


def compare(ours: list[dict], theirs: list[dict]) -> None:  # type: ignore[type-arg]
    """Print how far two lists of records agree, in their order."""
    pairs = list(zip(ours, theirs, strict=False))
    ious = [
        (a["segmentation"] & b["segmentation"]).sum() / max(1, (a["segmentation"] | b["segmentation"]).sum())
        for a, b in pairs
    ]
    same = sum(a["point_coords"] == b["point_coords"] and a["bbox"] == b["bbox"] for a, b in pairs)
    print(f"records: {len(ours)} and {len(theirs)}; {same} pairs of equal rank have the same point and box")
    if ious:
        print(f"mask IoU of equal rank: lowest {min(ious):.6f}, {np.mean(np.array(ious) >= 0.999):.2%} at least 0.999")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="edge_sam", choices=sorted(MODELS))
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--kept", type=float, default=0.1, help="share of the masks whose score passes")
    parser.add_argument("--crop-n-layers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="our generator only, with its peak memory")
    args = parser.parse_args()

    config = MODELS[args.model]
    model = Model(config, init_variables(config, 0), {"score": "iou"})
    photo = np.asarray(Image.fromarray(photos()[0][0]).resize(tuple(args.size)))
    predictor = Predictor(model)
    options = {
        "points_per_side": args.points_per_side, "crop_n_layers": args.crop_n_layers,
        "pred_iou_thresh": score_limit(predictor, photo, args.kept), "stability_score_thresh": 0.0,
    }  # fmt: skip
    rate, _ = timing.machine()
    points = args.points_per_side**2 * sum(4**i for i in range(args.crop_n_layers + 1))
    flops = points * flops_per_prompt(config, TOKENS, moved=True)
    print(f"{args.model}, {points} points, {args.size[0]}x{args.size[1]} px, limits {options}")
    print(
        f"floor of the decoder: {flops / 1e12:.2f} TFLOP at {rate / 1e9:.0f} GFLOP/s: {flops / rate:.1f} s", flush=True
    )

    if args.alone:
        generator = EverythingGenerator(predictor, **options, output_mode="coco_rle")
        generator.generate(photo[:64, :64])  # compiles the model
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        records = generator.generate(photo)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{len(records)} records in {seconds:.1f} s; peak {peak / 1e6:.2f} GB, {before / 1e6:.2f} GB before")
        return
    published = generator_of(model, **options)
    generator = EverythingGenerator(predictor, **options)

    def theirs() -> list[dict]:  # type: ignore[type-arg]
        with torch.no_grad():
            return published.generate(photo)  # type: ignore[no-any-return]

    compare(generator.generate(photo), theirs())
    times = timing.in_turn({"segment-anything (torch)": theirs, "ours": lambda: generator.generate(photo)}, args.rounds)
    timing.report(times, "ours")


if __name__ == "__main__":
    main()
