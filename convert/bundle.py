"""Export a model as a bundle: one verified folder with everything an app needs to ship it.

    python -m convert.bundle CHECKPOINT --output DIR [--formats onnx,coreml,x-anylabeling,web]

A bundle contains the models, their contract as JSON, test vectors, a predictor in numpy and ONNX Runtime with a script
that runs it on the vectors, a licence note, checksums, and a README with the calls in Swift, Python and JavaScript.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from convert import to_coreml, to_onnx
from convert.export import bundle_docs, common, gate
from convert.export.common import ExportJob
from convert.export.vectors import write_vectors
from convert.web import runtime, site
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError

DEFAULT = ("onnx", "coreml", "x-anylabeling")
FORMATS = (*DEFAULT, "web")  # the page needs npm, and 40 MB of its runtime, so it is only written on request
PORTABLE = "edgesam_onnx"  # name of the predictor package in a bundle


def write_predictor(folder: Path) -> None:
    """Copy the portable predictor as a package that doesn't need ``edgesam_jax``, and write ``check.py``."""
    target = folder / PORTABLE
    target.mkdir(parents=True)
    for source in sorted(resources.files("edgesam_jax.portable").iterdir(), key=lambda s: s.name):
        if source.name.endswith(".py"):
            text = source.read_text().replace("edgesam_jax.portable", PORTABLE)
            (target / source.name).write_text(text)
    (target / "__init__.py").write_text(
        f'"""Masks from ONNX files: numpy, Pillow and ONNX Runtime."""\n\n'
        f"from {PORTABLE}.errors import UsageError\nfrom {PORTABLE}.everything import EverythingGenerator\n"
        f"from {PORTABLE}.onnx_predictor import OnnxPredictor\n\n"
        '__all__ = ["EverythingGenerator", "OnnxPredictor", "UsageError"]\n'
    )
    (folder / "check.py").write_text(bundle_docs.CHECK)


def write_x_anylabeling(folder: Path, job: ExportJob) -> None:
    """Write the configuration of an X-AnyLabeling custom model of type ``edge_sam``."""
    (folder / f"{job.name}.yaml").write_text(
        f"type: edge_sam\nname: {job.name}\ndisplay_name: {job.name}\n"
        f"encoder_model_path: {job.file('encoder', '.onnx')}\n"
        f"decoder_model_path: {job.file('decoder', '.onnx')}\n"
        f"target_length: {job.model.config.image_size}\n"
    )


def checksums(folder: Path) -> None:
    """Write the SHA-256 of all files to ``SHA256SUMS``, in the format of ``sha256sum --check``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{common.sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def run(args: argparse.Namespace) -> int:
    """Export a checkpoint as a bundle.

    Raises:
      UsageError: wrong flags, missing libraries, or an output folder that can't be written.
      Refused: an export differs from the model.
    """
    formats = [f for f in FORMATS if f in args.formats.split(",")]
    unknown = set(args.formats.split(",")) - set(FORMATS)
    if unknown or not formats:
        raise UsageError(f"--formats {args.formats}: must be a comma-separated list of {', '.join(FORMATS)}")
    common.require("torch", "onnx", "onnxscript", "onnxruntime")
    if "coreml" in formats:
        options = to_coreml.check(args)
    if "web" in formats:
        if args.part != "both":
            raise UsageError(f"--part {args.part}: the format web needs both parts; leave --part out")
        runtime.prepare()
    job = common.load_job(args)
    photos = gate.load_photos(args.photos)
    contents: dict[str, Any] = {}
    with common.output_folder(args.output, "bundle", job) as folder:
        cases = gate.make_cases(job.model, photos, job.slots, job.mask_input, job.priors)
        write_vectors(folder / "vectors", photos, cases, job)
        if "onnx" in formats:
            (folder / "onnx").mkdir()
            contents["onnx"] = to_onnx.build(job, folder / "onnx", "tensor", cases)
            write_predictor(folder / "python")
        if "coreml" in formats:
            (folder / "coreml").mkdir()
            contents["coreml"] = to_coreml.build(job, folder / "coreml", options, cases)
        if "x-anylabeling" in formats:
            # X-AnyLabeling supports points, boxes and one output of the encoder.
            labelling = dataclasses.replace(
                job, name=f"{job.name}_labelling", slots=0, mask_input=False, priors=False, batched=False, split=False
            )
            (folder / "x-anylabeling").mkdir()
            plain = [dataclasses.replace(c.without_masks(), anchors=None) for c in cases]
            contents["x-anylabeling"] = to_onnx.build(labelling, folder / "x-anylabeling", "photo", plain)
            write_x_anylabeling(folder / "x-anylabeling", labelling)
        if "web" in formats:
            (folder / "web").mkdir()
            contents["web"] = site.write_site(folder / "web", job, photos)
        common.write_json(folder / "contract.json", contents)
        licence = str(job.model.metadata.get("licence", ""))
        (folder / "LICENCE.txt").write_text(bundle_docs.licence(licence, str(job.model.metadata.get("source", ""))))
        (folder / "README.md").write_text(bundle_docs.readme(job, contents))
        checksums(folder)
    print(f"{args.output}: {common.size_of(args.output) / 1e6:.1f} MB, verified; start with README.md")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python -m convert.bundle", description="Export a checkpoint with all that shipping it needs.")
    common.add_flags(parser)
    parser.add_argument(
        "--formats", default=",".join(DEFAULT),
        help="comma-separated list (default: %(default)s); web adds a page that runs the model in the browser",
    )  # fmt: skip
    common.add_split_flag(parser)
    to_onnx.add_batch_flag(parser)
    to_coreml.add_flags(parser)
    return common.run_export(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
