"""The scenes as a data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edgesam_jax.data.scenes.scene import held_out_seed, scene
from edgesam_jax.data.schema import OBJECT, PART, Example
from edgesam_jax.data.source import Keep, Split, select

_OTHERS = 1 << 32  # scenes beyond any index, for those that can't be used


class ScenesSource:
    """The procedural scenes; ``heldout`` ones come from seeds that training never uses."""

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
        example = scene(self._seed, index, self._size, self._difficulty)
        if self._granularity != "all":
            wanted, attempt = (OBJECT if self._granularity == "objects" else PART), 0
            while not (example.granularity == wanted).any():  # a scene without parts: another in its place
                attempt += 1
                example = scene(self._seed, index + attempt * _OTHERS, self._size, self._difficulty)
            example = replace(example.take(example.granularity == wanted), image_id=index)
        return select(example, keep)
