"""Smaller weights in ONNX files: stored in float16 or int8, computed with in float32 unless the job says otherwise.

A stored weight is followed by a cast (int8: and a product with the scale of its output channel). ONNX Runtime computes
both once, when it loads the file; afterwards it runs the float32 program, on WebAssembly too. Tensors below
``MIN_COMPRESSED`` elements (biases, norms, the matrix of the point positions) stay in float32.

int8 is symmetric, per output channel, for weights of ``MIN_INT8`` elements and more; what is smaller or no weight is
float16. Masks must keep a mean IoU of ``LEAST_IOU`` on each of ``PHOTOS`` photos or more. If they don't with all
weights in int8, or another limit of the gate isn't kept, ``convert.export.sensitivity`` measures the layers, and those
that cost most for their size stay in float16. If that doesn't suffice, the format is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.export import gate, half, sensitivity
from convert.export.common import ExportJob, Refused
from convert.export.int8_weights import candidates, channel_axes, quantised
from convert.export.limits import Limits, compute_limits
from convert.export.rounding import MIN_COMPRESSED
from convert.export.tolerance import END_TO_END
from edgesam_jax.config import UsageError
from edgesam_jax.data.scenes.textures import photos as wheel_photos
from edgesam_jax.portable.onnx_model import OnnxDecoder, OnnxEncoder

PRECISIONS = ("float32", "float16", "int8")
PHOTOS, LEAST_IOU = 8, 0.97
MEASURES = 4  # selections of layers that are tried before int8 is refused
LEAST_INT8 = 0.5  # share of the weights' elements in int8; below, float16 is the better format
MEAN_IOU = "mean mask IoU of a photo"


@dataclass(frozen=True)
class Stored:
    """What was stored: the gate's limits for it, and the weights that int8 left in float16, by file name."""

    limits: Limits
    kept: Mapping[str, Sequence[str]]

    def content(self) -> dict[str, Any]:
        """Return the contract's entries."""
        return {"limits": self.limits.content(), **({"kept_in_float16": dict(self.kept)} if self.kept else {})}


def load_photos(precision: str, paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Return the photos of the gate: as ``gate.load_photos``, but ``PHOTOS`` by default for int8.

    Raises:
      UsageError: unreadable photos, or too few of them for int8.
    """
    if precision != "int8":
        return gate.load_photos(paths)
    if not paths:
        return {f"photo {i} of scikit-image": levels[0] for i, levels in enumerate(wheel_photos())}
    photos = gate.load_photos(paths)
    _enough(len(photos))
    return photos


def check(job: ExportJob) -> None:
    """Check that the arithmetic fits the weights, and that the masks of int8 can be measured.

    Raises:
      UsageError: float16 arithmetic with other weights, or int8 for the encoder alone.
    """
    if job.arithmetic == "float16" and job.precision != "float16":
        raise UsageError(
            f"--arithmetic float16: needs weights in float16, not {job.precision}; add --precision float16"
        )
    if job.precision == "int8" and "decoder" not in job.parts:
        raise UsageError("--precision int8: is measured on masks, which --part encoder doesn't make; export both parts")


def _enough(photos: int) -> None:
    if photos < PHOTOS:
        raise UsageError(f"--precision int8: is measured on {PHOTOS} photos or more, not {photos}; pass more --photos")


def store(files: Mapping[str, Path], job: ExportJob, cases: Sequence[gate.Case], masks: int) -> Stored:
    """Replace the weights in verified float32 files, in place, by those of ``job.precision``.

    Args:
      files: by part.
      cases: of the JAX model, with all four masks.
      masks: how many of them the decoder returns.

    Raises:
      UsageError: see ``check``; or too few photos for int8.
      Refused: int8 doesn't keep the masks.
    """
    check(job)
    if job.precision == "int8":
        _enough(len(cases))
    whole = job.arithmetic == "float16"  # weights and activations
    weights = "none" if whole else job.precision  # none: those of the arithmetic
    limits = compute_limits(job.model, cases, job.arithmetic, weights, job.parts, job.score, whole, masks)
    print(limits.report(), flush=True)
    if whole:
        for path in files.values():
            half.rewrite(path)
        return Stored(limits, {})
    if job.precision == "float16":
        for path in files.values():
            rewrite(path, path, set())
        return Stored(limits, {})
    return Stored(limits, _int8(files, job, [c.first_masks(masks) for c in cases], limits.tolerance))


def _int8(
    files: Mapping[str, Path], job: ExportJob, cases: Sequence[gate.Case], tolerance: gate.Tolerance
) -> dict[str, list[str]]:
    """Store int8 in all weights but those that cost the masks too much; return the latter."""
    weights = {part: candidates(path) for part, path in files.items()}
    total = sum(size for sizes in weights.values() for size in sizes.values())
    floats: dict[str, set[str]] = {part: set() for part in files}
    originals = {part: path.with_name(f"float32_{path.name}") for part, path in files.items()}
    for part, path in files.items():
        path.rename(originals[part])
    errors: dict[tuple[str, str], float] | None = None
    energy = 1.0  # share of the error's energy that may stay
    try:
        for _ in range(MEASURES):
            kept = sum(weights[part][name] for part in files for name in floats[part])
            if 1 - kept / total < LEAST_INT8:
                break
            for part, path in files.items():
                rewrite(originals[part], path, set(weights[part]) - floats[part])
            iou, name, passed = least_iou(files, job, cases, tolerance)
            within = "within" if passed else "beyond"
            print(
                f"  int8: {1 - kept / total:.0%} of the weights, mean mask IoU {iou:.4f} ({name}), {within} the other"
                " limits",
                flush=True,
            )
            if iou >= LEAST_IOU and passed:
                return {files[part].name: sorted(floats[part]) for part in files if floats[part]}
            if errors is None:
                errors = sensitivity.measure(originals, weights, job, cases[0])
            # 1 - IoU grows as the error, the root of its energy.
            energy *= 0.7 * min(1.0, (1 - LEAST_IOU) / (1 - iou)) ** 2
            sizes = {(part, n): size for part in files for n, size in weights[part].items()}
            for part, weight in sensitivity.costliest(errors, sizes, energy):
                floats[part].add(weight)
    finally:
        for path in originals.values():
            path.unlink()
    if iou >= LEAST_IOU:
        return {}  # the gate refuses the files, and says which of its limits they don't keep
    raise Refused(
        f"--precision int8: masks keep a mean IoU of {iou:.3f} on {name}, and need {LEAST_IOU}; nothing was written;"
        " use --precision float16"
    )


def mean_findings(verdict: gate.Verdict, cases: Sequence[gate.Case]) -> list[gate.Finding]:
    """Return the mean mask IoU of each photo as findings: from end to end, or of the decoder where it is alone."""
    for quantity in ("mask IoU" + END_TO_END, "mask IoU"):
        found = [f for f in verdict.findings if f.quantity == quantity]
        if found:
            break
    means = []
    for case in cases:
        values = [f.value for f in found if f.where.startswith(f"{case.name}, ")]
        if values:
            means.append(gate.Finding(MEAN_IOU, case.name, float(np.mean(values)), LEAST_IOU, True))
    return means


def least_iou(
    files: Mapping[str, Path], job: ExportJob, cases: Sequence[gate.Case], tolerance: gate.Tolerance
) -> tuple[float, str, bool]:
    """Return the least mean mask IoU of a photo, the photo, and whether the files are within the gate's limits."""
    encoder = OnnxEncoder(files["encoder"]) if "encoder" in files else None
    verdict = gate.verify(cases, encoder, OnnxDecoder(files["decoder"]), tolerance, job.score)
    worst = min(mean_findings(verdict, cases), key=lambda f: f.value)
    return worst.value, worst.where, verdict.passed


# --------------------------------------------------------------------------------------------------------- the files


def rewrite(source: Path, target: Path, int8: set[str]) -> None:
    """Write a copy of a float32 file with smaller weights: int8 for the named ones, float16 for the others."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    axes, nodes, stored = channel_axes(model), [], []
    for tensor in model.graph.initializer:
        name, values = tensor.name, None
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
        if values is None or values.size < MIN_COMPRESSED:
            stored.append(tensor)
        elif name in int8:
            whole, scale = quantised(values, axes[name])
            stored += [numpy_helper.from_array(whole, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
            nodes.append(helper.make_node("Cast", [f"{name}_int8"], [f"{name}_whole"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]))
        else:
            stored.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    onnx.checker.check_model(model)
    onnx.save(model, target)
