"""Compiling for described TPU slices: flags and messages everywhere, the compiler itself where libtpu is installed."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from edgesam_jax import embed
from edgesam_jax.config import UsageError
from edgesam_jax.eval.__main__ import main as evaluate
from edgesam_jax.planning import compile_report, compiling, gpus, topology
from edgesam_jax.planning.accelerators import ACCELERATORS
from edgesam_jax.train.__main__ import main as train

LIBTPU = importlib.util.find_spec("libtpu") is not None
CUDA = importlib.util.find_spec("jax_cuda12_plugin") is not None
QUICK = ["--config", "configs/quickstart.py", "--dry-run"]


@pytest.mark.parametrize(
    "name", ["v5e", "v5e-8", "v5e:8", "v9:2x2", "h100", "h100:1x2x4", "v5e:2x", "v5e:2x2x2x2", "v5e:-1x2"]
)
def test_a_name_of_another_form_or_chip_is_refused_with_examples(name):
    with pytest.raises(
        UsageError, match=r"^--compile .*: expected CHIP:SHAPE with a chip of a100, h100, h200, v4, .*v6e; .*v5e:4x4"
    ):
        topology.check_name(name)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (train, [*QUICK, "--compile", "v5e:4x4", "--for-devices", "4"], "--compile: names chips and hosts; omit"),
        (train, ["--config", "configs/quickstart.py", "--workdir", "w", "--compile", "v5e:4x4"], "need --dry-run"),
        (embed.main, ["--teacher", "sam_vit_h", "--compile", "v5e:2x2"], "--dry-run and --compile"),
        (embed.main, ["--teacher", "sam_vit_h", "--dry-run"], "--dry-run and --compile"),
        (embed.main, ["--teacher", "sam_vit_h", "--root", "x"], "are required: --source, --output"),
        (evaluate, ["efficiency", "--models", "edge_sam", "--json"], "--json: only with --compile"),
    ],
)  # fmt: skip
def test_wrong_flags_end_in_one_line(command, flags, message, capsys):
    try:
        code = command(flags)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("shape", "found"), [("1", (1, 1)), ("8", (1, 8)), ("32", (4, 8)), ("32x8", (32, 8)), ("2x4", (2, 4))]
)
def test_gpus_are_on_whole_hosts(shape, found):
    assert gpus.hosts_and_devices(ACCELERATORS["h100"], shape) == found


@pytest.mark.parametrize("shape", ["0", "12", "0x8", "2x0", "2x16"])
def test_other_numbers_of_gpus_are_refused(shape):
    with pytest.raises(UsageError, match=rf"--compile h100:{shape}: a host has 1 to 8 GPUs; several hosts"):
        topology.describe(f"h100:{shape}")


@pytest.mark.skipif(CUDA, reason="the compiler for GPUs is installed")
def test_without_the_compiler_for_gpus_one_line_says_how_to_install_it(capsys):
    assert train([*QUICK, "--compile", "h100:8"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--compile h100:8: XLA's compiler for GPUs is missing" in line
    assert f"jax-cuda12-plugin=={jax.__version__}" in line


def matrix_product(chip):
    """A small program, and the CPU under the name of another chip."""
    described = topology.Topology(f"{chip}:1", chip, tuple(jax.devices()[:1]), "a compiler")
    shapes = (jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32))
    work = compiling.Work(products=2 * 64 * 32 * 16, traffic=4 * (64 * 32 + 32 * 16 + 64 * 16))
    program = compiling.Program("p", jax.jit(jnp.matmul), shapes, work, [("all", ".")], 1, "use fewer")
    return described, program


def test_a_report_for_gpus_has_memory_bounds_and_kernels_but_no_time():
    compiled = compiling.compile_for(*matrix_product("h100"))
    text = compile_report.report(compiled, estimated=10_000)
    assert "compiled for h100:1: 1 h100 on 1 host" in text and "a compiler; compiled in" in text
    assert "of 80" in text and "work of a GPU" in text
    assert "cycles" not in text and "estimate of time\n" not in text
    found = compile_report.as_json(compiled)
    assert "cycles" not in found and "seconds" not in found
    chip = ACCELERATORS["h100"]
    assert found["seconds_at_least"] == {
        "products": pytest.approx(2 * 64 * 32 * 16 / chip.bfloat16),
        "traffic": pytest.approx(4 * (64 * 32 + 32 * 16 + 64 * 16) / chip.bandwidth),
    }
    (kernels,) = found["kernels"].values()
    assert kernels["number"] == 1 and kernels["bytes"] == 4 * 64 * 16


def test_a_program_that_a_gpu_cannot_hold_is_refused_although_it_compiles(monkeypatch):
    small = dataclasses.replace(ACCELERATORS["h100"], memory=1000)
    monkeypatch.setitem(ACCELERATORS, "h100", small)
    with pytest.raises(UsageError, match=r"^--compile h100:1: a chip would run out of memory \(.*\); use fewer$"):
        compiling.compile_for(*matrix_product("h100"))


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (train, QUICK),
        (embed.main, ["--teacher", "sam_vit_h", "--dry-run"]),
        (evaluate, ["efficiency", "--models", "edge_sam"]),
    ],
)
def test_without_libtpu_one_line_says_how_to_install_it(command, flags, capsys):
    assert command([*flags, "--compile", "v5e:4x4"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("install it with: pip install 'edgesam-jax[tpu]'")


def test_a_program_that_does_not_fit_is_explained(monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
                " Used 20.62G of 15.75G hbm. Exceeded hbm capacity by 4.87G.\n\nTotal hbm usage >= 20.88G:\n"
            )

    class Function:
        def lower(self, *arguments):
            return Lowered()

    slice_ = topology.Topology("v5e:1x1", "tpu-v5e", tuple(jax.devices()[:1]))
    program = compiling.Program("p", Function(), (), compiling.Work(), (), 1, "set data.batch_size lower")
    with pytest.raises(UsageError) as error:
        compiling.compile_for(slice_, program)
    expected = "--compile v5e:1x1: a chip would run out of memory (20.62G of 15.75G); set data.batch_size lower"
    assert str(error.value) == expected


def run(*flags):
    """The command in a process of its own, because libtpu is set up once per process."""
    environment = os.environ | {"JAX_PLATFORMS": ""}
    command = [sys.executable, "-m", *flags]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu (pip install 'edgesam-jax[tpu]')")
def test_the_step_compiles_for_a_slice_and_its_figures_agree(tmp_path):
    small = ["--set", "data.batch_size=32", "train.steps=10", "study=[]"]
    code, text, errors = run("edgesam_jax.train", *QUICK, "--compile", "v5e:4x4", "--json", *small)
    assert code == 0, errors
    found = json.loads(text)
    compiled = found["compiled"]
    assert compiled["devices"] == 16 and compiled["hosts"] == 4
    assert compiled["cycles"]["all"] > compiled["cycles"]["products_at_peak"] > 0
    assert compiled["memory"]["sum"] < compiled["memory"]["chip"]
    assert compiled["cycles"]["open_loops"] == 0
    # The gradients of all trained parameters are summed over the chips.
    sums = sum(e["bytes"] * e["runs"] for e in compiled["exchanges"] if e["kind"] == "all-reduce")
    assert sums == pytest.approx(found["exchange"]["bytes"], rel=0.2)
    assert {"student: encoder, forward", "student: encoder, backward"} <= set(compiled["cycles"]["by_part"])


@pytest.mark.slow
@pytest.mark.skipif(not CUDA, reason="needs jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12")
def test_the_step_compiles_for_gpus_of_two_hosts():
    small = ["--set", "data.batch_size=16", "train.steps=10", "study=[]"]
    code, text, errors = run("edgesam_jax.train", *QUICK, "--compile", "h100:2x4", "--json", *small)
    assert code == 0, errors
    found = json.loads(text)
    compiled = found["compiled"]
    assert compiled["devices"] == 8 and compiled["hosts"] == 2
    assert 0 < compiled["memory"]["sum"] < compiled["memory"]["chip"]
    sums = sum(e["bytes"] * e["runs"] for e in compiled["exchanges"] if e["kind"] == "all-reduce")
    assert sums == pytest.approx(found["exchange"]["bytes"], rel=0.2)
    assert {"student: encoder, forward", "student: encoder, backward"} <= set(compiled["kernels"])


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu (pip install 'edgesam-jax[tpu]')")
def test_a_shape_that_does_not_exist_is_refused():
    code, _, errors = run("edgesam_jax.embed", "--teacher", "tiny_teacher", "--dry-run", "--compile", "v5e:3x3")
    assert code == 2
    assert "--compile v5e:3x3: libtpu refuses this shape" in errors.splitlines()[-1]


def test_a_plan_prints_json(capsys):
    assert train([*QUICK, "--for-devices", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) and all(arm["memory"]["parameters"] > 0 for arm in found.values())
