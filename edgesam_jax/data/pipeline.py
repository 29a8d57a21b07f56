"""Batches of fixed shape that depend on (seed, step) alone, not on the number of workers or processes.

There is no iterator state to save: a run resumes by its step number.  The photos of a batch are a pure function of the
step, across epochs and for mixtures too.  A photo that can't be used is reported and replaced by another one, drawn as
a function of its position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from edgesam_jax.data.source import Part, Source, Split, skipped_entries
from edgesam_jax.data.transforms import MAX_SIDE, jitter_boxes, low_res_windows, suppress_masks
from edgesam_jax.data.workers import in_processes, in_thread
from edgesam_jax.portable.frame import pad_to_square, resize_longest_side, scale_coords, target_size

if TYPE_CHECKING:  # workers import this module and must not start JAX
    from edgesam_jax.types import Batch

Arrays = dict[str, np.ndarray]
_TRIES = 20  # photos tried for one place of a batch before the run stops
MAX_RATIO = 64  # of the longer to the shorter side; beyond it the shorter is less than a cell of the embedding


@dataclass(frozen=True)
class Skipped:
    """A photo that was replaced by another: the step of its batch, the kind of fault, and the message.

    Entries that the data set skipped on opening are reported the same way, under step 0.
    """

    step: int
    kind: str
    message: str


@dataclass
class Loaded:
    """The arrays of a batch, with the ids of its photos and the photos skipped."""

    arrays: Arrays
    ids: list[int | str]
    skipped: list[Skipped]


class Batches(Iterator["Batch"]):
    """An endless iterator of batches.

    ``ids`` are the ids of the last batch's photos; ``counts`` is the number of skipped photos so far, by kind; ``used``
    is the number of photos in all batches so far.
    """

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
        """Return the photos skipped since the last call."""
        new, self._new = self._new, []
        return new

    def close(self) -> None:
        """Stop the background thread or the workers."""
        self._loaded.close()  # type: ignore[attr-defined]


def batches(
    data: DataConfig,
    model: SamConfig,
    start_step: int = 0,
    split: Split = "train",
    parts: list[Part] | None = None,
    shard: tuple[int, int] = (0, 1),
    masks: bool = True,
) -> Batches:
    """Return endless batches of NumPy arrays, starting with ``start_step``.

    Each epoch has its own order, drawn from ``data.seed``; a batch may span two epochs.  With ``data.workers`` > 0
    this many processes prepare the next batches; otherwise one background thread does.

    Args:
      data, model: the configs; ``model`` gives the size of the frame and of the mask targets.
      start_step: step of the first batch.
      split: "heldout" draws scenes that training never sees.
      parts: data sets to use instead of those that ``data`` describes.
      shard: (index of this process, number of processes); each reads only its own rows of the global batch.
      masks: whether the batches have ``masks``; without them, making them takes no time.

    Raises:
      UsageError: on the call, the source can't be opened or the batch size doesn't fit; on iteration, too many photos
        in a row can't be used.
    """
    if data.batch_size < 1 or data.max_prompts < 1:
        raise UsageError("data.batch_size and data.max_prompts must be at least 1")
    if data.batch_size % shard[1]:
        raise UsageError(
            f"data.batch_size={data.batch_size} is not divisible by {shard[1]} processes; use a multiple of {shard[1]}"
        )
    parts = parts or open_parts(data, model.image_size, split)
    steps = BatchSource(data, model, parts, shard, masks)
    loaded = in_processes(steps, start_step, data.workers) if data.workers else in_thread(steps, start_step)
    rows = (
        [row for part in parts for row in skipped_entries(part.source).rows] if (start_step, shard[0]) == (0, 0) else []
    )
    return Batches(loaded, [Skipped(0, *row) for row in rows])


def example_arrays(
    example: Example,
    data: DataConfig,
    model: SamConfig,
    rng: np.random.Generator | None = None,
    with_masks: bool = True,
) -> Arrays:
    """Convert one example to the arrays of a ``Batch`` without the leading ``b``, padded to ``max_prompts`` prompts.

    Uses the first ``max_prompts`` instances; ``BatchSource`` selects them.  ``rng`` is for box jitter.
    """
    n = min(len(example), data.max_prompts)
    masks = [crop(mask) for mask in example.masks[:n]]
    return _arrays(example.image, masks, example.boxes[:n], example.points[:n], data, model, rng, with_masks)


def _arrays(
    photo: np.ndarray | Image.Image,
    masks: Sequence[Window],
    boxes: np.ndarray,
    points: np.ndarray,
    data: DataConfig,
    model: SamConfig,
    rng: np.random.Generator | None,
    with_masks: bool,
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
    }
    arrays["prompt_valid"][:n] = [bool(mask) for mask in masks]  # an empty mask gives no training signal
    arrays["boxes"][:n] = scale_coords(boxes, old, new)
    arrays["points"][:n] = scale_coords(points, old, new)
    if with_masks:
        arrays["masks"] = np.zeros((data.max_prompts, model.mask_size, model.mask_size), bool)
        arrays["masks"][:n] = low_res_windows(masks, old, new, model.image_size, model.mask_size)
    return arrays


class BatchSource:
    """Random access to batches by step; sent to the workers."""

    def __init__(
        self,
        data: DataConfig,
        model: SamConfig,
        parts: list[Part],
        shard: tuple[int, int] = (0, 1),
        masks: bool = True,
    ) -> None:
        self._data, self._model, self._parts, self._shard, self._masks = data, model, parts, shard, masks
        # Created on first use, in the worker: grain imports JAX, and a store's index is larger to pickle than its path.
        self._order: Callable[[int], tuple[int, int]] | None = None
        self._stores: list[EmbeddingStore] = []

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Loaded:
        step, local_size = int(step), self._data.batch_size // self._shard[1]
        first = step * self._data.batch_size + self._shard[0] * local_size
        skipped: list[Skipped] = []
        ids, samples = zip(*(self._sample(first + k, step, skipped) for k in range(local_size)), strict=True)
        return Loaded({name: np.stack([sample[name] for sample in samples]) for name in samples[0]}, [*ids], skipped)

    def _sample(self, position: int, step: int, skipped: list[Skipped]) -> tuple[int | str, Arrays]:
        """Return the example at a position of the endless sequence, or a replacement."""
        if self._order is None:
            self._order = order(self._parts, self._data)
        part, index = self._order(position)
        source = self._parts[part].source
        replacements = np.random.default_rng([self._data.seed, 2, position])
        for _ in range(_TRIES):
            try:
                return self._read(source, index, position)
            except BadExample as error:
                skipped.append(Skipped(step, error.kind, str(error)))
            index = int(replacements.integers(len(source) or _ENDLESS))
        raise UsageError(f"{skipped[-1].message} ({_TRIES} photos in a row could not be used; check the data set)")

    def _read(self, source: Source, index: int, position: int) -> tuple[int | str, Arrays]:
        data, model = self._data, self._model
        rng = np.random.default_rng([data.seed, 1, position])

        annotated = True

        def check_annotations(name: int | str) -> None:
            if not annotated:
                raise BadExample("no annotations", f"photo {name}: no usable annotation; remove the photo")

        def keep(areas: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
            nonlocal annotated
            annotated = len(areas) > 0 or not source.annotated
            rows, columns = target_size(*hw, model.image_size)
            large = np.flatnonzero(areas * (rows / hw[0]) * (columns / hw[1]) >= data.min_area)
            # Suppression by overlap needs all masks decoded, so the selection has to wait.
            keep_all = len(large) <= data.max_prompts or data.mask_nms < 1
            return large if keep_all else rng.permutation(large)[: data.max_prompts]

        record = getattr(source, "record", None)
        if record is not None and data.mask_nms >= 1 and data.augment == AugmentConfig():
            # Skips the photo as an array and the full-size masks, which would take longer than everything else.
            stored = record(index)
            key = photo_key(stored.photo) if data.embeddings else b""
            for store in self._open_stores():
                store.expect(key)
            decoded = decode(stored, keep)
            check_annotations(stored.image_id)
            check_sides(stored.image_id, *decoded.size)
            n = data.max_prompts
            prompts = decoded.masks[:n], decoded.boxes[:n], decoded.points[:n]
            arrays = _arrays(decoded.photo, *prompts, data, model, rng, self._masks)
            image_id = stored.image_id
        else:
            example = source.load(index, keep)
            check_annotations(example.image_id)
            check_size(example)
            if data.mask_nms < 1:
                selected = suppress_masks(example.masks, data.mask_nms)
                if len(selected) > data.max_prompts:
                    selected = rng.permutation(selected)[: data.max_prompts]
                example = example.take(selected)
            example = augment(example, data.augment, rng)
            arrays, image_id, key = (
                example_arrays(example, data, model, rng, self._masks),
                example.image_id,
                example.key,
            )
        if data.embeddings:
            stores = self._open_stores()
            store = next((store for store in stores if key in store), stores[0])
            arrays["teacher_embedding"] = store.read(key, image_id)
        return image_id, arrays

    def _open_stores(self) -> list[EmbeddingStore]:
        self._stores = self._stores or [EmbeddingStore(root) for root in self._data.embeddings]
        return self._stores


def check_size(example: Example) -> None:
    """Apply ``check_sides`` to an example's photo."""
    check_sides(example.image_id, *example.image.shape[:2])


def check_sides(image_id: int | str, height: int, width: int) -> None:
    """Reject photos that are too thin to show anything in the frame, or so large that they must be a mistake.

    Raises:
      BadExample: a side is longer than ``MAX_SIDE`` pixels, or more than ``MAX_RATIO`` times as long as the other.
    """
    if max(height, width) > MAX_SIDE:
        raise BadExample("photo too large", f"photo {image_id}: {width}x{height} pixels; shrink it first")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise BadExample("photo too thin", f"photo {image_id}: {width}x{height} pixels; crop it first")
