"""ONNX exports: verified, self-describing and equal to the model; and the gate fails on wrong ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from convert import to_onnx  # noqa: E402
from convert.export import common, gate  # noqa: E402
from convert.export import decoder as export_decoder  # noqa: E402
from edgesam_jax import OnnxPredictor, Predictor, UsageError  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.data.scenes.textures import photos  # noqa: E402
from edgesam_jax.eval.scoring.protocol import Settings  # noqa: E402
from edgesam_jax.portable.onnx_model import METADATA, OnnxDecoder, OnnxEncoder  # noqa: E402

CONFIG = dataclasses.replace(tiny.REPVIT, decoder=dataclasses.replace(tiny.CONV.decoder, depth=2))
TOLERANCE = gate.TOLERANCES["float32"]


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    """Both parts with 16 slots, written by the command."""
    folder = tmp_path_factory.mktemp("onnx") / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def labelling(checkpoint, tmp_path_factory) -> Path:
    """The form of annotation programs: any number of points, an encoder that takes photos, and no mask input."""
    folder = tmp_path_factory.mktemp("onnx") / "out"
    flags = ["--slots", "dynamic", "--image-input", "--published", "--name", "label"]
    assert to_onnx.main([str(checkpoint), "--output", str(folder), *flags]) == 0
    return folder


def parts(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}_encoder.onnx", folder / f"{name}_decoder.onnx"


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_folder_has_the_files_and_their_contract(exported, model):
    assert sorted(p.name for p in exported.iterdir()) == [
        "small_MODEL_CARD.md", "small_decoder.onnx", "small_encoder.onnx", "small_onnx.json"
    ]  # fmt: skip
    content = json.loads((exported / "small_onnx.json").read_text())
    assert content["image_size"] == 32 and content["slots"] == 16 and content["adds_padding"] and content["mask_input"]
    assert content["labels"]["-2"].startswith("no point") and content["licence"] == "Apache-2.0"
    assert content["verified"]["passed"] and content["verified"]["logits"]["count"] == 36
    for name, entry in content["files"].items():
        path = exported / name
        assert entry == {"bytes": path.stat().st_size, "sha256": common.sha256(path)}


def test_the_files_contain_their_contract(exported, labelling):
    for folder, name, slots in ((exported, "small", 16), (labelling, "label", "dynamic")):
        for path in parts(folder, name):
            proto = onnx.load(path)
            content = json.loads({p.key: p.value for p in proto.metadata_props}[METADATA])
            assert content["slots"] == slots and content["image_size"] == 32
            # No local paths, and no ops that TensorRT rejects as shapes.
            assert b".py" not in path.read_bytes()
            assert not {"OneHot", "Tile"} & {node.op_type for node in proto.graph.node}


def test_published_names_and_order(labelling):
    encoder, decoder = (onnx.load(path).graph for path in parts(labelling, "label"))
    assert [i.name for i in encoder.input] == ["image"] and [o.name for o in encoder.output] == ["image_embeddings"]
    assert [i.name for i in decoder.input] == ["image_embeddings", "point_coords", "point_labels"]
    assert [o.name for o in decoder.output] == ["scores", "masks"]
    assert decoder.input[1].type.tensor_type.shape.dim[1].dim_param == "num_points"
    # X-AnyLabeling feeds uint8 of any size up to the frame (docs/published_code.md, "Exports").
    shape = encoder.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8 and all(d.dim_param for d in shape.shape.dim[2:])


def test_one_part_alone(checkpoint, tmp_path):
    assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "d"), "--part", "decoder", "--slots", "4"]) == 0
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "small_MODEL_CARD.md", "small_decoder.onnx", "small_onnx.json"
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the predictor


@pytest.mark.parametrize("kind", ["exported", "labelling"])
def test_the_onnx_predictor_is_the_predictor(kind, model, request):
    folder = request.getfixturevalue(kind)
    ours = Predictor(model)
    theirs = OnnxPredictor(*parts(folder, "small" if kind == "exported" else "label"))
    photo = photos()[1][0]
    h, w = photo.shape[:2]
    for predictor in (ours, theirs):
        predictor.set_image(photo)
    assert theirs.embedding.input_size == ours.embedding.input_size
    prompts = [
        {"box": [w * 0.2, h * 0.1, w * 0.7, h * 0.9]},
        {"point_coords": [[w * 0.4, h * 0.5]], "point_labels": [1]},
        {"point_coords": [[w * 0.4, h * 0.5], [3, 4]], "point_labels": [1, 0], "num_masks": 3},
        {"box": [5, 5, w - 5, h - 5], "point_coords": [[w * 0.4, h * 0.5]], "point_labels": [0], "num_masks": 4},
    ]
    if kind == "exported":
        prompts.append({**prompts[0], "mask_input": ours.predict(**prompts[0])[2]})
    for prompt in prompts:
        a, b = ours.predict(**prompt), theirs.predict(**prompt)
        assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
        np.testing.assert_allclose(b[2], a[2], atol=1e-4 * np.abs(a[2]).max())
        assert (a[0] != b[0]).mean() < 1e-3
        np.testing.assert_allclose(b[1], a[1], atol=2e-2)  # a pixel at a threshold counts for 1 in 256
    boxes = np.array([[5, 5, 60, 70], [30, 40, 200, 180]])
    np.testing.assert_allclose(theirs.predict_prompts(boxes)[2], ours.predict_prompts(boxes)[2], atol=1e-3)


def test_the_onnx_predictor_rejects_invalid_calls(exported, labelling):
    fixed, free = OnnxPredictor(*parts(exported, "small")), OnnxPredictor(*parts(labelling, "label"))
    with pytest.raises(UsageError, match="no photo is set"):
        fixed.predict(box=[0, 0, 5, 5])
    for predictor in (fixed, free):
        predictor.set_image(photos()[0][0])
    many = {"point_coords": [[i + 1, 5] for i in range(17)], "point_labels": [1] * 17}
    with pytest.raises(UsageError, match=r"17 points and box corners.*16 slots.*--slots"):
        fixed.predict(**many)
    assert free.predict(**many)[0].shape == (1, 512, 512)
    with pytest.raises(UsageError, match="label must be 1"):
        free.predict(point_coords=[[1, 1]], point_labels=[4])
    with pytest.raises(UsageError, match=r"labels: \[7\] are unknown"):
        fixed.model.decoder.decode(fixed.embedding.values, np.zeros((2, 2)), np.array([1, 7]))
    with pytest.raises(UsageError, match="takes none; export the decoder again without --published"):
        free.predict(box=[0, 0, 5, 5], mask_input=np.zeros((16, 16)))
    with pytest.raises(UsageError, match=r"none\.onnx: no such file"):
        OnnxPredictor(exported / "none.onnx", exported / "small_decoder.onnx")
    with pytest.raises(UsageError, match="another model"):
        free.set_image(photos()[0][0], fixed.embedding)


def test_it_loads_no_jax(exported):
    code = (
        "import sys; from edgesam_jax import OnnxPredictor; import numpy as np\n"
        f"p = OnnxPredictor(r'{exported}/small_encoder.onnx', r'{exported}/small_decoder.onnx')\n"
        "p.set_image(np.zeros((20, 30, 3), np.uint8)); p.predict(box=[1, 1, 9, 9])\n"
        "assert not {'jax', 'flax', 'torch', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_evaluator_takes_the_files(exported, model):
    """``eval --onnx`` with fixed slots gives the scores of the model."""
    from edgesam_jax.data.schema import Example, boxes_of
    from edgesam_jax.eval.scoring.photos import from_example
    from edgesam_jax.eval.scoring.prompted import score_photo
    from edgesam_jax.eval.scoring.systems import JaxSystem, OnnxSystem

    masks = np.zeros((2, 300, 451), bool)
    masks[0, 40:200, 60:300] = masks[1, 100:150, 300:420] = True
    example = Example(
        photos()[1][0], masks, boxes_of(masks), np.zeros((2, 2), np.float32), 0, np.arange(2), np.zeros(2)
    )
    photo = from_example(example, 0)
    systems = JaxSystem("jax", model), OnnxSystem(*parts(exported, "small"))
    a, b = (score_photo(system, photo, Settings("center", 2)).iou for system in systems)
    np.testing.assert_allclose(a, b, atol=5e-3)


def test_the_published_protocol_needs_an_encoder_that_takes_floats(labelling, tmp_path, capsys):
    from edgesam_jax.eval import __main__ as command

    files = [str(path) for path in parts(labelling, "label")]
    flags = ["--dataset", "scenes", "--limit", "1", "--prompt", "box", "--onnx", *files]
    output = tmp_path / "report.json"
    assert command.main([*flags, "--protocol", "published", "--output", str(output)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --protocol published: ") and "--image-input" in error
    assert not list(tmp_path.iterdir())
    assert command.main(flags) == 0


@pytest.mark.parametrize("slots", [16, 0], ids=["fixed", "dynamic"])
def test_prompts_in_one_call_are_those_one_by_one(slots, model, exported, cases, tmp_path, monkeypatch):
    job = common.ExportJob("b", ("decoder",), slots, True, "stability", model, batched=True)
    decoder = to_onnx.export(job, tmp_path, "tensor")["decoder"]
    batched, single = OnnxDecoder(decoder), OnnxDecoder(parts(exported, "small")[1])
    assert batched.batched and not single.batched and batched.slots == slots
    assert json.loads({p.key: p.value for p in onnx.load(decoder).metadata_props}[METADATA])["batch"] == "dynamic"
    verdict = gate.verify(cases[:1], OnnxEncoder(parts(exported, "small")[0]), batched, TOLERANCE, "stability")
    assert verdict.passed and verdict.summary()["logits from end to end"]["count"] == 12  # decoded together

    predictors = [OnnxPredictor(parts(exported, "small")[0], d) for d in (decoder, parts(exported, "small")[1])]
    calls = []
    session = predictors[0].model.decoder._session
    monkeypatch.setattr(
        predictors[0].model.decoder, "_session",
        type("Counted", (), {"run": lambda self, *a: calls.append(len(a[1]["point_labels"])) or session.run(*a)})(),
    )  # fmt: skip
    rng, count = np.random.default_rng(0), 20
    low = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 200, (count, 2))], 1)
    points, labels = rng.uniform(0, 300, (count, 3, 2)), rng.integers(0, 2, (count, 3))
    for predictor in predictors:
        predictor.set_image(photos()[1][0])
    for prompts in (
        {"boxes": boxes},
        {"point_coords": points, "point_labels": labels},
        {"boxes": boxes, "point_coords": points, "point_labels": labels, "mask_inputs": rng.normal(size=(20, 16, 16))},
    ):
        calls.clear()
        a, b = (predictor.predict_prompts(**prompts, num_masks=4) for predictor in predictors)
        assert calls == [16, 4]
        np.testing.assert_allclose(a[2], b[2], atol=1e-5 * np.abs(b[2]).max())
        assert (a[0] != b[0]).mean() < 1e-5
        np.testing.assert_allclose(a[1], b[1], atol=5e-3)


def test_published_files_take_any_number_of_points(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(out), "--published", "--part", "decoder"]) == 0
    assert OnnxDecoder(out / "small_decoder.onnx").slots == 0


# ----------------------------------------------------------------------------------------------- the gate fails


def corrupted(path: Path, target: Path, change) -> Path:
    """Write a copy of an ONNX file with one weight changed."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        changed = change(tensor.name, array)
        if changed is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
            onnx.save(proto, target)
            return target
    raise AssertionError("nothing to change")


def test_the_gate_passes_a_correct_export(exported, cases):
    encoder, decoder = OnnxEncoder(parts(exported, "small")[0]), OnnxDecoder(parts(exported, "small")[1])
    verdict = gate.verify(cases, encoder, decoder, TOLERANCE, "stability")
    assert verdict.passed and len(verdict.findings) > 3 * (1 + 2 * 12 * 2)
    assert {f.quantity for f in verdict.findings} >= {
        "embedding",
        "logits",
        "mask IoU",
        "score",
        "logits from end to end",
    }


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_corrupt_weight_is_found(part, exported, cases, tmp_path):
    path = parts(exported, "small")[part == "decoder"]
    rng = np.random.default_rng(0)

    def change(name, array):
        if array.ndim != 4 or array.size < 64:
            return None
        array = array.copy()
        array[tuple(rng.integers(0, s) for s in array.shape)] += 2.0  # one number of one convolution
        return array

    file = corrupted(path, tmp_path / path.name, change)
    if part == "encoder":
        verdict = gate.verify(cases, OnnxEncoder(file), None, TOLERANCE, "stability")
    else:
        verdict = gate.verify(cases, None, OnnxDecoder(file), TOLERANCE, "stability")
    assert not verdict.passed and not verdict.worst.passed
    assert any(name in gate.report(verdict, "x") for name in ("astronaut", "chelsea", "coffee"))


def test_swapped_channels_are_found(exported, cases, tmp_path):
    path = parts(exported, "small")[0]
    file = corrupted(path, tmp_path / "e.onnx", lambda n, a: a[:, ::-1] if a.ndim == 4 and a.shape[1] == 3 else None)
    verdict = gate.verify(cases, OnnxEncoder(file), None, TOLERANCE, "stability")
    assert not verdict.passed and verdict.worst.quantity == "embedding"


def test_a_dropped_padding_token_is_found_at_the_points(checkpoint, tmp_path, monkeypatch, capsys):
    """The command ends with exit code 1, names the worst finding and writes nothing."""
    original = export_decoder.Slots.forward

    def without(self, coords, labels):
        tokens, used = original(self, coords, labels)
        return tokens, torch.cat([used[..., :-1], 0 * used[..., -1:]], dim=3)

    monkeypatch.setattr(export_decoder.Slots, "forward", without)
    output = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(output), "--part", "decoder"]) == 1
    captured = capsys.readouterr()
    assert "DIFFERS FROM the JAX model" in captured.out and "point" in captured.out.split("worst: ")[1]
    assert "nothing was written" in captured.err and not output.exists()


def test_bilinear_in_place_of_bicubic_is_found(model, cases, tmp_path):
    config = dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, upsample="bilinear"))
    job = common.ExportJob("b", ("encoder",), 16, True, "stability", Model(config, model.variables))
    files = to_onnx.export(job, tmp_path, "tensor")
    verdict = gate.verify(cases, OnnxEncoder(files["encoder"]), None, TOLERANCE, "stability")
    assert not verdict.passed and verdict.worst.severity > 10


def test_nan_never_passes(cases):
    class Broken:
        def decode(self, embedding, coords, labels, mask=None):
            return np.full((4, 16, 16), np.nan, np.float32), np.full(4, np.nan, np.float32)

    verdict = gate.verify(cases[:1], None, Broken(), TOLERANCE, "stability")
    assert not verdict.passed and "nan" in str(verdict.worst)
    assert not gate.Verdict().passed  # nor does a verdict without findings


# -------------------------------------------------------------------------------------------------------- faults


def test_user_errors_are_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no photo")
    out = ["--output", str(tmp_path / "out")]
    for flags, message in (
        ([str(tmp_path / "none.pth"), *out], "none.pth"),
        ([str(checkpoint), "--output", str(taken)], "is a file; choose a folder"),
        ([str(checkpoint), *out, "--image-size", "100"], "--image-size 100: must be a multiple of 16"),
        (["tiny_teacher", *out, "--image-size", "256"], "learned positions for 128 px"),
        ([str(checkpoint), *out, "--slots", "1"], "--slots: must be 2 to 1024"),
        ([str(checkpoint), *out, "--slots", "many"], "--slots"),
        ([str(checkpoint), *out, "--name", "a/b"], "--name a/b"),
        ([str(checkpoint), *out, "--photos", str(empty)], "contains no photos; pass files"),
        ([str(checkpoint), *out, "--photos", str(damaged)], "damaged.jpg: not an image"),
    ):
        assert to_onnx.main(flags) == 2, flags
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1, text
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    assert to_onnx.main([str(checkpoint), *out]) == 2
    assert "pip install 'edgesam-jax[export]'" in capsys.readouterr().err


def test_the_gate_uses_the_photos_of_the_flags(checkpoint, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(photos()[2][0][:90, :60]).save(folder / "mine.jpg")
    shutil.copy(folder / "mine.jpg", tmp_path / "other.jpg")
    flags = ["--part", "decoder", "--photos", str(folder), "--photos", str(tmp_path / "other.jpg")]
    assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 0
    content = json.loads((tmp_path / "out" / "small_onnx.json").read_text())
    assert content["verified"]["logits"]["count"] == 24
