"""The factory of data sets: from ``DataConfig`` to a ``Source``, or to the weighted parts of a mixture."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.pixels import AUTO
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.readers.id_list import SelectedSource
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.readers.prepared import PreparedSource, read_manifest
from edgesam_jax.data.readers.ranged import with_pixel_range
from edgesam_jax.data.readers.tars import TarsSource
from edgesam_jax.data.readers.unlabelled import GuessedSource
from edgesam_jax.data.scenes.source import ScenesSource
from edgesam_jax.data.source import Part, Source, Split


def open_parts(data: DataConfig, image_size: int, split: Split = "train") -> list[Part]:
    """Open the parts of the mixture that a config describes, or its only source as a single part.

    Raises:
      UsageError: see ``open_source``; or a weight is not above 0.
    """
    if not data.mixture:
        return [Part(open_source(data, image_size, split))]
    parts = []
    for number, entry in enumerate(data.mixture):
        if not entry.weight > 0:
            raise UsageError(f"data.mixture[{number}].weight={entry.weight}: must be above 0")
        settings = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "weight"}
        parts.append(Part(open_source(replace(data, mixture=(), **settings), image_size, split), entry.weight))
    return parts


def open_source(data: DataConfig, image_size: int, split: Split = "train") -> Source:
    """Open the source that a config describes.

    Scenes are drawn at ``image_size``.  ``split`` applies to scenes only; held-out photographs have their own ``root``.

    Raises:
      UsageError: a folder or annotation file is missing, empty or damaged; a list of photos doesn't match the data; or
        prepared photos were checked with another range of pixels.
    """
    if data.ids:
        every_photo = _open(replace(data, limit=0), image_size, split)
        source: Source = SelectedSource(every_photo, Path(data.ids), f"{data.source} {data.root}", data.limit)
    else:
        source = _open(data, image_size, split)
    source = with_pixel_range(source, data.pixel_range)
    if data.unlabelled != "none" and not source.annotated:
        return GuessedSource(source, data.unlabelled)
    return source


def kind_of_folder(root: str | Path) -> Literal["prepared", "tars", "images"]:
    """Return the source kind of a folder of annotated photos: written by ``prepare``, in tars, or plain files."""
    if (Path(root) / "dataset_info.json").is_file():
        return "prepared"
    return "tars" if any(Path(root).glob("*.tar")) else "images"


def _open(data: DataConfig, image_size: int, split: Split) -> Source:
    if data.source == "scenes":
        return ScenesSource(data.seed, image_size, data.scene_difficulty, split, data.limit, data.scene_granularity)
    if data.source == "coco":
        return CocoSource(data.root, data.annotations, data.limit)
    if data.source == "tars":
        return TarsSource(data.root, data.subset, limit=data.limit)
    if data.source == "prepared":
        return _open_prepared(data)
    return ImagesSource(data.root, data.limit)


def _open_prepared(data: DataConfig) -> PreparedSource:
    """Open a prepared data set; its photos must be read with the range of pixels that they were checked with."""
    source = PreparedSource(data.root, data.split, data.limit)
    checked = read_manifest(Path(data.root)).get("settings", {}).get("data", {}).get("pixel_range", AUTO)
    if checked != data.pixel_range:
        raise UsageError(
            f"{data.root}: prepared with --pixel-range {checked}, but data.pixel_range is {data.pixel_range}; set it to"
            f" {checked} (eval, embed: --pixel-range {checked}), or prepare the data set again"
        )
    return source
