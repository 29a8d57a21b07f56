"""Weights on disk: inference checkpoints, the single-file form, and training checkpoints with resume.

    DIR/config.json, DIR/variables/                              inference checkpoint (``save_model``)
    NAME.msgpack                                                 the same in one small file (``save_model_file``)
    WORKDIR/checkpoints/STEP/{variables,optimizer,extra}/        training (``TrainCheckpointer``)

``load_model`` reads all of them, and published .pth and .safetensors files.  Orbax is imported where it is used, so
that a start from a single file does without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import Config, SamConfig, UsageError, from_json, to_json
from edgesam_jax.types import TrainState

FORMAT = "edgesam_jax/1"
TINY_TEACHER = "tiny_teacher"
COLLECTIONS = ("params", "batch_stats", "constants")
CHECKPOINTS = "checkpoints"


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
        with _quiet(), _orbax().StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
            checkpointer.save(fresh / "variables", model.variables)
        (fresh / "config.json").write_text(_header(model, _digest(model.variables)))
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


def _digest(tree: Any) -> str:
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
    kept = dataclasses.asdict(model.config.encoder), model.config.image_size, model.config.embed_dim
    return hashlib.sha256(f"{_digest(parts)} {json.dumps(kept)}".encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- loading


def load_model(path: str | Path) -> Model:
    """Load a model for inference, as float32 numpy arrays.

    Args:
      path: an inference checkpoint folder, a training workdir or one of its checkpoints (the newest is taken), a
        .msgpack file, a published .pth or .safetensors file, or "tiny_teacher" for the embedded model.

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
        step = _newest_step(path)
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
    if _digest(variables) != sha256:
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
    if _digest(variables) != sha256:
        raise UsageError(f"checkpoint {step}: damaged (its arrays do not match their checksum)")
    return Model(config.model, _float32(variables), {"source": str(step), "score": score_kind(config)})


def score_kind(config: Config) -> str:
    """Which score fits a model trained so: the IoU head's only where that head was trained."""
    return "iou" if config.distill.loss.iou > 0 else "stability"


def _float32(variables: dict[str, Any]) -> dict[str, Any]:
    def leaf(value: Any) -> np.ndarray:
        return value.astype(np.float32) if value.dtype in (np.float16, "bfloat16") else value

    return jax.tree.map(leaf, variables)


def _newest_step(path: Path) -> Path | None:
    """The newest complete step folder in a workdir, in its checkpoint folder, or ``path`` if it is one itself."""
    if (path / "extra").is_dir() and (path / "variables").is_dir():
        return path
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir():
            steps = [p for p in folder.iterdir() if p.name.isdigit() and (p / "variables").is_dir()]
            if steps:
                return max(steps, key=lambda p: int(p.name))
    return None


# ---------------------------------------------------------------------------------------------------- orbax


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


def _alone() -> Any:
    """Options for a process of a job that saves by itself: Orbax would wait for the others."""
    own = jax.process_index()
    return _orbax().options.MultiprocessingOptions(
        primary_host=own, active_processes={own} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"alone{own}" if jax.process_count() > 1 else None,
    )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports its routine through absl at the warning level."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _restore_numpy(folder: Path, where: Path) -> Any:
    """Restore a tree of any structure as numpy arrays, whatever devices wrote it."""
    ocp = _orbax()
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            index = checkpointer.metadata(folder).item_metadata
            if index is None:
                raise ValueError("its index cannot be read")
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), index.tree)
            return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except Exception as error:  # orbax, tensorstore and json each have their own
        first = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"checkpoint {where}: damaged ({type(error).__name__}: {first})") from error


class TrainCheckpointer:
    """Training checkpoints in ``workdir/checkpoints``: the whole state, the config, and the position in the data.

    A step appears under its number only when it is complete.  Saving is synchronous: the state may be donated to
    the next step right after.
    """

    def __init__(self, workdir: str | Path, keep: int = 2) -> None:
        ocp = _orbax()
        self.directory = Path(workdir).absolute() / CHECKPOINTS
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
        with _quiet():
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: TrainState, config: Config, data: dict[str, Any] | None = None) -> None:
        """Save ``state`` as ``step`` (nothing is done where that step exists); ``data`` is plain JSON."""
        if step in self._manager.all_steps():
            return
        ocp = _orbax()
        variables = {name: getattr(state, name) for name in COLLECTIONS}
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        sha256 = {"variables": _digest(variables), "optimizer": _digest(optimizer)}
        if jax.process_count() > 1:  # pmap gives host-local arrays, which orbax refuses in a multi-process job
            to_global = ocp.utils.fully_replicated_host_local_array_to_global_array
            variables, optimizer = jax.tree.map(to_global, (variables, optimizer))
        items = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            optimizer=ocp.args.StandardSave(optimizer),
            extra=ocp.args.JsonSave({"config": to_json(config), "data": data or {}, "sha256": sha256}),
        )
        with _quiet():
            self._manager.save(step, args=items, force=True)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, template: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any], Config]:
        """Restore the newest (or the named) step as numpy arrays in the structure of ``template``.

        Returns:
          The state, the data position given to ``save``, and the config it was saved with.

        Raises:
          UsageError: no checkpoint, a damaged one, or one whose arrays are not those of ``template``.
        """
        ocp = _orbax()
        step = self.latest_step() if step is None else step
        if step is None:
            raise UsageError(f"{self.directory}: no checkpoint to resume from")
        folder = self.directory / str(step)
        blank = jax.tree.map(lambda x: np.empty(np.shape(x), x.dtype), template)
        targets = {
            "variables": {name: getattr(blank, name) for name in COLLECTIONS},
            "optimizer": {"step": blank.step, "opt_state": blank.opt_state},
        }
        try:
            with _quiet(), ocp.StandardCheckpointer() as checkpointer:
                parts = {name: checkpointer.restore(folder / name, tree) for name, tree in targets.items()}
            extra = json.loads((folder / "extra" / "metadata").read_text())
            for name, tree in parts.items():
                if _digest(tree) != extra["sha256"][name]:
                    raise ValueError(f"its {name} do not match their checksum")
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise UsageError(
                f"checkpoint {folder}: damaged, or of another model or optimizer ({type(error).__name__}: {first})"
            ) from error
        state = dataclasses.replace(template, **parts["variables"], **parts["optimizer"])
        return state, extra["data"], from_json(Config, extra["config"], f"checkpoint {folder}")

    def close(self) -> None:
        """Wait for what is under way and release the folder."""
        self._manager.close()

    def __enter__(self) -> TrainCheckpointer:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
