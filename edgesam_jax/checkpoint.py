"""Weights on disk: inference checkpoints, the single-file form, and the weights of training checkpoints.

    DIR/config.json, DIR/variables/                              inference checkpoint (``save_model``)
    NAME.msgpack                                                 the same in one small file (``save_model_file``)
    WORKDIR/checkpoints/STEP/{variables,optimizer,extra}/        training (``train_checkpoint``)

``load_model`` reads all of them, and published .pth and .safetensors files.  Orbax is imported where it is used, so
that a start from a single file does without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import Config, SamConfig, UsageError, from_json

FORMAT = "edgesam_jax/1"
TINY_TEACHER = "tiny_teacher"
COLLECTIONS = ("params", "batch_stats", "constants")
CHECKPOINTS = "checkpoints"
BACKBONE = "backbone"  # metadata["holds"] of ImageNet weights of an encoder: a start for stage 1, and no model yet


@dataclass(frozen=True, eq=False)
class Model:
    """Weights with what is needed to use them.

    ``variables`` has the collections ``params``, ``batch_stats`` and ``constants``.  ``metadata``: ``source`` (text),
    ``score`` ("iou": the IoU head was trained; "stability": it was not, rate masks by their stability), and whatever a
    converter needs for the way back.
    """

    config: SamConfig
    variables: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------- saving


def save_model(path: str | Path, model: Model) -> Path:
    """Write an inference checkpoint folder.  Written beside and renamed; an earlier checkpoint there is replaced.

    Raises:
      UsageError: ``path`` holds something other than an inference checkpoint.
    """
    path = Path(path).absolute()
    if path.exists() and not (path / "config.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path}: holds something else; name a new folder for the checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.mkdir()
        with quiet(), orbax().StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
            checkpointer.save(fresh / "variables", model.variables)
        (fresh / "config.json").write_text(_header(model, digest_of(model.variables)))
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            fresh.rename(path)
            shutil.rmtree(old)
        else:
            fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return path


def save_model_file(path: str | Path, model: Model, dtype: Any = None) -> Path:
    """Write a model into one file; with ``dtype`` (say float16) its floats are rounded to that.  Atomic."""
    from flax import serialization

    def leaf(value: Any) -> np.ndarray:
        value = np.asarray(value)
        return value.astype(dtype) if dtype is not None and np.issubdtype(value.dtype, np.floating) else value

    payload = serialization.msgpack_serialize(jax.tree.map(leaf, model.variables))
    header = {"format": FORMAT, "header": _header(model, hashlib.sha256(payload).hexdigest())}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.write_bytes(serialization.msgpack_serialize({**header, "payload": payload}))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _header(model: Model, sha256: str) -> str:
    content = {
        "format": FORMAT,
        "model": dataclasses.asdict(model.config),
        "metadata": model.metadata,
        "sha256": sha256,
    }
    return json.dumps(content, indent=1)


def digest_of(tree: Any) -> str:
    """SHA-256 over names, shapes, types and bytes.  Orbax gives flipped bits back without a word."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def encoder_digest(model: Model) -> str:
    """SHA-256 of what an embedding depends on: the image encoder's weights and its config."""
    parts = {name: tree["image_encoder"] for name, tree in model.variables.items() if "image_encoder" in tree}
    encoder = {name: value for name, value in dataclasses.asdict(model.config.encoder).items() if name != "remat"}
    kept = encoder, model.config.image_size, model.config.embed_dim
    return hashlib.sha256(f"{digest_of(parts)} {json.dumps(kept)}".encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- loading


def load_model(path: str | Path) -> Model:
    """Load a model for inference, as float32 numpy arrays.

    Args:
      path: an inference checkpoint folder, a training workdir or one of its checkpoints (the newest is taken), a
        .msgpack file, a published .pth or .safetensors file, or "tiny_teacher" for the embedded model.

    Raises:
      UsageError: nothing there, something of another kind, a damaged file, or the backbone of a model alone.
    """
    model = load_weights(path)
    if model.metadata.get("holds") == BACKBONE:
        raise UsageError(f"checkpoint {path}: ImageNet weights of a backbone, no model yet; train with train.init_from")
    return model


def load_weights(path: str | Path) -> Model:
    """As ``load_model``, but the backbone of a model alone is taken too.

    Raises:
      UsageError: nothing there, something of another kind, or a damaged file.
    """
    if str(path) == TINY_TEACHER:
        return _load_file(Path(__file__).parent / "assets" / f"{TINY_TEACHER}.msgpack")
    path = Path(path).absolute()
    if not path.exists():
        raise UsageError(f"checkpoint {path}: no such file or folder")
    if path.is_dir():
        if (path / "config.json").is_file() and (path / "variables").is_dir():
            return _load_folder(path)
        step = newest_step(path)
        if step is None:
            raise UsageError(f"checkpoint {path}: the folder holds no checkpoint of edgesam_jax")
        return _load_training(step)
    if path.suffix == ".msgpack":
        return _load_file(path)
    if path.suffix in (".pth", ".pt", ".safetensors"):
        try:
            from convert.from_torch import load_published
        except ImportError as error:
            raise UsageError(
                f"checkpoint {path}: reading it needs PyTorch: pip install 'edgesam-jax[convert]'"
            ) from error
        return load_published(path)
    raise UsageError(f"checkpoint {path}: not a checkpoint (a folder, .msgpack, .pth or .safetensors is)")


def _load_file(path: Path) -> Model:
    from flax import serialization

    if not path.is_file():
        raise UsageError(f"checkpoint {path}: no such file")
    try:
        content = serialization.msgpack_restore(path.read_bytes())
        payload = content["payload"]
        intact = content["format"] == FORMAT
        config, metadata, sha256 = _read_header(content["header"], path)
    except UsageError:
        raise
    except Exception:  # msgpack's are many
        intact = False
    if not intact or hashlib.sha256(payload).hexdigest() != sha256:
        raise UsageError(f"checkpoint {path}: damaged, or not written by edgesam_jax")
    return Model(config, _float32(serialization.msgpack_restore(payload)), metadata)


def _load_folder(path: Path) -> Model:
    config, metadata, sha256 = _read_header((path / "config.json").read_text(errors="replace"), path)
    variables = _restore_numpy(path / "variables", path)
    if digest_of(variables) != sha256:
        raise UsageError(f"checkpoint {path}: damaged (its arrays do not match their checksum)")
    return Model(config, _float32(variables), metadata)


def _read_header(text: str, path: Path) -> tuple[SamConfig, dict[str, Any], str]:
    try:
        content = json.loads(text)
        config, metadata, sha256 = json.dumps(content["model"]), dict(content["metadata"]), str(content["sha256"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"checkpoint {path}: its config is damaged") from None
    return from_json(SamConfig, config, f"checkpoint {path}"), metadata, sha256


def _load_training(step: Path) -> Model:
    try:
        extra = json.loads((step / "extra" / "metadata").read_text())
        text, sha256 = extra["config"], extra["sha256"]["variables"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"checkpoint {step}: its config is damaged") from None
    config = from_json(Config, text, f"checkpoint {step}")
    variables = _restore_numpy(step / "variables", step)
    if digest_of(variables) != sha256:
        raise UsageError(f"checkpoint {step}: damaged (its arrays do not match their checksum)")
    return Model(config.model, _float32(variables), {"source": str(step), "score": score_kind(config)})


def score_kind(config: Config) -> str:
    """Which score fits a model trained so: the IoU head's only where that head was trained."""
    return "iou" if config.distill.loss.iou > 0 else "stability"


def _float32(variables: dict[str, Any]) -> dict[str, Any]:
    def leaf(value: Any) -> np.ndarray:
        return value.astype(np.float32) if value.dtype in (np.float16, "bfloat16") else value

    return jax.tree.map(leaf, variables)


def newest_step(path: Path, at_most: int | None = None) -> Path | None:
    """The newest complete step folder in a workdir, in its checkpoint folder, or ``path`` if it is one itself."""
    if (path / "extra").is_dir() and (path / "variables").is_dir():
        return path
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir():
            steps = [p for p in folder.iterdir() if p.name.isdigit() and (p / "variables").is_dir()]
            steps = [p for p in steps if at_most is None or int(p.name) <= at_most]
            if steps:
                return max(steps, key=lambda p: int(p.name))
    return None


# ---------------------------------------------------------------------------------------------------- orbax


@functools.cache
def orbax() -> Any:
    import orbax.checkpoint

    before = sys.unraisablehook

    def unraisable(caught: Any) -> None:
        # Tensorstore's threads report each array of a read or write that failed, after orbax has raised the first.
        if not (isinstance(caught.exc_value, RuntimeError) and str(caught.exc_value) == "Event loop is closed"):
            before(caught)

    sys.unraisablehook = unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the same, of tasks that nobody waited for
    return orbax.checkpoint


def alone() -> Any:
    """Options for a process of a job that saves by itself: Orbax would wait for the others."""
    own = jax.process_index()
    return orbax().options.MultiprocessingOptions(
        primary_host=own, active_processes={own} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"alone{own}" if jax.process_count() > 1 else None,
    )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Orbax reports its routine through absl, and errors with their traces before it raises them."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _restore_numpy(folder: Path, where: Path) -> Any:
    """Restore a tree of any structure as numpy arrays, whatever devices wrote it."""
    ocp = orbax()
    try:
        with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            index = checkpointer.metadata(folder).item_metadata
            if index is None:
                raise ValueError("its index cannot be read")
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), index.tree)
            return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except Exception as error:  # orbax, tensorstore and json each have their own
        first = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"checkpoint {where}: damaged ({type(error).__name__}: {first})") from error
