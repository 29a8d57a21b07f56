"""What a data set has to offer, and the scenes as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from edgesam_jax.config import DataConfig
from edgesam_jax.data.scenes import held_out_seed, scene
from edgesam_jax.data.schema import Example

Split = Literal["train", "heldout"]
Keep = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""Areas (n) in pixels of the photo and its (rows, columns) -> indices of the instances wanted, in their order."""


class Source(Protocol):
    """Random access to examples.  Sources pickle, so that workers can have them, and hold no open files."""

    def __len__(self) -> int:
        """How many examples make an epoch; 0 if they never end."""
        ...

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; ``keep`` chooses instances before their masks are decoded.

        Raises:
          UsageError: a photo or an annotation that can't be read; it is named.
        """
        ...


def select(example: Example, keep: Keep | None) -> Example:
    """The example with the instances that ``keep`` wants."""
    if keep is None:
        return example
    chosen = keep(example.masks.sum((1, 2)), (example.image.shape[0], example.image.shape[1]))
    return Example(
        image=example.image,
        masks=example.masks[chosen],
        boxes=example.boxes[chosen],
        points=example.points[chosen],
        image_id=example.image_id,
        annotation_ids=example.annotation_ids[chosen],
        granularity=example.granularity[chosen],
    )


class ScenesSource:
    """The procedural scenes; ``heldout`` ones come from seeds that training never uses."""

    def __init__(self, seed: int, size: int, difficulty: float = 1.0, split: Split = "train", limit: int = 0) -> None:
        self._seed = held_out_seed(seed) if split == "heldout" else seed
        self._size, self._difficulty, self._limit = size, difficulty, limit

    def __len__(self) -> int:
        return self._limit

    def load(self, index: int, keep: Keep | None = None) -> Example:
        return select(scene(self._seed, index, self._size, self._difficulty), keep)


def open_source(data: DataConfig, image_size: int, split: Split = "train") -> Source:
    """The source that a config names.

    Scenes are drawn at ``image_size``.  Photographs have one split only: held-out ones are another ``root``.

    Raises:
      UsageError: a folder or annotation file that is missing, empty or damaged.
    """
    if data.source == "scenes":
        return ScenesSource(data.seed, image_size, data.scene_difficulty, split, data.limit)
    if data.source == "coco":
        from edgesam_jax.data.coco import CocoSource

        return CocoSource(data.root, data.annotations, data.limit)
    from edgesam_jax.data.images import ImagesSource

    return ImagesSource(data.root, data.limit)
