"""Assembles a site: page, runtime, model, test vectors, examples, and the list of all files."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convert import to_onnx
from convert.export import bundle_docs, common, gate
from convert.export.common import ExportJob
from convert.export.vectors import VECTORS, write_vectors
from convert.web import runtime
from convert.web.policy import policy_of
from edgesam_jax import __version__
from edgesam_jax.data.scenes.scene import held_out_seed, scene
from edgesam_jax.portable import run_lengths
from edgesam_jax.portable.onnx_model import OnnxDecoder, OnnxEncoder
from edgesam_jax.types import BOX_TOP_LEFT

FORMAT = "edgesam_jax site/1"
# Of the start-up check: least IoU of a low-resolution mask, and largest error of a prompt's logits (root mean square of
# the difference over that of the reference).  The reference are the same files in ONNX Runtime.
TOLERANCE = {"overlap": 0.99, "logits": 0.01}
# float16 moves the edges of masks: the gate, which rounds every result, sees 0.976 at worst on the bundled teacher.
HALF_TOLERANCE = {"overlap": 0.97, "logits": 0.01}
HALF = "half"  # folder of the files that compute in float16
SHOWN = 3  # photos of the gate that become test vectors
# Files of the page's folder that only its checks need.
DEVELOPMENT = ("package.json", "tsconfig.json", "tsconfig.worker.json", "eslint.config.js", ".npmrc", "node_modules")
CHECKED = 3  # prompts of one photo that a page compares on every start
STEP = 8  # of the logits that it compares: every 8th row and column
SCENES, SCENE_SIDE, SCENE_SEED = (1, 6, 7), 640, 7  # example scenes; the seed's held-out ones are never trained on


def write_site(
    folder: Path, job: ExportJob, photos: dict[str, np.ndarray], half: bool = True, unpacked: Path | None = None
) -> dict[str, Any]:
    """Write a site into an empty folder; return the model's contract.

    Args:
      job: both parts of the model.  The page has a form of its own for slots, earlier masks and the decoder.
      photos: the gate's photos; the first ``SHOWN`` become the site's test vectors.
      half: also write the files that compute in float16, for graphics cards that do.
      unpacked: see ``runtime.write_runtime``.

    Raises:
      UsageError: the runtime can't be had.
      Refused: the exported model differs from the JAX model.
    """
    runtime.write_runtime(folder / "ort", unpacked)  # first: it fails soonest
    # The page sends few points, and hovering needs a fast decoder.
    job = dataclasses.replace(job, slots=0, mask_input=True, priors=False, batched=False, split=True)
    cases = gate.make_cases(job.model, photos, job.slots, job.mask_input)
    content = _write_model(folder / "model", job, cases, half)
    write_vectors(folder / "vectors", photos, cases[:SHOWN], job)
    _write_check(folder, content["parts"], photos, cases[:SHOWN], job)
    _write_examples(folder / "examples")
    _copy_page(folder)
    text = bundle_docs.licence(str(content["licence"]), str(content["source"]))
    (folder / "LICENCE.txt").write_text(f"{text}\nort/: ONNX Runtime Web, MIT licence; see ort/{runtime.LICENCE}.\n")
    write_list(folder)
    return content


def _write_model(folder: Path, job: ExportJob, cases: Sequence[gate.Case], half: bool) -> dict[str, Any]:
    """Export the model, verify it, and write ``model.json``; return its content."""
    content = {"name": job.name, **_export(folder, job, cases), "tolerance": TOLERANCE}
    if half:
        try:
            made = _export(folder / HALF, dataclasses.replace(job, precision="float16", arithmetic="float16"), cases)
        except common.Refused as refusal:  # a model whose values float16 can't hold
            print(f"{job.name}: no files that compute in float16: {refusal}", flush=True)
            shutil.rmtree(folder / HALF)
        else:
            parts = {part: {**entry, "file": f"{HALF}/{entry['file']}"} for part, entry in made["parts"].items()}
            content["half"] = {**made, "parts": parts, "tolerance": HALF_TOLERANCE}
    common.write_json(folder / "model.json", content)
    return content


def _export(folder: Path, job: ExportJob, cases: Sequence[gate.Case]) -> dict[str, Any]:
    """Write verified files into a new folder; return their contract, with size and checksum of each part."""
    folder.mkdir()
    content = to_onnx.build(job, folder, "tensor", cases)
    (folder / f"{job.name}_onnx.json").unlink()  # the page reads model.json
    files = content.pop("files")
    parts = {part: {"file": entry["file"], **files[entry["file"]]} for part, entry in content["parts"].items()}
    return {**content, "parts": parts, "precision": job.precision}


def _write_check(
    folder: Path, parts: dict[str, Any], photos: dict[str, np.ndarray], cases: Sequence[gate.Case], job: ExportJob
) -> None:
    """Write ``vectors/check.json``: prompts of the smallest photo, the files' masks and a sample of their logits."""
    files = {part: folder / "model" / entry["file"] for part, entry in parts.items()}
    encoder, decoder = OnnxEncoder(files["encoder"]), OnnxDecoder(files["decoder"])
    number = min(range(len(cases)), key=lambda i: photos[cases[i].name].size)
    case = cases[number]
    height, width = photos[case.name].shape[:2]
    side = job.model.config.mask_size
    embedding = encoder.embed(case.frame, case.filled)
    prompts: list[dict[str, Any]] = []
    for i, prompt in enumerate(gate.sample_prompts((height, width), job.slots, job.mask_input, number)):
        if prompt.name not in VECTORS or len(prompts) == CHECKED:
            continue
        boxed = BOX_TOP_LEFT in prompt.labels
        points = [[x, y, label] for (x, y), label in zip(prompt.coords.tolist(), prompt.labels.tolist(), strict=True)]
        logits, _ = decoder.decode(embedding, case.prompts[i].coords, case.prompts[i].labels)
        masks = [run_lengths.runs_of(mask, (0, 0), (side, side)) for mask in logits > 0]
        sample = np.ascontiguousarray(logits[:, ::STEP, ::STEP], "<f4")
        prompts.append(
            {
                "name": prompt.name,
                "points": [] if boxed else points,
                "box": prompt.coords.reshape(-1).tolist() if boxed else None,
                "masks": [run_lengths.compressed(runs, (side, side))["counts"] for runs in masks],
                "logits": base64.b64encode(sample.tobytes()).decode(),
            }
        )
    common.write_json(
        folder / "vectors" / "check.json", {"photo": f"photo_{number}.png", "step": STEP, "prompts": prompts}
    )


def _write_examples(folder: Path) -> None:
    """Draw the example scenes."""
    folder.mkdir()
    entries = []
    for number, index in enumerate(SCENES, 1):
        name = f"scene_{number}.jpg"
        Image.fromarray(scene(held_out_seed(SCENE_SEED), index, SCENE_SIDE).image).save(folder / name, quality=88)
        entries.append({"file": name, "title": f"Scene {number}", "width": SCENE_SIDE, "height": SCENE_SIDE})
    common.write_json(folder / "examples.json", {"examples": entries})


def _copy_page(folder: Path) -> None:
    with resources.as_file(resources.files("convert.web") / "page") as page:
        for source in sorted(page.iterdir()):
            if source.name in DEVELOPMENT:
                continue
            if source.is_dir():
                shutil.copytree(source, folder / source.name)
            else:
                shutil.copyfile(source, folder / source.name)


def write_list(folder: Path) -> None:
    """Write ``site.json``, the list of all files, and ``site.js``, the same for the service worker.

    Browsers look for a new service worker by comparing it and the scripts that it imports, byte by byte. So a site that
    was written again is found by its ``site.js``.
    """
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        optional = name.removeprefix("ort/") in runtime.WEBGPU or name.startswith(f"model/{HALF}/")
        entry = {"path": name, "bytes": path.stat().st_size, "sha256": common.sha256(path)}
        files.append({**entry, "optional": True} if optional else entry)
    content = {
        "format": FORMAT,
        "version": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16],
        "policy": policy_of(folder),
        "versions": {"edgesam_jax": __version__, runtime.PACKAGE: runtime.VERSION},
        "files": files,
    }
    common.write_json(folder / "site.json", content)
    (folder / "site.js").write_text(f"self.SITE = {json.dumps(content)};\n")


def sizes(folder: Path) -> str:
    """Return the sizes of a site's parts, in words."""

    def megabytes(*paths: Path) -> str:
        return f"{sum(common.size_of(path) for path in paths) / 1e6:.1f} MB"

    ort, model = folder / "ort", folder / "model"
    half = model / HALF
    shown = {
        "model": [p for p in model.iterdir() if p != half],
        "runtime": [ort / name for name in runtime.WASM],
        "page": [p for p in folder.iterdir() if p.name not in ("model", "ort", "vectors", "examples")],
        "vectors and examples": [folder / "vectors", folder / "examples"],
        "only where a graphics card is used: runtime": [ort / name for name in runtime.WEBGPU],
        "model in float16": [half] if half.exists() else [],
    }
    return ", ".join(f"{what} {megabytes(*paths)}" for what, paths in shown.items() if paths)
