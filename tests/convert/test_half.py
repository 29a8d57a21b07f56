"""``--arithmetic float16``: what computes in float16 and what doesn't, proved with real half arithmetic."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import deterministic_weights
import jax
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from convert import to_onnx  # noqa: E402
from convert.export import gate, half  # noqa: E402
from convert.export.common import ExportJob, Refused  # noqa: E402
from edgesam_jax import OnnxPredictor, Predictor  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.config import DecoderConfig, EfficientVitConfig, TinyVitConfig, VitConfig  # noqa: E402
from edgesam_jax.data.scenes.textures import photos  # noqa: E402
from edgesam_jax.portable.onnx_model import OnnxEncoder, normalised, prompt_inputs  # noqa: E402

CONFIG = dataclasses.replace(
    tiny.PROPOSALS, decoder=DecoderConfig(depth=2, heads=4, mlp_dim=128), image_size=64, embed_dim=64
)
FLAGS = ["--precision", "float16", "--arithmetic", "float16"]
PARTS = ("encoder", "decoder")
HALF = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Files with float32 and float16 arithmetic, written by the command."""
    made = {}
    for name, flags in (("float32", []), ("float16", FLAGS)):
        made[name] = tmp_path_factory.mktemp("half") / name
        assert to_onnx.main([str(checkpoint), "--output", str(made[name]), *flags]) == 0
    return made


def content_of(folder: Path) -> dict:
    return json.loads((folder / "small_onnx.json").read_text())


def kinds_of(graph) -> dict[str, int]:
    """The types of all values by name."""
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


def test_products_are_float16_and_the_rest_is_what_it_must_be(folders):
    for part in PARTS:
        graph = onnx.load(folders["float16"] / f"small_{part}.onnx").graph
        kinds = kinds_of(graph)
        maker = {name: node for node in graph.node for name in node.output}
        assert all(kinds[v.name] in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8) for v in graph.input)
        assert all(kinds[v.name] == onnx.TensorProto.FLOAT for v in graph.output)
        pending, upstream = [n for n in graph.node if n.op_type in half.SINES], []
        assert (part == "decoder") == bool(pending)
        while pending:
            upstream.append(pending.pop())
            pending += [maker[name] for name in upstream[-1].input if name in maker]
        phase = {n.name for n in upstream}
        for node in graph.node:
            given = {kinds[name] for name in node.input if name}
            assert node.op_type != "Erf"
            if node.name in phase or node.op_type in ("ReduceMean", "Sqrt", "Reciprocal", "Greater"):
                assert HALF not in given, node.op_type
            elif node.op_type in half.PRODUCTS:
                assert given == {HALF} == {kinds[name] for name in node.output}
        assert sum(node.op_type in half.PRODUCTS for node in graph.node) > 20
        assert not [t for t in graph.initializer if np.prod(t.dims) >= 512 and t.data_type == onnx.TensorProto.FLOAT]


def test_files_are_half_as_large_and_the_contract_has_both_checks(folders):
    sizes = [sum(p.stat().st_size for p in folders[n].glob("*.onnx")) for n in ("float16", "float32")]
    assert sizes[0] < 0.75 * sizes[1]  # small weights, so the graph counts
    content = content_of(folders["float16"])
    assert content["weights"] == content["arithmetic"] == "float16"
    assert content["verified"]["passed"] and content["verified_rounded"]["passed"]
    rounded = content["verified_rounded"]["embedding"]
    assert content["verified"]["embedding"]["worst"] < rounded["worst"] <= content["limits"]["embedding"]["limit"]
    assert "verified_rounded" not in content_of(folders["float32"])


def test_real_half_arithmetic_is_within_the_limits(folders, cases):
    """ONNX's reference implementation computes in NumPy's float16, sums included; the emulation is as far off."""
    limits = content_of(folders["float16"])["limits"]
    case = cases[1]
    encoder = ReferenceEvaluator(str(folders["float16"] / "small_encoder.onnx"))
    [embedding] = encoder.run(["image_embeddings"], {"image": normalised(case.frame, case.filled)})
    assert 1e-4 < relative(embedding, case.embedding) <= limits["embedding"]["limit"]
    decoder = ReferenceEvaluator(str(folders["float16"] / "small_decoder.onnx"))
    for i in (0, 2, 8, 11):
        prompt, mask = case.prompts[i], case.masks[i]
        given = prompt.coords[None], prompt.labels[None], None if mask is None else mask[None]
        inputs = prompt_inputs(case.embedding, *given, 16, "")
        [logits] = decoder.run(["masks"], inputs)
        assert 1e-4 < relative(logits[0], case.logits[i]) <= limits["logits"]["limit"], prompt.name


def test_the_emulation_rounds_every_result(folders, tmp_path):
    """It gives the reference implementation's results but for the order of sums, and ONNX Runtime's own don't."""
    source = folders["float16"] / "small_encoder.onnx"
    half.emulation(source, tmp_path / "e.onnx")
    x = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    [real] = ReferenceEvaluator(str(source)).run(["image_embeddings"], {"image": x})
    found = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            ["image_embeddings"], {"image": x}
        )[0]
        for path in (tmp_path / "e.onnx", source, folders["float32"] / "small_encoder.onnx")
    ]
    emulated, native, exact = found
    assert relative(emulated, exact) > 1.3 * relative(native, exact) > 0
    assert 0.5 < relative(emulated, exact) / relative(real, exact) < 2


def test_the_predictor_runs_them(folders, model):
    ours, theirs = Predictor(model), OnnxPredictor(*(folders["float16"] / f"small_{part}.onnx" for part in PARTS))
    for predictor in (ours, theirs):
        predictor.set_image(photos()[1][0])
    prompt = {"box": [100, 40, 350, 260], "num_masks": 4}
    expected, found = ours.predict(**prompt)[2], theirs.predict(**prompt)[2]
    assert relative(found, expected) < 0.01


@pytest.mark.parametrize(
    "flags",
    [["--split"], ["--form", "sam"], ["--image-input", "--published"], ["--batch", "dynamic"], ["--priors"]],
    ids=lambda flags: " ".join(flags),
)
def test_other_forms(flags, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(out), *FLAGS, *flags]) == 0
    content = content_of(out)
    assert content["verified"]["passed"] and content["verified_rounded"]["passed"]
    if flags == ["--form", "sam"]:
        assert content["verified"]["enlarged mask IoU"]["count"] > 5


ENCODERS = {
    "vit": VitConfig(width=32, depth=2, heads=2, patch_size=8, global_blocks=(1,), window_size=3),
    "tiny_vit": TinyVitConfig(widths=(8, 16, 16, 24), depths=(1, 1, 2, 1), heads=(1, 2, 2, 3), windows=(7, 7, 4, 7)),
    # Some of its queries are 0 in all channels, and so are the sums that it divides by.
    "efficient_vit": EfficientVitConfig(widths=(4, 8, 8, 16, 24), depths=(1, 1, 2, 1, 2), head_dim=8),
}


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_other_encoders(encoder, tmp_path):
    config = dataclasses.replace(CONFIG, encoder=encoder, proposals=None)
    model = Model(config, deterministic_weights.variables(config), {"score": "stability"})
    job = ExportJob("m", ("encoder",), 16, True, "stability", model)
    cases = gate.make_cases(model, gate.load_photos([]), 16, True)
    assert to_onnx.build(job, tmp_path, "tensor", cases)["verified"]["embedding"]["worst"] < 1e-4
    job = dataclasses.replace(job, precision="float16", arithmetic="float16")
    rounded = to_onnx.build(job, tmp_path, "tensor", cases)["verified_rounded"]["embedding"]
    assert 1e-4 < rounded["worst"] < 0.01 and OnnxEncoder(tmp_path / "m_encoder.onnx").takes_float


def test_coordinates_in_float16_would_cost_half_as_much_again(tmp_path, monkeypatch):
    """In a frame of 1024 px, where float16 resolves half pixels."""
    config = dataclasses.replace(CONFIG, image_size=1024, proposals=None)
    model = Model(config, deterministic_weights.variables(config), {"score": "stability"})
    job = ExportJob("m", ("decoder",), 16, True, "stability", model, precision="float16", arithmetic="float16")
    cases = gate.make_cases(model, dict(list(gate.load_photos([]).items())[:1]), 16, True)
    errors = []
    for nodes in (half.exact, lambda nodes: set()):
        monkeypatch.setattr(half, "exact", nodes)
        errors.append(to_onnx.build(job, tmp_path, "tensor", cases)["verified_rounded"]["logits"]["mean"])
    assert errors[1] > 1.5 * errors[0]


# ----------------------------------------------------------------------------------------------------------- the gate


def test_a_wrong_weight_is_refused(checkpoint, tmp_path, monkeypatch, capsys):
    """All values of one convolution 5 % too large."""
    original = half.rewrite

    def broken(path):
        original(path)
        proto = onnx.load(path)
        tensor = next(t for t in proto.graph.initializer if t.data_type == HALF and len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * 1.05).astype(np.float16), tensor.name))
        onnx.save(proto, path)

    monkeypatch.setattr(half, "rewrite", broken)
    output = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(output), *FLAGS]) == 1
    assert "every result rounded to float16: DIFFERS FROM the JAX model" in capsys.readouterr().out
    assert not output.exists()


def test_an_overflow_is_refused_though_this_machine_computes_without_one(model, tmp_path, capsys):
    """The neck's last convolution is 1e5 times as large, which the norm after it undoes in float32."""
    variables = jax.tree.map(np.array, model.variables)
    encoder = variables["params"]["image_encoder"]
    encoder["neck_1"]["scale"] *= 1e3
    encoder["neck_1"]["bias"] *= 1e3
    encoder["neck_2"]["kernel"] *= 1e2
    hurt = dataclasses.replace(model, variables=variables)
    job = ExportJob("m", ("encoder",), 16, True, "stability", hurt, precision="float16", arithmetic="float16")
    cases = gate.make_cases(hurt, gate.load_photos([]), 16, True)
    with pytest.raises(Refused):
        to_onnx.build(job, tmp_path, "tensor", cases)
    shown = capsys.readouterr().out
    assert "m: equals the JAX model" in shown and "rounded to float16: DIFFERS FROM the JAX model" in shown
    assert "use --precision float32" in shown


def test_float16_arithmetic_needs_float16_weights(checkpoint, tmp_path, capsys):
    for precision in ("float32", "int8"):
        flags = ["--precision", precision, "--arithmetic", "float16"]
        assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 2
        text = capsys.readouterr().err
        assert f"--arithmetic float16: needs weights in float16, not {precision}" in text and text.count("\n") == 1
    assert not (tmp_path / "out").exists()
