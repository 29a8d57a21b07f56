"""The suffixes of files with weights that other systems write."""

from __future__ import annotations

from collections.abc import Sequence

PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".pkl")  # files of torch.save
PUBLISHED = (*PICKLED, ".safetensors", ".npz")  # all that ``published.read`` accepts


def any_of(suffixes: Sequence[str]) -> str:
    """Return the suffixes as a list for a message: ".a, .b or .c"."""
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
