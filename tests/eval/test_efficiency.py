"""Table 1: counts equal hand calculations and PyTorch's layers; a model that fails doesn't stop the others."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys

import jax
import pytest
from paths import ROOT
from tiny import CONV, REPVIT

from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError, VitConfig
from edgesam_jax.eval.efficiency import command, measure
from edgesam_jax.eval.efficiency import report as efficiency_text
from edgesam_jax.eval.efficiency.model_cost import counts
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.layer_cost import decoder_layers, encoder_layers
from edgesam_jax.models.sam import MODELS

VIT = dataclasses.replace(
    CONV, encoder=VitConfig(width=24, depth=3, heads=2, global_blocks=(1,), window_size=3), image_size=64
)


def arguments(*flags: str) -> argparse.Namespace:
    parser = Parser()
    command.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.fixture(scope="module")
def full() -> dict[str, dict]:
    return {name: counts(MODELS[name]) for name in ("edge_sam", "sam_vit_b", "sam_vit_h")}


# ------------------------------------------------------------------------------------------------------------- counts


def test_a_small_vit_costs_what_arithmetic_says():
    g, w, c = 4, 24, 16  # cells a side, width, embedding
    cells, padded = g * g, 4 * 9  # two by two windows of three by three
    patches, mlp, neck = cells * 16 * 16 * 3 * w, 3 * cells * 8 * w * w, cells * w * c
    attention = (2 * padded + cells) * 4 * w * w  # queries, keys, values and output
    whole, windows = 2 * cells * cells * w, 2 * 4 * 9 * 9 * w  # of a block: queries with keys, weights with values
    positions = 2 * (cells * g + 2 * padded * 3) * w
    layers = patches + mlp + attention + neck + cells * 9 * c * c
    inside = layers - (cells * 9 - (3 * g - 2) ** 2) * c * c  # of the 3x3 convolution's taps
    found = counts(VIT)["gmac"]
    assert found["activations"] == pytest.approx({k: v / 1e9 for k, v in {
        "global": whole, "windowed": 2 * windows, "positions": positions}.items()})  # fmt: skip
    assert found["encoder"] * 1e9 == pytest.approx(inside + whole + 2 * windows + positions, rel=1e-12)
    assert found["layers"]["encoder"] * 1e9 == pytest.approx(layers, rel=1e-12)
    assert found["unfolded"] == found["encoder"] and found["both"] == found["encoder"] + found["decoder"]


def test_layers_are_those_that_pytorch_runs():
    """Count every convolution and linear layer of the torch model as it runs."""
    torch = pytest.importorskip("torch")
    from convert.torch_twin.model import TorchSam

    found = {"image_encoder": 0, "mask_decoder": 0}
    model = TorchSam(REPVIT).eval()

    def hook(part):
        def count(module, inputs, output):
            if isinstance(module, torch.nn.ConvTranspose2d):
                found[part] += inputs[0][0, 0].numel() * module.weight.numel()
            elif isinstance(module, torch.nn.Linear):
                found[part] += output.numel() * module.in_features
            else:
                found[part] += output.numel() * module.weight[0].numel()

        return count

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    for name, module in model.named_modules():
        if name.startswith(tuple(found)) and isinstance(module, kinds):
            module.register_forward_hook(hook(name.split(".")[0]))
    with torch.inference_mode():
        embedding = model.encode_image(torch.zeros(1, 3, 32, 32))
        model.decode_tokens(embedding, torch.zeros(1, 2, 2), torch.tensor([[2, 3]]))
    mine = encoder_layers(REPVIT, abstract_variables(REPVIT))
    assert mine is not None and mine.products == found["image_encoder"]
    assert decoder_layers(REPVIT).products == found["mask_decoder"]


def test_an_encoder_with_kernels_outside_of_layers_is_not_counted_by_layers():
    variables = abstract_variables(CONV)
    variables["params"]["image_encoder"]["more"] = {"kernel": jax.ShapeDtypeStruct((3, 3), "float32")}
    assert encoder_layers(CONV, variables) is None


def test_the_published_models_have_the_published_parameters(full):
    edge, huge = full["edge_sam"]["parameters"], full["sam_vit_h"]["parameters"]
    assert (edge["all"], edge["encoder"], edge["decoder"]) == (9_582_112, 5_517_552, 4_058_340 + 6_220)
    assert edge["inference"] - edge["decoder"] == 5_485_896, "folded"
    assert huge["all"] == huge["inference"] == 641_090_608


def test_the_published_models_do_the_published_work(full):
    edge, huge = full["edge_sam"]["gmac"], full["sam_vit_h"]["gmac"]
    assert edge["layers"]["encoder"] == pytest.approx(20.0456, abs=1e-4), "20.05 G in convolutions"
    assert edge["unfolded"] == pytest.approx(20.05, abs=0.02) and edge["encoder"] < edge["unfolded"]
    assert full["sam_vit_b"]["gmac"]["encoder"] == pytest.approx(486.0, abs=0.05)  # docs/scale.md
    assert huge["encoder"] == pytest.approx(2980.5, abs=0.05)
    # Linear layers with padded windows, patches and neck; then attention and positions; less taps on padding.
    assert huge["layers"]["encoder"] == pytest.approx(2732.299649024)
    assert huge["layers"]["encoder"] + sum(huge["activations"].values()) - 764 * 256**2 / 1e9 == pytest.approx(
        huge["encoder"], rel=1e-12
    )
    assert round(edge["layers"]["both"], 1) == 22.1
    assert huge["layers"]["both"] == pytest.approx(2734.8, abs=0.06)


# --------------------------------------------------------------------------------------------------------------- text


def test_published_rows_stand_beside_ours_and_differences_are_explained(full):
    rows = [{"model": name, "image_size": 1024, "encoder": "", **row} for name, row in full.items()]
    report = {"models": rows, "published": efficiency_text.compare_with_published(rows)}
    text = command.table(report)
    assert [(r["parameters"], r["gmac"]) for r in report["published"]] == [(641.1, 2734.8), (9.8, 38.2), (9.6, 22.1)]
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["SAM-H"][:4] == ["SAM-H", "641.1", "641.09", "-0.01"] and lines["SAM-H"][4] == "2,734.8"
    assert " ".join(lines["MobileSAM"]) == "MobileSAM 9.8 - - 38.2 - - - - 103.5 4.9 - -"
    assert " ".join(lines["EdgeSAM"][4:11]) == "22.1 22.13 +0.03 21.27 -0.83 164.3 38.7"
    for system, model in (("SAM-H", "sam_vit_h"), ("EdgeSAM", "edge_sam")):
        block = text.split(f"{system}: ")[1].split("\n\n")[0].splitlines()
        terms = [float(line.split()[0]) for line in block[1:] if line.strip()[0] in "+-"]
        published = next(r["gmac"] for r in report["published"] if r["model"] == model)
        assert sum(terms) == pytest.approx(full[model]["gmac"]["both"] - published, abs=5e-3), "the terms add up"
    assert max(map(len, text.splitlines())) <= 120


def test_another_size_is_not_compared_with_the_published_work(full):
    row = {"model": "edge_sam", "image_size": 512, "encoder": "", **full["edge_sam"]}
    ours = efficiency_text.compare_with_published([row])[2]["ours"]
    assert ours["parameters"] == pytest.approx(9.582112) and ours["gmac"] is ours["gmac_by_rule"] is ours["fps"] is None


# ---------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.slow
def test_tiny_models_are_timed_and_a_broken_one_does_not_stop_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compile quickly
    broken = dataclasses.replace(VIT, encoder=dataclasses.replace(VIT.encoder, heads=7))
    monkeypatch.setitem(MODELS, "broken", broken)
    output = tmp_path / "new" / "report.json"
    flags = ["--models", "tiny_student", "broken", "tiny_teacher", "--image-size", "64", "--batches", "2"]
    report = command.run(arguments(*flags, "--prompts", "1", "--rounds", "2", "--output", str(output)))
    assert json.loads(output.read_text()) == report and [p.name for p in output.parent.iterdir()] == [output.name]
    student, bad, teacher = report["models"]
    assert "reshape" in bad["failed"] and "timing" not in bad
    for row in (student, teacher):
        assert [(t["part"], t["size"]) for t in row["timing"]] == [("decoder", 1), ("encoder", 2)]
        for t in row["timing"]:
            assert t["per_second"] == pytest.approx(t["size"] / t["seconds"]) and len(t["rounds"]) == 2
            assert t["compile_seconds"] > 0 and 50e6 < t["peak_memory_bytes"] < 4e9
        assert row["image_size"] == 64 and row["parameters"]["all"] > 0
    assert report["device"]["platform"] == "cpu" and report["device"]["cores"] >= 1
    text = command.table(report)
    assert "failed: " in text and f"{report['device']['cores']} cores" in text
    assert sum(line.startswith("tiny_") for line in text.splitlines()) == 2 + 4
    assert "tiny_teacher" in capsys.readouterr().err, "the progress bar"


def test_a_process_that_dies_leaves_what_it_measured(tmp_path, monkeypatch):
    done = json.dumps({"part": "decoder", "size": 1, "seconds": 1.0})
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho noise\necho '{done}'\nkill -9 $$\n")
    script.chmod(0o700)
    monkeypatch.setattr(command.sys, "executable", str(script))
    request = {"batches": [1, 8], "prompts": [1], "rounds": 1, "gmac": 1.0, "limit": 0.0}
    device, results = command.timings(CONV, request)
    assert device == {} and results[0]["seconds"] == 1.0
    assert [(r["part"], r["size"], r["failed"]) for r in results[1:]] == [
        ("encoder", n, "killed by signal 9, possibly out of memory") for n in (1, 8)
    ]
    script.write_text("#!/bin/sh\necho 'ImportError: no jaxlib' >&2\nexit 3\n")
    assert command.timings(CONV, request)[1][0]["failed"] == "exited with code 3: ImportError: no jaxlib"


def test_the_process_finds_the_package_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    request = {"batches": [1], "prompts": [1], "rounds": 1, "gmac": 1.0, "limit": 0.5}  # nothing is run
    device, results = command.timings(CONV, request)
    assert device["platform"] == "cpu"
    assert results == [{"part": part, "size": 1, "skipped": "over 0.5 GMAC"} for part in ("decoder", "encoder")]


def test_heavy_calls_are_skipped_on_a_cpu_only():
    request = {"batches": [8, 1], "prompts": [1], "gmac": 100.0, "limit": 600.0}
    assert measure.plan(request, on_cpu=True) == [
        ("decoder", 1, ""), ("encoder", 1, ""), ("encoder", 8, "over 600 GMAC"),
    ]  # fmt: skip
    assert all(why for _, _, why in measure.plan(request | {"gmac": 601.0}, on_cpu=True)), "nothing of a big model"
    for given, on_cpu in ((request, False), (request | {"limit": 0.0}, True)):
        assert not any(why for _, _, why in measure.plan(given, on_cpu))


@pytest.mark.skipif(not measure.STATUS.is_file(), reason="needs /proc")
def test_the_peak_is_the_process_own_not_that_of_the_one_that_started_it():
    code = "import jax; from edgesam_jax.eval.efficiency import measure; print(measure.peak_memory(jax.devices()[0]))"
    held = bytearray(1_000_000_000)  # ru_maxrss of a child begins here
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(held) > 2 * int(child.stdout) > 100e6


# -------------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(("flags", "says"), [
    (["--models", "sam_vit_x"], "--models sam_vit_x: unknown model; choose from edge_sam"),
    (["--image-size", "1000"], "--image-size 1000: must be a multiple of 32"),
    (["--batches", "0"], "--batches: invalid count value: '0'"),
    (["--rounds", "many"], "--rounds: invalid count value: 'many'"),
    (["--timing-limit", "-1"], "--timing-limit -1: must be a number of GMAC above 0, or 0 for no limit"),
    (["--checkpoint", "nowhere"], "no such file or folder"),
    (["--output", "/"], "--output /: is a folder"),
    (["--output", "/dev/null/report.json"], "--output /dev/null/report.json: cannot write"),
])  # fmt: skip
def test_what_a_user_can_get_wrong_is_one_line(flags, says):
    with pytest.raises(UsageError) as error:
        command.run(arguments(*flags))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_is_counted_by_its_config():
    (row,) = (report := command.run(arguments("--checkpoint", "tiny_teacher", "--no-timing")))["models"]
    assert row["parameters"]["all"] == 1_092_760 and "timing" not in row and report["device"] == {}
