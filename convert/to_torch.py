"""Convert checkpoints of this project to files with the published names.

    python -m convert.to_torch CHECKPOINT --output FILE

The exact inverse of ``convert.from_torch``, bit for bit. A .pth file contains a flat state_dict in the published order.
A .safetensors file can be written without torch, and its header records the model's config.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.guess import published_shapes
from edgesam_jax.checkpoints.published.read import HEADER
from edgesam_jax.checkpoints.suffixes import any_of
from edgesam_jax.cli.command import run_command
from edgesam_jax.config import UsageError
from edgesam_jax.files import atomic_file

WRITTEN = (".pth", ".pt", ".safetensors")


def state_dict(model: Model) -> dict[str, np.ndarray]:
    """Return the weights of a model under the published names, checked strictly against its config.

    Raises:
      UsageError: the variables don't match ``model.config``.
    """
    entries = names.to_published(model.variables, model.metadata.get("num_batches_tracked"))
    names.check(entries, published_shapes(model.config), str(model.metadata.get("source", "")))
    return entries


def save_published(path: str | Path, model: Model) -> Path:
    """Write a .pth or .safetensors file; an incomplete file never appears at ``path``.

    Raises:
      UsageError: another suffix, a .pth file without torch installed, or a folder that can't be written.
    """
    path = Path(path)
    if path.suffix not in WRITTEN:
        raise UsageError(f"--output {path}: must end in {any_of(WRITTEN)}")
    if path.is_dir():
        raise UsageError(f"--output {path}: is a folder; choose a file")
    entries = state_dict(model)
    write = _write_safetensors if path.suffix == ".safetensors" else _write_pickle
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            write(temporary, entries, model)
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror or error}") from error
    return path


def _write_safetensors(path: Path, entries: dict[str, np.ndarray], model: Model) -> None:
    from safetensors.numpy import save_file

    metadata = {k: v for k, v in model.metadata.items() if k != "num_batches_tracked"}
    header = json.dumps({"config": dataclasses.asdict(model.config), "metadata": metadata})
    save_file(entries, path, {"format": "pt", HEADER: header})


def _write_pickle(path: Path, entries: dict[str, np.ndarray], model: Model) -> None:
    try:
        import torch

        from convert.torch_twin.model import twin_of
    except ImportError as error:
        raise UsageError(
            "--output: a .pth file needs PyTorch: pip install 'edgesam-jax[convert]'; or write a .safetensors file"
        ) from error
    with torch.device("meta"):
        order = twin_of(model.config).state_dict()
    content: dict[str, Any] = {name: torch.from_numpy(np.array(entries[name])) for name in order}
    with path.open("wb") as out:
        # The published EfficientSAM files nest the entries under "model", the others don't.
        torch.save({"model": content} if model.config.variant == "efficient_sam" else content, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.to_torch", description="Write a checkpoint with the published names."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="anything edgesam_jax.load_model reads")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=f"{any_of(WRITTEN)} file")
    return run_command(lambda: run(parser.parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    """Convert a checkpoint.

    Raises:
      UsageError: see ``load_model`` and ``save_published``.
    """
    model = load_model(args.checkpoint)
    path = save_published(args.output, model)
    print(f"{path}: {path.stat().st_size} bytes; licence: {model.metadata.get('licence', 'your own')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
