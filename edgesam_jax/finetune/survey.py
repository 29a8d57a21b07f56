"""What a folder of labelled photos contains, before anything is trained on it."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.opening import kind_of_folder, open_source
from edgesam_jax.data.readers.coco import CocoSource, read_coco
from edgesam_jax.data.readers.id_list import photo_ids
from edgesam_jax.data.readers.records import decode_record
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow, Source, reasons, skipped_entries

FILLS = 0.95  # of the photo's pixels: a mask that covers more is rarely an object
FORMS = {".json": "labelme's or SA-1B's JSON", ".txt": "YOLO's text files", "": "folders of masks"}
TINY = 32 * 32  # pixels; COCO calls such objects small


@dataclass(frozen=True)
class Photo:
    """A usable photo: its id in lists, the SHA-256 of its file, (rows, columns), and its masks' areas in pixels."""

    id: str
    sha256: str
    size: tuple[int, int]
    areas: tuple[int, ...]


@dataclass(frozen=True)
class Survey:
    """The contents of a data set.

    Attributes:
      data: how the photos are opened.
      form: the format in words.
      photos: those that can be used, in the data set's order.
      skipped: kind and message of photos and annotations that can't.
      categories: number of masks by the name of their class, where the format has classes.
    """

    data: DataConfig
    form: str
    photos: tuple[Photo, ...]
    skipped: tuple[SkippedRow, ...]
    categories: dict[str, int]

    @property
    def duplicates(self) -> list[tuple[str, ...]]:
        """Ids of photos whose files are the same, byte for byte."""
        groups: dict[str, list[str]] = {}
        for photo in self.photos:
            groups.setdefault(photo.sha256, []).append(photo.id)
        return [tuple(ids) for ids in groups.values() if len(ids) > 1]

    def text(self) -> str:
        """Return the survey in words, a line for each finding."""
        areas = np.array([area for photo in self.photos for area in photo.areas])
        shares = np.array([area / (p.size[0] * p.size[1]) for p in self.photos for area in p.areas])
        sides = [max(photo.size) for photo in self.photos]
        counts = [len(photo.areas) for photo in self.photos]
        lines = [
            f"{self.data.root}: {self.form}",
            f"  {len(self.photos)} photos can be used, longest side {_spread(sides)} px",
            f"  {len(areas)} masks, {_spread(counts)} in a photo; area {_spread(areas.tolist())} px,"
            f" {(areas < TINY).mean():.0%} below 32 x 32",
        ]
        if self.categories:
            listed = sorted(self.categories.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {number}" for name, number in listed[:8])
            lines.append(f"  {len(listed)} classes: {shown}{', ...' if len(listed) > 8 else ''}")
        if filling := int((shares > FILLS).sum()):
            lines.append(f"  {filling} masks fill more than {FILLS:.0%} of their photo: are these objects?")
        if same := self.duplicates:
            lines.append(
                f"  {sum(map(len, same))} files are {len(same)} photos, stored twice or more: {', '.join(same[0])}"
            )
        if self.skipped:
            lines.append(f"  {len(self.skipped)} photos and annotations are not used: {reasons(self.skipped)}")
        return "\n".join(lines)


def find(root: str | Path, annotations: str = "", pixel_range: str = "auto") -> tuple[DataConfig, str]:
    """Find out in which format a folder's photos are labelled; return how to open it, and the format in words.

    Raises:
      UsageError: no such folder, or several files in COCO's format.
    """
    folder = Path(root)
    if not str(root) or not folder.is_dir():
        raise UsageError(f"--data {root}: no such folder; pass the folder of the labelled photos")
    files = [annotations] if annotations else _coco_files(folder)
    if len(files) > 1:
        names = ", ".join(Path(file).name for file in files[:4])
        raise UsageError(f"--data {root}: several files in COCO's format ({names}); pass one with --annotations")
    if files:
        return DataConfig(source="coco", root=str(root), annotations=files[0], pixel_range=pixel_range), "COCO's JSON"
    kind = kind_of_folder(root)
    forms = {"prepared": "written by edgesam_jax.prepare", "tars": "SA-1B's tar files"}
    return DataConfig(source=kind, root=str(root), pixel_range=pixel_range), forms.get(kind, "")


def _coco_files(folder: Path) -> list[str]:
    """Return the files in COCO's format in a folder and in its ``annotations/``."""
    found = []
    for path in (path for sub in ("", "annotations") for path in sorted((folder / sub).glob("*.json"))):
        if any(path.with_suffix(suffix).exists() for suffix in (".jpg", ".jpeg", ".png")):
            continue  # of one photo
        with contextlib.suppress(UsageError):
            read_coco(path)
            found.append(str(path))
    return found


def survey(root: str | Path, annotations: str = "", pixel_range: str = "auto") -> Survey:
    """Read all photos of a folder once, and describe them.

    Raises:
      UsageError: no such folder, or none of its photos can be used.
    """
    data, form = find(root, annotations, pixel_range)
    source = open_source(data, 0, "heldout")
    if not source.annotated:
        raise UsageError(
            f"--data {root}: no photo in it has annotations; COCO's JSON, labelme's files, YOLO's text files, or PNG"
            " masks are read (docs/data.md)"
        )
    ids = photo_ids(source, str(root))
    photos: list[Photo] = []
    skipped = list(skipped_entries(source).rows)
    forms: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    for index in tqdm(range(len(source)), unit="photo", desc="reading", leave=False):
        try:
            record = source.record(index)  # type: ignore[attr-defined]
            example = decode_record(record)
        except BadExample as error:
            skipped.append((error.kind, str(error)))
            continue
        skipped += example.skipped
        if not len(example):
            continue
        forms[Path(record.where).suffix] += 1
        areas = tuple(int(area) for area in example.masks.sum((1, 2)))
        digest = hashlib.sha256(record.photo).hexdigest()
        photos.append(Photo(ids[index], digest, (example.image.shape[0], example.image.shape[1]), areas))
        categories.update(_categories(source, record.annotations))
    if not photos:
        raise UsageError(f"--data {root}: none of its {len(source)} photos can be used: {reasons(skipped)}")
    if data.source == "images":
        kinds = {
            ".json": "labelme's or SA-1B's JSON",
            ".txt": "YOLO's text files",
            "folder of masks": "folders of masks",
        }
        form = ", ".join(f"{kinds.get(suffix, 'pictures of masks')} ({n})" for suffix, n in forms.most_common())
    return Survey(data, form, tuple(photos), tuple(skipped), dict(categories))


def _categories(source: Source, annotations: Sequence[dict[str, Any]]) -> list[str]:
    names = source.categories if isinstance(source, CocoSource) else {}
    numbers = [entry["category_id"] for entry in annotations if isinstance(entry.get("category_id"), int)]
    return [names.get(number, f"class {number}") for number in numbers]


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (int(v) for v in np.quantile(values, (0, 0.5, 1)))
    return f"{low}" if low == high else f"{low} to {high} (median {middle})"
