"""``python -m edgesam_jax.finetune --checkpoint C --data FOLDER --output DIR``: fine-tune on labelled photos.

Says what it finds in the folder, holds photos out, picks a recipe for the number of photos, trains, and ends with a
table of the held-out photos before and after. ``DIR/model`` is the model: ``predict``, ``eval``, ``convert.bundle``
and ``convert.to_web`` take it. Run the same command again to resume.

Exit codes: 0 done; 1 the loss was not finite; 2 wrong usage; 130 interrupted, resume with the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgesam_jax.cli import allocator
from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser, count


def parser() -> Parser:
    """Return the command's flags."""
    made = Parser(prog="python -m edgesam_jax.finetune", description="Fine-tune a model on labelled photos.")
    made.add_argument("--checkpoint", required=True, help="where to start: anything edgesam_jax.load_model reads")
    data = made.add_argument_group("data")
    data.add_argument("--data", required=True, metavar="FOLDER", help="labelled photos, in any format of docs/data.md")
    data.add_argument("--annotations", default="", metavar="FILE", help="COCO's JSON file, if --data has several")
    data.add_argument("--held-out-data", default="", metavar="FOLDER", help="other labelled photos for the figures")
    data.add_argument("--other-data", default="", metavar="FOLDER", help="labelled photos to measure forgetting on")
    data.add_argument("--held-out", type=_share, default=0.2, metavar="S", help="share held out (default: %(default)s)")
    data.add_argument(
        "--group", default="", metavar="REGEX",
        help="photos in whose names it finds the same text stay on one side: '^[^_]+' for the frames of a video",
    )  # fmt: skip
    data.add_argument("--pixel-range", default="auto", metavar="LO,HI", help="for photos of more than 8 bits")
    data.add_argument("--survey", action="store_true", help="say what is in the folder and how it is split, then end")
    recipe = made.add_argument_group("recipe (by default it follows from the number of photos and the memory)")
    recipe.add_argument("--train", choices=("all", "decoder", "lora", "iou_head"), help="the weights to train")
    recipe.add_argument("--steps", type=count, default=0)
    recipe.add_argument("--batch-size", type=count, default=0, help="photos a step")
    recipe.add_argument("--learning-rate", type=float, default=0.0)
    recipe.add_argument("--seed", type=int, default=0, help="of split, draws and order (default: %(default)s)")
    made.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the model and its figures")
    return made


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        arguments = parser().parse_args(argv)
        from edgesam_jax.cli import compile_cache
        from edgesam_jax.finetune.run import run

        compile_cache.enable()
        return run(arguments)

    return run_command(
        command, failures=(FloatingPointError,), interrupted="stopped; run the same command again to resume"
    )


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    sys.exit(main())
