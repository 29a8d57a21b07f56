"""``predict --prompts``: masks for a file of prompts on the photos of a folder, as COCO results.

The output folder gets ``predictions.json``, a list of COCO results, and ``report.json``, with counts and everything
that was skipped; with ``--overlays`` also a picture per photo in ``overlays/``. Until the run is complete, results are
appended to ``predictions.rows.jsonl``, from which the same command resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.cli.command import print_note
from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import photo_sizes
from edgesam_jax.data.pixels import parse_range
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow, reasons
from edgesam_jax.files import atomic_file, sha256_of, write_atomically
from edgesam_jax.predict.batching import Item, Result
from edgesam_jax.predict.photo_files import find_photos, picture_names
from edgesam_jax.predict.photo_prompts import Listed, Prompt, match, read_prompt_file
from edgesam_jax.predict.resuming import LISTED, check_output, resumable_rows, skipped_report
from edgesam_jax.reporting.rows import Row, Rows

FORMAT = 1  # of the rows
SINGLE = ("box", "point", "save_masks", "save_logits", "mask_input")  # flags for prompts on one photo


@dataclass(frozen=True)
class Summary:
    """What a run did; ``seconds`` and ``new`` photos are those of this run, the other numbers of all.

    ``without_prompts`` photos were not looked at; ``skipped`` has the kind and message of each photo and prompt that
    was not used.
    """

    photos: int
    masks: int
    without_prompts: int
    new: int
    seconds: float
    skipped: Sequence[SkippedRow] = ()


@dataclass
class Work:
    """A photo with its prompts; ``used`` are those that are on the photo, found when it is opened."""

    path: Path
    listed: Listed
    used: list[Prompt] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)


def run(arguments: argparse.Namespace) -> Summary:
    """Run the command.

    Raises:
      UsageError: invalid arguments, photos, prompts or checkpoint; or the output folder holds the rows of another run.
    """
    given = [name for name in SINGLE if getattr(arguments, name, None)]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{flag}: for prompts on one photo; remove {flag} or --prompts")
    output, prompt_file = Path(arguments.output), Path(arguments.prompts)
    check_output(output)
    parse_range(arguments.pixel_range)
    paths = find_photos(arguments.image)
    listed, unread = read_prompt_file(prompt_file, arguments.annotations)
    found, unmatched = match(listed, paths)
    rows = [*unread, *unmatched]
    if not found:
        why = reasons(rows) if rows else "it has no prompts"
        raise UsageError(f"--prompts {prompt_file}: no prompt in it is on a photo of --image {arguments.image}: {why}")
    work = [Work(paths[number], found[number]) for number in sorted(found)]

    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.cli import compile_cache
    from edgesam_jax.predict.predictor import Predictor

    compile_cache.enable()
    model = load_model(arguments.checkpoint)
    predictor = Predictor(model, arguments.priors)
    names = [[str(w.path), str(w.listed.image_id)] for w in work]
    header = {
        "format": FORMAT,
        "prompts": sha256_of(prompt_file), "photos": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "annotations": sha256_of(Path(arguments.annotations)) if arguments.annotations else "",
        "settings": [
            arguments.num_masks, arguments.priors, arguments.fill_holes, arguments.drop_islands, arguments.pixel_range
        ],
        "overlays": arguments.overlays,
    }  # fmt: skip
    with resumable_rows(output, model, header) as records:
        new, began = sum(number not in records for number in range(len(work))), time.perf_counter()
        predict_photos(predictor, work, records, arguments)
        seconds = time.perf_counter() - began
        return _finish(output, records, len(paths), rows, new, seconds, arguments)


def predict_photos(predictor: Any, work: Sequence[Work], records: Rows, arguments: argparse.Namespace) -> None:
    """Predict the photos that have no row yet, and add their rows."""
    from tqdm import tqdm

    todo = [number for number in range(len(work)) if number not in records]
    overlay_names = picture_names([w.path for w in work]) if arguments.overlays else []
    done = records.in_order()
    masks, skipped = sum(len(row.get("results", ())) for row in done), sum(len(row["skipped"]) for row in done)
    with tqdm(total=len(work), initial=len(work) - len(todo), unit="photo", desc="predict", dynamic_ncols=True) as bar:

        def add(row: Row) -> None:
            nonlocal masks, skipped
            records.add(row)
            masks, skipped = masks + len(row.get("results", ())), skipped + len(row["skipped"])
            bar.set_postfix(masks=masks, skipped=skipped, refresh=False)
            bar.update()

        def items() -> Iterator[Item]:
            for number in todo:
                item = _open(work[number], number)
                if item is None:
                    add({"photo": number, "skipped": work[number].skipped})
                else:
                    yield item

        results = predictor.predict_many(
            items(), arguments.num_masks, fill_holes=arguments.fill_holes, drop_islands=arguments.drop_islands,
            pixel_range=arguments.pixel_range,
        )  # fmt: skip
        for result in results:
            one = work[result.id]
            if result.error is not None:
                kind = result.error.kind if isinstance(result.error, BadExample) else "photo damaged"
                add({"photo": result.id, "skipped": [*one.skipped, (kind, str(result.error))]})
                continue
            overlay = Path(arguments.output) / "overlays" / overlay_names[result.id] if overlay_names else None
            row = {"photo": result.id, "skipped": one.skipped, "results": _results(one, result, overlay)}
            add(row | ({"notes": list(result.notes)} if result.notes else {}))


def _open(work: Work, number: int) -> Item | None:
    """Make the item of a photo from its header; None if the photo or all of its prompts can't be used."""
    try:
        upright, stored = photo_sizes(work.path, str(work.path))
        size = work.listed.size or upright
        if size not in (upright, stored):
            raise BadExample(
                "photo of another size",
                f"{work.path}: it has {upright[1]}x{upright[0]} pixels but the prompts' file says {size[1]}x{size[0]};"
                " use the photos that were annotated",
            )
    except BadExample as error:
        work.skipped.append((error.kind, str(error)))
        return None
    for prompt in work.listed.prompts:
        try:
            work.used.append(prompt.on(size))
        except UsageError as error:
            work.skipped.append(("prompt not on the photo", f"{prompt.where}: {error}"))
    if not work.used:
        return None
    boxes = [p.box for p in work.used] if any(p.box for p in work.used) else None
    points = any(p.points for p in work.used)
    return Item(
        work.path, boxes,
        [np.reshape(p.points, (-1, 2)) for p in work.used] if points else None,
        [np.asarray(p.labels, np.int64) for p in work.used] if points else None,
        id=number, orient=size == upright,
    )  # fmt: skip


def _results(work: Work, result: Result, overlay: Path | None) -> list[dict[str, Any]]:
    """The results of a photo in COCO's format, each from the best mask of its prompt; draw them if wanted."""
    from pycocotools import mask as coco

    entries, drawn = [], []
    for number, prompt in enumerate(work.used):
        best = int(np.argmax(result.scores[number]))
        mask, score = result.mask(number, best), float(result.scores[number, best])
        code = coco.encode(np.asfortranarray(mask.view(np.uint8)))
        entries.append(
            {
                "image_id": work.listed.image_id, "category_id": prompt.category_id,
                "bbox": [float(v) for v in coco.toBbox(code)],  # x, y, width, height; all 0 for an empty mask
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                "score": score if prompt.score is None else prompt.score,
                **({} if prompt.score is None else {"mask_score": score}),
                **({} if prompt.annotation_id is None else {"annotation_id": prompt.annotation_id}),
            }
        )  # fmt: skip
        if overlay is not None:
            drawn.append(mask)
    if overlay is not None and result.image is not None:
        from edgesam_jax.reporting.overlay import draw_all

        points = [[(x, y, k) for (x, y), k in zip(p.points, p.labels, strict=True)] for p in work.used]
        picture = draw_all(result.image, drawn, [p.box for p in work.used], points)
        overlay.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(overlay) as temporary:
            picture.save(temporary, "JPEG", quality=90)
    return entries


def _finish(
    output: Path, records: Rows, photos: int, rows: Sequence[SkippedRow], new: int, seconds: float,
    arguments: argparse.Namespace,
) -> Summary:  # fmt: skip
    """Write ``predictions.json`` and ``report.json``."""
    done = records.in_order()
    skipped = [*rows, *((kind, text) for row in done for kind, text in row["skipped"])]
    notes = list(dict.fromkeys(note for row in done for note in row.get("notes", ())))
    results = [entry for row in done for entry in row.get("results", ())]
    predicted = sum("results" in row for row in done)
    write_atomically(output / "predictions.json", json.dumps(results))
    report = {
        "checkpoint": str(arguments.checkpoint), "image": str(arguments.image), "prompts": str(arguments.prompts),
        "photos": predicted, "masks": len(results), "photos_without_prompts": photos - len(done),
        "skipped": skipped_report(skipped),
        "notes": notes[:LISTED],
    }  # fmt: skip
    write_atomically(output / "report.json", json.dumps(report, indent=1))
    for note in notes[:3]:
        print_note(note)
    return Summary(predicted, len(results), photos - len(done), new, seconds, skipped)


def lines_of(summary: Summary, output: str) -> list[str]:
    """Describe a run in a few lines."""
    rate = f" ({summary.new / summary.seconds:.2f} photos/s)" if summary.new and summary.seconds else ""
    lines = [f"{output}/predictions.json: {summary.masks} masks on {summary.photos} photos{rate}"]
    if summary.without_prompts:
        lines.append(f"{summary.without_prompts} photos have no prompts")
    if summary.skipped:
        lines.append(f"skipped: {reasons(summary.skipped)} (all in {output}/report.json)")
    return lines
