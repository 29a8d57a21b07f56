"""Write inference checkpoints, as a folder or as one file."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.checkpoints.digest import digest_of, json_digest
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.orbax import alone, orbax, quiet, reason_of, remove_unfinished
from edgesam_jax.checkpoints.provenance import CARD, card
from edgesam_jax.config import UsageError
from edgesam_jax.files import atomic_file, atomic_folder

FORMAT = "edgesam_jax/1"


def save_model(path: str | Path, model: Model) -> Path:
    """Write an inference checkpoint folder with its model card, atomically; replace an earlier checkpoint at ``path``.

    Raises:
      UsageError: ``path`` contains other files than an inference checkpoint, or can't be written, for instance because
        the disk is full; an earlier checkpoint is unchanged.
    """
    path = Path(path).absolute()
    if path.exists() and not (path / "config.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path}: already contains other files; choose a new folder for the checkpoint")
    try:
        with atomic_folder(path) as folder:
            with quiet(), orbax().StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
                checkpointer.save(folder / "variables", model.variables)
            (folder / "config.json").write_text(_header(model, digest_of(model.variables)))
            (folder / CARD).write_text(card(model))
    except Exception as error:  # a full disk may raise tensorstore's, Orbax's or the system's types
        remove_unfinished(path.parent, f".{glob.escape(path.name)}.{os.getpid()}.*.part")
        raise UsageError(
            f"{path}: the checkpoint could not be saved ({reason_of(error)}); make room, then try again"
        ) from error
    return path


def save_model_file(path: str | Path, model: Model, dtype: Any = None) -> Path:
    """Write a model to one file, atomically; with ``dtype`` (such as float16), round its floats to that type."""
    from flax import serialization

    def leaf(value: Any) -> np.ndarray:
        value = np.asarray(value)
        return value.astype(dtype) if dtype is not None and np.issubdtype(value.dtype, np.floating) else value

    payload = serialization.msgpack_serialize(jax.tree.map(leaf, model.variables))
    header = {"format": FORMAT, "header": _header(model, hashlib.sha256(payload).hexdigest())}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(serialization.msgpack_serialize({**header, "payload": payload}))
    return path


def _header(model: Model, sha256: str) -> str:
    content = {
        "format": FORMAT,
        "model": dataclasses.asdict(model.config),
        "metadata": model.metadata,
        "sha256": sha256,
    }
    return json.dumps(content | {"own_sha256": json_digest(content)}, indent=1)
