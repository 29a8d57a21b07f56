"""The order in which a run visits the photos: a pure function of the position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgesam_jax.config import DataConfig
from edgesam_jax.data.source import Part

_ENDLESS = 1 << 40  # steps; longer than any run


def order(parts: list[Part], data: DataConfig) -> Callable[[int], tuple[int, int]]:
    """Return the function that maps a position in the endless sequence to (part, index of the example in the part).

    Every part repeats in its own epochs, each in a new order; parts alternate in proportion to their weights.
    """
    import grain

    def positions(number: int, part: Part) -> grain.MapDataset:
        size = len(part.source)
        if size and data.shuffle and data.shuffle_window:
            windows = ShuffleWindows(size, data.shuffle_window, data.seed + 7919 * number)
            return grain.MapDataset.range(_ENDLESS).map(lambda position: (number, windows[int(position)]))
        dataset = grain.MapDataset.range(size or _ENDLESS)
        if size and data.shuffle:
            dataset = dataset.seed((data.seed + 7919 * number) % 2**32).shuffle()
        return dataset.repeat().map(lambda index: (number, int(index)))

    endless = [positions(number, part) for number, part in enumerate(parts)]
    if len(endless) == 1:
        return endless[0].__getitem__
    return grain.MapDataset.mix(endless, [part.weight for part in parts]).__getitem__


class ShuffleWindows:
    """An endless order that shuffles windows of neighbouring examples, and the examples within each window.

    Reads stay close together, which suits disks and file systems that are slow at random access, and all processes of a
    job read in the same window.  Each epoch draws a new order of the windows and a new order within each of them.
    """

    def __init__(self, size: int, window: int, seed: int) -> None:
        self._size, self._window, self._seed = size, window, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._size)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, 6, epoch])
            starts = self._window * rng.permutation(-(-self._size // self._window))
            ends = np.minimum(starts + self._window, self._size)
            order = [start + rng.permutation(end - start) for start, end in zip(starts, ends, strict=True)]
            self._order, self._epoch = np.concatenate(order), epoch
        return int(self._order[place])
