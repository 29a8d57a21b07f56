"""Which weights int8 costs most: each is rounded alone, and the change of the output measured on one photo.

The measure is the mean square of the change over that of the output: of the embedding for the encoder's weights, of the
logits for the decoder's. Errors of single weights are independent, so their energies add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.export.cases import Case, progress
from convert.export.common import ExportJob
from convert.export.int8_weights import channel_axes, quantised
from edgesam_jax.portable.onnx_model import PHOTO_INPUTS, normalised, prompt_inputs

Weight = tuple[str, str]  # part, name
PROMPTS = 3  # prompts of the photo that a decoder is measured on


def measure(
    files: Mapping[str, Path], weights: Mapping[str, Mapping[str, int]], job: ExportJob, case: Case
) -> dict[Weight, float]:
    """Return the energy of the error that rounding each weight to int8 adds.

    Args:
      files: float32 files by part.
      weights: names of the weights by part.
    """
    found: dict[Weight, float] = {}
    for part, path in files.items():
        session, arrays, axes = _open(path, weights[part])
        calls = _calls(part, session, job, case, files)
        names = [output.name for output in session.get_outputs() if len(output.shape) == 4]
        if "low_res_masks" in names:  # the enlarged ones cost time, and say the same
            names.remove("masks")
        expected = [session.run(names, call) for call in calls]
        for name in progress(weights[part], f"measuring the {part}"):
            rounded = {name: _rounded(arrays[name], axes[name])}
            energies = [
                _energy(a, b)
                for call, reference in zip(calls, expected, strict=True)
                for a, b in zip(session.run(names, call | rounded), reference, strict=True)
            ]
            found[part, name] = float(np.mean(energies))
    return found


def _calls(
    part: str, session: Any, job: ExportJob, case: Case, files: Mapping[str, Path]
) -> list[dict[str, np.ndarray]]:
    """Return the inputs to measure a part with: the photo, or some of its prompts."""
    if part == "encoder":
        image = session.get_inputs()[0]
        photo = case.frame[: case.filled[0], : case.filled[1]]
        if len(image.shape) == 3:
            return [{image.name: photo.astype(np.float32)}]
        padded = "float" in image.type
        return [{image.name: normalised(case.frame, case.filled) if padded else photo.transpose(2, 0, 1)[None]}]
    photo_maps = _photo_maps(files["image"], case) if part == "decoder" and "image" in files else {}
    calls = []
    for i in range(1 if part == "image" else min(PROMPTS, len(case.prompts))):
        prompt = case.prompts[i]
        inputs = prompt_inputs(case.embedding, prompt.coords[None], prompt.labels[None], None, job.slots, part)
        inputs |= {"orig_im_size": np.array(case.filled, np.float32), **photo_maps}
        needed = {value.name for value in session.get_inputs()}
        calls.append({name: value for name, value in inputs.items() if name in needed})
    return calls


def _photo_maps(path: Path, case: Case) -> dict[str, np.ndarray]:
    """Return what a split decoder's first half makes of the photo."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    prompt = case.prompts[0]
    inputs = prompt_inputs(case.embedding, prompt.coords[None], prompt.labels[None], None, 0, "image")
    maps = session.run(None, {name: inputs[name] for name in PHOTO_INPUTS})
    return {output.name: array for output, array in zip(session.get_outputs(), maps, strict=True)}


def costliest(errors: Mapping[Weight, float], sizes: Mapping[Weight, int], energy: float) -> list[Weight]:
    """Return the weights to leave in float, so that ``energy``, a share of the total, remains.

    Those come first that remove most error per element. An error of the embedding counts as much as one of the logits.
    """
    kept: list[Weight] = []
    left = total = sum(errors.values())
    for weight in sorted(errors, key=lambda w: errors[w] / sizes[w], reverse=True):
        if left <= energy * total:
            break
        kept.append(weight)
        left -= errors[weight]
    return kept


def _open(path: Path, weights: Mapping[str, int]) -> tuple[Any, dict[str, np.ndarray], dict[str, int]]:
    """Return a session that takes the weights as optional inputs, the weights, and the axes of their channels."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in weights}
    for name, array in arrays.items():
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every weight that may be replaced
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, arrays, channel_axes(model)


def _rounded(values: np.ndarray, axis: int) -> np.ndarray:
    whole, scale = quantised(values, axis)
    return whole.astype(np.float32) * scale


def _energy(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.mean((values - reference) ** 2) / max(float(np.mean(reference**2)), 1e-30))
