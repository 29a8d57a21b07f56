"""Core ML exports: verified op by op, described, with exact coordinates; and the gate fails on wrong ones."""

from __future__ import annotations

import dataclasses
import json
import shutil

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
from convert.export.limits import compute_limits  # noqa: E402
from convert.torch_twin.loading import load_twin  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.models.sam import TINY  # noqa: E402

# Not smaller: eight channels of random weights are worse conditioned than any trained model.
CONFIG = dataclasses.replace(TINY, image_size=64)
OFFSET = 20.0  # of the hard weights: rounding them to float16 alone costs 0.007 of the embedding


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Both parts in float16, written by the command."""
    folder = tmp_path_factory.mktemp("coreml") / "out"
    assert to_coreml.main([str(checkpoint), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def half(model, cases):
    """The limits of a float16 export, computed from the weights."""
    return compute_limits(model, cases, "float16", "none", ("encoder", "decoder"), "stability").tolerance


@pytest.fixture(scope="module")
def hard_model():
    """A network whose batch norms remove large offsets: rounding a weight changes the difference of large numbers."""
    variables = deterministic_weights.variables(CONFIG)
    encoder, statistics = (variables[part]["image_encoder"] for part in ("params", "batch_stats"))
    for name, block in encoder.items():
        mixer = block.get("token_mixer_0", {}) if name.startswith("features_") else {}
        if "conv1" not in mixer or "token_mixer_1" in block:
            continue
        mixer["conv"]["bn"]["bias"] += OFFSET
        first, last = block["channel_mixer"]["m_0"], block["channel_mixer"]["m_2"]
        statistics[name]["channel_mixer"]["m_0"]["bn"]["mean"] += OFFSET * first["c"]["kernel"][0, 0].sum(0)
        last["bn"]["bias"] -= OFFSET
    return Model(CONFIG, variables, {"score": "stability"})


@pytest.fixture(scope="module")
def hard_cases(hard_model):
    return gate.make_cases(hard_model, gate.load_photos([]), 16, True)


def encoder_package(module, folder, name, compression="none"):
    made = packages.convert(module.eval(), {"image": (1, 3, 64, 64)}, ["image_embeddings"], "float16")
    return packages.save(packages.compress(made, compression), folder / f"{name}.mlpackage", "", "")


def swapped_channels(model):
    module = ExportEncoder(CONFIG, model.variables)
    stem = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == 3)
    stem.weight.data = stem.weight.data.flip(1)  # as if it were fed BGR
    return module


def bilinear(model):
    config = dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, upsample="bilinear"))
    return ExportEncoder(config, model.variables)


def corrupted(package, path):
    """Copy a package with 32 of its float16 weights overwritten."""
    shutil.copytree(package, path)
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    raw = bytearray(weights.read_bytes())
    middle = len(raw) // 2 // 2 * 2
    raw[middle : middle + 64] = np.full(32, 3.0, np.float16).tobytes()
    weights.write_bytes(raw)
    return path


def drop_padding(monkeypatch):
    original = export_decoder.Slots.forward

    def without(self, coords, labels):
        tokens, used = original(self, coords, labels)
        return tokens, torch.cat([used[..., :-1], 0 * used[..., -1:]], dim=3)

    monkeypatch.setattr(export_decoder.Slots, "forward", without)


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
    names = ["small_MODEL_CARD.md", "small_coreml.json", "small_decoder.mlpackage", "small_encoder.mlpackage"]
    names.append("small_operations.md")
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


def test_a_corrupt_weight_file_is_found(exported, cases, half, tmp_path):
    for part in ("encoder", "decoder"):
        path = corrupted(exported / f"small_{part}.mlpackage", tmp_path / f"{part}.mlpackage")
        encoder = CoremlEncoder(path, False) if part == "encoder" else None
        decoder = CoremlDecoder(path, 16, True) if part == "decoder" else None
        assert not gate.verify(cases, encoder, decoder, half, "stability").passed


def test_swapped_channels_and_bilinear_are_found(model, cases, half, tmp_path):
    for broken in (swapped_channels, bilinear):
        path = encoder_package(broken(model), tmp_path, broken.__name__)
        verdict = gate.verify(cases, CoremlEncoder(path, False), None, half, "stability")
        assert not verdict.passed and verdict.worst.quantity == "embedding", broken


def test_a_dropped_padding_token_is_found_by_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    drop_padding(monkeypatch)
    assert to_coreml.main([str(checkpoint), "--output", str(tmp_path / "out"), "--part", "decoder"]) == 1
    assert "point" in capsys.readouterr().out.split("worst: ")[1] and not (tmp_path / "out").exists()


def test_the_limits_of_usual_weights_are_those_once_set_by_hand(half):
    assert half.limit("embedding") < 4e-3 and half.limit("logits") < 2e-2 and half.limit("mask IoU") > 0.92


def test_hard_weights_pass_if_the_export_is_right_and_fail_if_it_is_wrong(
    hard_model, hard_cases, tmp_path, monkeypatch
):
    limits = compute_limits(hard_model, hard_cases, "float16", "none", ("encoder", "decoder"), "stability").tolerance
    right = encoder_package(ExportEncoder(CONFIG, hard_model.variables), tmp_path, "right")
    verdict = gate.verify(hard_cases, CoremlEncoder(right, False), None, limits, "stability")
    assert verdict.passed and verdict.worst.value > 0.0055  # the limit was 0.004 for all weights
    for path in (
        corrupted(right, tmp_path / "corrupt.mlpackage"),
        encoder_package(swapped_channels(hard_model), tmp_path, "swapped"),
        encoder_package(bilinear(hard_model), tmp_path, "bilinear"),
    ):
        verdict = gate.verify(hard_cases, CoremlEncoder(path, False), None, limits, "stability")
        assert not verdict.passed and verdict.worst.severity > 1.5, path.name
    drop_padding(monkeypatch)
    job = common.ExportJob("d", ("decoder",), 16, True, "stability", hard_model)
    decoder = CoremlDecoder(to_coreml.export(job, tmp_path, to_coreml.Options())["decoder"], 16, True)
    assert not gate.verify(hard_cases[:1], None, decoder, limits, "stability").passed


@pytest.mark.parametrize("compression", ["int8", "palette6"])
def test_limits_of_compressed_weights(compression, model, cases, tmp_path):
    if compression != "int8":
        pytest.importorskip("sklearn")
    limits = compute_limits(model, cases, "float16", compression, ("encoder",), "stability")
    right = encoder_package(ExportEncoder(CONFIG, model.variables), tmp_path, "right", compression)
    verdict = gate.verify(cases, CoremlEncoder(right, False), None, limits.tolerance, "stability")
    assert limits.limits is not None
    estimate = limits.limits["embedding"].error
    assert verdict.passed and 0.5 * estimate < verdict.worst.value < 1.5 * estimate
    content = limits.content()
    assert compression in content["how"] and content["embedding"]["limit"] == limits.tolerance.limit("embedding")
    for broken in (swapped_channels, bilinear)[: 2 if compression == "int8" else 1]:
        path = encoder_package(broken(model), tmp_path, broken.__name__, compression)
        assert not gate.verify(cases, CoremlEncoder(path, False), None, limits.tolerance, "stability").passed, broken


# ------------------------------------------------------------------------------------------------ the published inputs


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml") / "published"
    assert to_coreml.main([str(checkpoint), "--output", str(folder), "--published", "--part", "decoder"]) == 0
    return folder


def test_published_decoders_take_1_to_16_points_and_run_on_ios_15(published, model):
    from coremltools.models import MLModel

    content = json.loads((published / "small_coreml.json").read_text())
    assert content["points"] == {"min": 1, "max": 16} and content["minimum_ios"] == 15 and not content["mask_input"]
    assert content["limits"]["logits"]["limit"] == content["verified"]["logits"]["limit"]
    path = published / "small_decoder.mlpackage"
    spec = MLModel(str(path), skip_model_load=True).get_spec()
    assert spec.specificationVersion == 6  # iOS 15
    inputs = {item.name: item.type.multiArrayType for item in spec.description.input}
    assert set(inputs) == {"image_embeddings", "point_coords", "point_labels"}
    for name in ("point_coords", "point_labels"):
        sizes = inputs[name].shapeRange.sizeRanges[1]
        assert (sizes.lowerBound, sizes.upperBound) == (1, 16) and inputs[name].shape[1] == 1
    assert [item.name for item in spec.description.output] == ["scores", "masks"]
    program = mil_evaluator.load(path)
    assert program.inputs["point_coords"][0] == (1, -1, 2)
    embedding = random_embedding(program)
    reference = ExportDecoder(load_twin(model), "stability", False)
    for count in (1, 2, 5, 16):
        rng = np.random.default_rng(count)
        coords, labels = rng.uniform(0, 64, (1, count, 2)).astype(np.float32), np.ones((1, count), np.float32)
        got = program(image_embeddings=embedding, point_coords=coords, point_labels=labels)
        with torch.no_grad():
            _, expected = reference(*map(torch.from_numpy, (embedding, coords, labels)))
        assert gate.relative_error(got["masks"], expected.numpy()) < 0.02, count


def test_the_oldest_ios_is_the_flags(checkpoint, tmp_path, capsys):
    flags = ["--part", "encoder", "--ios", "16", "--compress", "int8", "--output", str(tmp_path / "out")]
    assert to_coreml.main([str(checkpoint), *flags]) == 0
    assert "iOS 16 or later" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "small_coreml.json").read_text())["minimum_ios"] == 16


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
        ([*out, "--compress", "int8", "--ios", "15"], "--ios 15: compressed weights need iOS 16; pass --ios 16, or"),
        ([*out, "--ios", "14"], "--ios"),
    ):
        assert to_coreml.main([str(checkpoint), *flags]) == 2
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    assert to_coreml.main([str(checkpoint), *out]) == 2
    assert "coremltools: pip install 'edgesam-jax[export]'" in capsys.readouterr().err
