"""Code shared by all exports: the command line flags, the export job, checksums and JSON files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesam_jax.checkpoints import provenance
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import STUDENTS, UsageError
from edgesam_jax.files import atomic_folder, sha256_of, staged_files
from edgesam_jax.predict.compiled import check_priors

SLOTS = 16  # points and box corners per prompt, unless the flags name another number
EXTRA = "pip install 'edgesam-jax[export]'"
MARKERS = {"bundle": "contract.json", "site": "site.json"}  # the file by which a folder is recognised


class Refused(Exception):
    """Raised when the gate finds that an export differs from the model."""


@dataclass(frozen=True)
class ExportJob:
    """An export to run, as parsed from the command line.

    Attributes:
      name: prefix of the file names.
      parts: ``encoder``, ``decoder`` or both.
      slots: number of points and box corners that the decoder takes; 0 takes any number.
      mask_input: whether the decoder takes an earlier mask.
      score: ``stability`` or ``iou``, the meaning of the decoder's scores.
      model: the weights and their config, for the requested frame.
      priors: whether the encoder also returns the boxes and scores of all anchors, for granularity priors.
      batched: whether a call of the decoder takes any number of prompts; otherwise one. For ONNX only.
      split: whether what the decoder computes of the photo alone is a graph of its own (``convert.export.split``).
      form: of the ONNX decoder: ``edgesam``, or ``sam`` (``convert.export.sam_form``).
      masks: how many masks a decoder of SAM's form returns; others return four.
      precision: of the weights in the ONNX files: ``float32``, ``float16`` or ``int8`` (``convert.export.precision``).
      arithmetic: of the ONNX files: ``float32``, or with weights in float16 ``float16`` (``convert.export.half``).
    """

    name: str
    parts: tuple[str, ...]
    slots: int
    mask_input: bool
    score: str
    model: Model
    priors: bool = False
    batched: bool = False
    split: bool = False
    form: str = "edgesam"
    masks: int = 4
    precision: str = "float32"
    arithmetic: str = "float32"

    def file(self, part: str, suffix: str) -> str:
        """Return the file name of a part."""
        return f"{self.name}_{part}{suffix}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags common to all exports."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="anything edgesam_jax.load_model reads")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--part", choices=("encoder", "decoder", "both"), default="both")
    parser.add_argument("--name", help="prefix of the file names (default: the checkpoint's name)")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side of the frame, in pixels (default: the model's)"
    )
    parser.add_argument(
        "--slots",
        type=_slots,
        metavar="N|dynamic",
        help="points and box corners per prompt, 2 to 1024 (default: 16; with --published, any number)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="exactly the inputs and outputs of the official files: any number of points, no mask input",
    )
    parser.add_argument(
        "--priors", action="store_true", help="also export the region proposals, for granularity priors"
    )
    parser.add_argument("--score", choices=("stability", "iou"), help="default: iou if the IoU head was trained")
    parser.add_argument(
        "--photos",
        action="append",
        default=[],
        metavar="FILE|DIR",
        help="photos to verify the export on; repeatable (default: three photos of scikit-image)",
    )


def add_split_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag for a decoder in two graphs; not every export has that form."""
    parser.add_argument(
        "--split",
        action="store_true",
        help="the decoder in two graphs: one to run once per photo, or per earlier mask, and a faster one per prompt",
    )


def _slots(text: str) -> int:
    if text == "dynamic":
        return 0
    value = int(text)
    if not 2 <= value <= 1024:
        raise argparse.ArgumentTypeError("must be 2 to 1024 (a box takes two slots), or dynamic")
    return value


def load_job(args: argparse.Namespace) -> ExportJob:
    """Load the checkpoint and check the flags of ``add_flags``.

    Raises:
      UsageError: an unreadable checkpoint, a frame size that the model doesn't support, an invalid file name, or
        ``--priors`` without proposals in the model or without the encoder, or ``--split`` with flags that exclude it.
    """
    check_split(args)
    model = load_model(args.checkpoint)
    if model.config.variant != "sam":
        raise UsageError(f"{args.checkpoint}: EfficientSAM can't be exported, only written by convert.to_torch")
    if args.image_size is not None:
        model = resized(model, args.image_size)
    path = Path(str(args.checkpoint))
    name = args.name or (path.stem if path.suffix in (".pth", ".pt", ".safetensors", ".msgpack") else path.name)
    if not name or Path(name).name != name:
        raise UsageError(f"--name {args.name or ''}: must be a file name prefix, without a folder")
    parts = ("encoder", "decoder") if args.part == "both" else (args.part,)
    score = args.score or str(model.metadata.get("score", "stability"))
    model = dataclasses.replace(model, metadata={**model.metadata, "score": score})
    if args.priors:
        check_priors(model.config, "--priors")
        if args.part == "decoder":
            raise UsageError("--priors: not available with --part decoder; the encoder makes the proposals")
    slots = args.slots if args.slots is not None else 0 if args.published else SLOTS
    batched = getattr(args, "batch", "1") == "dynamic"
    split = getattr(args, "split", False)
    return ExportJob(name, parts, slots, not args.published, score, model, args.priors, batched, split)


def check_split(args: argparse.Namespace) -> None:
    """Check the flags that ``--split`` excludes.

    Raises:
      UsageError: one of them is given.
    """
    if not getattr(args, "split", False):
        return
    if args.published:
        raise UsageError("--split: the official files have one decoder; drop --split or --published")
    if getattr(args, "batch", "1") != "1":
        raise UsageError("--split: its decoder takes one prompt per call; drop --split or --batch dynamic")
    if args.part == "encoder":
        raise UsageError("--split: is for the decoder; drop it, or --part encoder")


def encoder_outputs(job: ExportJob) -> list[str]:
    """Return the names of the encoder's outputs."""
    return ["image_embeddings", *(["proposal_boxes", "proposal_scores"] if job.priors else [])]


def resized(model: Model, size: int) -> Model:
    """Return the model for a frame of another size, in pixels.

    Only the students' encoders (``STUDENTS``) support other sizes; the others have learned positions.

    Raises:
      UsageError: the encoder has learned positions for one size, or the size isn't a valid multiple.
    """
    config = model.config
    if size == config.image_size:
        return model
    if not isinstance(config.encoder, STUDENTS):
        raise UsageError(
            f"--image-size {size}: this encoder has learned positions for {config.image_size} px, its only size"
        )
    step = 2 * config.image_size // config.grid  # the coarse level of the fusion neck has half the grid
    if size % step or not step <= size <= 4096:
        raise UsageError(f"--image-size {size}: must be a multiple of {step}, up to 4096")
    return dataclasses.replace(model, config=dataclasses.replace(config, image_size=size))


def require(*modules: str, extra: str = EXTRA) -> None:
    """Check that libraries are installed; ``extra`` is the command that installs them.

    Raises:
      UsageError: at least one of them isn't.
    """
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UsageError(f"export requires {', '.join(missing)}: {extra}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder: of the sorted relative paths and checksums of its files."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()} {sha256(file_path)}\n".encode())
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON; keys keep their order."""
    path.write_text(json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def output_folder(output: Path, whole: str = "", job: ExportJob | None = None) -> Iterator[Path]:
    """Yield a folder to write into; its contents move to ``output`` when the block succeeds.

    Args:
      whole: ``bundle`` or ``site``: an earlier one at ``output`` is replaced as a whole. Otherwise only files of the
        same names are replaced.
      job: the model's card is written into the folder, too; its name begins with the model's unless ``whole``.

    Raises:
      UsageError: ``output`` is a file, contains other files than such a bundle or site, or can't be written.
    """
    if whole and output.is_dir() and any(output.iterdir()) and not (output / MARKERS[whole]).is_file():
        raise UsageError(f"--output {output}: contains files that are not a {whole}; choose a new folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; choose a folder")
    try:
        with atomic_folder(output) if whole else staged_files(output) as folder:
            if job is not None:
                name = provenance.CARD if whole else f"{job.name}_{provenance.CARD}"
                (folder / name).write_text(provenance.card(job.model, job.name))
            yield folder
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there ({error.strerror or error})") from None


def run_export(parser: Parser, run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None) -> int:
    """Parse the flags and run an export; an export that the gate refuses gives exit code 1."""
    return run_command(lambda: run(parser.parse_args(argv)), failures=(Refused,))
