"""Write a web page that runs a model, encoder and decoder, in the visitor's browser; and serve it.

    python -m convert.to_web CHECKPOINT --output SITE [--serve] [--port N]
    python -m convert.to_web --serve SITE [--port N]

The site is a folder of static files: the page, ONNX Runtime Web, the model as verified ONNX files, and test vectors,
with which the page checks on every start that the visitor's machine computes the right masks. Nothing that a visitor
opens leaves the browser, and after the first visit it works offline. ``tiny_teacher`` names the bundled model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.export import common, precision
from convert.web import serve
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError


def run(args: argparse.Namespace) -> int:
    """Write a site, serve one, or both.

    Raises:
      UsageError: wrong flags, missing libraries, an output folder that can't be written, or a port in use.
      Refused: the exported model differs from the JAX model.
    """
    if args.checkpoint is None:
        if not args.serve:
            raise UsageError("CHECKPOINT: missing; pass a checkpoint and --output, or --serve SITE")
        if args.output is not None:
            raise UsageError("CHECKPOINT: missing; it comes before --output, and --serve alone comes last")
        return serve.serve(Path(args.serve), args.port)
    if args.output is None:
        raise UsageError("--output: missing; pass the folder for the site")
    if args.serve:
        raise UsageError(f"--serve {args.serve}: with a CHECKPOINT, --serve takes no folder; it serves --output")
    common.require("torch", "onnx", "onnxscript", "onnxruntime")
    from convert.web import site

    job = dataclasses.replace(common.load_job(args), precision=args.precision)
    photos = precision.load_photos(args.precision, args.photos)
    with common.output_folder(args.output, "site", job) as folder:
        site.write_site(folder, job, photos, args.webgpu == "float16", args.runtime)
    print(f"{args.output}: {common.size_of(args.output) / 1e6:.1f} MB: {site.sizes(args.output)}")
    if args.serve is not None:
        return serve.serve(args.output, args.port)
    print(f"python -m convert.to_web --serve {args.output} serves it on this machine")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python -m convert.to_web", description="Write a web page that runs a model in the browser.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="anything edgesam_jax.load_model reads")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the site; an earlier site is replaced")
    parser.add_argument(
        "--serve", nargs="?", const="", metavar="SITE", help="serve the site on this machine, or an earlier one"
    )
    parser.add_argument("--port", type=int, default=serve.PORT, metavar="N", help="default: %(default)s; 0: a free one")
    parser.add_argument(
        "--precision", choices=precision.PRECISIONS, default="float32", help="of the weights; default: %(default)s"
    )
    parser.add_argument(
        "--webgpu",
        choices=("float16", "float32"),
        default="float16",
        help="arithmetic on graphics cards; float16 adds files, for those that compute in it (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime", type=Path, metavar="FOLDER", help="unpacked npm package onnxruntime-web (default: npm fetches it)"
    )
    parser.add_argument("--name", help="name of the model (default: the checkpoint's)")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the frame, px (default: the model's)")
    parser.add_argument("--score", choices=("stability", "iou"), help="default: iou if the IoU head was trained")
    parser.add_argument(
        "--photos", action="append", default=[], metavar="FILE|DIR",
        help="photos to verify the model on, which become a public part of the site; repeatable (default: three photos"
        " of scikit-image)",
    )  # fmt: skip
    parser.set_defaults(part="both", published=False, priors=False, slots=0, split=True)
    return common.run_export(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
