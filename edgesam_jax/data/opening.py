"""What a data set has to offer, and the scenes as one."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.scenes.source import ScenesSource
from edgesam_jax.data.source import Part, Source, Split


def open_parts(data: DataConfig, image_size: int, split: Split = "train") -> list[Part]:
    """The parts of the mixture that a config names, or its only source as one.

    Raises:
      UsageError: see ``open_source``; or a weight that is not above 0.
    """
    if not data.mixture:
        return [Part(open_source(data, image_size, split))]
    parts = []
    for number, entry in enumerate(data.mixture):
        if not entry.weight > 0:
            raise UsageError(f"data.mixture[{number}].weight={entry.weight}: it must be above 0")
        own = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "weight"}
        parts.append(Part(open_source(replace(data, mixture=(), **own), image_size, split), entry.weight))
    return parts


def open_source(data: DataConfig, image_size: int, split: Split = "train") -> Source:
    """The source that a config names.

    Scenes are drawn at ``image_size``.  Photographs have one split only: held-out ones are another ``root``.

    Raises:
      UsageError: a folder or annotation file that is missing, empty or damaged; or a list of photos that does not fit.
    """
    if data.ids:
        from edgesam_jax.data.readers.id_list import ChosenSource

        whole = _open(replace(data, limit=0), image_size, split)
        source: Source = ChosenSource(whole, Path(data.ids), f"{data.source} {data.root}", data.limit)
    else:
        source = _open(data, image_size, split)
    if data.unlabelled != "none" and not source.annotated:
        from edgesam_jax.data.readers.unlabelled import GuessedSource

        return GuessedSource(source, data.unlabelled)
    return source


def kind_of_folder(root: str | Path) -> Literal["prepared", "tars", "images"]:
    """How photos with annotations of their own lie in a folder: as ``prepare`` wrote them, in tars, or side by side."""
    if (Path(root) / "dataset_info.json").is_file():
        return "prepared"
    return "tars" if any(Path(root).glob("*.tar")) else "images"


def _open(data: DataConfig, image_size: int, split: Split) -> Source:
    if data.source == "scenes":
        return ScenesSource(data.seed, image_size, data.scene_difficulty, split, data.limit, data.scene_granularity)
    if data.source == "coco":
        from edgesam_jax.data.readers.coco import CocoSource

        return CocoSource(data.root, data.annotations, data.limit)
    if data.source == "tars":
        from edgesam_jax.data.readers.tars import TarsSource

        return TarsSource(data.root, data.subset, limit=data.limit)
    if data.source == "prepared":
        from edgesam_jax.data.readers.prepared import PreparedSource

        return PreparedSource(data.root, data.split, data.limit)
    from edgesam_jax.data.readers.images import ImagesSource

    return ImagesSource(data.root, data.limit)
