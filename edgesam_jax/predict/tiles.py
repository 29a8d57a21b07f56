"""Prompts of several photos in tiles of fixed size, so that few compiled programs decode any number of prompts.

A tile holds prompts with equally many slots for points, with or without mask inputs. A program thus serves all prompts
of one kind, whatever photos they belong to. The rows that a tile doesn't use are not decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from edgesam_jax.config import SamConfig
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.prompts import choose, from_boxes_and_points, from_points
from edgesam_jax.models.sam import decode
from edgesam_jax.portable.prompts import UNUSED, PromptArrays
from edgesam_jax.predict.compiled import decode_chunk
from edgesam_jax.types import MaskPrediction


def tile_size() -> int:
    """Return the number of prompts in a tile: on a CPU they are decoded one by one, and more only take memory."""
    return 32 if platforms.on_cpu() else 256


def point_slots(count: int) -> int:
    """Return the slots for a prompt of ``count`` points: 0, or the next power of four."""
    return 0 if not count else 1 << 2 * (((count - 1).bit_length() + 1) // 2)


@dataclass(frozen=True, eq=False)
class Tile:
    """``t`` rows for prompts on the photos of a batch, sorted by photo; rows that are not used come last.

    Attributes:
      photo: (t) int32, index in the batch; the size of the batch for rows that are not used.
      boxes: (t 4); ``has_box`` (t) bool is False where a prompt has none.
      coords, labels: (t n 2) and (t n); the label of slots without a point is ``UNUSED``.
      masks: (t s s), or None if no prompt has a mask input.
      prompt: for each row that is used, the prompt's index on its photo.
    """

    photo: np.ndarray
    boxes: np.ndarray
    has_box: np.ndarray
    coords: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    prompt: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray | None, ...]:
        """The arrays that ``decoder`` takes."""
        return self.photo, self.boxes, self.has_box, self.coords, self.labels, self.masks


def tiles(batch: Sequence[PromptArrays], batch_size: int, side: int) -> Iterator[Tile]:
    """Distribute the prompts of a batch's photos over tiles.

    Args:
      batch: the prompts of each photo, in the model's frame. A box of NaN is no box.
      batch_size: of the embeddings; at least the number of photos.
      side: of the model's low-resolution masks.
    """
    kinds: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for photo, prompts in enumerate(batch):
        counts = (prompts.labels != UNUSED).sum(1) if prompts.labels is not None else np.zeros(len(prompts), int)
        for prompt, count in enumerate(counts.tolist()):
            kinds.setdefault((point_slots(count), prompts.masks is not None), []).append((photo, prompt))
    size = tile_size()
    for (slots, masked), places in sorted(kinds.items()):
        for first in range(0, len(places), size):
            yield _tile(batch, places[first : first + size], size, batch_size, slots, side if masked else 0)


def _tile(
    batch: Sequence[PromptArrays], places: list[tuple[int, int]], size: int, batch_size: int, slots: int, side: int
) -> Tile:
    photo = np.full(size, batch_size, np.int32)
    boxes, has_box = np.zeros((size, 4), np.float32), np.zeros(size, bool)
    coords, labels = np.zeros((size, slots, 2), np.float32), np.full((size, slots), UNUSED, np.int32)
    masks = np.zeros((size, side, side), np.float32) if side else None
    for row, (index, prompt) in enumerate(places):
        prompts, photo[row] = batch[index], index
        if prompts.boxes is not None and not np.isnan(prompts.boxes[prompt, 0]):
            boxes[row], has_box[row] = prompts.boxes[prompt], True
        if prompts.coords is not None and prompts.labels is not None:
            used = prompts.labels[prompt] != UNUSED
            count = int(used.sum())
            coords[row, :count], labels[row, :count] = prompts.coords[prompt, used], prompts.labels[prompt, used]
        if masks is not None and prompts.masks is not None:
            masks[row] = prompts.masks[prompt]
    return Tile(photo, boxes, has_box, coords, labels, masks, np.array([prompt for _, prompt in places]))


@functools.lru_cache(maxsize=16)
def decoder(config: SamConfig, num_masks: int) -> Callable[..., MaskPrediction]:
    """Return the compiled function ``(variables, embeddings, *tile.inputs) -> MaskPrediction``.

    ``embeddings`` (b g g c) are a batch's. The result has logits (t m s s) and iou (t m), m = ``num_masks``; rows that
    are not used are 0.

    On a CPU prompts are decoded one by one, in a loop over photos around a loop over prompts: XLA moves what depends on
    the photo alone, the image's projections in the decoder's first layer, out of the inner loop. Elsewhere chunks of
    prompts are decoded at once, each with a copy of its photo's embedding.
    """
    chunk, side = decode_chunk(), config.mask_size

    @jax.jit
    def run(
        variables: Any,
        embeddings: Array,
        photo: Array,
        boxes: Array,
        has_box: Array,
        coords: Array,
        labels: Array,
        masks: Array | None,
    ) -> MaskPrediction:
        rows = boxes, has_box, coords, labels, masks
        starts = jnp.searchsorted(photo, jnp.arange(len(embeddings) + 1))  # first row of each photo, and the end

        def decode_rows(embedding: Array, some: Any) -> MaskPrediction:
            """Decode a prompt on each of c embeddings (c g g c): c images with one prompt each."""
            boxes, has_box, coords, labels, masks = jax.tree.map(lambda x: x[:, None], some)
            prompts = choose(has_box, from_boxes_and_points(boxes, coords, labels), from_points(coords, labels))
            result = decode(
                config, variables, embedding, prompts, masks, None if masks is None else jnp.ones_like(has_box),
                num_masks=num_masks,
            )  # fmt: skip
            return cast(MaskPrediction, jax.tree.map(lambda x: x[:, 0], result))

        def write(out: MaskPrediction, result: MaskPrediction, row: Array) -> MaskPrediction:
            update = jax.lax.dynamic_update_slice_in_dim
            return cast(MaskPrediction, jax.tree.map(lambda x, y: update(x, y, row, 0), out, result))

        def slice_rows(row: Array, count: int) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, count), rows)

        def one_by_one(index: Array, out: MaskPrediction) -> MaskPrediction:
            embedding = embeddings[index][None]

            def one(row: Array, out: MaskPrediction) -> MaskPrediction:
                return write(out, decode_rows(embedding, slice_rows(row, 1)), row)

            return cast(MaskPrediction, jax.lax.fori_loop(starts[index], starts[index + 1], one, out))

        def several(number: Array, out: MaskPrediction) -> MaskPrediction:
            row = number * chunk
            which = jax.lax.dynamic_slice_in_dim(photo, row, chunk)
            return write(out, decode_rows(embeddings.at[which].get(mode="clip"), slice_rows(row, chunk)), row)

        blank = MaskPrediction(
            jnp.zeros((len(photo), num_masks, side, side), jnp.float32), jnp.zeros((len(photo), num_masks), jnp.float32)
        )
        if chunk == 1:
            return cast(MaskPrediction, jax.lax.fori_loop(0, len(embeddings), one_by_one, blank))
        used = starts[-1]
        return cast(MaskPrediction, jax.lax.fori_loop(0, (used + chunk - 1) // chunk, several, blank))

    return run
