"""The dry run: what it counts agrees with XLA's own count and memory, and needs neither weights, data nor devices."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from paths import ROOT
from tiny import CONV, REPVIT, configured

from edgesam_jax.config import ConvEncoderConfig, DecoderConfig, RepVitConfig, UsageError, VitConfig, to_json
from edgesam_jax.learning.device_step import make_train_step
from edgesam_jax.learning.optim import make_optimizer
from edgesam_jax.learning.step import train_step
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.sam import MODELS
from edgesam_jax.planning import jaxpr_cost, plan, plan_text
from edgesam_jax.planning.setup import Setup, exchange_seconds
from edgesam_jax.train import __main__ as train

# Wide enough for products to be most of the work, as they are in real models.
WIDE = {"embed_dim": 64, "decoder": DecoderConfig(depth=1, heads=2, mlp_dim=128)}
TEACHER = dataclasses.replace(
    CONV, encoder=VitConfig(width=64, depth=2, heads=2, global_blocks=(1,), window_size=3, patch_size=8), **WIDE
)
STUDENTS = {
    "conv": dataclasses.replace(CONV, encoder=ConvEncoderConfig(widths=(32,) * 4, depths=(0,) * 4), **WIDE),
    "repvit": dataclasses.replace(
        REPVIT, encoder=RepVitConfig(widths=(32,) * 4, depths=(1, 1, 2, 1), stem_strides=(2, 1)), **WIDE
    ),
}


def count(f, *args):
    return jaxpr_cost.work(jax.make_jaxpr(f)(*args))


# ------------------------------------------------------------------------------------------------------------- counts


def test_products_and_loops_are_counted_exactly():
    a, b = jnp.zeros((4, 3, 5)), jnp.zeros((4, 5, 7))
    assert count(jnp.matmul, a, b).products == 2 * 4 * 3 * 5 * 7
    looped = count(lambda x: lax.fori_loop(0, 6, lambda _, y: y @ jnp.zeros((5, 5)), x), jnp.zeros((3, 5)))
    assert looped.products == 6 * 2 * 3 * 5 * 5 and looped.open_loops == 0
    unknown = count(lambda x: lax.while_loop(lambda y: y.sum() < 1, lambda y: y @ y, x), jnp.zeros((3, 3)))
    assert unknown.products == 2 * 27 and unknown.open_loops == 1
    dead = count(lambda x: (x @ x, x + 1)[1], jnp.zeros((3, 3)))
    assert dead.products == 0, "what nobody reads is not computed"
    called = count(jax.jit(lambda x: jax.checkpoint(lambda y: y @ y)(x) + x), jnp.zeros((3, 3)))
    assert (called.products, called.others) == (54, 9)


@pytest.mark.parametrize("given", [
    {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))},
    {"window_strides": (1, 1), "padding": "VALID"},
    {"window_strides": (1, 1), "padding": ((2, 1), (1, 2)), "lhs_dilation": (2, 2)},
    {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "rhs_dilation": (2, 2), "feature_group_count": 4},
])  # fmt: skip
def test_convolutions_are_counted_as_xla_counts_them(given):
    groups = given.get("feature_group_count", 1)
    x, kernel = jnp.zeros((2, 9, 8, 4)), jnp.zeros((3, 3, 4 // groups, 8))
    f = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **given)
    assert count(f, x, kernel).products == jax.jit(f).lower(x, kernel).cost_analysis()["flops"]


def test_only_what_is_sent_counts_as_exchanged():
    def f(x):
        once = lax.psum(x * 2, "data")
        return lax.psum(once.sum(), "data"), lax.psum(jnp.zeros(100), "data"), lax.psum(x, "data")

    work = jaxpr_cost.work(jax.make_jaxpr(f, axis_env=[("data", 4)])(jnp.zeros(10)))
    assert (work.reduced, work.waits) == (40 + 4 + 40, 2), "zeros are not sent; one sum waits for another"


def test_peak_memory_of_a_chain():
    def chain(x):
        for _ in range(5):
            x = jnp.tanh(x @ x)
        return x.sum()

    one = 64 * 64 * 4
    program = jax.make_jaxpr(chain)(jnp.zeros((64, 64)))
    assert one <= jaxpr_cost.peak_temporary(program) <= 3 * one, "values die after their last use"
    kept = jaxpr_cost.peak_temporary(jax.make_jaxpr(jax.grad(chain))(jnp.zeros((64, 64))))
    assert kept >= 5 * one, "the backward pass needs every step of the forward pass"


def test_memory_of_a_tpu_is_in_whole_lanes():
    def size(*shape):
        return jaxpr_cost.size_of(jax.ShapeDtypeStruct(shape, jnp.bfloat16), 128) / 2

    assert size(8, 64, 64, 192) == 8 * 64 * 64 * 256, "the channels waste less than columns or rows would"
    assert size(2, 1024, 1024, 3) == 2 * 1024 * 1024 * 3, "a photo's columns fill the lanes"
    assert size() == 1 and size(3) == 128 and size(0, 5) == 0
    program = jax.make_jaxpr(lambda x: jnp.tanh(x @ x).sum())(jnp.zeros((96, 96)))
    assert jaxpr_cost.peak_temporary(program, 128) == jaxpr_cost.peak_temporary(program) * 128 // 96


# ---------------------------------------------------------------------------------------------------- against XLA's


@pytest.mark.slow
@pytest.mark.parametrize(("student", "mode"), [("repvit", "encoder_only"), ("conv", "prompt_in_the_loop")])
def test_a_step_costs_what_xla_says(student, mode):
    """XLA counts a loop's body once, hence rounds=0; tolerance 5 % on operations, a factor of 2.5 on memory."""
    config = configured(f"distill.mode={mode}", "distill.rounds=0", "data.max_prompts=4", "data.batch_size=4",
                        "teacher=given", model=STUDENTS[student])  # fmt: skip
    state, batch = plan.abstract_state(config), plan.abstract_batch(config, 4)
    tx, _ = make_optimizer(config, state.params)
    body = functools.partial(train_step, config=config, teacher_config=TEACHER, tx=tx)
    teacher = jax.eval_shape(lambda: init_variables(TEACHER))
    with platforms.traced_for(platforms.PLAIN):
        step = jax.jit(body, donate_argnums=0)
        compiled = step.lower(state, teacher, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()
    program = plan.trace_step(config, TEACHER, 4)
    ours = jaxpr_cost.work(program)
    assert ours.products > 0.8 * (ours.products + ours.others), "the check is of products"
    assert ours.products + ours.others == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)
    assert plan.flops_per_step(config, TEACHER) == ours.products
    factor = compiled.memory_analysis().temp_size_in_bytes / jaxpr_cost.peak_temporary(program)
    assert 1 / 2.5 < factor < 2.5, factor


def test_every_round_of_the_loop_costs_the_same_and_chunks_change_nothing():
    def flops(*overrides):
        config = configured("teacher=given", "data.batch_size=2", "data.max_prompts=4", *overrides, model=CONV)
        # The buffer of prompts grows with the points that the loop may add, so their number is kept.
        return plan.flops_per_step(config, CONV)

    one, two, three = (flops(f"distill.rounds={n}", f"distill.points_per_round={6 // max(n, 1)}") for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-9) and two - one > 0.2 * one
    assert flops("train.prompt_chunk=2", "distill.rounds=0") == pytest.approx(flops("distill.rounds=0"), rel=0.1)


def test_the_parts_make_up_the_whole():
    config = configured("teacher=given", "data.batch_size=4", "data.max_prompts=4", "distill.rounds=2", model=CONV)
    made = plan.plan(config, CONV, 2)
    assert made.images == 2 and sum(made.parts.values()) == pytest.approx(made.step.products)
    assert made.parts["student: backward"] / sum(v for k, v in made.parts.items() if k.startswith("student")) * 2 > 1
    stored = plan.plan(dataclasses.replace(config, data=dataclasses.replace(config.data, embeddings=("x",))), CONV, 2)
    assert stored.step.products == pytest.approx(made.step.products - made.parts["teacher: encoder"])
    params = init_variables(CONV)["params"]
    total = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    assert sum(n for name, (n, _) in made.parameters.items() if name != "teacher") == total
    assert made.parameters["prompt encoder"][1] == 0 < made.parameters["mask decoder"][1], "frozen by default"
    assert made.memory["parameters"] == 4 * total and made.memory["gradients"] < 4 * total
    assert made.step.reduced >= made.memory["gradients"], "gradients are summed over devices"


def test_phases_of_a_run_are_counted_each_at_its_own_cost():
    given = ("teacher=given", "data.batch_size=2", "data.max_prompts=2", "train.steps=100")
    made = plan.plan(configured(*given, "distill.rounds_from=0.25", model=CONV), CONV, 1)
    without = plan.flops_per_step(configured(*given, "distill.rounds=0", model=CONV), CONV)
    assert without < 0.8 * made.step.products
    assert made.run_flops == pytest.approx(75 * made.step.products + 25 * without, rel=1e-9)


def test_counting_leaves_later_programs_alone():
    """The trainer counts before it compiles: the plain form must not stay in any cache of traces."""
    config = configured("teacher=given", "data.batch_size=2", "distill.mode=encoder_only", model=REPVIT)
    state, tx = plan.abstract_state(config), make_optimizer(config, plan.abstract_state(config).params)[0]
    step = make_train_step(config, CONV, tx, jax.devices()[:1])
    variables = jax.eval_shape(lambda: init_variables(CONV))
    given = state, variables, plan.abstract_batch(config, 2), jax.eval_shape(lambda: jax.random.key(0))
    plan.flops_per_step(config, CONV)
    text = str(step.trace(*given).jaxpr)
    with platforms.traced_for(platforms.PLAIN):
        assert text != str(step.trace(*given).jaxpr), "the two forms do differ"
    assert text == str(step.trace(*given).jaxpr)


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture
def config_file(tmp_path):
    config = configured("teacher=weights/sam_vit_b_x.pth", "data.source=coco", "data.root=nowhere",
                        "data.batch_size=8", "data.max_prompts=2", model=CONV)  # fmt: skip
    path = tmp_path / "tiny.json"
    path.write_text(to_json(dataclasses.replace(config, teacher="")))
    return path


def test_the_command_plans_without_weights_data_or_a_folder(tmp_path):
    """The published stage 1 at full size, as a person would ask on a laptop."""
    # A small teacher in place of ViT-H: only its name comes from the flag, and the trace is shorter.
    command = [sys.executable, "-m", "edgesam_jax.train", "--config", str(ROOT / "configs/edgesam_stage1.py")]
    command += ["--dry-run", "--for-devices", "16", "--teacher-model", "edge_sam", "--accelerator", "tpu-v5e"]
    # A platform that is not there would fail if it were asked for, a job of two processes would wait for the other.
    environment = {"JAX_PLATFORMS": "tpu", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "16 tpu-v5e on 4 hosts" in text and "64 x 1024 x 1024 x 3" in text and "4 x 64 x 64 x 256" in text
    assert "9,582,112  5,517,552" in text, "the parameters of the published model, of which the encoder learns"
    assert "data.root=datasets/SA-1B not found" in text and "An estimate, not a measurement" in text
    assert not list(tmp_path.iterdir()), "nothing is written"
    # 20.05 GMAC forward by the published count, taps on padding included.
    student = next(line for line in text.splitlines() if line.startswith("student: encoder"))
    assert float(student.split()[3]) == pytest.approx(40.1, rel=0.01)


def test_hosts_divide_the_computing_but_not_the_exchange():
    config = configured("teacher=given", "data.batch_size=32", "distill.mode=encoder_only", model=REPVIT)
    made = plan.plan(config, CONV, 4)
    setup = Setup(for_devices=4, for_hosts=1, achieved_tflops=1e-3, bandwidth_gbit=0.08)  # 10 MB/s
    one, two, four = (exchange_seconds(made, setup, hosts) for hosts in (1, 2, 4))
    assert one == 0 and four > two > made.step.reduced / 10e6, "a ring of two sends as much as there is"
    table = plan_text.describe(made, setup).split("growth with hosts")[1].splitlines()
    rows = {line.split()[0]: line.split() for line in table[3:9]}
    assert rows["1"][4] == "100%" and float(rows["2"][3]) > float(rows["1"][3]) / 2
    assert int(rows["4"][4][:-1]) < int(rows["2"][4][:-1]) < 100
    assert len(rows["16"]) == 6, "a batch of 32 does not divide over 64 devices"


def test_photos_are_counted_where_they_are(tmp_path):
    config = configured("data.source=images", f"data.root={tmp_path}", model=CONV)
    assert plan.photos_of(config)[0] == 0 and str(tmp_path) in plan.photos_of(config)[1]
    from PIL import Image

    for n in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.jpg")
    assert plan.photos_of(config) == (3, "")
    (tmp_path / "a.tar").write_bytes(b"")
    tars = configured("data.source=tars", f"data.root={tmp_path}", model=CONV)
    assert plan.photos_of(tars)[0] == 0 and "no index" in plan.photos_of(tars)[1]
    assert not list(tmp_path.glob("*.npz"))


def test_a_teacher_is_known_by_its_file_or_its_name(tmp_path):
    def of(teacher, named="", model=MODELS["edge_sam"]):
        return plan.teacher_config(configured(f"teacher={teacher}", model=model), named)

    assert of("weights/sam_vit_h_4b8939.pth") == MODELS["sam_vit_h"]
    assert of("x/SAM-ViT-L.safetensors") == MODELS["sam_vit_l"]
    assert of("nothing.pth", "vit_b") == of("nothing.pth", "sam_vit_b") == MODELS["sam_vit_b"]
    assert of("tiny_teacher", model=MODELS["tiny_student"]) == MODELS["tiny_teacher"]
    (tmp_path / "config.json").write_text(to_json(configured(model=CONV)))
    assert of(tmp_path, model=CONV) == CONV, "a run's folder says what its model is"
    inferred = r"the model can't be inferred from its name; pass --teacher-model \(one of .*sam_vit_b"
    with pytest.raises(UsageError, match=rf"teacher=nothing\.pth: file not found, and {inferred}"):
        of("nothing.pth")
    (tmp_path / "other.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"other\.pth: {inferred}"):
        of(tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"--teacher-model vit_x: unknown model; choose from .*sam_vit_b"):
        of("nothing.pth", "vit_x")
    with pytest.raises(UsageError, match="image_size is 128"):
        of("tiny_teacher")


@pytest.mark.parametrize(("flags", "says"), [
    (["--for-devices", "4"], "need --dry-run"),
    (["--dry-run", "--for-devices", "0"], "--for-devices 0: must be at least 1"),
    (["--dry-run", "--for-devices", "9"], "must be a multiple of the 2 hosts"),
    (["--dry-run", "--for-devices", "3", "--set", "distill.targets=ground_truth"], "=8 is not divisible by 3 devices"),
    (["--dry-run", "--utilisation", "2"], "--utilisation 2.0"),
    (["--dry-run", "--accelerator", "abacus"], "--accelerator: invalid choice"),
    (["--dry-run", "--set", "train.stepz=1"], "no field 'stepz'"),
    (["--dry-run"], "teacher: name a checkpoint"),
    ([], "required: --workdir"),
])  # fmt: skip
def test_what_a_user_can_get_wrong_is_one_line(config_file, capsys, flags, says):
    workdir = ["--workdir", "x"] if flags[:1] == ["--for-devices"] else []
    code = train.main(["--config", str(config_file), *workdir, *flags])
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.startswith("error: ") and error.count("\n") == 1, error
