"""Export checkpoints to Core ML, and verify the packages op by op on any machine.

    python -m convert.to_coreml CHECKPOINT --output DIR [--precision float16] [--compress palette6] [--ios 16]

Writes ``NAME_encoder.mlpackage``, ``NAME_decoder.mlpackage``, ``NAME_coreml.json`` (the contract of inputs and outputs,
checksums, results of the verification) and ``NAME_operations.md`` (the operations of the programs, compared with a
plain conversion). If the packages differ from the JAX model, nothing is written and the exit code is 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.coreml.op_report import Census, census, table
from convert.export import common, contract, gate
from convert.export.common import ExportJob
from convert.export.limits import compute_limits
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError
from edgesam_jax.portable.per_photo import PHOTO_INPUTS

COMPRESSIONS = ("none", "int8", "palette8", "palette6", "palette4")


def shapes(job: ExportJob) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the names and shapes of the inputs, by part; 0 is a flexible number of points (``packages.FLEXIBLE``)."""
    config = job.model.config
    side, g, s, n = config.image_size, config.grid, config.mask_size, job.slots
    decoder: dict[str, tuple[int, ...]] = {
        "image_embeddings": (1, config.embed_dim, g, g), "point_coords": (1, n, 2), "point_labels": (1, n),
    }  # fmt: skip
    if job.mask_input:
        decoder |= {"mask_input": (1, 1, s, s), "has_mask_input": (1,)}
    return {"encoder": {"image": (1, 3, side, side)}, "decoder": decoder}


OUTPUTS = {"encoder": ["image_embeddings"], "decoder": ["scores", "masks"]}


@dataclass(frozen=True)
class Options:
    """The flags specific to Core ML; see ``add_flags``. ``ios``: the oldest version that the packages run on."""

    precision: Any = "float16"
    compression: Any = "none"
    image_input: bool = False
    ios: Any = 17


def export(job: ExportJob, folder: Path, options: Options) -> dict[str, Path]:
    """Write the parts into a folder; return their paths by part."""
    from convert.coreml import packages

    written = {}
    for part, module, inputs, outputs, maps in _modules(job, options):
        precision, compression = options.precision, options.compression
        image = options.image_input and part == "encoder"
        model = packages.convert(module, inputs, outputs, precision, image, options.ios, maps)
        description = f"{job.name} {part}, {precision}" + ("" if compression == "none" else f", {compression}")
        path = folder / job.file(part, ".mlpackage")
        licence = str(job.model.metadata.get("licence", "the checkpoint's"))
        written[part] = packages.save(packages.compress(model, compression), path, description, licence)
    return written


def _modules(
    job: ExportJob, options: Options
) -> Iterator[tuple[str, Any, dict[str, tuple[int, ...]], list[str], list[str]]]:
    """Yield the parts of an export: name, module, shapes of the inputs, outputs, and which of both are maps."""
    from convert.export.decoder import ExportDecoder
    from convert.export.encoder import ExportEncoder
    from convert.export.split import form_of, split
    from convert.torch_twin.loading import load_twin

    config, inputs = job.model.config, shapes(job)
    if "encoder" in job.parts:
        encoder = ExportEncoder(config, job.model.variables, "image" if options.image_input else "tensor", job.priors)
        yield "encoder", encoder, inputs["encoder"], common.encoder_outputs(job), []
    if "decoder" in job.parts:
        decoder = ExportDecoder(load_twin(job.model), job.score, job.mask_input)  # type: ignore[arg-type]
        if not job.split:
            yield "decoder", decoder, inputs["decoder"], OUTPUTS["decoder"], []
            return
        halves = split(decoder, form_of(config, job.slots), flat=False)
        of_photo = {name: inputs["decoder"][name] for name in PHOTO_INPUTS}
        of_prompt = {name: shape for name, shape in inputs["decoder"].items() if name not in PHOTO_INPUTS}
        yield "image", halves.image, of_photo, halves.maps, halves.maps
        maps = {name: tuple(x.shape) for name, x in zip(halves.maps, halves.example(config)[1], strict=True)}
        yield "decoder", halves.decoder, {**maps, **of_prompt}, OUTPUTS["decoder"], halves.maps


def _plain(job: ExportJob, part: str, options: Options, folder: Path) -> Census:
    """Count the operations of the plain conversion of a part, which is made in ``folder`` and removed."""
    from convert.coreml import mil_evaluator, packages, plain

    inputs = {k: v for k, v in shapes(job)[part].items() if "mask_input" not in k}
    model = packages.convert(plain.part(job.model, part), inputs, OUTPUTS[part], options.precision, ios=options.ios)
    scratch = packages.save(model, folder / f"plain_{part}.mlpackage", "plain", "")
    counts = census(mil_evaluator.load(scratch).operations())
    shutil.rmtree(scratch)
    return counts


def operations(job: ExportJob, files: dict[str, Path], options: Options, folder: Path) -> tuple[dict[str, Any], str]:
    """Count the operations of the packages and of plain conversions made in ``folder``; return JSON and Markdown."""
    from convert.coreml import mil_evaluator

    content: dict[str, Any] = {}
    sections = [f"# Operations of {job.name}\n"]
    for part, path in files.items():
        ours = census(mil_evaluator.load(path).operations())
        reference = None
        try:
            reference = _plain(job, part, options, folder) if part in shapes(job) else None
        except Exception as error:  # coremltools raises any type; the plain conversion is only for comparison
            sections.append(f"The plain {part} can't be converted: {str(error).splitlines()[0]}\n")
        content[part] = {"export": ours.content(), "plain": reference.content() if reference else None}
        sections.append(table(ours, reference, part))
        if job.split:
            content[part]["export"]["multiply_adds"] = ours.products
            against = f"; the plain conversion {reference.products / 1e6:.0f} million" if reference else ""
            sections.append(f"Multiply-adds per call: {ours.products / 1e6:.0f} million{against}.\n")
    return content, "\n".join(sections)


def build(job: ExportJob, folder: Path, options: Options, cases: Sequence[gate.Case]) -> dict[str, Any]:
    """Export into a folder, verify, and write the contract and the report of operations; return the contract.

    Raises:
      Refused: the packages differ from the model.
    """
    from convert.coreml.packages import MAX_POINTS
    from convert.coreml.program import CoremlDecoder, CoremlEncoder
    from convert.export.split import entry

    print(f"{job.name}: {' and '.join(job.parts)} to Core ML, iOS {options.ios} or later", flush=True)
    files = export(job, folder, options)
    for path in files.values():
        print(f"{path.name}: {common.size_of(path) / 1e6:.1f} MB; verifying", flush=True)
    encoder = decoder = None
    if "encoder" in files:
        encoder = CoremlEncoder(files["encoder"], options.image_input, common.encoder_outputs(job))
    if "decoder" in files:
        decoder = CoremlDecoder(files["decoder"], job.slots, job.mask_input, files.get("image"))
    limits = compute_limits(job.model, cases, options.precision, options.compression, job.parts, job.score)
    verdict = gate.verify(cases, encoder, decoder, limits.tolerance, job.score)
    print(gate.report(verdict, job.name), limits.report(), sep="\n", flush=True)
    if not verdict.passed:
        raise common.Refused("the export differs from the model; nothing was written")
    counts, report = operations(job, files, options, folder)
    (folder / f"{job.name}_operations.md").write_text(report)
    content = {
        **contract.contract(job, "image" if options.image_input else "tensor"),
        **entry(job, ".mlpackage"),
        **({} if job.slots else {"points": {"min": 1, "max": MAX_POINTS}}),
        "files": {p.name: {"bytes": common.size_of(p), "sha256": common.sha256(p)} for p in files.values()},
        "minimum_ios": options.ios,
        "precision": options.precision,
        "compression": options.compression,
        "verified": {"by": "predict" if sys.platform == "darwin" else "op by op", **verdict.summary()},
        "limits": limits.content(),
        "operations": counts,
    }
    common.write_json(folder / f"{job.name}_coreml.json", content)
    return content


def check(args: argparse.Namespace) -> Options:
    """Check the flags and the installed libraries before anything is loaded; return the flags specific to Core ML.

    Raises:
      UsageError: flags that Core ML doesn't support, or missing libraries.
    """
    common.require("torch", "coremltools", *(("sklearn",) if args.compress.startswith("palette") else ()))
    if args.slots == 0:
        raise UsageError("--slots dynamic: for ONNX only; the Neural Engine needs fixed shapes; pass --slots N")
    oldest = 15 if args.compress == "none" else 16
    ios = args.ios or (oldest if args.published else 17)
    if ios < oldest:
        raise UsageError(f"--ios {ios}: compressed weights need iOS 16; pass --ios 16, or --compress none")
    return Options(args.precision, args.compress, args.image_input, ios)


def run(args: argparse.Namespace) -> int:
    """Export a checkpoint to Core ML.

    Raises:
      UsageError: wrong flags, missing libraries, or an output folder that can't be written.
      Refused: the export differs from the model.
    """
    options = check(args)
    job = common.load_job(args)
    photos = gate.load_photos(args.photos)
    with common.output_folder(args.output, job=job) as folder:
        cases = gate.make_cases(job.model, photos, job.slots, job.mask_input, job.priors)
        build(job, folder, options, cases)
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags specific to Core ML."""
    parser.add_argument("--precision", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    parser.add_argument(
        "--compress",
        choices=COMPRESSIONS,
        default="none",
        help="store weights as int8, or with a palette of 8, 6 or 4 bits",
    )
    parser.add_argument("--image-input", action="store_true", help="the encoder takes an RGB image, and normalises it")
    parser.add_argument(
        "--ios",
        type=int,
        choices=(15, 16, 17),
        help="oldest version that the packages run on (default: 17; with --published 15, or 16 with --compress)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python -m convert.to_coreml", description="Export a checkpoint to Core ML, and verify it.")
    common.add_flags(parser)
    common.add_split_flag(parser)
    add_flags(parser)
    return common.run_export(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
