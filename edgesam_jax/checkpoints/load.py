"""Load models from inference checkpoints, training checkpoints and published files.

    DIR/config.json, DIR/variables/                              inference checkpoint (``save_model``)
    NAME.msgpack                                                 the same as one file (``save_model_file``)
    WORKDIR/checkpoints/STEP/{variables,optimizer,extra}/        training checkpoint (``checkpoints.training``)

``load_model`` reads all of them, and files of other systems (``suffixes.PUBLISHED``). Orbax is imported only when it is
needed: loading a single file doesn't need it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.checkpoints.digest import digest_of, json_digest
from edgesam_jax.checkpoints.model import BACKBONE, Model, score_kind
from edgesam_jax.checkpoints.orbax import restore_numpy
from edgesam_jax.checkpoints.provenance import PROVENANCE
from edgesam_jax.checkpoints.save import FORMAT
from edgesam_jax.checkpoints.steps import newest_step
from edgesam_jax.checkpoints.suffixes import PUBLISHED, any_of
from edgesam_jax.config import Config, SamConfig, UsageError, check_values, from_json
from edgesam_jax.config.parse import from_plain
from edgesam_jax.files import is_file, is_folder, parse_json, read_json

TINY_TEACHER, TINY_STUDENT = "tiny_teacher", "tiny_student"
BUNDLED = (TINY_TEACHER, TINY_STUDENT)
ENCODER = "image_encoder"
ASSETS = Path(__file__).parents[1] / "assets"
LICENCE = "Apache-2.0"  # of the bundled models, as of this package


def load_model(path: str | Path) -> Model:
    """Load a model for inference, as float32 numpy arrays.

    Args:
      path: an inference checkpoint folder; a training workdir (its newest checkpoint is loaded) or one of its
        checkpoints; a .msgpack file; a published file (the suffixes in ``suffixes.PUBLISHED``); or one of the bundled
        models, "tiny_teacher" and "tiny_student".

    Raises:
      UsageError: no such file, another kind of file, a damaged file, or only a model's backbone.
    """
    model = load_weights(path)
    if model.metadata.get("holds") == BACKBONE:
        raise UsageError(
            f"checkpoint {path}: ImageNet weights of a backbone, not a complete model; train one with train.init_from"
        )
    return model


def load_weights(path: str | Path) -> Model:
    """Load a model as ``load_model`` does, but also accept files with only a model's backbone.

    Raises:
      UsageError: no such file, another kind of file, or a damaged file.
    """
    if str(path) in BUNDLED:
        return _load_bundled(str(path))
    path = Path(path).absolute()
    if is_folder(path, "checkpoint"):
        if (path / "config.json").is_file() and (path / "variables").is_dir():
            return _load_folder(path)
        step = newest_step(path)
        if step is None:
            found = [entry.name for entry in sorted(path.iterdir()) if entry.suffix in (".msgpack", *PUBLISHED)]
            remedy = f"; pass the file itself: {path / found[0]}" if found else ""
            raise UsageError(f"checkpoint {path}: the folder contains no checkpoint of edgesam_jax{remedy}")
        return _load_training(step)
    if not is_file(path, "checkpoint"):
        raise UsageError(f"checkpoint {path}: no such file or folder")
    if path.suffix == ".msgpack":
        return _load_file(path)
    if path.suffix in PUBLISHED:
        from edgesam_jax.checkpoints.published.read import load_published

        return load_published(path)
    raise UsageError(
        f"checkpoint {path}: not a checkpoint; expected a folder, or a {any_of((*PUBLISHED, '.msgpack'))} file"
    )


def _load_bundled(name: str) -> Model:
    """Load a model of the package; the student's file has its encoder alone, and its decoder is the teacher's."""
    model = _load_file(ASSETS / f"{name}.msgpack")
    variables = model.variables
    if name == TINY_STUDENT:
        teacher = _load_file(ASSETS / f"{TINY_TEACHER}.msgpack").variables
        variables = {
            kind: {**{part: tree for part, tree in teacher.get(kind, {}).items() if part != ENCODER}, **variables[kind]}
            for kind in variables
        }
    return dataclasses.replace(model, variables=variables, metadata={"licence": LICENCE, **model.metadata})


def _load_file(path: Path) -> Model:
    from flax import serialization

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"checkpoint {path}: cannot be read ({error.strerror})") from None
    try:
        content = serialization.msgpack_restore(data)
        payload = content["payload"]
        intact = content["format"] == FORMAT
        config, metadata, sha256 = _read_header(parse_json(content["header"], f"checkpoint {path}"), path)
    except UsageError:
        raise
    except Exception:  # msgpack raises many types
        intact = False
    if not intact or hashlib.sha256(payload).hexdigest() != sha256:
        raise UsageError(f"checkpoint {path}: damaged, or not written by edgesam_jax")
    return Model(config, _float32(serialization.msgpack_restore(payload)), metadata)


def _load_folder(path: Path) -> Model:
    config, metadata, sha256 = _read_header(read_json(path / "config.json", "checkpoint"), path)
    variables = restore_numpy(path / "variables", path)
    if digest_of(variables) != sha256:
        raise UsageError(f"checkpoint {path}: damaged (its arrays don't match their checksum)")
    return Model(config, _float32(variables), metadata)


def _read_header(content: Any, path: Path) -> tuple[SamConfig, dict[str, Any], str]:
    try:
        plain, metadata, sha256 = content["model"], dict(content["metadata"]), str(content["sha256"])
        own = content.pop("own_sha256", None)  # older checkpoints don't have it
        intact = own is None or own == json_digest(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"checkpoint {path}: its config is damaged") from None
    config = from_plain(SamConfig, plain, f"checkpoint {path}")
    check_values(config, f"checkpoint {path}: ")
    if not intact:
        raise UsageError(f"checkpoint {path}: damaged (its config doesn't match its checksum)")
    return config, metadata, sha256


def _load_training(step: Path) -> Model:
    try:
        extra = read_json(step / "extra" / "metadata", "checkpoint")
        text, sha256 = str(extra["config"]), extra["sha256"]["variables"]
        own = extra.pop("own_sha256", None)  # older checkpoints don't have it
        intact = own is None or own == json_digest(extra)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"checkpoint {step}: its config is damaged") from None
    config = from_json(Config, text, f"checkpoint {step}")
    check_values(config.model, f"checkpoint {step}: ")
    if not intact:
        raise UsageError(f"checkpoint {step}: damaged (its config or position don't match their checksum)")
    variables = restore_numpy(step / "variables", step)
    if digest_of(variables) != sha256:
        raise UsageError(f"checkpoint {step}: damaged (its arrays don't match their checksum)")
    source = f"{step.parent.parent.name}, step {step.name}"
    metadata = {"source": source, "score": score_kind(config), **_provenance_of(step)}
    return Model(config.model, _float32(variables), metadata)


def _provenance_of(step: Path) -> dict[str, Any]:
    """Return the metadata that a run keeps beside its checkpoints: the provenance and the licence."""
    path = step.parent.parent / PROVENANCE
    if not path.is_file():
        return {}
    content: dict[str, Any] = read_json(path, "checkpoint")
    return {**content, "provenance": {**content["provenance"], "steps": int(step.name)}}


def _float32(variables: dict[str, Any]) -> dict[str, Any]:
    def leaf(value: Any) -> np.ndarray:
        return value.astype(np.float32) if value.dtype in (np.float16, "bfloat16") else value

    return jax.tree.map(leaf, variables)
