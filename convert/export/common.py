"""What the exports to ONNX and Core ML share: flags, the torch modules, the contract, whole folders or none."""

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

import numpy as np

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import STUDENTS, UsageError
from edgesam_jax.files import atomic_folder, sha256_of, staged_files
from edgesam_jax.predict.compiled import check_priors

EXTRA = "pip install 'edgesam-jax[export]'"


class Refused(Exception):
    """The gate found that an export differs from the model."""


@dataclass(frozen=True)
class Wanted:
    """What to export: ``slots`` 0 takes any number of points; ``mask_input``: the decoder takes masks; ``priors``: the
    encoder gives what granularity priors need."""

    name: str
    parts: tuple[str, ...]
    slots: int
    mask_input: bool
    score: str
    model: Model
    priors: bool = False

    def file(self, part: str, suffix: str) -> str:
        """File name of a part."""
        return f"{self.name}_{part}{suffix}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every export."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="anything edgesam_jax.load_model reads")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--part", choices=("encoder", "decoder", "both"), default="both")
    parser.add_argument("--name", help="begins the file names; default: the checkpoint's name")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the frame; default: the model's")
    parser.add_argument(
        "--slots", type=_slots, default=16, metavar="N|dynamic", help="points and box corners of a prompt (default: 16)"
    )
    parser.add_argument(
        "--published", action="store_true", help="inputs and outputs exactly as in the official files: no mask input"
    )
    parser.add_argument(
        "--priors", action="store_true", help="the encoder also gives proposals, for granularity priors"
    )
    parser.add_argument("--score", choices=("stability", "iou"), help="default: iou where the IoU head was trained")
    parser.add_argument(
        "--photos", action="append", default=[], metavar="FILE|DIR", help="photos to verify on; default: three of ours"
    )


def _slots(text: str) -> int:
    if text == "dynamic":
        return 0
    value = int(text)
    if not 2 <= value <= 1024:
        raise argparse.ArgumentTypeError("must be 2 to 1024 (a box takes two), or dynamic")
    return value


def wanted(args: argparse.Namespace) -> Wanted:
    """Load and check what the flags name.

    Raises:
      UsageError: an unreadable checkpoint, a size that the model cannot have, a name that is no file name.
    """
    model = load_model(args.checkpoint)
    if model.config.variant != "sam":
        raise UsageError(f"{args.checkpoint}: EfficientSAM can be written by convert.to_torch, not exported")
    if args.image_size is not None:
        model = resized(model, args.image_size)
    path = Path(str(args.checkpoint))
    name = args.name or (path.stem if path.suffix in (".pth", ".pt", ".safetensors", ".msgpack") else path.name)
    if not name or Path(name).name != name:
        raise UsageError(f"--name {args.name or ''}: wants the beginning of a file name")
    parts = ("encoder", "decoder") if args.part == "both" else (args.part,)
    score = args.score or str(model.metadata.get("score", "stability"))
    model = dataclasses.replace(model, metadata={**model.metadata, "score": score})
    if args.priors:
        check_priors(model.config, "--priors")
        if args.part == "decoder":
            raise UsageError("--priors: the encoder gives the proposals; leave --part decoder out")
    return Wanted(name, parts, args.slots, not args.published, score, model, args.priors)


def encoder_outputs(job: Wanted) -> list[str]:
    """Names of what the encoder gives."""
    return ["image_embeddings", *(["proposal_boxes", "proposal_scores"] if job.priors else [])]


def resized(model: Model, size: int) -> Model:
    """A model for another frame.  Only convolutional encoders without positions of their own can have one.

    Raises:
      UsageError: the encoder is tied to its size, or the size is no multiple of what it divides by.
    """
    config = model.config
    if size == config.image_size:
        return model
    if not isinstance(config.encoder, STUDENTS):
        raise UsageError(
            f"--image-size {size}: this encoder has learned positions for {config.image_size} px and no other size"
        )
    step = 2 * config.image_size // config.grid  # the coarse level of the fusion neck has half the grid
    if size % step or not step <= size <= 4096:
        raise UsageError(f"--image-size {size}: must be a multiple of {step}, up to 4096")
    return dataclasses.replace(model, config=dataclasses.replace(config, image_size=size))


def need(*modules: str, extra: str = EXTRA) -> None:
    """Raises:
    UsageError: a library of the extra is not installed."""
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UsageError(f"export needs {', '.join(missing)}: {extra}")


def torch_sam(model: Model) -> Any:
    """The torch twin with a model's weights, for evaluation."""
    import torch

    from convert.to_torch import state_dict
    from convert.torch_twin.model import TorchSam

    sam = TorchSam(model.config).eval().requires_grad_(False)
    sam.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state_dict(model).items()}, strict=True)
    return sam


# ------------------------------------------------------------------------------------------------------- the contract


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names, in order."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()} {sha256(file_path)}\n".encode())
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable, in the order given."""
    path.write_text(json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def output_folder(output: Path, bundle: bool = False) -> Iterator[Path]:
    """Yield a folder to write into; its contents move to ``output`` when the block succeeds.

    Args:
      bundle: replace an earlier bundle at ``output`` as a whole. Otherwise only files of the same names are replaced.

    Raises:
      UsageError: ``output`` is a file, contains other files than a bundle (with ``bundle``), or can't be written.
    """
    if bundle and output.is_dir() and any(output.iterdir()) and not (output / "contract.json").is_file():
        raise UsageError(f"--output {output}: contains files that are not a bundle; choose a new folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; choose a folder")
    try:
        with atomic_folder(output) if bundle else staged_files(output) as folder:
            yield folder
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there ({error.strerror or error})") from None


def run_export(parser: Parser, run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None) -> int:
    """Parse the flags and run an export; an export that the gate refuses gives exit code 1."""
    return run_command(lambda: run(parser.parse_args(argv)), failures=(Refused,))
