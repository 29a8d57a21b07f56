"""Smaller weights in ONNX files: within their limits, smaller by half or more, refused where masks suffer."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from convert import to_onnx  # noqa: E402
from convert.export import gate, int8_weights, precision, sensitivity  # noqa: E402
from convert.export.common import ExportJob, Refused  # noqa: E402
from edgesam_jax import OnnxPredictor, Predictor, UsageError  # noqa: E402
from edgesam_jax.checkpoints.save import save_model_file  # noqa: E402
from edgesam_jax.config import ConvEncoderConfig, DecoderConfig  # noqa: E402
from edgesam_jax.data.scenes.textures import photos  # noqa: E402

# Wide enough that weights outnumber biases.
CONFIG = dataclasses.replace(
    tiny.CONV,
    encoder=ConvEncoderConfig(widths=(16, 32, 64, 64), depths=(0, 0, 1, 1)),
    decoder=DecoderConfig(depth=2, heads=4, mlp_dim=128),
    image_size=64,
    embed_dim=64,
)
PARTS = ("encoder", "decoder")


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save_model_file(tmp_path_factory.mktemp("checkpoint") / "wide.msgpack", model)


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """Files of every precision, written by the command."""
    made = {}
    for name in precision.PRECISIONS:
        made[name] = tmp_path_factory.mktemp("precision") / name
        assert to_onnx.main([str(checkpoint), "--output", str(made[name]), "--precision", name]) == 0
    return made


@pytest.fixture(scope="module")
def cases(model):
    return gate.make_cases(model, precision.load_photos("int8", []), 16, True)


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.onnx"))


def test_files_are_smaller_and_within_their_limits(folders):
    assert size_of(folders["float16"]) < 0.65 * size_of(folders["float32"])
    assert size_of(folders["int8"]) < 0.5 * size_of(folders["float32"])
    for name in ("float16", "int8"):
        content = json.loads((folders[name] / "wide_onnx.json").read_text())
        assert content["weights"] == name and content["arithmetic"] == "float32" and content["verified"]["passed"]
        assert content["limits"]["embedding"]["error"] > 0
        for quantity in ("embedding", "logits from end to end"):
            assert 0 < content["verified"][quantity]["worst"] <= content["limits"][quantity]["limit"]
    means = content["verified"][precision.MEAN_IOU]
    assert means["count"] == 8 and means["worst"] >= means["limit"] == precision.LEAST_IOU
    plain = json.loads((folders["float32"] / "wide_onnx.json").read_text())
    assert not {"weights", "arithmetic", "limits", "kept_in_float16"} & set(plain)


def test_arithmetic_stays_float32(folders):
    """A cast follows each stored weight; nothing else computes with it."""
    for name, kinds in (("float16", {onnx.TensorProto.FLOAT16}), ("int8", {onnx.TensorProto.FLOAT16, 3})):
        for part in PARTS:
            graph = onnx.load(folders[name] / f"wide_{part}.onnx").graph
            stored = {t.name for t in graph.initializer if t.data_type in kinds}
            assert stored
            users = [n for n in graph.node if set(n.input) & stored]
            assert len(users) == len(stored) and {n.op_type for n in users} == {"Cast"}
            assert all(n.attribute[0].i == onnx.TensorProto.FLOAT for n in users)


def test_the_predictor_runs_them(folders, model):
    ours = Predictor(model)
    ours.set_image(photos()[1][0])
    prompt = {"box": [100, 40, 350, 260]}
    expected = ours.predict(**prompt)
    for name, error in (("float16", 2e-3), ("int8", 0.2)):
        theirs = OnnxPredictor(*(folders[name] / f"wide_{part}.onnx" for part in PARTS))
        theirs.set_image(photos()[1][0])
        found = theirs.predict(**prompt)
        assert np.abs(found[2] - expected[2]).max() <= error * np.abs(expected[2]).max()


@pytest.mark.parametrize("flags", [["--split"], ["--form", "sam"], ["--image-input", "--published"]])
def test_other_forms(flags, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(out), "--precision", "int8", *flags]) == 0
    content = json.loads((out / "wide_onnx.json").read_text())
    assert content["verified"][precision.MEAN_IOU]["count"] == 8
    assert {p.suffix for p in out.iterdir()} == {".json", ".md", ".onnx"} and not list(out.glob("float32*"))


def test_rounding_is_that_of_the_limits():
    """Per output channel, to within half a step; the channels of a transposed convolution are its second axis."""
    values = np.random.default_rng(0).normal(size=(8, 6, 2, 2)).astype(np.float32)
    for axis in (0, 1):
        whole, scale = int8_weights.quantised(values, axis)
        assert whole.dtype == np.int8 and np.abs(whole).max() == 127 and scale.shape[axis] == values.shape[axis]
        assert (np.abs(whole * scale - values) <= 0.5001 * scale).all() and scale.size == values.shape[axis]
    assert (int8_weights.quantised(np.zeros((3, 4), np.float32), 0)[0] == 0).all()


# ---------------------------------------------------------------------------------------------------- sensitive layers


def test_a_sensitive_layer_stays_in_float16(model, tmp_path, capsys):
    """A weight whose channels have one outlier each loses the rest to int8: it is found, and left in float16."""
    hurt = dataclasses.replace(model, variables=with_outliers(model.variables))
    hurt_cases = gate.make_cases(hurt, precision.load_photos("int8", []), 16, True)
    job = ExportJob("m", PARTS, 16, True, "stability", hurt, precision="int8")
    content = to_onnx.build(job, tmp_path, "tensor", hurt_cases)
    kept = content["kept_in_float16"]
    assert content["verified"]["passed"] and any("neck" in name for name in kept["m_encoder.onnx"])
    total = sum(len(int8_weights.candidates(path)) for path in tmp_path.glob("*.onnx"))
    assert sum(map(len, kept.values())) < 8 and total == 0  # the weights have become outputs of a cast
    stored = {t.name: t.data_type for file in kept for t in onnx.load(tmp_path / file).graph.initializer}
    assert all(stored[f"{name}_half"] == onnx.TensorProto.FLOAT16 for names in kept.values() for name in names)
    assert capsys.readouterr().out.count("of the weights, mean mask IoU") >= 2


@pytest.mark.slow
def test_layers_stay_in_float16_until_single_masks_are_within_the_limits_too(tmp_path, capsys):
    """All weights in int8 keep the mean of the bundled teacher's split files, but not its worst mask."""
    output = tmp_path / "out"
    flags = ["--split", "--slots", "dynamic", "--precision", "int8"]
    assert to_onnx.main(["tiny_teacher", "--output", str(output), *flags]) == 0
    content = json.loads((output / "tiny_teacher_onnx.json").read_text())
    assert content["verified"]["passed"] and content["kept_in_float16"]
    tried = [line for line in capsys.readouterr().out.splitlines() if "of the weights, mean mask IoU" in line]
    assert tried[0].endswith("beyond the other limits") and tried[-1].endswith("within the other limits")


def with_outliers(variables):
    """Every output channel of the neck's last convolution gets weights of 20 on an input that is always 0."""
    variables = jax.tree.map(np.array, variables)
    encoder = variables["params"]["image_encoder"]
    encoder["neck_0"]["scale"][0] = encoder["neck_0"]["bias"][0] = 0
    encoder["neck_1"]["kernel"][:, :, 0] = 20
    return variables


def test_masks_that_suffer_are_refused(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "LEAST_IOU", 0.999999)
    output = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(output), "--precision", "int8"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "masks keep a mean IoU of 0.9" in error and "use --precision float16" in error and not output.exists()


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_a_wrong_scale_is_refused(name, checkpoint, tmp_path, monkeypatch, capsys):
    """A stored weight that is not the model's: all of its values 20 % too large."""
    original = precision.rewrite

    def broken(source, target, int8):
        original(source, target, int8)
        proto = onnx.load(target)
        tensor = next(t for t in proto.graph.initializer if t.name.endswith("_half" if name == "float16" else "_scale"))
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * 1.2).astype(values.dtype), tensor.name))
        onnx.save(proto, target)

    monkeypatch.setattr(precision, "rewrite", broken)
    monkeypatch.setattr(precision, "LEAST_IOU", 0.0)
    output = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(output), "--precision", name]) == 1
    assert "DIFFERS FROM the JAX model" in capsys.readouterr().out and not output.exists()


def test_the_costliest_come_first():
    errors = {("a", "x"): 9.0, ("a", "y"): 1.0, ("a", "z"): 10.0, ("b", "x"): 1.0}
    sizes = {("a", "x"): 10, ("a", "y"): 10, ("a", "z"): 1000, ("b", "x"): 10}
    assert sensitivity.costliest(errors, sizes, 1.0) == []
    assert sensitivity.costliest(errors, sizes, 0.6) == [("a", "x")]
    assert sensitivity.costliest(errors, sizes, 0.5) == [("a", "x"), ("a", "y"), ("b", "x")]
    assert sensitivity.costliest(errors, sizes, 0.2) == [("a", "x"), ("a", "y"), ("b", "x"), ("a", "z")]


def test_user_errors_are_one_line(checkpoint, tmp_path, capsys, cases, model):
    few = tmp_path / "photos"
    few.mkdir()
    Image.fromarray(photos()[2][0][:60, :60]).save(few / "one.png")
    for flags, message in (
        (["--precision", "int8", "--photos", str(few)], "--precision int8: is measured on 8 photos or more, not 1"),
        (["--precision", "int8", "--part", "encoder"], "which --part encoder doesn't make"),
        (["--precision", "int4"], "--precision"),
    ):
        assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 2, flags
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1, text
    assert not (tmp_path / "out").exists()
    job = ExportJob("m", PARTS, 16, True, "stability", model, precision="int8")
    with pytest.raises(UsageError, match="8 photos or more, not 3"):
        to_onnx.build(job, tmp_path, "tensor", cases[:3])
    assert issubclass(Refused, Exception)
