"""The procedural scenes as a ``Source``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edgesam_jax.data.scenes.scene import held_out_seed, scene
from edgesam_jax.data.schema import OBJECT, PART, Example
from edgesam_jax.data.source import Keep, Split, select

_REPLACEMENTS = 1 << 32  # offset beyond any index; replaces scenes without an instance of the granularity


class ScenesSource:
    """The procedural scenes; the split "heldout" uses seeds that training never does.

    Args:
      seed: any non-negative integer below 2**40.
      size: side of the scenes in pixels.
      difficulty: see ``scene``.
      split: "train" or "heldout".
      limit: number of scenes in an epoch; 0 for an endless source.
      granularity: keep all instances, only entire objects, or only parts.
    """

    annotated = true_masks = True

    def __init__(
        self, seed: int, size: int, difficulty: float = 1.0, split: Split = "train", limit: int = 0,
        granularity: Literal["all", "objects", "parts"] = "all",
    ) -> None:  # fmt: skip
        self._seed = held_out_seed(seed) if split == "heldout" else seed
        self._size, self._difficulty, self._limit, self._granularity = size, difficulty, limit, granularity

    def __len__(self) -> int:
        return self._limit

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        example = scene(self._seed, index, self._size, self._difficulty)
        if self._granularity != "all":
            level, attempt = (OBJECT if self._granularity == "objects" else PART), 0
            while not (example.granularity == level).any():  # a scene without parts is replaced
                attempt += 1
                example = scene(self._seed, index + attempt * _REPLACEMENTS, self._size, self._difficulty)
            example = replace(example.take(example.granularity == level), image_id=index)
        return select(example, keep)
