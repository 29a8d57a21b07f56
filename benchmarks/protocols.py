"""The effect on mIoU of each difference between the ``exact`` and the ``published`` protocol, on your data.

    python -m benchmarks.protocols --data-root DIR [--annotations FILE] [--checkpoint FILE] [--limit N] [--refine 2]

Changes one part of the protocol at a time, then all, with the same instances and seed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.cli import compile_cache
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.threads import in_threads
from edgesam_jax.eval.report.summary import summarise
from edgesam_jax.eval.scoring.photos import load
from edgesam_jax.eval.scoring.prompted import row_of, score_photo
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.systems import JaxSystem
from edgesam_jax.reporting.tables import aligned_table

CHANGES = {
    "exact": {},
    "enlarged truth": {"truth": "published"},
    "approximate centre": {"center": "published"},
    "shifted points, zero tokens": {"points": "published"},
    "photos not rounded": {"photos": "published"},
    "published (all of these)": {"protocol": "published"},
    "exact, centre of the largest error": {"refine_point": "largest"},
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder of a COCO-format data set")
    parser.add_argument("--annotations", default="", help="COCO-format JSON file; default: the one under --data-root")
    parser.add_argument("--checkpoint", default="tiny_teacher")
    parser.add_argument("--limit", type=int, default=0, help="maximum number of photos; 0 uses all")
    parser.add_argument("--refine", type=int, default=2, help="refinement points per instance")
    arguments = parser.parse_args()
    compile_cache.enable()
    system = JaxSystem(Path(arguments.checkpoint).name, load_model(arguments.checkpoint))
    source = CocoSource(arguments.data_root, arguments.annotations, arguments.limit)
    photos = [load(source, index) for index in range(len(source))]
    body: dict[str, list[str]] = {name: [] for name in CHANGES}
    for prompt in ("box", "center"):
        base = Settings(prompt, arguments.refine)  # type: ignore[arg-type]
        exact: list[float] = []
        for name, change in CHANGES.items():
            settings = replace(base, **change)  # type: ignore[arg-type]
            work = in_threads(
                lambda photo, settings=settings: (photo, score_photo(system, photo, settings)), photos, 2, 2, "scoring"
            )
            instances = []
            for photo, scored in tqdm(work, total=len(photos), desc=f"{prompt}, {name}", leave=False):
                instances += row_of(photo, scored)["instances"]
            miou = summarise(instances, {})["miou"]
            exact = exact or miou
            body[name] += [f"{100 * v:.2f} ({100 * (v - e):+.2f})" for v, e in zip(miou, exact, strict=True)]
    points = [f"+{i + 1}" for i in range(arguments.refine)]
    print(aligned_table(["", "box", *points, "centre", *points], [[name, *cells] for name, cells in body.items()]))
    print(f"\nmIoU in %, difference from exact in brackets; {sum(map(len, photos))} instances on {len(photos)} photos.")


if __name__ == "__main__":
    main()
