"""What a run records for its model card: start, teacher, data, recipe, software."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesam_jax.checkpoints import provenance
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.provenance import PROVENANCE
from edgesam_jax.config import Config, to_json
from edgesam_jax.data.source import Part
from edgesam_jax.files import read_json, write_atomically
from edgesam_jax.train import parallel
from edgesam_jax.train.workdir import RunResult

NAMED = 100_000  # photos whose names are hashed; a larger set's would take minutes


def metadata_of(
    config: Config, workdir: Path, start: dict[str, str] | None, teacher: Model | None, parts: Sequence[Part]
) -> dict[str, Any]:
    """Return the metadata of a run's models, and write it into the run's folder; a resumed run reads it there.

    Args:
      start: the checkpoint that the run starts from, as ``provenance.origin`` describes it.
      parts: the data sets; empty if a program supplies the batches.

    Raises:
      UsageError: the file of a resumed run is damaged.
    """
    saved = workdir / PROVENANCE
    if saved.is_file():
        return dict(read_json(saved, "--workdir"))
    of_teacher = provenance.origin(config.teacher, teacher) if teacher is not None else None
    licence = provenance.inherited_licence((start, of_teacher))
    metadata = {
        **({"licence": licence} if licence else {}),
        "provenance": {
            "started_from": start, "teacher": of_teacher, "data": describe(config, parts),
            "recipe": provenance.without_paths(json.loads(to_json(config))), "versions": provenance.versions(),
            "commit": provenance.commit(),
        },
    }  # fmt: skip
    if parallel.is_first():
        write_atomically(saved, json.dumps(metadata, indent=1))
    return metadata


def describe(config: Config, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return kind, number of photos and the SHA-256 of their names for each data set."""
    described: list[dict[str, Any]] = []
    kinds = [entry.source for entry in config.data.mixture] or [config.data.source]
    for part, kind in zip(parts, kinds, strict=False):
        if kind == "scenes":
            described.append({"source": "generated scenes", "seed": config.data.seed})
            continue
        entry: dict[str, Any] = {"source": kind, "photos": len(part.source)}
        names = getattr(part.source, "names", None)
        if names is not None and len(part.source) <= NAMED:
            entry["sha256"] = hashlib.sha256("\n".join(map(str, names())).encode()).hexdigest()
        described.append(entry)
    return described


def with_metadata(result: RunResult, metadata: Mapping[str, Any]) -> Model:
    """Return a run's model with its metadata."""
    told = metadata["provenance"] | {"steps": result.step, "seconds": round(result.seconds, 1)}
    return dataclasses.replace(result.model, metadata={**result.model.metadata, **metadata, "provenance": told})
