"""Every program lowers for TPUs and GPUs, in its form for them, without such a device and without their compilers."""

import dataclasses
import functools
import re

import jax
import pytest

from edgesam_jax.config import EfficientVitConfig, PlainVitConfig, SamConfig, TinyVitConfig, VitConfig
from edgesam_jax.models.kernels import platforms
from edgesam_jax.planning import plan, programs, topology
from edgesam_jax.predict import compiled
from tests.tiny import CONV, PROPOSALS, REPVIT, SHALLOW, configured

VIT = VitConfig(width=32, depth=2, heads=2, patch_size=8, global_blocks=(1,), window_size=3)
ENCODERS = {
    "conv": CONV.encoder,
    "repvit": REPVIT.encoder,
    "efficient_vit": EfficientVitConfig(widths=(4, 8, 8, 16, 24), depths=(1, 1, 2, 1, 2), head_dim=8),
    "tiny_vit": TinyVitConfig(widths=(8, 16, 16, 24), depths=(1, 1, 2, 1), heads=(1, 2, 2, 3), windows=(7, 7, 4, 7)),
    "vit": VIT,
    "plain_vit": PlainVitConfig(width=16, depth=1, heads=2),
}
MODELS = {
    name: dataclasses.replace(
        CONV, encoder=encoder, image_size=64, variant="efficient_sam" if name == "plain_vit" else CONV.variant
    )
    for name, encoder in ENCODERS.items()
}
TEACHER = dataclasses.replace(MODELS["vit"], image_size=CONV.image_size)
STEPS = {
    "stage 1": (SHALLOW, ("distill.mode=encoder_only", "teacher=given"), TEACHER),
    "stage 2, embeddings from a store": (CONV, ("teacher=given", "data.embeddings=store"), TEACHER),
    "proposals": (PROPOSALS, ("distill.mode=proposals", "distill.targets=ground_truth"), None),
}
# The platform of a lowering and the form that is traced for it.
PLATFORMS = {"tpu": "tpu", "cuda": "gpu"}
DTYPES = {"float32": "f32", "bfloat16": "bf16"}
each_platform = pytest.mark.parametrize("platform", PLATFORMS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def lowered(program: programs.Program, platform: str) -> str:
    with platforms.traced_for(PLATFORMS[platform]):
        return program.function.trace(*program.arguments).lower(lowering_platforms=(platform,)).as_text()


def check(text: str, dtype: str) -> None:
    """Most products and convolutions take the type; position encodings and a few others stay in float32."""
    operands = re.findall(r"stablehlo\.(?:dot_general|convolution).*: \(tensor<[\dx]*?(f32|bf16|f64)>", text)
    assert operands.count(DTYPES[dtype]) > len(operands) / 2, operands
    assert "f64" not in text


def encoder(model: SamConfig) -> programs.Program:
    return programs.encoder_program("encoder", model, compiled.encoder(model), 2)


def decoder(model: SamConfig) -> programs.Program:
    return programs.decoder_program("decoder", model, compiled.decoder(model), 3)


@each_platform
@each_dtype
@pytest.mark.parametrize("name", MODELS)
def test_encoder(name, dtype, platform):
    check(lowered(encoder(dataclasses.replace(MODELS[name], compute_dtype=dtype)), platform), dtype)


@each_platform
@each_dtype
@pytest.mark.parametrize("name", ["repvit", "plain_vit"])
def test_decoder(name, dtype, platform):
    check(lowered(decoder(dataclasses.replace(MODELS[name], compute_dtype=dtype)), platform), dtype)


@functools.cache
def step(name: str, dtype: str) -> programs.Program:
    model, overrides, teacher = STEPS[name]
    if teacher:
        teacher = dataclasses.replace(teacher, compute_dtype=dtype)
    small = ("data.batch_size=2", "data.max_prompts=2", "distill.rounds=1", f"model.compute_dtype={dtype}")
    made = plan.plan(configured(*small, *overrides, model=model), teacher, 1)
    return programs.step_program(made, topology.Topology("v5e:1x1", "tpu-v5e", tuple(jax.devices()[:1])))


@each_platform
@each_dtype
@pytest.mark.parametrize("name", STEPS)
def test_training_step(name, dtype, platform):
    check(lowered(step(name, dtype), platform), dtype)


@pytest.mark.parametrize(
    "make", [functools.partial(encoder, MODELS["vit"]), functools.partial(decoder, MODELS["conv"])]
)
def test_a_function_traced_for_one_platform_is_traced_again_for_another(make):
    program = make()  # counts its work in the plain form
    forms = {}
    for form in (platforms.PLAIN, "tpu", platforms.PLAIN, "tpu"):
        with platforms.traced_for(form):
            forms.setdefault(form, set()).add(str(program.function.trace(*program.arguments).jaxpr))
    assert len(forms["tpu"]) == len(forms[platforms.PLAIN]) == 1 and forms["tpu"] != forms[platforms.PLAIN]
