"""``--form sam``: the predictor's masks at the photo's size for any program; a broken enlargement is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from convert import to_onnx  # noqa: E402
from convert.export import sam_form  # noqa: E402
from edgesam_jax import OnnxPredictor, Predictor  # noqa: E402
from edgesam_jax.data.scenes.textures import photos  # noqa: E402
from edgesam_jax.portable.frame import resize_longest_side, target_size  # noqa: E402
from edgesam_jax.portable.onnx_model import METADATA, OnnxEncoder, normalised  # noqa: E402

CONFIG = dataclasses.replace(tiny.REPVIT, decoder=dataclasses.replace(tiny.CONV.decoder, depth=2))
SIZES = {"landscape": (300, 451), "portrait": (120, 80), "small": (20, 15), "frame": (32, 32), "panorama": (7, 400)}


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """The encoder of padded photos with one mask, and that of (h w 3) with four, written by the command."""
    made = {}
    for name, flags in (("x", []), ("hwc", ["--image-input", "--masks", "4"])):
        made[name] = tmp_path_factory.mktemp("sam") / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sam_form, "PROGRAM_FRAME", CONFIG.image_size)
            assert to_onnx.main([str(checkpoint), "--output", str(made[name]), "--form", "sam", *flags]) == 0
    return made


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def photo_of(size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(photos()[1][0]).resize(size[::-1], Image.Resampling.BILINEAR))


class Program:
    """Calls the files as SAM's example of its ONNX model does: everything in numpy, a padding point always."""

    def __init__(self, folder, encoder: str) -> None:
        self.encoder, self.decoder = session(folder / "small_encoder.onnx"), session(folder / "small_decoder.onnx")
        self.form = encoder

    def set_image(self, photo: np.ndarray) -> None:
        resized, self.filled = resize_longest_side(photo, CONFIG.image_size)
        self.size = photo.shape[:2]
        if self.form == "hwc":
            given = {"input_image": resized.astype(np.float32)}
        else:
            frame = np.zeros((CONFIG.image_size, CONFIG.image_size, 3), np.uint8)
            frame[: self.filled[0], : self.filled[1]] = resized
            given = {"x": normalised(frame, self.filled)}
        [self.embedding] = self.encoder.run(None, given)

    def predict(self, points=(), labels=(), box=None, mask=None, has=None):
        coords = np.concatenate([np.reshape(box or [], (-1, 2)), np.reshape(points, (-1, 2)), [[0, 0]]])
        coords = coords * (self.filled[1] / self.size[1], self.filled[0] / self.size[0])
        inputs = {
            "image_embeddings": self.embedding,
            "point_coords": coords[None].astype(np.float32),
            "point_labels": np.float32([[*([2, 3] if box else []), *labels, -1]]),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32) if mask is None else mask[None],
            "has_mask_input": np.float32([mask is not None]) if has is None else np.float32([has]),
            "orig_im_size": np.float32(self.size),
        }
        return self.decoder.run(None, inputs)


def prompts_of(size: tuple[int, int]) -> list[dict]:
    h, w = size
    rng = np.random.default_rng(h)
    points = (rng.uniform(0.05, 0.95, (40, 2)) * (w, h)).tolist()
    box = [0.1 * w, 0.15 * h, 0.8 * w, 0.9 * h]
    return [
        {"points": points[:1], "labels": [1]},
        {"points": points[:3], "labels": [1, 0, 1]},
        {"points": points, "labels": [i % 2 for i in range(40)]},
        {"box": box},
        {"box": box, "points": points[:2], "labels": [0, 1]},
    ]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("encoder", ["x", "hwc"])
def test_programs_get_the_predictors_masks(encoder, size, folders, model):
    ours, program = Predictor(model), Program(folders[encoder], encoder)
    photo = photo_of(size)
    ours.set_image(photo)
    program.set_image(photo)
    count = 1 if encoder == "x" else 4
    compared = 0
    for prompt in prompts_of(size):
        given = {"point_coords": prompt.get("points"), "point_labels": prompt.get("labels"), "box": prompt.get("box")}
        for masked in (False, True):
            if masked:  # refine the first answer
                earlier = ours.predict(**given)[2]
                given["mask_input"], prompt["mask"] = earlier, earlier
            masks, scores, low = ours.predict(**given, num_masks=4)
            found = program.predict(**prompt)
            assert [x.shape for x in found] == [(1, count, *size), (1, count), (1, count, 16, 16)]
            np.testing.assert_allclose(found[2][0], low[:count], atol=1e-4 * np.abs(low).max())
            np.testing.assert_allclose(found[1][0], scores[:count], atol=2e-2)  # a pixel of 256 at a threshold
            assert ((found[0][0] > 0) != masks[:count]).mean() < 2e-3
            compared += masks[:count].any()
    assert compared >= 5


def test_programs_mistakes_do_no_harm(folders, model):
    """osam sends -1 for "no mask"; all send a padding point after boxes, and 256x256 zeros to any model."""
    program = Program(folders["x"], "x")
    photo = photo_of((60, 90))
    program.set_image(photo)
    prompt = {"box": [10, 10, 70, 50]}
    expected = program.predict(**prompt)
    for a, b in zip(program.predict(**prompt, has=-1), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    ours = Predictor(model)
    ours.set_image(photo)
    np.testing.assert_allclose(expected[2][0], ours.predict(box=prompt["box"])[2], atol=1e-3)


def test_names_and_order_are_sams(folders):
    encoder, decoder = (onnx.load(folders["x"] / f"small_{part}.onnx").graph for part in ("encoder", "decoder"))
    assert [i.name for i in encoder.input] == ["x"]
    assert [i.name for i in decoder.input] == sam_form.INPUTS and [o.name for o in decoder.output] == sam_form.OUTPUTS
    [photo] = onnx.load(folders["hwc"] / "small_encoder.onnx").graph.input
    shape = photo.type.tensor_type
    assert photo.name == "input_image" and shape.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_param or d.dim_value for d in shape.shape.dim][2:] == [3] and shape.shape.dim[0].dim_param
    for folder, masks in ((folders["x"], 1), (folders["hwc"], 4)):
        content = json.loads((folder / "small_onnx.json").read_text())
        assert content["form"] == "sam" and content["num_masks"] == masks and content["slots"] == "dynamic"
        assert content["verified"]["passed"] and content["verified"]["enlarged logits"]["count"] == 36
        assert content["verified"]["logits as programs call"]["count"] == 36
        assert content["verified"]["enlarged mask IoU"]["count"] >= 5
        properties = onnx.load(folder / "small_decoder.onnx").metadata_props
        assert json.loads({p.key: p.value for p in properties}[METADATA])["outputs"] == sam_form.OUTPUTS


def test_the_onnx_predictor_runs_four_masks(folders, model):
    files = folders["hwc"] / "small_encoder.onnx", folders["hwc"] / "small_decoder.onnx"
    ours, theirs = Predictor(model), OnnxPredictor(*files)
    for predictor in (ours, theirs):
        predictor.set_image(photos()[1][0])
    prompt = {"point_coords": [[150, 120]], "point_labels": [1], "num_masks": 4}
    np.testing.assert_allclose(theirs.predict(**prompt)[2], ours.predict(**prompt)[2], atol=1e-3)
    assert OnnxEncoder(files[0]).takes_float


@settings(max_examples=200, deadline=None)
@given(size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), frame=st.sampled_from([32, 128, 1000, 1024]))
def test_the_crop_is_the_predictors(size, frame):
    assert crop_of(frame).run(None, {"orig_im_size": np.float32(size)})[0].tolist() == list(target_size(*size, frame))


def crop_of(frame: int, made={}):  # noqa: B006
    """The nodes of the crop alone, as a session."""
    if frame not in made:
        helper, types = onnx.helper, onnx.TensorProto
        values = [helper.make_tensor(n, types.DOUBLE, [1], [v]) for n, v in (
            ("sam_frame", frame), ("sam_half", 0.5), ("sam_one", 1.0)
        )]  # fmt: skip
        graph = helper.make_graph(
            sam_form._filled(), "crop", [helper.make_tensor_value_info("orig_im_size", types.FLOAT, [2])],
            [helper.make_tensor_value_info("sam_filled", types.INT64, [2])], values,
        )  # fmt: skip
        opset = [helper.make_opsetid("", to_onnx.OPSET)]
        proto = helper.make_model(graph, opset_imports=opset, ir_version=8)
        made[frame] = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return made[frame]


# ------------------------------------------------------------------------------------------------------------- the gate


def without_crop(nodes):
    nodes[3].CopyFrom(onnx.helper.make_node("Identity", ["sam_frame_masks"], ["sam_cropped"]))


def in_one_step(nodes):
    """From the low resolution to the photo, cropped before."""
    nodes[2].CopyFrom(onnx.helper.make_node("Identity", ["low_res_masks"], ["sam_frame_masks"]))


def with_other_centres(nodes):
    centres = {**sam_form.RESIZE, "coordinate_transformation_mode": "asymmetric"}
    nodes[6].CopyFrom(onnx.helper.make_node("Resize", list(nodes[6].input), ["masks"], **centres))


@pytest.mark.parametrize("fault", [without_crop, in_one_step, with_other_centres])
def test_a_broken_enlargement_is_refused(fault, checkpoint, tmp_path, monkeypatch, capsys):
    original = sam_form._enlarged

    def broken():
        nodes = original()
        fault(nodes)
        return nodes

    monkeypatch.setattr(sam_form, "_enlarged", broken)
    output = tmp_path / "out"
    assert to_onnx.main([str(checkpoint), "--output", str(output), "--form", "sam", "--part", "decoder"]) == 1
    captured = capsys.readouterr()
    assert "DIFFERS FROM the JAX model" in captured.out and "worst: enlarged" in captured.out
    assert "nothing was written" in captured.err and not output.exists()


def test_padding_that_counts_for_boxes_is_refused(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sam_form, "BOX_TOP_LEFT", 9)
    flags = ["--form", "sam", "--part", "decoder"]
    assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 1
    assert "worst: logits as programs call" in capsys.readouterr().out


def test_wrong_flags_are_one_line(checkpoint, tmp_path, capsys):
    for flags, message in (
        (["--form", "sam", "--published"], "--published: SAM's form takes one prompt"),
        (["--form", "sam", "--split"], "drop --split or --form sam"),
        (["--form", "sam", "--priors"], "drop --priors or --form sam"),
        (["--form", "sam", "--batch", "dynamic"], "--batch dynamic: "),
        (["--form", "sam", "--slots", "8"], "--slots 8: "),
        (
            ["--form", "sam", "--image-input"],
            "programs send photos of 1024 px to this form, and the model's frame has 32",
        ),
        (["--form", "sam", "--part", "encoder", "--masks", "4"], "--masks: is for the decoder"),
        (["--masks", "4"], "--masks: is for --form sam"),
        (["--form", "sam", "--masks", "3"], "--masks"),
    ):
        assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 2, flags
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1, text
    assert not (tmp_path / "out").exists()
