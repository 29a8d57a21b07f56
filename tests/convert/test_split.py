"""Decoders in two graphs: equal to the whole decoder, refused by the gate if either is wrong, run as a pair."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import deterministic_weights
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from convert import to_onnx  # noqa: E402
from convert.export import common, gate, split  # noqa: E402
from convert.export.decoder import ExportDecoder  # noqa: E402
from convert.torch_twin.loading import load_twin  # noqa: E402
from edgesam_jax import OnnxPredictor, Predictor, UsageError  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.config import DecoderConfig  # noqa: E402
from edgesam_jax.data.scenes.textures import photos  # noqa: E402
from edgesam_jax.models.sam import MODELS  # noqa: E402
from edgesam_jax.portable.onnx_model import METADATA, UNUSED, OnnxDecoder, OnnxEncoder  # noqa: E402

# Wide enough for the folded form of any number of points, and not for that of 16 slots.
DECODER = DecoderConfig(depth=2, heads=2, mlp_dim=16, attention_downsample=1)
CONFIG = dataclasses.replace(tiny.REPVIT, embed_dim=32, decoder=DECODER)
# The decoder of EdgeSAM and its grid, with a small encoder.
FULL = dataclasses.replace(MODELS["edge_sam"], encoder=tiny.CONV.encoder, image_size=512)
TOLERANCE = gate.TOLERANCES["float32"]


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """Both forms, written by the command."""
    made = {}
    for form, slots in (("folded", "dynamic"), ("shared", "16")):
        made[form] = tmp_path_factory.mktemp("split") / form
        assert to_onnx.main([str(checkpoint), "--output", str(made[form]), "--split", "--slots", slots]) == 0
    return made


def pair(folder):
    return folder / "small_encoder.onnx", folder / "small_decoder.onnx"


# ------------------------------------------------------------------------------------------------- in torch, float64


@functools.cache
def halves_of(depth: int, heads: int, form: str, flat: bool):
    """The whole decoder and its halves in float64."""
    config = dataclasses.replace(CONFIG, decoder=DecoderConfig(depth=depth, heads=heads, mlp_dim=16))
    sam = load_twin(Model(config, deterministic_weights.variables(config))).double()
    whole = ExportDecoder(sam, "stability", True).double()
    return whole, split.split(whole, form, flat)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 4])),
    form=st.sampled_from([("folded", True), ("shared", True), ("shared", False)]),
    points=st.integers(1, 17),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_halves_are_the_whole(shape, form, points, masked, seed):
    """For any depth, number of heads and points, with unused slots and boxes, and with an earlier mask."""
    whole, halves = halves_of(*shape, *form)
    random = torch.Generator().manual_seed(seed)

    def normal(*sides):
        return torch.randn(*sides, generator=random, dtype=torch.float64)

    g, s = CONFIG.grid, CONFIG.mask_size
    photo = 3 * normal(1, CONFIG.embed_dim, g, g), 10 * normal(1, 1, s, s), torch.tensor([float(masked)])
    coords = torch.rand(1, points, 2, generator=random, dtype=torch.float64) * CONFIG.image_size
    labels = torch.randint(UNUSED, 4, (1, points), generator=random).double()
    with torch.no_grad():
        scores, masks = whole(photo[0], coords, labels, *photo[1:])
        found = halves.decoder(list(halves.image(*photo)), coords, labels)
    # Weights of halves are rounded from products in float64, and sums have another order: nothing else may differ.
    np.testing.assert_allclose(found[1], masks, atol=1e-9 * float(masks.abs().max()))
    np.testing.assert_allclose(found[0], scores, atol=1e-9)


def test_the_form_follows_the_cost():
    """A folded product costs heads*tokens, another the width of attention: 8 and 128 in the full-size decoder."""
    full = MODELS["edge_sam"]
    assert [split.form_of(full, slots) for slots in (0, 2, 10, 11, 16)] == [
        "folded", "folded", "folded", "shared", "shared"
    ]  # fmt: skip


@pytest.mark.parametrize(("points", "form", "share"), [(1, "folded", 0.28), (5, "folded", 0.46), (16, "shared", 0.78)])
def test_a_prompt_costs_less(points, form, share):
    """Multiply-adds at full size, as shares of the whole decoder's."""
    from torch.utils.flop_counter import FlopCounterMode

    assert FULL.decoder == MODELS["edge_sam"].decoder and FULL.grid == 64 and FULL.embed_dim == 256
    whole, halves = full_size(form)
    inputs, maps = halves.example(FULL)
    prompt = torch.zeros(1, points, 2), torch.zeros(1, points)
    counts = []
    for run in (lambda: whole(inputs[0], *prompt, *inputs[1:]), lambda: halves.decoder(maps, *prompt)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(share, abs=0.01)


@functools.cache
def full_size(form: str):
    whole = ExportDecoder(load_twin(Model(FULL, deterministic_weights.variables(FULL))), "stability", True)
    return whole, split.split(whole, form, True)


# ------------------------------------------------------------------------------------------------------------ in ONNX


@pytest.mark.parametrize("form", ["folded", "shared"])
def test_the_folder_and_its_contract(form, folders):
    names = ["small_MODEL_CARD.md", "small_decoder.onnx", "small_encoder.onnx", "small_image.onnx", "small_onnx.json"]
    assert sorted(p.name for p in folders[form].iterdir()) == names
    content = json.loads((folders[form] / "small_onnx.json").read_text())
    assert content["split"] == form and content["mask_input"] and content["batch"] == 1
    assert content["verified"]["passed"] and content["verified"]["logits"]["count"] == 36
    assert set(content["files"]) == set(names[1:4])
    for part, entry in content["parts"].items():
        proto = onnx.load(folders[form] / entry["file"])
        assert entry["file"] == f"small_{part}.onnx" and entry["file"] in content["files"]
        if part == "encoder":
            continue
        assert [i.name for i in proto.graph.input] == entry["inputs"]
        assert [o.name for o in proto.graph.output] == entry["outputs"]
        stored = json.loads({p.key: p.value for p in proto.metadata_props}[METADATA])
        assert stored["parts"] == content["parts"]
    image, decoder = content["parts"]["image"], content["parts"]["decoder"]
    assert image["inputs"] == ["image_embeddings", "mask_input", "has_mask_input"]
    assert decoder["inputs"] == [*image["outputs"], "point_coords", "point_labels"]


@pytest.mark.parametrize("form", ["folded", "shared"])
def test_the_onnx_predictor_runs_the_pair(form, folders, model):
    ours, theirs = Predictor(model), OnnxPredictor(*pair(folders[form]))
    assert theirs.model.decoder.slots == {"folded": 0, "shared": 16}[form]
    h, w = photos()[1][0].shape[:2]
    rng = np.random.default_rng(0)
    prompts = [{"box": [w * 0.2, h * 0.1, w * 0.7, h * 0.9]}]
    prompts += [
        {"point_coords": rng.uniform(0, 1, (n, 2)) * (w, h), "point_labels": rng.integers(0, 2, n), "num_masks": 4}
        for n in (1, 2, 5, 16)
    ]
    for photo in (photos()[1][0], photos()[0][0]):
        for predictor in (ours, theirs):
            predictor.set_image(photo)
        for prompt in prompts:
            a, b = ours.predict(**prompt), theirs.predict(**prompt)
            np.testing.assert_allclose(b[2], a[2], atol=1e-4 * np.abs(a[2]).max())
            refined = {**prompt, "mask_input": a[2][0]}
            c, d = ours.predict(**refined), theirs.predict(**refined)
            np.testing.assert_allclose(d[2], c[2], atol=1e-4 * np.abs(c[2]).max())
            assert np.abs(c[2] - a[2]).max() > 0.01 * np.abs(a[2]).max()  # the mask counts


def test_the_first_graph_runs_once_per_photo_and_once_per_mask(folders, cases, monkeypatch):
    predictor = OnnxPredictor(*pair(folders["folded"]))
    decoder = predictor.model.decoder
    assert [p.name for p in decoder.files] == ["small_decoder.onnx", "small_image.onnx"]
    run, calls = decoder._photo._run, []
    monkeypatch.setattr(
        decoder._photo, "_run", lambda inputs: calls.append(float(inputs["has_mask_input"][0])) or run(inputs)
    )
    coords, labels = np.ones((3, 2, 2), np.float32), np.ones((3, 2), np.int32)
    for case in cases[:2]:
        decoder.decode_prompts(case.embedding, coords, labels)
        decoder.decode(case.embedding, coords[0], labels[0])
    assert calls == [0, 0]
    masked = decoder.decode_prompts(cases[1].embedding, coords, labels, np.stack([cases[1].logits[0, 0]] * 3))[0]
    assert calls == [0, 0, 1, 1, 1]
    plain = decoder.decode_prompts(cases[1].embedding, coords, labels)[0]
    assert calls == [0, 0, 1, 1, 1] and np.abs(plain - masked).max() > 0.01 * np.abs(plain).max()
    calls.clear()
    predictor.set_image(photos()[0][0])
    for _ in range(3):
        predictor.predict(box=[1, 1, 90, 90])
        predictor.predict(point_coords=[[30, 30]], point_labels=[1])
    assert calls == [0]


def test_the_evaluator_reads_the_pair_and_its_digest_covers_all_files(folders, tmp_path):
    from edgesam_jax.eval.scoring.systems import OnnxSystem

    whole = OnnxSystem(*pair(folders["shared"])).digest
    changed = tmp_path / "changed"
    shutil.copytree(folders["shared"], changed)
    proto = onnx.load(changed / "small_image.onnx")
    proto.doc_string = "another file"
    onnx.save(proto, changed / "small_image.onnx")
    assert OnnxSystem(*pair(changed)).digest != whole


# ----------------------------------------------------------------------------------------------------- the gate fails


@pytest.mark.parametrize("form", ["folded", "shared"])
@pytest.mark.parametrize("part", ["image", "decoder"])
def test_a_corrupt_weight_of_either_graph_is_refused(form, part, folders, cases, tmp_path):
    encoder = OnnxEncoder(pair(folders[form])[0])
    assert gate.verify(cases[:1], encoder, OnnxDecoder(pair(folders[form])[1]), TOLERANCE, "stability").passed
    folder = tmp_path / "corrupt"
    shutil.copytree(folders[form], folder)
    proto = onnx.load(folder / f"small_{part}.onnx")
    weights = [t for t in proto.graph.initializer if len(t.dims) >= 2 and np.prod(t.dims) >= 64]
    assert len(weights) >= 5
    for tensor in weights:
        kept = tensor.SerializeToString()
        array = onnx.numpy_helper.to_array(tensor).copy()
        array += 0.5 * np.abs(array).max() * (np.arange(array.size) % 3 == 0).reshape(array.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(proto, folder / f"small_{part}.onnx")
        verdict = gate.verify(cases[:1], None, OnnxDecoder(pair(folder)[1]), TOLERANCE, "stability")
        assert not verdict.passed, tensor.name
        tensor.ParseFromString(kept)


def test_a_wrong_export_is_not_written(checkpoint, tmp_path, monkeypatch, capsys):
    from convert.export import photo_maps

    correct = photo_maps.constant_of
    monkeypatch.setattr("convert.export.folded.constant_of", lambda *a: 0 * correct(*a))  # a forgotten bias
    output = tmp_path / "out"
    flags = ["--split", "--slots", "dynamic", "--part", "decoder"]
    assert to_onnx.main([str(checkpoint), "--output", str(output), *flags]) == 1
    captured = capsys.readouterr()
    assert "DIFFERS FROM the JAX model" in captured.out and "nothing was written" in captured.err
    assert not output.exists()


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--published"], "drop --split or --published"),
        (["--batch", "dynamic"], "drop --split or --batch dynamic"),
        (["--part", "encoder"], "drop it, or --part encoder"),
    ],
)
def test_flags_that_exclude_each_other(flags, message, checkpoint, tmp_path, capsys):
    assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), "--split", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --split: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_half_a_pair_is_a_readable_error(folders, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(folders["folded"], folder)
    shutil.copy(folders["shared"] / "small_image.onnx", folder)
    with pytest.raises(UsageError, match=r"small_image\.onnx: does not belong to .*small_decoder\.onnx"):
        OnnxDecoder(pair(folder)[1])
    (folder / "small_image.onnx").unlink()
    with pytest.raises(UsageError, match=r"small_image\.onnx: no such file; .*half of a split decoder"):
        OnnxPredictor(*pair(folder))


def test_without_the_flag_nothing_changes(model, tmp_path):
    job = common.ExportJob("w", ("decoder",), 16, True, "stability", model)
    file = to_onnx.export(job, tmp_path, "tensor")["decoder"]
    content = json.loads({p.key: p.value for p in onnx.load(file).metadata_props}[METADATA])
    assert not {"split", "parts"} & set(content) and onnx.load(file).opset_import[0].version == to_onnx.OPSET
