"""Convert published EdgeSAM, SAM and MobileSAM files, and ImageNet weights of encoders, to checkpoints.

    python -m convert.from_torch SOURCE --output DIR [--model NAME] [--decoder-from FILE]

SOURCE is a file with one of the suffixes in ``checkpoints.suffixes.PUBLISHED``: a published model, or a training
checkpoint of the published system. A checkpoint of its first stage contains only the image encoder; ``--decoder-from``
takes the rest from a SAM file. An ImageNet
classifier (RepViT, TinyViT or EfficientViT, from its authors or timm) becomes a backbone for ``train.init_from``.
Objects that could run code are never unpickled. Only files of ``torch.save`` require torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgesam_jax.checkpoints.model import BACKBONE
from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.read import load_published
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.checkpoints.suffixes import PUBLISHED, any_of
from edgesam_jax.cli.command import run_command
from edgesam_jax.config import UsageError
from edgesam_jax.models.sam import MODELS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.from_torch", description="Convert a published file to a checkpoint of edgesam_jax."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help=f"{any_of(PUBLISHED)} file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new checkpoint")
    parser.add_argument("--model", metavar="NAME", help=f"default: inferred; one of {', '.join(MODELS)}")
    parser.add_argument(
        "--decoder-from",
        type=Path,
        metavar="FILE",
        help="SAM file with the prompt encoder and mask decoder, if SOURCE has none",
    )
    return run_command(lambda: run(parser.parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    """Convert a file.

    Raises:
      UsageError: see ``load_published`` and ``save_model``; or a file that can't be read or written.
    """
    try:
        model = load_published(args.source, args.model, args.decoder_from)
        save_model(args.output, model)
    except OSError as error:
        raise UsageError(f"--output {args.output}: {error.strerror or error}") from error
    count = len(names.flatten(model.variables)) + len(model.metadata["num_batches_tracked"])
    name, licence = (model.metadata.get(key, "your own") for key in ("model", "licence"))
    part = "the backbone of " if model.metadata.get("holds") == BACKBONE else ""
    print(f"{args.output}: {count} entries of {part}{name}; licence: {licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
