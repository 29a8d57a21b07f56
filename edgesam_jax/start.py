"""What a run starts from, in this order: its own workdir, another run, the weights of a checkpoint, nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from edgesam_jax import parallel
from edgesam_jax.checkpoints import training
from edgesam_jax.checkpoints.digest import encoder_digest
from edgesam_jax.checkpoints.load import load_weights
from edgesam_jax.checkpoints.model import BACKBONE, Model
from edgesam_jax.checkpoints.steps import CHECKPOINTS, newest_step
from edgesam_jax.config import AugmentConfig, Config, UsageError, from_json, to_json
from edgesam_jax.config.rules import differing_fields
from edgesam_jax.data.embeddings import EmbeddingStore
from edgesam_jax.data.source import ENOUGH_TO_JUDGE, Part, left_out
from edgesam_jax.files import write_atomically
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.models.init import init_variables
from edgesam_jax.types import TrainState

DECODER_PARTS = ("prompt_encoder", "mask_decoder")
ENCODER_END = ("fuse_stage", "neck_")  # modules of repvit.embed
LORA_LEAVES = ("lora_A", "lora_B")  # a checkpoint without them starts them afresh


# ---------------------------------------------------------------------------------------------------- workdir


def check_workdir(config: Config, workdir: Path) -> None:
    """Refuse a folder that holds a run of another config, unless it failed before its first checkpoint.

    Raises:
      UsageError: it does; the fields that differ are named.
    """
    saved = workdir / "config.json"
    if not saved.exists() or not any(workdir.glob("**/checkpoints/*/")):
        return
    difference = differing_fields(from_json(Config, saved.read_text(), str(saved)), config)
    if difference:
        raise UsageError(
            f"--workdir {workdir}: it holds a run with another config: {'; '.join(difference)}."
            " Use the same config to go on with it, or another folder"
        )


@contextlib.contextmanager
def claim_workdir(config: Config, workdir: Path) -> Iterator[None]:
    """Make the folder and note its config; a folder that holds a run of another config is refused.

    A run that fails before its first checkpoint gives the folder back, so that it can be started with a mended config;
    where the loss was not finite the config stays there for ``--replay``.

    Raises:
      UsageError: another config's run, naming the fields that differ; or a path that is no folder.
    """
    saved = workdir / "config.json"
    fresh, made = not saved.exists(), not workdir.exists()
    check_workdir(config, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if parallel.is_first():
            write_atomically(saved, to_json(config))
    except OSError as error:
        raise UsageError(f"--workdir {workdir}: cannot write there ({error.strerror})") from None
    try:
        yield
    except FloatingPointError:
        raise
    except BaseException:
        if fresh and parallel.is_first() and not any(workdir.glob("**/checkpoints/*/")):
            saved.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # something else is in it
                    workdir.rmdir()
        raise


# ---------------------------------------------------------------------------------------------------- weights


def merge(target: Mapping[str, Any], source: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The variables of ``target`` with the leaves of ``source`` in their place, checked name by name.

    A part of the model (image encoder, prompt encoder, decoder) that the source lacks as a whole keeps its values;
    within a part names and shapes must be the same, LoRA matrices aside.

    Raises:
      UsageError: names or shapes that do not fit, listed.
    """
    wanted, given = flatten_dict(dict(target)), flatten_dict(dict(source))
    parts = {path[1] for path in given}
    missing = [p for p in wanted if p[1] in parts and p not in given and p[-1] not in LORA_LEAVES]
    extra = [p for p in given if p not in wanted]
    misshapen = [p for p in given if p in wanted and given[p].shape != wanted[p].shape]
    problems = [
        f"{what}: {', '.join('/'.join(p) for p in paths[:5])}{f' and {len(paths) - 5} more' if len(paths) > 5 else ''}"
        for what, paths in (("missing", missing), ("left over", extra), ("of another shape", misshapen))
        if paths
    ]
    if problems:
        raise UsageError(f"{where}: its weights do not fit the model of the config ({'; '.join(problems)})")
    merged = unflatten_dict({**wanted, **{p: jnp.asarray(v, wanted[p].dtype) for p, v in given.items()}})
    return {name: merged.get(name, {}) for name in target}


def check_data(config: Config, parts: Sequence[Part]) -> None:
    """The prompt loop needs instances, ground truth as a target needs true masks, and few entries may be damaged.

    Raises:
      UsageError: a data set that has not what is needed, named by its field.
    """
    loop = config.distill.mode != "encoder_only"
    truth = config.distill.targets == "ground_truth" and config.distill.mode != "proposals"  # boxes do, too
    roots = [f"data.mixture[{i}].root={m.root}" for i, m in enumerate(config.data.mixture)]
    for part, where in zip(parts, roots or [f"data.root={config.data.root}"], strict=True):
        if loop and not part.source.annotated:
            raise UsageError(
                f"{where}: no photo in it has annotations, so there is nothing to prompt with: set"
                " data.unlabelled=superpixels (or grid), put annotations beside the photos, use data.source=coco, or"
                " distill.mode=encoder_only"
            )
        if truth and not part.source.true_masks:
            raise UsageError(f"{where}: it has no masks of its own; distill.targets=ground_truth needs them")
        found, most = left_out(part.source), config.data.max_bad_share
        if found.listed >= ENOUGH_TO_JUDGE and found.damaged > most * found.listed:
            raise UsageError(
                f"{where}: {found.damaged} of its {found.listed} photos have entries that are damaged, more than"
                f" data.max_bad_share={most} allows: mend the data set or raise the share ({found.note})"
            )


def check_store(config: Config, teacher: Model | None) -> None:
    """A store must be of the teacher that the config names, and of photos as they are.

    Raises:
      UsageError: another teacher, size or shape; no teacher at all; or augmentation, which a store can't follow.
    """
    for root in config.data.embeddings:
        where = f"data.embeddings={root}"
        if config.data.augment != AugmentConfig():
            raise UsageError(
                f"{where}: a store holds embeddings of unchanged photos; switch data.augment off, or use no store"
            )
        if teacher is None or config.distill.targets != "teacher":
            raise UsageError(f"{where}: there is no teacher to learn from; name it, or leave the store out")
        header = EmbeddingStore(root).header  # a shard that is missing or damaged shows here, not hours later
        if header.teacher != encoder_digest(teacher):
            raise UsageError(
                f"{where}: made with another teacher ({header.source or header.teacher[:12]}), or with other weights of"
                f" {config.teacher}; embed with this one"
            )


def decoder_of(teacher: Model) -> dict[str, Any]:
    """The teacher's prompt encoder and mask decoder, positional constants included."""
    return {
        name: {part: tree for part, tree in teacher.variables.get(name, {}).items() if part in DECODER_PARTS}
        for name in ("params", "constants")
    }


def initial_variables(
    config: Config, teacher: Model | None, init_from: Model | None, notes: list[str] | None = None
) -> dict[str, Any]:
    """Variables at step 0: random, then the teacher's decoder where it fits, then ``init_from``.

    Args:
      notes: what a person should know of that is added here.

    Raises:
      UsageError: ``init_from`` does not fit; or encoder-only distillation whose decoder cannot be the teacher's.
    """
    variables = init_variables(config.model, config.train.seed)
    if teacher is not None and config.distill.init_decoder_from_teacher:
        try:
            variables = merge(variables, decoder_of(teacher), f"teacher={config.teacher}")
        except UsageError as error:
            if config.distill.mode == "encoder_only":
                raise
            if notes is not None:
                notes.append(f"note: the decoder starts from random weights, not from the teacher's: {error}")
    if init_from is not None:
        source = init_from.variables
        if init_from.metadata.get("holds") == BACKBONE:
            source = _with_end_of(variables, source)
            if notes is not None:
                taken = len(flatten_dict(init_from.variables))
                notes.append(f"note: {taken} arrays of the backbone; fusion, neck and decoder start as without them")
        variables = merge(variables, source, f"train.init_from={config.train.init_from}")
    return variables


def _with_end_of(target: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's backbone, completed by the target's fusion and neck."""
    end = {k: v for k, v in target["params"]["image_encoder"].items() if k.startswith(ENCODER_END)}
    encoder = {**end, **source["params"]["image_encoder"]}
    return {**source, "params": {**source["params"], "image_encoder": encoder}}


# ---------------------------------------------------------------------------------------------------- the start


@dataclasses.dataclass(frozen=True)
class Start:
    """The state to begin with, where the run stood (empty for a new one), how that came about, and notes on it."""

    state: TrainState
    position: dict[str, Any]
    how: str
    notes: list[str] = dataclasses.field(default_factory=list)


def begin(
    config: Config,
    workdir: Path,
    teacher: Model | None,
    initial: Model | None = None,
    at_most: int | None = None,
) -> Start:
    """Resume what ``workdir`` holds; else fork ``train.fork_from``; else take weights alone; else start from scratch.

    Args:
      initial: weights, in place of those that ``train.init_from`` names.
      at_most: resume the newest checkpoint that is not beyond this step.

    Raises:
      UsageError: a checkpoint that is missing, damaged or of another model or optimiser; or two ways asked for.
    """
    train = config.train
    if train.fork_from and (train.init_from or initial is not None):
        raise UsageError("train.fork_from and train.init_from: a run starts from one of them; leave the other empty")
    own = newest_step(workdir / CHECKPOINTS, at_most)
    goes_on = own is not None or bool(train.fork_from)
    where = f"{initial.metadata.get('source', 'given')}, " if initial is not None else f"{train.init_from}, "
    if not goes_on and initial is None and train.init_from:
        initial = load_weights(train.init_from)
    notes: list[str] = []
    variables = initial_variables(config, teacher, None if goes_on else initial, notes)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    if own is not None:
        state, position, _ = training.restore(own, state)
        return Start(state, position, f"resume {workdir} at step {int(state.step)}")
    if train.fork_from:
        state, _, _ = training.restore(train.fork_from, state)
        return Start(
            state, {}, f"fork of {train.fork_from} at its step {int(state.step)}, with optimiser, into {workdir}"
        )
    if initial is not None:
        return Start(state, {}, f"init-from {where}weights alone, at step 0, in {workdir}", notes)
    decoder = teacher is not None and config.distill.init_decoder_from_teacher
    how = f"scratch{f', decoder of {config.teacher} where it fits' if decoder else ''}, in {workdir}"
    return Start(state, {}, how, notes)
