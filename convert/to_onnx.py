"""Export checkpoints to ONNX, and verify the files with ONNX Runtime.

    python -m convert.to_onnx CHECKPOINT --output DIR [--slots dynamic] [--batch dynamic] [--image-input] [--published]

Writes ``NAME_encoder.onnx``, ``NAME_decoder.onnx`` and ``NAME_onnx.json``: the contract of inputs and outputs (also in
the files' metadata), checksums, and the results of the verification. With ``--split``, ``NAME_image.onnx`` is the half
of the decoder that runs once per photo. If the files differ from the JAX model, nothing is written and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.export import common, contract, gate, half, precision, sam_form
from convert.export.common import ExportJob
from edgesam_jax.cli.flags import Parser
from edgesam_jax.portable.onnx_model import METADATA
from edgesam_jax.portable.per_photo import PHOTO_INPUTS

OPSET = 18
GELU_OPSET = 20  # has Gelu, one pass in place of five, and one rounding
POINTS, PROMPTS = "num_points", "num_prompts"  # names of the dynamic axes
MOST = 1024  # their upper bound while exporting


def export(job: ExportJob, folder: Path, image_input: str) -> dict[str, Path]:
    """Write the parts into a folder; return their paths by part.

    ``image_input`` is the form of the encoder's input, ``tensor``, ``photo`` or ``hwc``.
    """
    import torch

    from convert.export.decoder import ExportDecoder
    from convert.export.encoder import ExportEncoder
    from convert.torch_twin.loading import load_twin

    config, written = job.model.config, {}
    content = _contract(job, image_input)
    opset = _opset(job)
    if "encoder" in job.parts:
        side = config.image_size
        form: Any = image_input
        encoder = ExportEncoder(config, job.model.variables, form, job.priors)
        dynamic: list[Any] | None = None
        if image_input != "tensor":
            # Both below the full side: the exporter takes a size at its limit for a constant.
            example = torch.zeros(1, 3, side - 2, side - 1, dtype=torch.uint8)
            if image_input == "hwc":
                example = torch.zeros(side - 2, side - 1, 3)
            rows, columns = (torch.export.Dim(n, min=1, max=side) for n in ("height", "width"))
            dynamic = [{2: rows, 3: columns} if image_input == "photo" else {0: rows, 1: columns}]
        else:
            example = torch.zeros(1, 3, side, side)
        written["encoder"] = folder / job.file("encoder", ".onnx")
        name = sam_form.ENCODER_INPUT[image_input] if job.form == "sam" else "image"
        _write(written["encoder"], encoder, (example,), [name], common.encoder_outputs(job), dynamic, content, opset)
    if job.split:
        written |= _export_split(job, folder, content)
    elif "decoder" in job.parts:
        decoder = ExportDecoder(load_twin(job.model), job.score, job.mask_input, job.batched)  # type: ignore[arg-type]
        b, n, g, s = 2 if job.batched else 1, job.slots or 3, config.grid, config.mask_size
        example_inputs = [torch.zeros(1, config.embed_dim, g, g), torch.zeros(b, n, 2), torch.zeros(b, n)]
        names = ["image_embeddings", "point_coords", "point_labels"]
        if job.mask_input:
            example_inputs += [torch.zeros(b, 1, s, s), torch.zeros(b)]
            names += ["mask_input", "has_mask_input"]
        outputs, change = ["scores", "masks"], None
        if job.form == "sam":
            decoder = sam_form.module(decoder, job.masks)
            outputs = ["iou_predictions", "low_res_masks"]
            change = functools.partial(sam_form.add_enlargement, frame=config.image_size, mask_size=config.mask_size)
        prompts = {0: torch.export.Dim(PROMPTS, min=1, max=MOST)} if job.batched else {}
        points = {} if job.slots else {1: torch.export.Dim(POINTS, min=1, max=MOST)}
        axes = {"image_embeddings": {}, "point_coords": prompts | points, "point_labels": prompts | points}
        dynamic = [axes.get(name, prompts) for name in names] if prompts or points else None
        written["decoder"] = folder / job.file("decoder", ".onnx")
        _write(written["decoder"], decoder, tuple(example_inputs), names, outputs, dynamic, content, opset, change)
    return written


def _export_split(job: ExportJob, folder: Path, content: Mapping[str, Any]) -> dict[str, Path]:
    """Write both graphs of a split decoder; return their paths, of the parts ``image`` and ``decoder``."""
    import torch

    from convert.export.decoder import ExportDecoder
    from convert.export.split import form_of, split
    from convert.torch_twin.loading import load_twin

    config, opset = job.model.config, _opset(job)
    whole = ExportDecoder(load_twin(job.model), job.score, mask_input=True)  # type: ignore[arg-type]
    halves = split(whole, form_of(config, job.slots), flat=True)
    photo, maps = halves.example(config)
    points = {} if job.slots else {1: torch.export.Dim(POINTS, min=1, max=MOST)}
    dynamic = [[{} for _ in maps], points, points] if points else None
    files = {part: folder / job.file(part, ".onnx") for part in ("image", "decoder")}
    _write(files["image"], halves.image, photo, list(PHOTO_INPUTS), halves.maps, None, content, opset)
    given = maps, torch.zeros(1, job.slots or 3, 2), torch.zeros(1, job.slots or 3)
    inputs = [*halves.maps, "point_coords", "point_labels"]
    _write(files["decoder"], halves.decoder, given, inputs, ["scores", "masks"], dynamic, content, opset)
    return files


def _write(
    path: Path,
    module: Any,
    example: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic: list[Any] | None,
    content: Mapping[str, Any],
    opset: int = OPSET,
    change: Callable[[Any], None] | None = None,
) -> None:
    """Export a module and write it; ``change`` adds to the graph."""
    import onnx
    import torch

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, example, input_names=inputs, output_names=outputs, dynamic_shapes=dynamic, dynamo=True,
            opset_version=opset, verbose=False,
        )  # fmt: skip
        assert program is not None
        model = program.model_proto
    for node in model.graph.node:  # remove local paths and torch's internal names
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    if change:
        change(model)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(content)})
    model.producer_name, model.producer_version = "edgesam_jax", ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress output and its notes on missing libraries."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def build(job: ExportJob, folder: Path, image_input: str, cases: Sequence[gate.Case]) -> dict[str, Any]:
    """Export into a folder, verify, and write the contract; return the contract.

    Raises:
      Refused: the files differ from the model.
    """
    from edgesam_jax.portable.onnx_model import OnnxDecoder, OnnxEncoder

    print(f"{job.name}: {' and '.join(job.parts)} to ONNX", flush=True)
    files = export(job, folder, image_input)
    tolerance, stored = gate.TOLERANCES["float32"], {}
    if job.precision != "float32":
        smaller = precision.store(files, job, cases, job.masks)
        tolerance, stored = smaller.limits.tolerance, smaller.content()
    cases = [case.first_masks(job.masks) for case in cases]
    for path in files.values():
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; verifying", flush=True)
    encoder = OnnxEncoder(files["encoder"]) if "encoder" in files else None
    decoder = OnnxDecoder(files["decoder"]) if "decoder" in files else None
    verdict = gate.verify(cases, encoder, decoder, tolerance, job.score)
    if job.form == "sam" and decoder:
        verdict.findings += sam_form.verify(cases, files["decoder"], job.model.config.image_size, tolerance)
    if job.precision == "int8":
        verdict.findings += precision.mean_findings(verdict, cases)
    print(gate.report(verdict, job.name), flush=True)
    passed = verdict.passed
    if job.arithmetic == "float16":
        rounded = half.verify(files, cases, tolerance, job.score)
        print(gate.report(rounded, f"{job.name}, every result rounded to float16"), flush=True)
        passed, stored = passed and rounded.passed, {**stored, "verified_rounded": rounded.summary()}
    if not passed:
        raise common.Refused("the export differs from the model; nothing was written")
    content = {
        **_contract(job, image_input),
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": common.sha256(p)} for p in files.values()},
        "opset": _opset(job),
        **stored,
        "verified": verdict.summary(),
    }
    common.write_json(folder / f"{job.name}_onnx.json", content)
    return content


def _opset(job: ExportJob) -> int:
    return GELU_OPSET if job.split or job.arithmetic == "float16" else OPSET


def _contract(job: ExportJob, image_input: str) -> dict[str, Any]:
    from convert.export.split import entry

    weights = {} if job.precision == "float32" else {"weights": job.precision, "arithmetic": job.arithmetic}
    return {**contract.contract(job, image_input), **entry(job, ".onnx"), **weights}


def add_batch_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the number of prompts per call."""
    parser.add_argument(
        "--batch",
        choices=("1", "dynamic"),
        default="1",
        help="prompts per call of the ONNX decoder: one, or any number (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Export a checkpoint to ONNX.

    Raises:
      UsageError: wrong flags, missing libraries, or an output folder that can't be written.
      Refused: the export differs from the model.
    """
    common.require("torch", "onnx", "onnxscript", "onnxruntime")
    sam_form.check_flags(args)
    job = common.load_job(args)
    if args.form == "sam":
        job = dataclasses.replace(job, form="sam", slots=0, masks=args.masks or 1)
    image_input = ("hwc" if args.form == "sam" else "photo") if args.image_input else "tensor"
    sam_form.check_frame(job, image_input)
    job = dataclasses.replace(job, precision=args.precision, arithmetic=args.arithmetic)
    precision.check(job)
    photos = precision.load_photos(args.precision, args.photos)
    with common.output_folder(args.output, job=job) as folder:
        cases = gate.make_cases(job.model, photos, job.slots, job.mask_input, job.priors)
        build(job, folder, image_input, cases)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python -m convert.to_onnx", description="Export a checkpoint to ONNX, and verify it.")
    common.add_flags(parser)
    common.add_split_flag(parser)
    add_batch_flag(parser)
    parser.add_argument(
        "--image-input",
        action="store_true",
        help="the encoder takes unpadded RGB, and normalises and pads it: (1 3 h w) in uint8 (X-AnyLabeling's form),"
        " or with --form sam (h w 3) in float32 (AnyLabeling's)",
    )
    parser.add_argument(
        "--form",
        choices=("edgesam", "sam"),
        default="edgesam",
        help="of the files: this project's, or SAM's, with masks at the photo's size (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=precision.PRECISIONS,
        default="float32",
        help="of the stored weights (default: %(default)s)",
    )
    parser.add_argument(
        "--arithmetic",
        choices=("float32", "float16"),
        default="float32",
        help="float16 is for GPUs, and needs --precision float16 (default: %(default)s)",
    )
    parser.add_argument(
        "--masks", type=int, choices=(1, 4), help="with --form sam: masks per prompt (default: 1, as programs expect)"
    )
    return common.run_export(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
