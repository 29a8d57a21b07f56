"""What a run starts from, in this order: its own workdir, another run, the weights of a checkpoint, nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from edgesam_jax.checkpoints import training
from edgesam_jax.checkpoints.load import load_weights
from edgesam_jax.checkpoints.model import BACKBONE, Model
from edgesam_jax.checkpoints.steps import CHECKPOINTS, newest_step
from edgesam_jax.config import Config, UsageError
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.models.init import init_variables
from edgesam_jax.train.state import Position
from edgesam_jax.types import TrainState

DECODER_PARTS = ("prompt_encoder", "mask_decoder")
ENCODER_END = ("fuse_stage", "neck_")  # modules of repvit.embed
LORA_LEAVES = ("lora_A", "lora_B")  # a checkpoint without them starts them afresh


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
class InitialState:
    """The train state that a run starts or resumes from.

    ``position`` is where the run stood (zeros for a new one).  ``description`` and ``notes`` are for the user: where
    the state comes from, and which of its weights were not taken from there.
    """

    state: TrainState
    description: str
    position: Position = dataclasses.field(default_factory=Position)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.state.step)


def initial_state(
    config: Config,
    workdir: Path,
    teacher: Model | None,
    initial: Model | None = None,
    at_most: int | None = None,
) -> InitialState:
    """The state of the newest checkpoint in ``workdir``; without one, that of ``train.fork_from``, or a new state.

    A new state has the weights of ``initial`` or ``train.init_from`` where they are set, else random ones.

    Args:
      initial: weights, instead of those of ``train.init_from``.
      at_most: resume the newest checkpoint up to this step.

    Raises:
      UsageError: a checkpoint is missing, damaged, or of another model or optimiser; or both ``train.fork_from`` and
        initial weights are set.
    """
    train = config.train
    if train.fork_from and (train.init_from or initial is not None):
        raise UsageError(
            "train.fork_from and train.init_from: a run starts from only one of them; leave the other empty"
        )
    checkpoint = newest_step(workdir / CHECKPOINTS, at_most)
    resumes = checkpoint is not None or bool(train.fork_from)
    source = initial.metadata.get("source", "given") if initial is not None else train.init_from
    if not resumes and initial is None and train.init_from:
        initial = load_weights(train.init_from)
    notes: list[str] = []
    variables = initial_variables(config, teacher, None if resumes else initial, notes)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    if checkpoint is not None:
        state, position, _ = training.restore(checkpoint, state)
        return InitialState(state, f"resume {workdir} at step {int(state.step)}", Position(**position))
    if train.fork_from:
        state, _, _ = training.restore(train.fork_from, state)
        return InitialState(
            state, f"fork of {train.fork_from} at its step {int(state.step)}, with optimiser, into {workdir}"
        )
    if initial is not None:
        return InitialState(state, f"init-from {source}, weights alone, at step 0, in {workdir}", notes=notes)
    decoder = teacher is not None and config.distill.init_decoder_from_teacher
    description = f"scratch{f', decoder of {config.teacher} where it fits' if decoder else ''}, in {workdir}"
    return InitialState(state, description, notes=notes)
