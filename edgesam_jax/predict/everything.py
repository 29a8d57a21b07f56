"""``predict --everything``: masks of everything on a photo, or on each of many photos.

The output folder gets ``predictions.json``, COCO results of all photos, ``report.json`` with counts and everything that
was skipped, and a picture per photo in ``overlays/``. Until the run is complete, results are appended to
``predictions.rows.jsonl``, from which the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.cli import compile_cache
from edgesam_jax.cli.command import print_note
from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import load_image
from edgesam_jax.data.pixels import parse_range
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import reasons
from edgesam_jax.files import atomic_file, write_atomically
from edgesam_jax.portable.everything import EverythingGenerator
from edgesam_jax.portable.run_lengths import mask_of_code
from edgesam_jax.predict.photo_files import find_photos, picture_names
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.predict.resuming import check_output, resumable_rows, skipped_report
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
FORMAT = 1  # of the rows
CATEGORY = 1  # of all results: everything mode knows no categories


def run(arguments: argparse.Namespace) -> int:
    """Run ``predict --everything``; return the exit code.

    Raises:
      UsageError: invalid arguments or checkpoint, or no photo that can be read.
    """
    photos, output = find_photos(arguments.image), Path(arguments.output)
    check_output(output)
    parse_range(arguments.pixel_range)
    options = {name: getattr(arguments, name) for name in OPTIONS}
    compile_cache.enable()
    model = load_model(arguments.checkpoint)
    try:
        generator = EverythingGenerator(Predictor(model), **options, output_mode="coco_rle")
    except UsageError as error:  # it begins with the option's name
        raise UsageError(re.sub(r"^\w+", lambda name: f"--{name[0].replace('_', '-')}", str(error))) from None
    header = {
        "format": FORMAT, "photos": [str(path) for path in photos], "pixel_range": arguments.pixel_range, **options,
    }  # fmt: skip
    pictures = [output / "overlays" / name for name in picture_names(photos)]
    with resumable_rows(output, model, header) as rows:
        for number, (path, picture) in enumerate(zip(photos, pictures, strict=True)):
            if number not in rows:
                progress = f"{number + 1}/{len(photos)} {path.name}"
                rows.add({"photo": number, **_predict(generator, path, picture, arguments.pixel_range, progress)})
        _finish(rows, arguments, options)
    return 0


def _predict(
    generator: EverythingGenerator, path: Path, picture: Path, pixel_range: str, progress: str
) -> dict[str, Any]:
    """Return a photo's row: its results, or the reason why there are none; and write its picture."""
    notes: list[str] = []
    try:
        image = load_image(path, str(path), pixel_range, notes)
    except BadExample as error:
        return {"skipped": [error.kind, str(error)]}
    for note in notes:
        print_note(note)
    records = _with_progress(generator, image, progress)
    results = [
        {
            "image_id": int(path.stem) if path.stem.isascii() and path.stem.isdigit() else path.name,
            "file_name": path.name,
            "category_id": CATEGORY,
            "bbox": _coco_box(record),
            "segmentation": record["segmentation"],
            "area": record["area"],
            "score": record["predicted_iou"],
            "stability_score": record["stability_score"],
            "point": record["point_coords"][0],
        }
        for record in records
    ]
    largest_first = sorted(records, key=lambda record: -record["area"])  # small masks are drawn on top
    drawn = overlay.draw_all(image, (mask_of_code(record["segmentation"]) for record in largest_first))
    picture.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(picture) as temporary:
        drawn.save(temporary, "JPEG", quality=90)
    return {"results": results}


def _coco_box(record: dict[str, Any]) -> list[int]:
    """COCO's box of a mask, which includes both ends; zeros for an empty mask."""
    x, y, width, height = record["bbox"]
    return [x, y, width + 1, height + 1] if record["area"] else [0, 0, 0, 0]


def _with_progress(generator: EverythingGenerator, image: np.ndarray, text: str) -> list[dict[str, Any]]:
    """Generate the masks of a photo, with a bar of points and the number of masks found."""
    with tqdm(desc=text, unit="point", leave=False, dynamic_ncols=True) as bar:

        def report(done: int, total: int, found: int) -> None:
            bar.total = total
            bar.set_postfix(masks=found, refresh=False)
            bar.update(done - bar.n)

        return generator.generate(image, report)


def _finish(rows: Rows, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Write ``predictions.json`` and ``report.json``, and tell what was found.

    Raises:
      UsageError: no photo could be read; the rows are removed.
    """
    output, done = Path(arguments.output), rows.in_order()
    skipped = [(row["skipped"][0], row["skipped"][1]) for row in done if "skipped" in row]
    results = [result for row in done for result in row.get("results", ())]
    if len(skipped) == len(done):
        rows.path.unlink()
        raise UsageError(skipped[0][1] if len(done) == 1 else f"no photo can be read: {reasons(skipped)}")
    write_atomically(output / "predictions.json", json.dumps(results))
    report = {
        "checkpoint": str(arguments.checkpoint), "image": str(arguments.image), "options": options,
        "photos": len(done) - len(skipped), "masks": len(results),
        "skipped": skipped_report(skipped),
    }  # fmt: skip
    write_atomically(output / "report.json", json.dumps(report, indent=1))
    print(f"{output / 'predictions.json'}: {len(results)} masks on {len(done) - len(skipped)} photos")
    if skipped:
        print_note(f"{len(skipped)} photos are skipped ({reasons(skipped)}); {output / 'report.json'} lists them")
