"""Core ML decoders in two packages: verified in both forms, refused if either is wrong; and the bundle with a pair."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import deterministic_weights
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from convert import bundle, to_coreml  # noqa: E402
from convert.coreml import mil_evaluator  # noqa: E402
from convert.coreml.program import CoremlDecoder  # noqa: E402
from convert.export import common, gate, split  # noqa: E402
from convert.export.decoder import ExportDecoder  # noqa: E402
from convert.export.limits import compute_limits  # noqa: E402
from convert.torch_twin.loading import load_twin  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.checkpoints.save import save_model_file  # noqa: E402
from edgesam_jax.data.scenes.textures import photos  # noqa: E402
from edgesam_jax.models.sam import TINY  # noqa: E402

CONFIG = dataclasses.replace(TINY, image_size=64)
SLOTS = {"folded": 2, "shared": 16}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, deterministic_weights.variables(CONFIG), {"score": "stability"})


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """Both forms in float16, written by the command."""
    checkpoint = save_model_file(tmp_path_factory.mktemp("checkpoint") / "small.msgpack", model)
    photo = checkpoint.with_name("photo.png")
    Image.fromarray(photos()[0][0]).save(photo)
    made = {}
    for form, slots in SLOTS.items():
        made[form] = tmp_path_factory.mktemp("split") / form
        flags = ["--split", "--part", "decoder", "--slots", str(slots), "--photos", str(photo)]
        assert to_coreml.main([str(checkpoint), "--output", str(made[form]), *flags]) == 0
    return made


@pytest.mark.parametrize("form", SLOTS)
def test_the_folder_and_its_contract(form, folders):
    names = ["small_MODEL_CARD.md", "small_coreml.json", "small_decoder.mlpackage", "small_image.mlpackage"]
    names.append("small_operations.md")
    assert sorted(p.name for p in folders[form].iterdir()) == names
    content = json.loads((folders[form] / "small_coreml.json").read_text())
    assert content["split"] == form and content["verified"]["passed"]
    parts, programs = content["parts"], {}
    for part in ("image", "decoder"):
        programs[part] = mil_evaluator.load(folders[form] / parts[part]["file"])
        assert sorted(programs[part].inputs) == sorted(parts[part]["inputs"])
        assert sorted(programs[part].outputs) == sorted(parts[part]["outputs"])
        assert content["operations"][part]["export"]["multiply_adds"] > 1e5
    for name in parts["image"]["outputs"]:  # from one package to the other as they are, without a change of type
        assert programs["decoder"].inputs[name][1] == np.float16
    assert programs["decoder"].inputs["point_coords"][1] == np.float32
    report = (folders[form] / "small_operations.md").read_text()
    assert report.count("Multiply-adds per call: ") == 2 and report.count("; the plain conversion ") == 1


def test_multiply_adds_are_counted(folders, model):
    """In the first graph three products with the image's cells, and the embedding of a mask; in the second torch's."""
    operations = mil_evaluator.load(folders["shared"] / "small_image.mlpackage").operations()
    cells, c, m = CONFIG.grid**2, CONFIG.embed_dim, CONFIG.mask_in_chans
    down = 4 * cells * (m // 4) * 4 + cells * m * m + cells * m * c
    assert sum(op.products for op in operations) == 3 * cells * c * (c // 2) + down
    whole = ExportDecoder(load_twin(model), "stability", True)
    for form, slots in SLOTS.items():
        halves = split.split(whole, form, flat=False)
        maps = halves.example(CONFIG)[1]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            halves.decoder(maps, torch.zeros(1, slots, 2), torch.zeros(1, slots))
        operations = mil_evaluator.load(folders[form] / "small_decoder.mlpackage").operations()
        assert sum(op.products for op in operations) == counter.get_total_flops() / 2


@pytest.mark.parametrize("part", ["image", "decoder"])
def test_a_corrupt_package_of_either_is_refused(part, folders, model, tmp_path):
    folder = tmp_path / "corrupt"
    shutil.copytree(folders["folded"], folder)
    [case] = gate.make_cases(model, {"astronaut": photos()[0][0]}, 2, True)
    case = case.only([0, 2, len(case.prompts) - 1])
    limits = compute_limits(model, [case], "float16", "none", ("decoder",), "stability").tolerance

    def verdict(where):
        decoder = CoremlDecoder(where / "small_decoder.mlpackage", 2, True, where / "small_image.mlpackage")
        return gate.verify([case], None, decoder, limits, "stability")

    assert verdict(folder).passed
    weights = folder / f"small_{part}.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    raw = bytearray(weights.read_bytes())
    middle = len(raw) // 2 // 2 * 2
    raw[middle : middle + 64] = np.full(32, 3.0, np.float16).tobytes()
    weights.write_bytes(raw)
    assert not verdict(folder).passed


def test_ios_15_passes_float32(model, tmp_path):
    job = common.ExportJob("small", ("decoder",), 2, True, "stability", model, split=True)
    files = to_coreml.export(job, tmp_path, to_coreml.Options(ios=15))
    program = mil_evaluator.load(files["decoder"])
    assert {dtype for _, dtype in program.inputs.values()} == {np.dtype(np.float32)}


def test_a_bundle_with_a_pair(tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "bundle"
    flags = ["--split", "--formats", "onnx", "--slots", "2"]
    assert bundle.main(["tiny_teacher", "--output", str(out), *flags]) == 0
    assert sorted(p.name for p in (out / "onnx").glob("*.onnx")) == [
        "tiny_teacher_decoder.onnx", "tiny_teacher_encoder.onnx", "tiny_teacher_image.onnx"
    ]  # fmt: skip
    text = (out / "README.md").read_text()
    assert "$" not in text and "const maps = await perPhoto.run(" in text and "...maps," in text
    done = subprocess.run([sys.executable, "-I", "-c", (
        "import sys; sys.modules['edgesam_jax'] = None; sys.path.insert(0, sys.argv[1]); import runpy\n"
        "runpy.run_path(sys.argv[1] + '/check.py', run_name='__main__')"
    ), str(out / "python")], cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "overlap 1.0000" in done.stdout, done.stderr
