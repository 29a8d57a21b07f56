"""The state that a run starts from: its own last checkpoint, another run's, or initial weights.

The first of these that exists is used: a checkpoint in the run's folder, the run of ``train.fork_from`` (with its
optimiser), the weights of ``train.init_from``, random weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from edgesam_jax.checkpoints import provenance, training
from edgesam_jax.checkpoints.load import load_weights
from edgesam_jax.checkpoints.model import BACKBONE, Model
from edgesam_jax.checkpoints.steps import CHECKPOINTS, newest_step
from edgesam_jax.config import Config, UsageError
from edgesam_jax.learning.objectives import objective_of
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.models.init import init_variables
from edgesam_jax.train.state import Position
from edgesam_jax.types import TrainState

DECODER_PARTS = ("prompt_encoder", "mask_decoder")
ENCODER_END = ("fuse_stage", "neck_")  # modules of models.encoders.neck.embed
LORA_LEAVES = ("lora_A", "lora_B")  # initialised if a checkpoint lacks them


# ---------------------------------------------------------------------------------------------------- weights


def merge(target: Mapping[str, Any], source: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Replace the leaves of ``target`` by those of ``source``, with a check of names and shapes.

    A part of the model (image encoder, prompt encoder, decoder) that is missing from the source keeps its values.
    Within a part, names and shapes must be the same, except that LoRA matrices may be missing.

    Args:
      where: origin of the source, for messages.

    Raises:
      UsageError: names or shapes do not fit; the message lists them.
    """
    old, new = flatten_dict(dict(target)), flatten_dict(dict(source))
    parts = {path[1] for path in new}
    missing = [p for p in old if p[1] in parts and p not in new and p[-1] not in LORA_LEAVES]
    extra = [p for p in new if p not in old]
    misshapen = [p for p in new if p in old and new[p].shape != old[p].shape]
    problems = [
        f"{kind}: {', '.join('/'.join(p) for p in paths[:5])}{f' and {len(paths) - 5} more' if len(paths) > 5 else ''}"
        for kind, paths in (("missing", missing), ("unexpected", extra), ("wrong shape", misshapen))
        if paths
    ]
    if problems:
        raise UsageError(f"{where}: its weights do not fit the config's model ({'; '.join(problems)})")
    merged = unflatten_dict({**old, **{p: jnp.asarray(v, old[p].dtype) for p, v in new.items()}})
    return {name: merged.get(name, {}) for name in target}


def decoder_of(teacher: Model) -> dict[str, Any]:
    """The teacher's prompt encoder and mask decoder, including positional constants."""
    return {
        name: {part: tree for part, tree in teacher.variables.get(name, {}).items() if part in DECODER_PARTS}
        for name in ("params", "constants")
    }


def initial_variables(
    config: Config, teacher: Model | None, init_from: Model | None, notes: list[str] | None = None
) -> dict[str, Any]:
    """Variables at step 0: random, overridden by the teacher's decoder if it fits, then by ``init_from``.

    Args:
      notes: remarks for the user on weights that could not be taken over are added here.

    Raises:
      UsageError: ``init_from`` does not fit; or the teacher's decoder does not, in encoder-only distillation.
    """
    variables = init_variables(config.model, config.train.seed)
    if teacher is not None and config.distill.init_decoder_from_teacher:
        try:
            variables = merge(variables, decoder_of(teacher), f"teacher={config.teacher}")
        except UsageError as error:
            if objective_of(config).keeps_decoder(config):
                raise
            if notes is not None:
                notes.append(f"note: the decoder starts from random weights instead of the teacher's: {error}")
    if init_from is not None:
        source = init_from.variables
        if init_from.metadata.get("holds") == BACKBONE:
            source = _completed(variables, source)
            if notes is not None:
                count = len(flatten_dict(init_from.variables))
                notes.append(
                    f"note: {count} arrays of the backbone loaded; fusion, neck and decoder are initialised as usual"
                )
        variables = merge(variables, source, f"train.init_from={config.train.init_from}")
    return variables


def _completed(target: Mapping[str, Any], backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of an encoder's backbone, completed by the target's fusion and neck."""
    end = {k: v for k, v in target["params"]["image_encoder"].items() if k.startswith(ENCODER_END)}
    encoder = {**end, **backbone["params"]["image_encoder"]}
    return {**backbone, "params": {**backbone["params"], "image_encoder": encoder}}


# ---------------------------------------------------------------------------------------------------- train state


@dataclasses.dataclass(frozen=True)
class InitialState:
    """The train state that a run starts or resumes from.

    ``position`` is the run's position (zeros for a new run).  ``description`` and ``notes`` are for the user: where
    the state comes from, and which of its weights were not taken from there.  ``origin`` describes the checkpoint that
    a new run starts from (``provenance.origin``).
    """

    state: TrainState
    description: str
    position: Position = dataclasses.field(default_factory=Position)
    notes: list[str] = dataclasses.field(default_factory=list)
    origin: dict[str, str] | None = None

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
        raise UsageError("train.fork_from and train.init_from: set only one of them, as a run starts from one state")
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
            state,
            f"fork of {train.fork_from} at its step {int(state.step)}, with optimiser, into {workdir}",
            origin=provenance.origin(train.fork_from, load_weights(train.fork_from)),
        )
    if initial is not None:
        description = f"init-from {source}, weights alone, at step 0, in {workdir}"
        return InitialState(state, description, notes=notes, origin=provenance.origin(source, initial))
    decoder = teacher is not None and config.distill.init_decoder_from_teacher
    description = f"scratch{f', decoder of {config.teacher} where it fits' if decoder else ''}, in {workdir}"
    return InitialState(state, description, notes=notes)
