"""mIoU of prompted masks, with refinement points drawn where the prediction is wrong (EdgeSAM section 4.2).

The ``exact`` protocol: photos resized as SAM's predictor does; mask token 0; after each round one more point, uniform
over the pixels of the low-resolution grid where prediction and truth differ, labelled by the truth, and none where less
than ten differ; masks brought to the photo's own size and compared with the annotation there, at every pixel.  Each
instance has its own random stream, so results do not depend on batching or order.
"""

from __future__ import annotations

import functools
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from edgesam_jax import inference
from edgesam_jax.checkpoint import Model
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.data.schema import Example
from edgesam_jax.data.transforms import center_point, low_res_masks, scale_coords
from edgesam_jax.losses import valid_weights
from edgesam_jax.metrics import mask_iou, mean_iou
from edgesam_jax.models.sam import decode
from edgesam_jax.postprocess import upscale_masks
from edgesam_jax.prompts import append, from_boxes, from_points, sample_disagreement
from edgesam_jax.types import POSITIVE

PromptKind = Literal["box", "center", "point"]
CELLS_AT_ONCE = 16 * 64 * 64  # embedding cells of all prompts decoded at a time: bounds memory


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Overlaps instance by instance, in the order of the examples.

    ``iou`` (n 1+refine) float64 against the annotation; ``teacher_iou`` the same against the masks that a teacher gives
    for the very same prompts, or None.  NaN where both masks are empty.
    """

    image_ids: list[int | str]
    annotation_ids: list[int]
    iou: np.ndarray
    teacher_iou: np.ndarray | None
    num_images: int
    seconds: float

    @property
    def miou(self) -> list[float]:
        """Mean over all instances: initial prompt, +1 point, +2 points, ..."""
        return [float(v) for v in mean_iou(self.iou)]

    @property
    def teacher_miou(self) -> list[float] | None:
        """The same against the teacher's masks."""
        return None if self.teacher_iou is None else [float(v) for v in mean_iou(self.teacher_iou)]


@dataclass
class _Unit:
    """Up to ``p`` instances of one photo, decoded together."""

    slot: int  # of the photo in its batch
    example: Example
    chosen: range
    input_size: tuple[int, int]
    coords: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (p 4) boxes or (p 2) points, in the frame
    truth: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (p s s) bool
    streams: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (p) uint32


def evaluate(
    config: SamConfig,
    variables: Any,
    examples: Iterable[Example],
    *,
    prompt: PromptKind = "box",
    refine: int = 0,
    seed: int = 0,
    batch_size: int = 8,
    prompts: int = 8,
    teacher: Model | None = None,
    on_image: Callable[[], object] | None = None,
) -> Evaluation:
    """Prompt every instance, refine, and measure the overlap with its mask.

    Args:
      config, variables: the model; ``variables`` as for training, they are folded here where possible.
      examples: annotated photos; those without instances count as images only.
      prompt: ``box`` the annotation's; ``center`` the deepest pixel of its mask; ``point`` the annotation's point.
      refine: points added one after another.
      seed: of the refinement points.
      batch_size, prompts: photos encoded, and instances of one photo decoded, at a time.  They change speed only.
      teacher: a model with the same frame and mask size whose masks for the same prompts are compared with too.
      on_image: called after every photo, for a progress bar.

    Raises:
      UsageError: a teacher of other sizes.
    """
    started = time.perf_counter()
    if teacher is not None and _sizes(teacher.config) != _sizes(config):
        raise UsageError("teacher: its input frame or mask size differs from the model's")
    models = [(config, inference.for_inference(config, variables))]
    if teacher is not None:
        models.append((teacher.config, inference.for_inference(teacher.config, teacher.variables)))
    rollout = _rollout(tuple(c for c, _ in models), prompt == "box", refine, batch_size, prompts)
    key = jax.random.key(seed)
    ids: list[int | str] = []
    annotation_ids: list[int] = []
    overlaps: list[np.ndarray] = []  # (1+refine, 1 or 2) per instance
    images = 0
    for batch in _batched(examples, batch_size):
        embeddings, sizes = _encode(models, batch, batch_size)
        units = [unit for slot, example in enumerate(batch) for unit in _units(slot, example, sizes[slot], prompts)]
        for group in _batched(units, batch_size):
            for unit in group:
                _prepare(unit, config, prompt, prompts)
            logits = rollout(tuple(v for _, v in models), embeddings, key, *_stack(group, batch_size))
            _score(config, group, np.asarray(logits), overlaps)
        for example in batch:
            ids += [example.image_id] * len(example)
            annotation_ids += [int(v) for v in example.annotation_ids]
            images += 1
            if on_image is not None:
                on_image()
    table = np.stack(overlaps) if overlaps else np.zeros((0, 1 + refine, len(models)))
    teacher_iou = table[..., 1] if teacher is not None else None
    return Evaluation(ids, annotation_ids, table[..., 0], teacher_iou, images, time.perf_counter() - started)


def _sizes(config: SamConfig) -> tuple[int, int]:
    return config.image_size, config.mask_size


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _encode(models: Sequence[tuple[SamConfig, Any]], batch: Sequence[Example], size: int) -> tuple[Any, list[Any]]:
    """Embeddings (b g g c) of a batch by each model, and where each photo lies in the frame; padded to ``size``."""
    side = models[0][0].image_size
    frames = [inference.frame(example.image, side) for example in batch]
    images = np.zeros((size, side, side, 3), np.uint8)
    input_sizes = np.full((size, 2), side, np.int32)
    for i, (image, input_size) in enumerate(frames):
        images[i], input_sizes[i] = image, input_size
    return tuple(inference.encoder(c)(v, images, input_sizes) for c, v in models), [s for _, s in frames]


def _units(slot: int, example: Example, input_size: tuple[int, int], p: int) -> list[_Unit]:
    n = len(example)
    return [_Unit(slot, example, range(i, min(i + p, n)), input_size) for i in range(0, n, p)]


def _prepare(unit: _Unit, config: SamConfig, prompt: PromptKind, p: int) -> None:
    """Fill in the arrays of a unit, padded to ``p`` prompts by zeros."""
    example, chosen, size = unit.example, slice(unit.chosen.start, unit.chosen.stop), unit.input_size
    masks, n = example.masks[chosen], len(unit.chosen)
    original = (example.image.shape[0], example.image.shape[1])
    if prompt == "box":
        coords = scale_coords(example.boxes[chosen], original, size)
    elif prompt == "point":
        coords = scale_coords(example.points[chosen], original, size)
    else:
        coords = np.array([center_in_frame(mask, size) for mask in masks], np.float32)
    truth = low_res_masks(masks, size, config.image_size, config.mask_size)
    streams = [zlib.crc32(f"{example.image_id}/{example.annotation_ids[i]}/{i}".encode()) for i in unit.chosen]
    pad = p - n
    unit.coords = np.pad(coords, ((0, pad), (0, 0)))
    unit.truth = np.pad(truth, ((0, pad), (0, 0), (0, 0)))
    unit.streams = np.pad(np.asarray(streams, np.uint32), (0, pad))


def center_in_frame(mask: np.ndarray, input_size: tuple[int, int]) -> tuple[float, float]:
    """The centre point (x, y) of a mask (h w) bool, in the model's frame.

    As in the published evaluation, so that its numbers can be met: the mask is brought to the frame by nearest
    neighbour and the published distance transform picks the pixel there (facts, section 7).
    """
    rows = np.minimum((np.arange(input_size[0]) * (mask.shape[0] / input_size[0])).astype(int), mask.shape[0] - 1)
    columns = np.minimum((np.arange(input_size[1]) * (mask.shape[1] / input_size[1])).astype(int), mask.shape[1] - 1)
    return center_point(mask[rows][:, columns], "published")


def _stack(group: Sequence[_Unit], size: int) -> tuple[np.ndarray, ...]:
    """Slots (u), input sizes (u 2), coords (u p 2|4), truth (u p s s), streams (u p); short groups repeat the last."""
    full = [*group, *[group[-1]] * (size - len(group))]
    return (
        np.array([u.slot for u in full], np.int32),
        np.array([u.input_size for u in full], np.int32),
        np.stack([u.coords for u in full]),
        np.stack([u.truth for u in full]),
        np.stack([u.streams for u in full]),
    )


@functools.lru_cache(maxsize=16)
def _rollout(
    configs: tuple[SamConfig, ...], boxes: bool, refine: int, units: int, prompts: int
) -> Callable[..., Array]:
    """Compiled: decode, draw a point from the error, decode again ...; logits (1+refine, models, u p s s)."""
    config = configs[0]
    chunk = min(prompts, max(1, CELLS_AT_ONCE // (units * config.grid**2)))
    first_slot = 2 if boxes else 3
    cell = config.image_size / config.mask_size

    @jax.jit
    def run(
        variables: tuple[Any, ...],
        embeddings: tuple[Array, ...],
        key: Array,
        slots: Array,
        sizes: Array,
        coords: Array,
        truth: Array,
        streams: Array,
    ) -> Array:
        chosen = [embedding[slots] for embedding in embeddings]
        if boxes:
            start = from_boxes(coords, slots=refine)
        else:
            start = from_points(coords[:, :, None], jnp.full((*coords.shape[:2], 1), POSITIVE), slots=1 + refine)
        photo = valid_weights(sizes, config.mask_size, config.image_size) == 1.0
        u, p, s = truth.shape[:3]
        each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, streams.reshape(-1))

        def one_round(buffer: Any, index: Array) -> tuple[Any, Array]:
            logits = jnp.stack(
                [
                    decode(c, v, e, buffer, num_masks=1, chunk=chunk).logits[:, :, 0]
                    for c, v, e in zip(configs, variables, chosen, strict=True)
                ]
            )
            if refine:
                # One instance per row, so that its stream is its own.
                keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(each, index)
                point, label, valid = sample_disagreement(
                    keys,
                    (logits[0] > 0).reshape(u * p, 1, s, s),
                    truth.reshape(u * p, 1, s, s),
                    jnp.repeat(photo, p, axis=0),
                    cell=cell,
                )
                point, label, valid = (x.reshape(u, p, *x.shape[2:]) for x in (point, label, valid))
                # The last round's point has no slot; writing it over an earlier one does no harm any more.
                buffer = append(buffer, first_slot + index, point, label, valid)
            return buffer, logits

        return jax.lax.scan(one_round, start, jnp.arange(1 + refine))[1]

    return run


def _score(config: SamConfig, group: Sequence[_Unit], logits: np.ndarray, overlaps: list[np.ndarray]) -> None:
    """Append (1+refine, 1 or 2) overlaps for every instance of the group."""
    for row, unit in enumerate(group):
        original = (unit.example.image.shape[0], unit.example.image.shape[1])
        for place, instance in enumerate(unit.chosen):
            masks = upscale_masks(logits[:, :, row, place], config.image_size, unit.input_size, original)
            scores = [mask_iou(masks[:, 0], unit.example.masks[instance])]
            if masks.shape[1] == 2:
                scores.append(mask_iou(masks[:, 0], masks[:, 1]))
            overlaps.append(np.stack(scores, axis=-1))
