"""Other people's programs on our ONNX files: their own classes, their masks compared with the predictor's.

    python -m benchmarks.clients [--environments DIR] [--clients samexporter,anylabeling,osam] [--models tiny,full]

Each program is installed from PyPI in an environment of its own, in a temporary folder or in ``--environments``, where
the next run finds it. The models are the tiny teacher and EdgeSAM at full size with the tests' deterministic weights;
their files are exported, and verified, by ``convert.to_onnx --form sam``. ``client_calls`` calls the classes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.models import benchmark_model
from convert import to_onnx
from edgesam_jax import Predictor
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.data.scenes.scene import scene
from edgesam_jax.data.scenes.textures import photos as wheel_photos

PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Client:
    """A program: its name in ``client_calls``, pip's arguments (one call each), and the encoders that it can call."""

    name: str
    installs: tuple[tuple[str, ...], ...]
    encoders: tuple[str, ...]


CLIENTS = (
    Client(
        "samexporter",
        # Its dependencies include torch for exporting, which running files doesn't need.
        (("--no-deps", "samexporter==0.5.0"), ("opencv-python-headless", "onnxruntime==1.24.2", "pillow")),
        ("x", "hwc"),
    ),
    Client("anylabeling", (("anylabeling==0.4.43",),), ("hwc",)),
    Client("osam", (("osam==0.8.1",),), ("x",)),
)


def environment(client: Client, folder: Path) -> Path:
    """Create the program's environment, unless the folder has it; return its Python."""
    place = folder / f"clients_{client.name}"
    python, done = place / "bin" / "python", place / "installed"
    if not done.exists():
        print(f"installing {client.name}", flush=True)
        venv.create(place, with_pip=True)
        for packages in client.installs:
            subprocess.run([python, *PIP, *packages], check=True)
        done.touch()
    return python


def sample_photos() -> dict[str, np.ndarray]:
    """Return photos by name: of AnyLabeling's own size, landscape, portrait, a square scene, and above the frame."""
    coffee, chelsea = Image.fromarray(wheel_photos()[2][0]), Image.fromarray(wheel_photos()[1][0])
    return {
        "684x1024": np.asarray(coffee.resize((1024, 684))),
        "landscape 300x451": np.asarray(chelsea),
        "portrait 600x400": np.asarray(coffee.rotate(90, expand=True)),
        "scene 256x256": scene(0, 3, 256).image,
        "large 1200x1804": np.asarray(chelsea.resize((1804, 1200), Image.Resampling.BICUBIC)),
    }


def sample_prompts(size: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Return prompts in pixels of a photo of ``size`` (rows, columns)."""
    h, w = size[:2]
    box = [0.2 * w, 0.15 * h, 0.7 * w, 0.85 * h]
    return {
        "point": {"points": [[0.45 * w, 0.5 * h]], "labels": [1]},
        "three points": {"points": [[0.45 * w, 0.5 * h], [0.6 * w, 0.4 * h], [0.1 * w, 0.1 * h]], "labels": [1, 1, 0]},
        "box": {"box": box},
        "box and point": {"box": box, "points": [[0.3 * w, 0.3 * h]], "labels": [0]},
    }


def write_models(names: list[str], folder: Path) -> dict[str, str]:
    """Return the checkpoints by name; the full-size one is written into the folder."""
    checkpoints = {"tiny": "tiny_teacher"}
    if "full" in names:
        checkpoints["full"] = str(save_model_file(folder / "full.msgpack", benchmark_model()))
    return {name: checkpoints[name] for name in names}


def reference_masks(model: Model, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the predictor's first mask by ``PHOTO/PROMPT``."""
    predictor, found = Predictor(model), {}
    for photo, image in images.items():
        predictor.set_image(image)
        for name, prompt in sample_prompts(image.shape).items():
            points = {"point_coords": prompt["points"], "point_labels": prompt["labels"]} if "points" in prompt else {}
            found[f"{photo}/{name}"] = predictor.predict(**points, box=prompt.get("box"))[0][0]
    return found


def call(python: Path, client: str, files: tuple[Path, Path], images: dict[str, np.ndarray], folder: Path) -> Any:
    """Run the program on the photos; return its masks by ``PHOTO/PROMPT``, or the last line of its error."""
    job = {"encoder": str(files[0]), "decoder": str(files[1]), "photos": {}}
    for name, image in images.items():
        path = folder / f"{name}.png"
        Image.fromarray(image).save(path)
        job["photos"][str(path)] = sample_prompts(image.shape)
    (folder / "job.json").write_text(json.dumps(job))
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environ |= {"HOME": str(folder), "QT_QPA_PLATFORM": "offscreen"}
    script = Path(__file__).with_name("client_calls.py")
    command = [python, script, client, folder / "job.json", folder / "masks.npz"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line or "Fail" in line or "INVALID" in line]
        return (said or done.stderr.splitlines())[-1].strip()
    with np.load(folder / "masks.npz") as masks:
        return dict(masks)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over the union; 1 for two empty masks."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="folder of the programs' environments (default: temporary)")
    parser.add_argument("--clients", default=",".join(c.name for c in CLIENTS), help="comma-separated")
    parser.add_argument("--models", default="tiny,full", help="comma-separated: tiny, full")
    arguments = parser.parse_args()
    images, chosen = sample_photos(), arguments.clients.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pythons = {
            c.name: environment(c, (arguments.environments or folder).absolute()) for c in CLIENTS if c.name in chosen
        }
        rows, failures = [], []
        for model_name, checkpoint in write_models(arguments.models.split(","), folder).items():
            expected = reference_masks(load_model(checkpoint), images)
            for form, flags in (("x", []), ("hwc", ["--image-input"])):
                out = folder / model_name / form
                given = [checkpoint, "--output", str(out), "--name", "m", "--form", "sam", *flags]
                written = to_onnx.main(given) == 0
                for client in CLIENTS:
                    if client.name not in pythons or form not in client.encoders:
                        continue
                    label = f"{client.name} | {model_name} | {form}"
                    if not written:  # its frame isn't 1024
                        rows.append(f"| {label} |" + " refused |" * len(images))
                        continue
                    files = out / "m_encoder.onnx", out / "m_decoder.onnx"
                    (place := out / client.name).mkdir()
                    found = call(pythons[client.name], client.name, files, images, place)
                    if isinstance(found, str):
                        failures.append(f"{label}: {found}")
                        rows.append(f"| {label} |" + " fails |" * len(images))
                        continue
                    cells = []
                    for photo in images:
                        values = [
                            iou(found[key], mask) for key, mask in expected.items() if key.startswith(f"{photo}/")
                        ]
                        cells.append(f"{np.mean(values):.4f}, {min(values):.4f}")
                    rows.append(f"| {label} | {' | '.join(cells)} |")
        print("\nIoU with the predictor's mask, mean and worst of four prompts")
        print(f"| program | model | encoder | {' | '.join(images)} |\n|---|---|---|{'--:|' * len(images)}")
        print("\n".join(rows))
        print("\n".join(failures))


if __name__ == "__main__":
    main()
