"""Bundles: complete, intact, and usable without this package; and the calls of X-AnyLabeling."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("coremltools")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from convert import bundle  # noqa: E402
from edgesam_jax import Predictor, load_model  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "out"
    assert bundle.main(["tiny_teacher", "--output", str(path)]) == 0
    return path


def test_a_bundle_is_complete_and_intact(folder):
    top = {
        "README.md",
        "MODEL_CARD.md",
        "LICENCE.txt",
        "SHA256SUMS",
        "contract.json",
        "vectors",
        "python",
        "onnx",
        "coreml",
    }
    assert {p.name for p in folder.iterdir()} == top | {"x-anylabeling"}
    listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert set(listed) == files
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    contract = json.loads((folder / "contract.json").read_text())
    assert all(part["verified"]["passed"] for part in contract.values()) and len(contract) == 3
    text = (folder / "README.md").read_text()
    assert "$" not in text and all(word in text for word in ("Swift", "OnnxPredictor", "onnxruntime-web", "128 px"))
    assert "Weights: Apache-2.0." in (folder / "LICENCE.txt").read_text()


def test_the_vectors_are_the_predictors_masks(folder):
    predictor = Predictor(load_model("tiny_teacher"))
    vectors = json.loads((folder / "vectors" / "vectors.json").read_text())
    assert len(vectors["photos"]) == 3 and all(len(p["prompts"]) == 4 for p in vectors["photos"])
    for entry in vectors["photos"][:2]:
        predictor.set_image(np.asarray(Image.open(folder / "vectors" / entry["photo"])))
        for prompt in entry["prompts"]:
            points, labels = np.array(prompt["points"]), np.array(prompt["labels"])
            arguments = {"box": points.reshape(4)} if 2 in labels else {"point_coords": points, "point_labels": labels}
            masks, scores, _ = predictor.predict(**arguments, num_masks=4)
            expected = np.asarray(Image.open(folder / "vectors" / prompt["mask"]))
            assert (masks[0] != expected).mean() < 1e-4 and abs(int(masks[0].sum()) - prompt["pixels"]) < 20
            np.testing.assert_allclose(scores, prompt["scores"], atol=1e-3)


def test_its_predictor_runs_without_this_package(folder, tmp_path):
    """A moved bundle passes its check script, and fails with damaged weights."""
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    command = [sys.executable, "-I", "-c", (
        "import sys; sys.modules['edgesam_jax'] = None; sys.path.insert(0, sys.argv[1]); import runpy\n"
        "try: runpy.run_path(sys.argv[1] + '/check.py', run_name='__main__')\n"
        "finally: assert not {'jax', 'torch'} & set(sys.modules)"
    ), str(moved / "python")]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("overlap 1.0000") == 12
    masks = subprocess.run([sys.executable, "-I", "-c", (
        "import sys; sys.modules['edgesam_jax'] = None; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from edgesam_onnx import EverythingGenerator, OnnxPredictor\n"
        "predictor = OnnxPredictor(*sys.argv[2:])\n"
        "generator = EverythingGenerator(predictor, 2, pred_iou_thresh=0, stability_score_thresh=0)\n"
        "noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)\n"
        "print([record['segmentation'].shape for record in generator.generate(noise)])\n"
        "assert not {'jax', 'torch'} & set(sys.modules)"
    ), str(moved / "python"), *(str(moved / "onnx" / f"tiny_teacher_{part}.onnx") for part in ("encoder", "decoder"))],
        cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert masks.returncode == 0 and masks.stdout.startswith("[(40, 60)"), masks.stderr
    decoder = moved / "onnx" / "tiny_teacher_decoder.onnx"
    proto = onnx.load(decoder)
    largest = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    onnx.save(proto, decoder)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "DIFFERS" in done.stdout


def x_anylabeling(folder: Path, photo: np.ndarray, marks: list[dict], length: int) -> tuple[np.ndarray, int]:
    """Call a model of type edge_sam as X-AnyLabeling does (docs/published_code.md, "Exports").

    Only the resizing differs: X-AnyLabeling uses OpenCV's bilinear filter, without antialiasing.
    """
    config = dict(line.split(": ", 1) for line in next(folder.glob("*.yaml")).read_text().splitlines())
    assert config["type"] == "edge_sam" and int(config["target_length"]) == length and config["display_name"]
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / config[f"{part}_model_path"]) for part in ("encoder", "decoder")
    )
    scale = length / max(photo.shape[:2])
    h, w = (int(side * scale + 0.5) for side in photo.shape[:2])
    small = np.asarray(Image.fromarray(photo).resize((w, h), Image.Resampling.BILINEAR))
    [embedding] = encoder.run(None, {encoder.get_inputs()[0].name: small.transpose(2, 0, 1)[None]})
    coords, labels = [], []
    for mark in marks:
        if mark["type"] == "point":
            coords.append(mark["data"])
            labels.append(mark["label"])
        else:
            coords += [mark["data"][:2], mark["data"][2:]]
            labels += [2, 3]
    inputs = {
        "image_embeddings": embedding,
        "point_coords": (np.array(coords) * (w / photo.shape[1], h / photo.shape[0])).astype(np.float32)[None],
        "point_labels": np.array(labels, np.float32)[None],
    }
    _, masks = decoder.run(None, inputs)  # by order
    sure, possible = ((masks[0] > at).sum((1, 2)) for at in (1.0, -1.0))
    return masks[0], int(np.argmax(sure / np.maximum(possible, 1)))


def test_x_anylabeling_gets_the_predictors_masks(folder):
    photo = np.asarray(Image.open(folder / "vectors" / "photo_1.png"))
    predictor = Predictor(load_model("tiny_teacher"))
    predictor.set_image(photo)
    for marks, arguments in (
        ([{"type": "rectangle", "data": [60, 30, 300, 260]}], {"box": [60, 30, 300, 260]}),
        (
            [{"type": "point", "data": [200, 150], "label": 1}, {"type": "point", "data": [20, 20], "label": 0}],
            {"point_coords": [[200, 150], [20, 20]], "point_labels": [1, 0]},
        ),
    ):
        masks, best = x_anylabeling(folder / "x-anylabeling", photo, marks, 128)
        _, _, logits = predictor.predict(**arguments, num_masks=4)
        np.testing.assert_allclose(masks, logits, atol=1e-4 * np.abs(logits).max())
        assert masks.shape == (4, 64, 64) and 0 <= best < 4


def test_user_errors_are_one_line(folder, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    for flags, message in (
        (["--output", str(tmp_path)], "contains files that are not a bundle"),
        (
            ["--output", str(tmp_path / "b"), "--formats", "onnx,tflite"],
            "--formats onnx,tflite: must be a comma-separated list of onnx, coreml",
        ),
    ):
        assert bundle.main(["tiny_teacher", *flags]) == 2
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
