"""Core ML exports: verified op by op, described, with exact coordinates; and the gate fails on wrong ones."""

from __future__ import annotations

import dataclasses
import json

import deterministic_weights
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from convert import to_coreml  # noqa: E402
from convert.coreml import mil_evaluator, op_report, packages  # noqa: E402
from convert.coreml.program import CoremlDecoder, CoremlEncoder  # noqa: E402
from convert.export import common, gate  # noqa: E402
from convert.export import decoder as export_decoder  # noqa: E402
from convert.export.decoder import ExportDecoder  # noqa: E402
from convert.export.encoder import ExportEncoder  # noqa: E402
from convert.torch_twin.loading import load_twin  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.checkpoints.save import save_model_file  # noqa: E402
from edgesam_jax.models.sam import TINY  # noqa: E402

# Not smaller: eight channels of random weights are worse conditioned than any trained model.
CONFIG = dataclasses.replace(TINY, image_size=64)
HALF = gate.TOLERANCES["float16"]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, deterministic_weights.variables(CONFIG), {"licence": "Apache-2.0", "score": "stability"})


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save_model_file(tmp_path_factory.mktemp("checkpoint") / "small.msgpack", model)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Both parts in float16, written by the command."""
    folder = tmp_path_factory.mktemp("coreml") / "out"
    assert to_coreml.main([str(checkpoint), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cases(model):
    return gate.make_cases(model, gate.load_photos([]), 16, True)


def decoder_of(model, tmp_path, precision="float32", size=None):
    """Write the package of a decoder, optionally for a frame of another size."""
    config = model.config if size is None else dataclasses.replace(model.config, image_size=size)
    module = ExportDecoder(load_twin(dataclasses.replace(model, config=config)), "stability", False)
    c, g = config.embed_dim, config.grid
    shapes = {"image_embeddings": (1, c, g, g), "point_coords": (1, 4, 2), "point_labels": (1, 4)}
    return packages.save(
        packages.convert(module, shapes, ["scores", "masks"], precision), tmp_path / "d.mlpackage", "", ""
    )


def random_embedding(program):
    return np.random.default_rng(0).normal(size=program.inputs["image_embeddings"][0]).astype(np.float32)


def test_the_folder_has_packages_contract_and_census(exported):
    names = ["small_coreml.json", "small_decoder.mlpackage", "small_encoder.mlpackage", "small_operations.md"]
    assert sorted(p.name for p in exported.iterdir()) == names
    content = json.loads((exported / "small_coreml.json").read_text())
    assert content["verified"]["passed"] and content["verified"]["by"] == "op by op"
    assert content["slots"] == 16 and content["precision"] == "float16"
    for name, entry in content["files"].items():
        assert entry == {"bytes": common.size_of(exported / name), "sha256": common.sha256(exported / name)}
        assert not (exported / name / "executorch_debug_handle_mapping.json").exists()
    text = (exported / "small_operations.md").read_text()
    assert "| conv |" in text and "plain conversion" in text and "computes in fp32" in text


def test_the_programs_are_made_for_the_neural_engine(exported):
    """Fused norms and GELUs, four axes at most, no linear layer, no more transposes than the coordinates need."""
    content = json.loads((exported / "small_coreml.json").read_text())["operations"]
    for part in ("encoder", "decoder"):
        ours, plain = content[part]["export"], content[part]["plain"]
        assert ours["most_axes"] <= 4 and not {"erf", "rsqrt", "reduce_sum_square", "pow"} & set(ours["kinds"])
        assert ours["kinds"]["layer_norm"] and ours["kinds"]["gelu"]
        assert "linear" not in ours["kinds"] and ours["kinds"].get("transpose", 0) <= 2
        assert ours["moves"] <= plain["moves"] if part == "decoder" else ours["kinds"]["matmul"] == 2
        # Only the path of the coordinates may leave it: five small operations in float32.
        flagged = {kind.split(":")[0] for kind in ours["may_leave_the_neural_engine"]}
        assert flagged <= ({"transpose", "expand_dims", "conv", "sin", "cos"} if part == "decoder" else set())


def test_an_export_for_another_frame_and_image_input_passes_the_gate(checkpoint, tmp_path, capsys):
    flags = ["--part", "encoder", "--image-input", "--image-size", "96", "--precision", "float32"]
    assert to_coreml.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 0
    assert json.loads((tmp_path / "out" / "small_coreml.json").read_text())["image"]["type"] == "image"
    assert mil_evaluator.load(tmp_path / "out" / "small_encoder.mlpackage").inputs["image"][0] == (1, 3, 96, 96)


def test_coordinates_stay_exact_in_float16(model, tmp_path):
    """At 1000 of 1024 px, float16 has steps of half a pixel: a fifth of a pixel must still move the mask."""
    program = mil_evaluator.load(decoder_of(model, tmp_path, "float16", size=1024))
    embedding = random_embedding(program)
    labels = np.array([[1, -2, -2, -2]], np.float32)

    def masks(x):
        coords = np.zeros((1, 4, 2), np.float32)
        coords[0, 0] = (x, 900.0)
        return program(image_embeddings=embedding, point_coords=coords, point_labels=labels)["masks"]

    assert np.float16(1000.0) == np.float16(1000.2)
    assert np.abs(masks(1000.0) - masks(1000.2)).max() > 0


def test_padding_and_full_masks_in_float16(model, tmp_path):
    """Unused slots change nothing, to the bit; a full-frame mask's score is 1, where a sum would be inf / inf."""
    program = mil_evaluator.load(decoder_of(model, tmp_path, "float16"))
    embedding = random_embedding(program)
    coords = np.random.default_rng(1).uniform(0, 32, (1, 4, 2)).astype(np.float32)
    labels = np.array([[1, 0, -2, -2]], np.float32)
    one = program(image_embeddings=embedding, point_coords=coords, point_labels=labels)
    moved = coords.copy()
    moved[0, 2:] = 5.0
    two = program(image_embeddings=embedding, point_coords=moved, point_labels=labels)
    np.testing.assert_array_equal(one["masks"], two["masks"])
    assert np.isfinite(one["scores"]).all()


class Full(torch.nn.Module):
    """The scores that the decoder computes for given masks."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, masks):
        return (self.decoder._scores(masks, masks),)


@pytest.mark.parametrize(("value", "expected"), [(4.0, 1.0), (-4.0, 0.0)])
def test_scores_of_whole_frames_are_numbers(model, tmp_path, value, expected):
    decoder = ExportDecoder(load_twin(model), "stability", False)
    made = packages.convert(Full(decoder).eval(), {"masks": (1, 4, 256, 256)}, ["scores"], "float16")
    program = mil_evaluator.load(packages.save(made, tmp_path / "s.mlpackage", "", ""))
    scores = program(masks=np.full((1, 4, 256, 256), value, np.float32))["scores"]
    assert scores.tolist() == [[expected] * 4]


# ----------------------------------------------------------------------------------------------- the gate fails


def test_a_corrupt_weight_file_is_found(exported, cases, tmp_path):
    import shutil

    for part in ("encoder", "decoder"):
        path = tmp_path / f"{part}.mlpackage"
        shutil.copytree(exported / f"small_{part}.mlpackage", path)
        weights = path / "Data/com.apple.CoreML/weights/weight.bin"
        raw = bytearray(weights.read_bytes())
        middle = len(raw) // 2 // 2 * 2
        raw[middle : middle + 64] = np.full(32, 3.0, np.float16).tobytes()  # 32 of the weights
        weights.write_bytes(raw)
        encoder = CoremlEncoder(path, False) if part == "encoder" else None
        decoder = CoremlDecoder(path, 16, True) if part == "decoder" else None
        assert not gate.verify(cases, encoder, decoder, HALF, "stability").passed


def test_swapped_channels_and_bilinear_are_found(model, cases, tmp_path):
    swapped = ExportEncoder(CONFIG, model.variables)
    stem = next(m for m in swapped.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == 3)
    stem.weight.data = stem.weight.data.flip(1)  # as if it were fed BGR
    bilinear = dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, upsample="bilinear"))
    for name, module in (("swapped", swapped), ("bilinear", ExportEncoder(bilinear, model.variables))):
        made = packages.convert(module.eval(), {"image": (1, 3, 64, 64)}, ["image_embeddings"], "float16")
        path = packages.save(made, tmp_path / f"{name}.mlpackage", "", "")
        verdict = gate.verify(cases, CoremlEncoder(path, False), None, HALF, "stability")
        assert not verdict.passed and verdict.worst.quantity == "embedding", name


def test_a_dropped_padding_token_is_found_by_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    original = export_decoder.Slots.forward

    def without(self, coords, labels):
        tokens, used = original(self, coords, labels)
        return tokens, torch.cat([used[..., :-1], 0 * used[..., -1:]], dim=3)

    monkeypatch.setattr(export_decoder.Slots, "forward", without)
    assert to_coreml.main([str(checkpoint), "--output", str(tmp_path / "out"), "--part", "decoder"]) == 1
    assert "point" in capsys.readouterr().out.split("worst: ")[1] and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- reports and errors


def test_the_census_flags_what_may_leave_the_neural_engine():
    def op(kind, shape, dtype, constant=False):
        return mil_evaluator.Operation(kind, kind, (shape,), (dtype,), constant)

    census = op_report.census(
        [op("const", (9,), "fp32", True), op("conv", (1, 2, 3, 4), "fp16"), op("gather", (1, 2), "fp16"),
         op("add", (1, 2, 3, 4, 5), "fp16"), op("sin", (1, 2), "fp32"), op("cast", (1, 2), "fp32"),
         op("exp", (1, -1), "fp16")]
    )  # fmt: skip
    assert census.total == 6 and census.axes == 5
    assert set(census.flagged) == {
        "gather: kind",
        "add: more than 4 axes",
        "sin: computes in fp32",
        "exp: flexible shape",
    }
    text = op_report.table(census, census, "part")
    assert "| conv | 1 | 1 |" in text and "1 x gather: kind" in text
    assert "no operations that are known to leave" in op_report.table(
        op_report.census([op("conv", (1,), "fp16")]), None, "p"
    )


def test_user_errors_are_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    out = ["--output", str(tmp_path / "out")]
    for flags, message in (
        ([*out, "--slots", "dynamic"], "--slots dynamic: for ONNX only"),
        ([*out, "--compress", "int2"], "--compress"),
    ):
        assert to_coreml.main([str(checkpoint), *flags]) == 2
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    assert to_coreml.main([str(checkpoint), *out]) == 2
    assert "coremltools: pip install 'edgesam-jax[export]'" in capsys.readouterr().err
