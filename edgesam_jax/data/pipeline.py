"""Batches of fixed shape, the same for the same (seed, step) whatever the number of workers.

There is no iterator state to save: a run resumes by its step number.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgesam_jax.config import DataConfig, SamConfig, UsageError
from edgesam_jax.data.schema import Example
from edgesam_jax.data.sources import Source, Split, open_source
from edgesam_jax.data.transforms import (
    jitter_boxes,
    low_res_masks,
    pad_to_square,
    resize_longest_side,
    scale_coords,
    target_size,
)

if TYPE_CHECKING:  # workers import this module, and must not start JAX
    from edgesam_jax.types import Batch

Arrays = dict[str, np.ndarray]
_AHEAD = 2  # batches prepared while a step runs
_ENDLESS = 1 << 40  # steps; longer than any run


def batches(
    data: DataConfig, model: SamConfig, start_step: int = 0, split: Split = "train", source: Source | None = None
) -> Iterator[Batch]:
    """Endless batches of numpy arrays, from ``start_step`` on.

    Each epoch has its own order by ``data.seed``; batches run on across the ends of epochs.  With ``data.workers`` > 0
    grain runs so many processes; otherwise one background thread prepares the next batches.

    Args:
      data, model: the configs; ``model`` gives the size of the frame and of the mask targets.
      split: "heldout" draws scenes that training never sees.
      source: use this one instead of the one that ``data`` names.

    Raises:
      UsageError: the source can't be opened (at once), or an example can't be read (when its batch is due).
    """
    if data.batch_size < 1 or data.max_prompts < 1:
        raise UsageError("data.batch_size and data.max_prompts must be at least 1")
    source = source if source is not None else open_source(data, model.image_size, split)
    steps = BatchSource(data, model, source)
    return _in_processes(steps, start_step, data.workers) if data.workers else _in_thread(steps, start_step)


def example_arrays(
    example: Example, data: DataConfig, model: SamConfig, rng: np.random.Generator | None = None
) -> Arrays:
    """One example as the arrays of a ``Batch`` without the leading ``b``, padded to ``max_prompts`` prompts.

    Takes the first ``max_prompts`` instances: choosing them is ``BatchSource``'s.  ``rng`` is for box jitter.
    """
    old = (example.image.shape[0], example.image.shape[1])
    image, new = resize_longest_side(example.image, model.image_size)
    n = min(len(example), data.max_prompts)
    boxes = example.boxes[:n]
    if data.box_jitter and rng is not None:
        boxes = jitter_boxes(rng, boxes, old, data.box_jitter)
    arrays = {
        "image": pad_to_square(image, model.image_size),
        "valid_size": np.array(new, np.int32),
        "boxes": np.zeros((data.max_prompts, 4), np.float32),
        "points": np.zeros((data.max_prompts, 2), np.float32),
        "prompt_valid": np.zeros(data.max_prompts, bool),
        "masks": np.zeros((data.max_prompts, model.mask_size, model.mask_size), bool),
    }
    arrays["prompt_valid"][:n] = example.masks[:n].any((1, 2))  # an empty mask is nothing to learn from
    arrays["boxes"][:n] = scale_coords(boxes, old, new)
    arrays["points"][:n] = scale_coords(example.points[:n], old, new)
    arrays["masks"][:n] = low_res_masks(example.masks[:n], new, model.image_size, model.mask_size)
    return arrays


class BatchSource:
    """Random access to batches by step; what workers carry."""

    def __init__(self, data: DataConfig, model: SamConfig, source: Source) -> None:
        self._data, self._model, self._source = data, model, source
        self._order: tuple[int, np.ndarray] | None = None  # the epoch at hand

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Arrays:
        first = int(step) * self._data.batch_size
        samples = [self._sample(first + k) for k in range(self._data.batch_size)]
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, position: int) -> Arrays:
        data, model = self._data, self._model
        rng = np.random.default_rng([data.seed, 1, position])

        def keep(areas: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
            rows, columns = target_size(*hw, model.image_size)
            large = np.flatnonzero(areas * (rows / hw[0]) * (columns / hw[1]) >= data.min_area)
            return large if len(large) <= data.max_prompts else rng.permutation(large)[: data.max_prompts]

        return example_arrays(self._source.load(self._index(position), keep), data, model, rng)

    def _index(self, position: int) -> int:
        """Which example stands at a position of the endless sequence."""
        size = len(self._source)
        if not size:
            return position
        epoch, place = divmod(position, size)
        if not self._data.shuffle:
            return place
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._data.seed, 0, epoch]).permutation(size))
        return int(self._order[1][place])


def _batch(arrays: Arrays) -> Batch:
    from edgesam_jax.types import Batch

    return Batch(**cast(dict[str, Any], arrays))


def _in_thread(steps: BatchSource, start: int) -> Iterator[Batch]:
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
    pending: list[Future[Arrays]] = []
    try:
        step = start
        while True:
            while len(pending) < _AHEAD:
                pending.append(executor.submit(steps.__getitem__, step))
                step += 1
            yield _batch(pending.pop(0).result())
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Parcel:
    """Hides the arrays from grain, which would put them in shared memory and leave some there when a run ends early."""

    arrays: Arrays


class _From:
    """Batches from a step on, as grain numbers them."""

    def __init__(self, steps: BatchSource, start: int) -> None:
        self._steps, self._start = steps, start

    def __len__(self) -> int:
        return len(self._steps) - self._start

    def __getitem__(self, index: int) -> _Parcel:
        return _Parcel(self._steps[self._start + int(index)])


def _in_processes(steps: BatchSource, start: int, workers: int) -> Iterator[Batch]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags, which only absl's own main functions parse
        flags.FLAGS.mark_as_parsed()
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    dataset = grain.MapDataset.source(_From(steps, start)).to_iter_dataset(reading)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    prefetched = iter(dataset.mp_prefetch(processes))
    try:
        for parcel in prefetched:
            yield _batch(parcel.arrays)
    finally:
        prefetched.close()
