"""The size of a run before it starts: shapes, parameters, operations, memory and disk space.

All numbers come from an abstract trace of the real training step, without weights, data or an accelerator: a laptop can
plan a run on a TPU slice.  ``dry_run.py`` adds estimates of time and formats the text.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import with_compute_dtype
from edgesam_jax.config import Config, DataConfig, SamConfig, UsageError, check_values
from edgesam_jax.config.derive import phase
from edgesam_jax.config.parse import from_plain
from edgesam_jax.data.embeddings import STORE, read_header
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers.tars import find_tars
from edgesam_jax.files import read_json
from edgesam_jax.learning.checks import check_distillation, check_teacher
from edgesam_jax.learning.freezing import TRAINED
from edgesam_jax.learning.objectives import needs_masks, objective_of
from edgesam_jax.learning.optim import labels, make_optimizer
from edgesam_jax.learning.prompt_loop import POINT_SLOTS_AT_START
from edgesam_jax.learning.step import AXIS, needed_teacher_variables, train_step
from edgesam_jax.models import prompts
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.kernels.strips import LANES
from edgesam_jax.models.sam import MODELS, Sam, decode
from edgesam_jax.planning import jaxpr_cost
from edgesam_jax.types import Batch, TrainState

STORED_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}
# XLA's temporary memory on a TPU, in peaks of live values (docs/scale.md): 1.15 to 1.85 in four steps compiled for a
# v5e, 1.8 and 1.9 in two for a v4, whose fast memory is smaller.  A v6e is as a v5e; a v5p is taken for one.
TPU_MEMORY = {"tpu-v4": 1.8, "tpu-v5e": 1.25, "tpu-v5p": 1.25, "tpu-v6e": 1.25}
BATCHES_HELD = 2  # that of the step, and that of the next step, which is dispatched before the step ends
NECK = ("neck_", "fuse_")


# ------------------------------------------------------------------------------------------------------------ teacher


def teacher_config(config: Config, model_name: str = "") -> SamConfig | None:
    """Return the teacher's architecture without its weights, from its checkpoint or inferred from its name.

    Args:
      config: the run's; None is returned if it has no teacher.
      model_name: a name in ``MODELS``, or one without its ``sam_`` (``vit_h``); empty: infer from ``config.teacher``.

    Raises:
      UsageError: an unknown ``model_name``, a missing file whose name doesn't contain the architecture, or a teacher
        that doesn't fit the student.
    """
    if not config.teacher or config.distill.targets != "teacher":
        return None
    label = f"teacher={config.teacher}"
    model = model_config(config.teacher, label, model_name)
    check_teacher(config, model)
    return with_compute_dtype(model, config.train.teacher_dtype)


def model_config(text: str, label: str, model_name: str = "") -> SamConfig:
    """Return a model's architecture without its weights, from its checkpoint or inferred from its name.

    Args:
      text: a name in ``MODELS``, a checkpoint, or the name of a published ViT's file, which need not exist.
      label: the flag or field that names the model, for messages.
      model_name: see ``teacher_config``.

    Raises:
      UsageError: an unknown ``model_name``, or a missing file whose name doesn't contain the architecture.
    """
    path, model = Path(text), MODELS.get(text)
    known = ", ".join(MODELS)
    if model_name:
        model = MODELS.get(model_name) or MODELS.get(f"sam_{model_name}")
        if model is None:
            raise UsageError(f"--teacher-model {model_name}: unknown model; choose from {known}")
    elif model is None and path.suffix == ".msgpack" and os.path.isfile(path):
        model = load_model(path).config
    elif model is None and os.path.isfile(path / "config.json"):
        # Of a checkpoint or of a run: both have the key "model".
        content = read_json(path / "config.json", "teacher")
        if not isinstance(content, dict) or "model" not in content:
            raise UsageError(f"{label}: its config.json is damaged")
        model = from_plain(SamConfig, content["model"], label)
        check_values(model, f"{label}: ")
    elif model is None:
        size = re.search(r"vit[-_]?([blh])(?![a-z])", path.name.lower())
        model = MODELS[f"sam_vit_{size[1]}"] if size else None
    if model is None:
        missing = "" if os.path.exists(path) else "file not found, and "
        raise UsageError(
            f"{label}: {missing}the model can't be inferred from its name;"
            f" pass {'--teacher-model (' if label.startswith('teacher=') else 'the model ('}one of {known})"
        )
    return model


# ------------------------------------------------------------------------------------------------------------ tracing


_variables = functools.cache(abstract_variables)  # tracing a ViT-H takes seconds


def _array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def stored_dtype(config: Config) -> str:
    """Return the type of the embeddings in the config's store; float16 if the store doesn't exist yet."""
    root = Path(config.data.embeddings[0]) if config.data.embeddings else Path()
    return read_header(root).dtype if config.data.embeddings and (root / STORE).is_file() else "float16"


def stored_bytes(config: Config) -> int:
    """Return the bytes of one photo's embedding in a store."""
    return config.model.grid**2 * config.model.embed_dim * STORED_BYTES[stored_dtype(config)]


def abstract_batch(config: Config, images: int) -> Batch:
    """Return the shapes of the data pipeline's batch of this many images, typed as arrays."""
    model, p = config.model, config.data.max_prompts
    side, s = model.image_size, model.mask_size
    embedding = None
    if config.data.embeddings:
        dtype = jnp.float16 if stored_dtype(config) == "float16" else jnp.float32
        embedding = _array((images, model.grid, model.grid, model.embed_dim), dtype)
    shapes: dict[str, Any] = {
        "image": _array((images, side, side, 3), jnp.dtype(config.data.photo_dtype)),
        "valid_size": _array((images, 2), jnp.int32),
        "boxes": _array((images, p, 4)),
        "points": _array((images, p, 2)),
        "prompt_valid": _array((images, p), jnp.bool_),
        "masks": _array((images, p, s, s), jnp.bool_) if needs_masks(config) else None,
        "teacher_embedding": embedding,
    }
    return Batch(**shapes)


def abstract_state(config: Config) -> TrainState:
    """Return the shapes of the training state."""
    variables = _variables(config.model)
    tx, _ = make_optimizer(config, variables["params"])
    step: Any = _array((), jnp.int32)
    return TrainState(step=step, opt_state=jax.eval_shape(tx.init, variables["params"]), **variables)


def step_and_shapes(
    config: Config, teacher: SamConfig | None, images: int, axis: str | None = None
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the body of a step with this many images on a device, and the shapes of its arguments."""
    state = abstract_state(config)
    tx, _ = make_optimizer(config, state.params)
    body = functools.partial(train_step, config=config, teacher_config=teacher, tx=tx, axis_name=axis)
    variables = needed_teacher_variables(config, _variables(teacher)) if teacher else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    return body, (state, variables, abstract_batch(config, images), key)


def trace_step(
    config: Config, teacher: SamConfig | None, images: int, devices: int = 0, form: str = platforms.PLAIN
) -> Any:
    """Return the jaxpr of a step with this many images on one of ``devices`` devices; 0: one device, no exchange.

    Work is counted in the plain form: a CPU does the same work in more operations, an accelerator more products.
    """
    axis = AXIS if devices else None
    body, arguments = step_and_shapes(config, teacher, images, axis)
    environment = [(axis, max(devices, 2))] if axis else None  # even one device per host exchanges with other hosts
    with platforms.traced_for(form):
        return jax.make_jaxpr(body, axis_env=environment)(*arguments)


def flops_per_step(config: Config, teacher: SamConfig | None) -> float:
    """Return the FLOPs of the matrix products and convolutions of one step over the global batch, as used for MFU.

    A multiply-add counts as two.  Deliberate recomputation (``remat``) is included.  The step is that of the phase that
    ``config`` describes (``config.derive.phase``).  Takes a second for the tiny models, several for ViT-H.
    """
    return jaxpr_cost.work(trace_step(config, teacher, config.data.batch_size)).products


def _traced(f: Callable[..., Any], *args: Any) -> jaxpr_cost.Work:
    with platforms.traced_for(platforms.PLAIN):
        return jaxpr_cost.work(jax.make_jaxpr(f)(*args))


def _encoder_work(model: SamConfig, images: int, train: bool) -> jaxpr_cost.Work:
    def encode(variables: Any, x: Any) -> Any:
        return Sam(model).apply(variables, x, train, method="encode_image", mutable=["batch_stats"])

    return _traced(encode, _variables(model), _array((images, model.image_size, model.image_size, 3)))


def _decoder_work(model: SamConfig, config: Config, images: int) -> jaxpr_cost.Work:
    """One round of the prompt loop."""
    cfg, p = config.distill, config.data.max_prompts
    slots = POINT_SLOTS_AT_START + cfg.rounds * cfg.points_per_round
    prompt = jax.eval_shape(functools.partial(prompts.from_boxes, slots=slots), _array((images, p, 4)))
    previous: tuple[Any, ...] = ()
    if cfg.mask_feedback:
        previous = _array((images, p, model.mask_size, model.mask_size)), _array((images, p), jnp.bool_)
    embedding = _array((images, model.grid, model.grid, model.embed_dim))
    decode_round = functools.partial(decode, model, chunk=config.train.prompt_chunk)
    return _traced(decode_round, _variables(model), embedding, prompt, *previous)


# --------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """The cost of a step on one of ``devices`` devices, and of the run.

    Attributes:
      images: images of the global batch on one device.
      step: operations and traffic of a step on one device.
      parts: FLOPs of a step in matrix products and convolutions, by part of the step.
      run_flops: the same for all steps of the run on one device.
      parameters: (all, trained) by part of the model.
      memory: bytes on one device, by purpose.
      checkpoint, model_file: bytes on disk.
    """

    config: Config
    teacher: SamConfig | None
    devices: int
    images: int
    step: jaxpr_cost.Work
    parts: dict[str, float]
    run_flops: float
    parameters: dict[str, tuple[int, int]]
    memory: dict[str, int]
    checkpoint: int
    model_file: int

    @property
    def rounds(self) -> int:
        """Number of times that student and teacher decode a prompt."""
        return objective_of(self.config).decodes(self.config)


def plan(config: Config, teacher: SamConfig | None, devices: int, accelerator: str = "h100") -> Plan:
    """Plan a run on this many devices of a kind in ``ACCELERATORS``.

    Raises:
      UsageError: a config that can't be trained, or a batch that can't be split evenly over the devices.
    """
    check_distillation(config)
    pieces = config.train.accumulate
    if config.data.batch_size % (devices * pieces):
        cut = f" in {pieces} micro-batches" if pieces > 1 else ""
        batch = config.data.batch_size
        raise UsageError(f"data.batch_size={batch} is not divisible by {devices} devices{cut}: use a multiple")
    images = config.data.batch_size // devices
    heaviest = phase(config, max(0, config.train.steps - 1))
    step = jaxpr_cost.work(trace_step(heaviest, teacher, images, devices))
    form, lanes = ("tpu", LANES) if accelerator in TPU_MEMORY else ("gpu", 1)
    live = jaxpr_cost.peak_temporary(trace_step(heaviest, teacher, images, devices, form), lanes)
    state = abstract_state(config)
    trained = _trained(state.params, config)
    learns = sum(
        jaxpr_cost.size_of(leaf) for leaf, yes in zip(jax.tree.leaves(state.params), trained, strict=True) if yes
    )
    variables = _bytes(needed_teacher_variables(config, _variables(teacher))) if teacher else 0
    kept = _bytes((state.batch_stats, state.constants))
    memory = {
        "parameters": _bytes(state.params),
        "batch statistics, constants": kept,
        "optimiser": _bytes(state.opt_state),
        "gradients": learns,
        "teacher": variables,
        f"batch ({BATCHES_HELD} held)": BATCHES_HELD * _bytes(abstract_batch(config, images)),
        "activations (estimate)": max(0, int(TPU_MEMORY.get(accelerator, 1.0) * live) - learns),
    }
    return Plan(
        config=config, teacher=teacher, devices=devices, images=images, step=step,
        parts=_parts(heaviest, teacher, images, step),
        run_flops=_run_flops(config, teacher, images, devices, heaviest, step.products),
        parameters=_parameters(state.params, trained, teacher),
        memory=memory, checkpoint=_bytes(state), model_file=_bytes(state.params) + kept,
    )  # fmt: skip


def _bytes(tree: Any) -> int:
    return sum(jaxpr_cost.size_of(leaf) for leaf in jax.tree.leaves(tree))


def _trained(params: Any, config: Config) -> list[bool]:
    return [label == TRAINED for label in jax.tree.leaves(labels(params, config))]


def _parts(config: Config, teacher: SamConfig | None, images: int, step: jaxpr_cost.Work) -> dict[str, float]:
    """Return the FLOPs by part of the step; the backward pass is the remainder."""
    cfg = config.distill
    loop = objective_of(config).decodes(config)
    parts: dict[str, float] = {}
    if teacher and not config.data.embeddings:
        parts["teacher: encoder"] = _encoder_work(teacher, images, train=False).products
    if teacher and loop:
        parts[f"teacher: decoder, {loop} x"] = loop * _decoder_work(teacher, config, images).products
    parts["student: encoder"] = _encoder_work(config.model, images, train=not cfg.freeze_image_encoder).products
    if loop:
        parts[f"student: decoder, {loop} x"] = loop * _decoder_work(config.model, config, images).products
    parts["student: backward"] = step.products - sum(parts.values())
    return parts


def _run_flops(
    config: Config, teacher: SamConfig | None, images: int, devices: int, counted: Config, flops: float
) -> float:
    """Return the FLOPs of all steps; phases in which loop or grouping loss are off are counted separately."""
    steps = config.train.steps
    fractions = {0.0, config.distill.rounds_from, config.distill.loss.grouping_until}
    starts = sorted({math.ceil(fraction * steps) for fraction in fractions if fraction < 1})
    total = 0.0
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        now = phase(config, start)
        each = flops if now == counted else jaxpr_cost.work(trace_step(now, teacher, images, devices)).products
        total += (end - start) * each
    return total


def _parameters(params: Any, trained: list[bool], teacher: SamConfig | None) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for (path, leaf), learns in zip(jax.tree_util.tree_leaves_with_path(params), trained, strict=True):
        part = str(path[0].key).replace("_", " ")
        if part == "image encoder" and str(path[1].key).startswith(NECK):
            part = "neck and fusion"
        total, learning = counts.get(part, (0, 0))
        counts[part] = total + leaf.size, learning + leaf.size * learns
    if teacher:
        counts["teacher"] = sum(leaf.size for leaf in jax.tree.leaves(_variables(teacher)["params"])), 0
    return counts


# --------------------------------------------------------------------------------------------------------------- data


def photos_of(config: Config) -> tuple[int, str]:
    """Return the number of photos in an epoch, or 0 and the reason why it is unknown.

    Writes nothing, not even the index of a tar.
    """
    data = config.data
    entries = [replace(data, mixture=(), **_data_fields(entry)) for entry in data.mixture] or [data]
    total = 0
    for entry in entries:
        if entry.source == "scenes":
            if not entry.limit:
                return 0, "generated scenes are endless"
            total += entry.limit
            continue
        if not os.path.exists(entry.root):
            return 0, f"data.root={entry.root} not found; pass --photos"
        try:
            if entry.source == "tars":
                tars = find_tars(Path(entry.root), entry.subset)
                if not all(tar.with_name(f"{tar.name}.index.npz").is_file() for tar in tars):
                    return 0, f"the tars in {entry.root} have no index yet; pass --photos"
            total += len(open_source(entry, config.model.image_size))
        except UsageError as error:
            return 0, str(error)
    return total, ""


def _data_fields(entry: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(entry).items() if name != "weight" and name in vars(DataConfig())}
