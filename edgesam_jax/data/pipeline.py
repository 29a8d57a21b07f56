"""Batches of fixed shape, the same for the same (seed, step) whatever the number of workers or processes.

There is no iterator state to save: a run resumes by its step number.  Which photo stands where is a pure function of
the step, also over the ends of epochs and for mixtures; a photo that can't be used is replaced by another one, drawn by
its place, and reported.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from edgesam_jax.config import AugmentConfig, DataConfig, SamConfig, UsageError
from edgesam_jax.data.augment import augment
from edgesam_jax.data.embeddings import EmbeddingStore, photo_key
from edgesam_jax.data.mask_window import Window, crop
from edgesam_jax.data.opening import open_parts
from edgesam_jax.data.order import _ENDLESS, order
from edgesam_jax.data.readers.records import decode
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import Part, Source, Split, left_out
from edgesam_jax.data.transforms import MAX_SIDE, jitter_boxes, low_res_windows, suppress_masks
from edgesam_jax.portable.frame import pad_to_square, resize_longest_side, scale_coords, target_size

if TYPE_CHECKING:  # workers import this module, and must not start JAX
    from edgesam_jax.types import Batch

Arrays = dict[str, np.ndarray]
_AHEAD = 2  # batches prepared while a step runs
_TRIES = 20  # photos drawn in place of one that can't be used, before the run is given up
MAX_RATIO = 64  # of the sides: beyond it the shorter one is less than a cell of the embedding


@dataclass(frozen=True)
class Skipped:
    """A photo that was replaced by another: in which batch, why, and what the message would have been.

    Also what the data set could not give when it was opened, as of batch 0.
    """

    step: int
    kind: str
    message: str


@dataclass
class Loaded:
    """A batch with what the step doesn't need: the ids of its photos, and what was skipped.

    It also hides the arrays from grain, which would put them in shared memory and leave some there when a run ends
    early.
    """

    arrays: Arrays
    ids: list[int | str]
    skipped: list[Skipped]


class Batches(Iterator["Batch"]):
    """Endless batches; ``ids`` are those of the last one's photos, ``counts`` what was skipped so far, by kind."""

    def __init__(self, loaded: Iterator[Loaded], skipped: Sequence[Skipped] = ()) -> None:
        self._loaded = loaded
        self._new = list(skipped)
        self.ids: list[int | str] = []
        self.counts: Counter[str] = Counter()
        self.used = 0

    def __next__(self) -> Batch:
        from edgesam_jax.types import Batch

        loaded = next(self._loaded)
        self.ids, self.used = loaded.ids, self.used + len(loaded.ids)
        self.counts.update(skipped.kind for skipped in loaded.skipped)
        self._new += loaded.skipped
        return Batch(**cast(dict[str, Any], loaded.arrays))

    def take_skipped(self) -> list[Skipped]:
        """What was skipped since the last call."""
        new, self._new = self._new, []
        return new

    def close(self) -> None:
        """End the background thread or the workers."""
        self._loaded.close()  # type: ignore[attr-defined]


def batches(
    data: DataConfig,
    model: SamConfig,
    start_step: int = 0,
    split: Split = "train",
    parts: list[Part] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Endless batches of numpy arrays, from ``start_step`` on.

    Each epoch has its own order by ``data.seed``; batches run on across the ends of epochs.  With ``data.workers`` > 0
    grain runs so many processes; otherwise one background thread prepares the next batches.

    Args:
      data, model: the configs; ``model`` gives the size of the frame and of the mask targets.
      split: "heldout" draws scenes that training never sees.
      parts: use these instead of those that ``data`` names.
      shard: (this process, processes): each reads its own rows of the global batch, and nothing else.

    Raises:
      UsageError: the source can't be opened (at once), or too many photos in a row can't be used (when they are due).
    """
    if data.batch_size < 1 or data.max_prompts < 1:
        raise UsageError("data.batch_size and data.max_prompts must be at least 1")
    if data.batch_size % shard[1]:
        raise UsageError(f"data.batch_size={data.batch_size} does not divide over {shard[1]} processes")
    parts = parts or open_parts(data, model.image_size, split)
    steps = BatchSource(data, model, parts, shard)
    loaded = _in_processes(steps, start_step, data.workers) if data.workers else _in_thread(steps, start_step)
    rows = [row for part in parts for row in left_out(part.source).rows] if (start_step, shard[0]) == (0, 0) else []
    return Batches(loaded, [Skipped(0, *row) for row in rows])


def example_arrays(
    example: Example, data: DataConfig, model: SamConfig, rng: np.random.Generator | None = None
) -> Arrays:
    """One example as the arrays of a ``Batch`` without the leading ``b``, padded to ``max_prompts`` prompts.

    Takes the first ``max_prompts`` instances: choosing them is ``BatchSource``'s.  ``rng`` is for box jitter.
    """
    n = min(len(example), data.max_prompts)
    masks = [crop(mask) for mask in example.masks[:n]]
    return _arrays(example.image, masks, example.boxes[:n], example.points[:n], data, model, rng)


def _arrays(
    photo: np.ndarray | Image.Image,
    masks: Sequence[Window],
    boxes: np.ndarray,
    points: np.ndarray,
    data: DataConfig,
    model: SamConfig,
    rng: np.random.Generator | None,
) -> Arrays:
    old = (photo.height, photo.width) if isinstance(photo, Image.Image) else (photo.shape[0], photo.shape[1])
    image, new = resize_longest_side(photo, model.image_size)
    n = len(masks)
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
    arrays["prompt_valid"][:n] = [bool(mask) for mask in masks]  # an empty mask is nothing to learn from
    arrays["boxes"][:n] = scale_coords(boxes, old, new)
    arrays["points"][:n] = scale_coords(points, old, new)
    arrays["masks"][:n] = low_res_windows(masks, old, new, model.image_size, model.mask_size)
    return arrays


class BatchSource:
    """Random access to batches by step; what workers carry."""

    def __init__(self, data: DataConfig, model: SamConfig, parts: list[Part], shard: tuple[int, int] = (0, 1)) -> None:
        self._data, self._model, self._parts, self._shard = data, model, parts, shard
        # Made where they are used: grain brings JAX along, and a store's index is larger than its path.
        self._order: Callable[[int], tuple[int, int]] | None = None
        self._stores: list[EmbeddingStore] = []

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Loaded:
        step, own = int(step), self._data.batch_size // self._shard[1]
        first = step * self._data.batch_size + self._shard[0] * own
        skipped: list[Skipped] = []
        ids, samples = zip(*(self._sample(first + k, step, skipped) for k in range(own)), strict=True)
        return Loaded({name: np.stack([sample[name] for sample in samples]) for name in samples[0]}, [*ids], skipped)

    def _sample(self, position: int, step: int, skipped: list[Skipped]) -> tuple[int | str, Arrays]:
        """The example at a position of the endless sequence, or another in its place."""
        if self._order is None:
            self._order = order(self._parts, self._data)
        which, index = self._order(position)
        source = self._parts[which].source
        others = np.random.default_rng([self._data.seed, 2, position])
        for _ in range(_TRIES):
            try:
                return self._read(source, index, position)
            except BadExample as error:
                skipped.append(Skipped(step, error.kind, str(error)))
            index = int(others.integers(len(source) or _ENDLESS))
        raise UsageError(f"{skipped[-1].message} ({_TRIES} photos in a row could not be used; see the data set)")

    def _read(self, source: Source, index: int, position: int) -> tuple[int | str, Arrays]:
        data, model = self._data, self._model
        rng = np.random.default_rng([data.seed, 1, position])

        annotated = True

        def check_annotations(name: int | str) -> None:
            if not annotated:
                raise BadExample("no annotations", f"photo {name}: it has none that can be used; remove it")

        def keep(areas: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
            nonlocal annotated
            annotated = len(areas) > 0 or not source.annotated
            rows, columns = target_size(*hw, model.image_size)
            large = np.flatnonzero(areas * (rows / hw[0]) * (columns / hw[1]) >= data.min_area)
            # Which masks cover which is known only when all are decoded.
            few = len(large) <= data.max_prompts or data.mask_nms < 1
            return large if few else rng.permutation(large)[: data.max_prompts]

        record = getattr(source, "record", None)
        if record is not None and data.mask_nms >= 1 and data.augment == AugmentConfig():
            # Nothing needs the photo as an array or whole masks, which take longer than the rest together.
            found = record(index)
            key = photo_key(found.photo) if data.embeddings else b""
            for store in self._open_stores():
                store.expect(key)
            decoded = decode(found, keep)
            check_annotations(found.image_id)
            check_sides(found.image_id, *decoded.size)
            n = data.max_prompts
            arrays = _arrays(decoded.photo, decoded.masks[:n], decoded.boxes[:n], decoded.points[:n], data, model, rng)
            image_id = found.image_id
        else:
            example = source.load(index, keep)
            check_annotations(example.image_id)
            check_size(example)
            if data.mask_nms < 1:
                chosen = suppress_masks(example.masks, data.mask_nms)
                if len(chosen) > data.max_prompts:
                    chosen = rng.permutation(chosen)[: data.max_prompts]
                example = example.take(chosen)
            example = augment(example, data.augment, rng)
            arrays, image_id, key = example_arrays(example, data, model, rng), example.image_id, example.key
        if data.embeddings:
            stores = self._open_stores()
            store = next((store for store in stores if key in store), stores[0])
            arrays["teacher_embedding"] = store.read(key, image_id)
        return image_id, arrays

    def _open_stores(self) -> list[EmbeddingStore]:
        self._stores = self._stores or [EmbeddingStore(root) for root in self._data.embeddings]
        return self._stores


def check_size(example: Example) -> None:
    """``check_sides`` of an example's photo."""
    check_sides(example.image_id, *example.image.shape[:2])


def check_sides(image_id: int | str, height: int, width: int) -> None:
    """Refuse photos that leave nothing to see, or that only a mistake makes so large.

    Raises:
      BadExample: a side of more than ``MAX_SIDE`` pixels, or sides that differ by more than ``MAX_RATIO``.
    """
    if max(height, width) > MAX_SIDE:
        raise BadExample("photo too large", f"photo {image_id}: {width}x{height} pixels; shrink it first")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise BadExample("photo too thin", f"photo {image_id}: {width}x{height} pixels; crop it first")


def _in_thread(steps: BatchSource, start: int) -> Iterator[Loaded]:
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
    pending: list[Future[Loaded]] = []
    try:
        step = start
        while True:
            while len(pending) < _AHEAD:
                pending.append(executor.submit(steps.__getitem__, step))
                step += 1
            yield pending.pop(0).result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


class _From:
    """Batches from a step on, as grain numbers them."""

    def __init__(self, steps: BatchSource, start: int) -> None:
        self._steps, self._start = steps, start

    def __len__(self) -> int:
        return len(self._steps) - self._start

    def __getitem__(self, index: int) -> Loaded:
        return self._steps[self._start + int(index)]


def _in_processes(steps: BatchSource, start: int, workers: int) -> Iterator[Loaded]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags, which only absl's own main functions parse
        flags.FLAGS.mark_as_parsed()
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    dataset = grain.MapDataset.source(_From(steps, start)).to_iter_dataset(reading)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    prefetched = iter(dataset.mp_prefetch(processes, worker_init_fn=_begin_worker))
    try:
        yield from prefetched
    finally:
        prefetched.close()


def _begin_worker(index: int, count: int) -> None:
    """Leave the ending of a worker to the process that started it.

    A signal to the whole group (Ctrl-C, a scheduler's SIGTERM) must not take the data away from a run that still has to
    save; and a run that was killed must not leave its workers behind.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
