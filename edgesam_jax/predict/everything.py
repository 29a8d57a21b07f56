"""``predict --everything``: masks of everything on a photo, or on each photo of a folder.

The output folder gets ``predictions.json``, COCO results of all photos, and ``everything_NAME.png`` per photo. A run
that is stopped resumes from ``predictions.rows.jsonl``. Photos that can't be read are counted and listed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.cli import compile_cache
from edgesam_jax.cli.command import print_note
from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import PHOTO_SUFFIXES, load_image
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import reasons
from edgesam_jax.files import atomic_file, write_atomically
from edgesam_jax.portable.everything import EverythingGenerator
from edgesam_jax.portable.run_lengths import mask_of_code
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.reporting import overlay
from edgesam_jax.reporting.rows import Rows

OPTIONS = (
    "points_per_side",
    "pred_iou_thresh",
    "stability_score_thresh",
    "crop_n_layers",
    "min_mask_region_area",
    "min_area",
    "max_masks",
    "coarse_to_fine",
)  # of the generator, by the names of their flags
CATEGORY = 1  # of all results: everything mode knows no categories


def run(arguments: argparse.Namespace) -> int:
    """Run ``predict --everything``; return the exit code.

    Raises:
      UsageError: invalid arguments or checkpoint, or no photo that can be read.
    """
    photos, output = _photos(Path(arguments.image)), Path(arguments.output)
    if os.path.exists(output) and not os.path.isdir(output):
        raise UsageError(f"--output {output}: is a file; choose a folder")
    options = {name: getattr(arguments, name) for name in OPTIONS}
    compile_cache.enable()
    predictor = Predictor(load_model(arguments.checkpoint))
    try:
        generator = EverythingGenerator(predictor, **options, output_mode="coco_rle")
    except UsageError as error:  # it begins with the option's name
        raise UsageError(re.sub(r"^\w+", lambda name: f"--{name[0].replace('_', '-')}", str(error))) from None
    header = {
        "checkpoint": str(arguments.checkpoint), "photos": [name for name, _ in photos],
        "pixel_range": arguments.pixel_range, **options,
    }  # fmt: skip
    rows = Rows(output / "predictions", header, what="run")
    try:
        for index, (name, path) in enumerate(photos):
            if index not in rows:
                rows.add({"photo": index, **_predict(generator, name, path, output, arguments.pixel_range)})
    finally:
        rows.close()
    return _finish(rows, [name for name, _ in photos], output)


def _photos(source: Path) -> list[tuple[str, Path]]:
    """Return names and paths of the photos, in the order of their names.

    Raises:
      UsageError: there is none.
    """
    if not source.is_dir():
        return [(source.name, source)]
    paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
    if not paths:
        raise UsageError(f"--image {source}: contains no photos ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return [(path.relative_to(source).as_posix(), path) for path in paths]


def _predict(generator: EverythingGenerator, name: str, path: Path, output: Path, pixel_range: str) -> dict[str, Any]:
    """Return a photo's row: its results, or the reason why there are none; and write its picture."""
    notes: list[str] = []
    try:
        image = load_image(path, str(path), pixel_range, notes)
    except BadExample as error:
        return {"skipped": [error.kind, str(error)]}
    for note in notes:
        print_note(note)
    records = _with_progress(generator, image, name)
    stem = Path(name).stem
    image_id: int | str = int(stem) if stem.isascii() and stem.isdigit() else name
    results = [
        {
            "image_id": image_id,
            "file_name": name,
            "category_id": CATEGORY,
            "bbox": [record["bbox"][0], record["bbox"][1], record["bbox"][2] + 1, record["bbox"][3] + 1],
            "segmentation": record["segmentation"],
            "area": record["area"],
            "score": record["predicted_iou"],
            "stability_score": record["stability_score"],
            "point": record["point_coords"][0],
        }
        for record in records
    ]
    picture = overlay.draw_all(image, (mask_of_code(record["segmentation"]) for record in _by_area(records)))
    with atomic_file(output / f"everything_{name.replace('/', '_')}.png") as temporary:
        picture.save(temporary, format="PNG")
    return {"results": results}


def _by_area(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The largest first, so that small masks are drawn on top."""
    return iter(sorted(records, key=lambda record: -record["area"]))


def _with_progress(generator: EverythingGenerator, image: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Generate the masks of a photo, with a bar of points and the number of masks found."""
    with tqdm(desc=name, unit="point", leave=False, file=sys.stderr) as bar:

        def report(done: int, total: int, found: int) -> None:
            bar.total = total
            bar.set_postfix(masks=found, refresh=False)
            bar.update(done - bar.n)

        return generator.generate(image, report)


def _finish(rows: Rows, names: list[str], output: Path) -> int:
    """Write ``predictions.json``, remove the rows, and tell what was found.

    Raises:
      UsageError: no photo could be read.
    """
    skipped = [(row["skipped"][0], row["skipped"][1]) for row in rows.in_order() if "skipped" in row]
    results = [result for row in rows.in_order() for result in row.get("results", ())]
    if len(skipped) == len(names):
        rows.path.unlink()
        raise UsageError(skipped[0][1] if len(names) == 1 else f"no photo can be read: {reasons(skipped)}")
    write_atomically(output / "predictions.json", json.dumps(results))
    rows.path.unlink()
    if skipped:
        write_atomically(output / "skipped.txt", "".join(f"{message}\n" for _, message in skipped))
        print_note(f"{len(skipped)} photos are skipped ({reasons(skipped)}); {output / 'skipped.txt'} lists them")
    print(f"{output / 'predictions.json'}: {len(results)} masks on {len(names) - len(skipped)} photos")
    return 0
