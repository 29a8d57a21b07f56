"""Annotations, detections and reports: fields of wrong types and ranges.  Whatever isn't used must leave a row."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.fuzz.cases import Case, command
from benchmarks.fuzz.damage import WRONG, damaged_bytes, paths, removed, replaced
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.scenes.scene import scene
from edgesam_jax.data.source import skipped_entries
from edgesam_jax.eval import __main__ as evaluate
from edgesam_jax.eval.scoring.photos import load

PHOTOS, SIDE = 3, 64
EVERY = 25  # one case in so many runs the whole command, the others the reader and the scoring's loader


def write(folder: Path) -> dict[str, Any]:
    """Write photos; return their annotations in COCO's format."""
    folder.mkdir()
    found, annotations = [], []
    for index in range(PHOTOS):
        example = scene(1, index, SIDE)
        Image.fromarray(example.image).save(folder / f"{index}.png")
        found.append({"id": index, "file_name": f"{index}.png", "height": SIDE, "width": SIDE})
        for k, (mask, box) in enumerate(zip(example.masks[:3], example.boxes.tolist(), strict=False)):
            code = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
            x0, y0, x1, y1 = box
            shape: Any = {"size": [SIDE, SIDE], "counts": code["counts"].decode()}
            if k == 1:
                shape = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append(
                {"id": 10 * index + k, "image_id": index, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": shape}
            )  # fmt: skip
    return {"images": found, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def _damaged(rng: random.Random, content: dict[str, Any], part: str) -> tuple[str, dict[str, Any], bool]:
    """Damage one entry of a list; return what was done, the result, and whether it is surely wrong."""
    number = rng.randrange(len(content[part]))
    entry = content[part][number]
    path, value = rng.choice(list(paths(entry))), rng.choice(WRONG)
    field = ".".join(map(str, path))
    if rng.random() < 0.2:
        # Other fields are optional, or a box or polygon with fewer numbers may be valid.
        wrong = len(path) == 1 and path[0] in ("image_id", "segmentation", "bbox", "height", "width", "file_name")
        return (
            f"{part}[{number}] without {field}",
            {**content, part: _with(content[part], number, removed(entry, path))},
            wrong,
        )
    changed = replaced(entry, path, value)
    wrong = not _allowed(path, value)
    return f"{part}[{number}].{field} = {value!r:.40}", {**content, part: _with(content[part], number, changed)}, wrong


def _allowed(path: tuple[Any, ...], value: Any) -> bool:
    """Whether a damaged value may be valid: crowds are left out, texts may be ids, an entry of a run may be fine."""
    if path[0] in ("iscrowd", "name"):
        return True
    if isinstance(value, str) and path[0] in ("image_id", "id", "file_name"):
        return True
    return len(path) > 1 and isinstance(value, bool | float)


def _with(entries: list[Any], number: int, entry: Any) -> list[Any]:
    return [*entries[:number], entry, *entries[number + 1 :]]


def coco(rng: random.Random, folder: Path) -> Iterator[Case]:
    """COCO files: damaged fields of photos and annotations, and damaged text."""
    content = write(folder)
    number = 0
    while True:
        number += 1
        file, output = folder / f"{number}.json", folder / f"report{number}.json"
        if rng.random() < 0.1:
            name, raw = damaged_bytes(rng, json.dumps(content).encode())
            file.write_bytes(raw)
            wrong = False
        else:
            name, changed, wrong = _damaged(rng, content, rng.choice(("annotations", "annotations", "images")))
            file.write_text(json.dumps(changed))
        whole = number % EVERY == 0
        yield Case(
            f"coco, {name}{', eval' if whole else ''}",
            (lambda file=file, output=output: _evaluated(file, output)) if whole else (lambda file=file: _read(file)),
            wrong, (output,),
        )  # fmt: skip
        file.unlink()


def _read(file: Path) -> bool:
    source = CocoSource(file.parent, file)
    rows = len(skipped_entries(source).rows)
    expected = sum(len(source.annotations(index)) for index in range(len(source)))
    used = 0
    for index in range(len(source)):
        used += len(load(source, index))
    return bool(rows) or used < expected


def _evaluated(file: Path, output: Path) -> bool:
    flags = ["--dataset", "coco", "--data-root", str(file.parent), "--annotations", str(file), "--prompt", "box"]
    ended = command(evaluate.main, [*flags, "--output", str(output), "--no-pictures", "--no-boundary"])
    for path in output.parent.glob(f"{output.stem}*"):
        if path.is_file():
            path.unlink()
    return "skipped" in ended.out + ended.err


def detections(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Files of a detector's boxes: an entry that can't be used is counted, and without any the command fails."""
    content = write(folder)
    (folder / "truth.json").write_text(json.dumps(content))
    sound = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5 + 0.01 * k}
        for k, a in enumerate(content["annotations"])
    ]
    number = 0
    while True:
        number += 1
        file = folder / f"det{number}.json"
        kind = rng.choice(("one", "all", "bytes"))
        if kind == "bytes":
            name, raw = damaged_bytes(rng, json.dumps(sound).encode())
            file.write_bytes(raw)
            wrong = False
        else:
            path, value = rng.choice(list(paths(sound[0]))), rng.choice(WRONG)
            chosen = range(len(sound)) if kind == "all" else [rng.randrange(len(sound))]
            changed = [replaced(entry, path, value) if k in chosen else entry for k, entry in enumerate(sound)]
            file.write_text(json.dumps(changed))
            finite = value == 1e308 and path == ("score",)
            name, wrong = f"{kind}: {path} = {value!r:.40}", not (finite or _allowed(path, value))
        flags = ["--dataset", "coco", "--data-root", str(folder), "--annotations", str(folder / "truth.json")]
        flags += ["--prompt", "detections", "--detections", str(file), "--no-boundary"]
        yield Case(f"detections, {name}", lambda flags=flags: _detected(flags), wrong)
        file.unlink()


def _detected(flags: list[str]) -> bool:
    ended = command(evaluate.main, flags)
    return "skipped" in ended.out + ended.err


def reports(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Reports given to ``eval compare``."""
    write_content = write(folder)
    (folder / "truth.json").write_text(json.dumps(write_content))
    flags = ["--dataset", "coco", "--data-root", str(folder), "--annotations", str(folder / "truth.json")]
    command(evaluate.main, [*flags, "--prompt", "box", "--output", str(folder / "a.json"), "--no-pictures"])
    sound = json.loads((folder / "a.json").read_text())
    places = list(paths(sound))
    # What compare reads; other fields of a report may hold anything.
    read = [path for path in places if any(key in ("iou", "images", "instances", "per_image") for key in path)]
    number = 0
    while True:
        number += 1
        file = folder / f"r{number}.json"
        if rng.random() < 0.2:
            name, raw = damaged_bytes(rng, json.dumps(sound).encode())
            file.write_bytes(raw)
        else:
            path, value = rng.choice(read or places), rng.choice(WRONG)
            file.write_text(json.dumps(replaced(copy.deepcopy(sound), path, value)))
            name = f"{path} = {value!r:.40}"
        yield Case(f"report, {name}", lambda file=file: _compared(folder / "a.json", file), wrong=False)
        file.unlink()


def _compared(a: Path, b: Path) -> bool:
    ended = command(evaluate.main, ["compare", str(a), str(b)])
    assert "nan" not in ended.out.lower(), "NaN in the comparison"
    return False
