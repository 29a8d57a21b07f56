"""The project's programs, ready to compile for a described slice: the training step, the encoder, the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from edgesam_jax.config import Config, SamConfig
from edgesam_jax.config.derive import phase
from edgesam_jax.learning.device_step import make_train_step
from edgesam_jax.learning.objectives import objective_of
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.kernels import platforms
from edgesam_jax.planning import jaxpr_cost
from edgesam_jax.planning.compiling import Program
from edgesam_jax.planning.plan import Plan, step_and_shapes
from edgesam_jax.planning.topology import Topology

Parts = Sequence[tuple[str, str]]  # see ``Program.parts``

# Parts of a training step, by the named scopes of ``learning/``.
STEP_PARTS: Parts = (
    ("teacher: encoder", r"(^|/)teacher/.*encode_image"),
    ("teacher: decoder", r"(^|/)teacher_decoder"),
    ("student: encoder, backward", r"(^|/)student'/.*encode_image"),
    ("student: encoder, forward", r"(^|/)student/.*encode_image"),
    ("student: decoder, backward", r"(^|/)student_decoder'"),
    ("student: decoder, forward", r"(^|/)student_decoder"),
    ("sampling of points", r"(^|/)sampling"),
    ("optimiser", r"(^|/)optimiser"),
    ("losses and the rest", r"."),
)
ENCODER_PARTS: Parts = (
    ("attention", r"/attn(/|$)|/context_module"),
    ("mlp", r"/mlp(/|$)|channel_mixer|local_module"),
    ("neck", r"/neck_|/fuse_"),
    ("rest", r"."),
)
DECODER_PARTS: Parts = (
    ("prompt encoder", r"prompt_encoder"),
    ("transformer", r"/transformer"),
    ("upscaling", r"/output_upscaling"),
    ("rest", r"."),
)


def step_program(plan: Plan, topology: Topology) -> Program:
    """Return the training step of the run's most expensive phase, mapped over all chips of the slice."""
    config = phase(plan.config, max(0, plan.config.train.steps - 1))
    devices, several = topology.devices, len(topology.devices) > 1
    _, (state, teacher, batch, key) = step_and_shapes(config, plan.teacher, plan.images)
    tx, _ = make_optimizer(config, state.params)
    if several:
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype), batch)
    return Program(
        name=f"{config.name}: training step of {config.data.batch_size} photos",
        function=make_train_step(config, plan.teacher, tx, devices),
        arguments=(state, teacher, batch, key),
        work=plan.step, parts=STEP_PARTS, photos=config.data.batch_size, advice=_advice(config), mapped=several,
    )  # fmt: skip


def _advice(config: Config) -> str:
    fields = ["a smaller data.batch_size or a larger train.accumulate", "model.encoder.remat=true"]
    if config.teacher and not config.data.embeddings:
        fields.append("data.embeddings with a store from edgesam_jax.embed")
    if objective_of(config).decodes(config):
        fields.append("train.prompt_chunk=4")
    return f"set {', or '.join(fields)}"


def encoder_program(name: str, model: SamConfig, encode: Callable[..., Any], photos: int) -> Program:
    """Return a model's image encoder as ``predict.compiled.encoder`` makes it, for a batch of photos on one chip."""
    side = model.image_size
    images = jax.ShapeDtypeStruct((photos, side, side, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((photos, 2), jnp.int32)
    return _program(
        f"{name}: image encoder of {photos} photos", encode, (_folded(model), images, sizes), ENCODER_PARTS, photos,
        "use a smaller --batch-size",
    )  # fmt: skip


def decoder_program(name: str, model: SamConfig, decode: Callable[..., Any], prompts: int) -> Program:
    """Return a model's decoder as ``predict.compiled.decoder`` makes it, for the boxes of one photo."""
    embedding = jax.ShapeDtypeStruct((model.grid, model.grid, model.embed_dim), jnp.float32)
    boxes = jax.ShapeDtypeStruct((prompts, 4), jnp.float32)

    def run(variables: Any, embedding: Any, boxes: Any) -> Any:
        return decode(variables, embedding, boxes, None, None, None)

    arguments = _folded(model), embedding, boxes
    return _program(
        f"{name}: decoder of {prompts} boxes", run, arguments, DECODER_PARTS, 1, "decode fewer prompts at a time"
    )


def _folded(model: SamConfig) -> Any:
    return jax.eval_shape(lambda: fold(model, init_variables(model)))


def _program(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...], parts: Parts, photos: int, advice: str
) -> Program:
    with platforms.traced_for(platforms.PLAIN):
        work = jaxpr_cost.work(jax.make_jaxpr(function)(*arguments))
    return Program(name, jax.jit(function), arguments, work, parts, photos, advice)
