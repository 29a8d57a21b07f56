"""A decoder in two graphs: the one that depends on the photo runs once for all prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

PHOTO_INPUTS = ("image_embeddings", "mask_input", "has_mask_input")  # of the graph that depends on the photo


class PerPhoto:
    """The graph of a split decoder that depends on the photo and an earlier mask, run once per embedding.

    With a mask it is run for each call. Threads may share it.

    Args:
      run: the graph, from inputs to outputs by name.
    """

    def __init__(self, run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
        self._run = run
        self._last: tuple[np.ndarray | None, dict[str, np.ndarray]] = (None, {})

    def maps(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the maps for the inputs ``PHOTO_INPUTS``; an embedding is recognised as the same array."""
        given = {name: inputs[name] for name in PHOTO_INPUTS}
        if given["has_mask_input"].any():
            return self._run(given)
        embedding, maps = self._last
        if embedding is not given["image_embeddings"]:
            maps = self._run(given)
            self._last = given["image_embeddings"], maps
        return maps
