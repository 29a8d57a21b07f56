"""Prompts on many photos: photos are read in threads, encoded in batches, and their prompts decoded in tiles.

A few programs serve any number of photos and prompts: the encoder's for a batch of photos, and one decoder for each
number of slots for points (0, 1, 4, 16, ...), with and without mask inputs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.photo import load_image
from edgesam_jax.data.pixels import AUTO, parse_range
from edgesam_jax.data.threads import in_threads
from edgesam_jax.models.kernels import platforms
from edgesam_jax.portable.errors import type_text
from edgesam_jax.portable.frame import into_frame
from edgesam_jax.portable.postprocess import stability_score, upscale_masks
from edgesam_jax.portable.predictor import chosen_masks, read_photo
from edgesam_jax.portable.priors import Rule, merge
from edgesam_jax.portable.prompts import PromptArrays, read_prompts
from edgesam_jax.portable.regions import check_areas, clean
from edgesam_jax.predict import compiled, tiles

READERS = 2  # threads that read photos
MOST_PENDING = 256  # items in a batch, counting those with an error


@dataclass(frozen=True, eq=False)
class Item:
    """A photo with any number p of prompts on it.

    Attributes:
      image: (h w 3) uint8 RGB, or the path of a photo.
      boxes, point_coords, point_labels, mask_inputs: as for ``Predictor.predict_prompts``.
      id: anything; the item's result has it too.
      orient: apply the EXIF orientation to a photo given as a path. The prompts refer to the photo that results.
    """

    image: np.ndarray | str | Path
    boxes: Any = None
    point_coords: Any = None
    point_labels: Any = None
    mask_inputs: Any = None
    id: Any = None
    orient: bool = True


@dataclass(frozen=True, eq=False)
class Result:
    """The masks of an item, or the error that prevented them.

    Attributes:
      index: position of the item.
      id: the item's.
      error: why the photo or a prompt can't be used; None if all is well. The arrays below are then None or empty.
      image: the photo (h w 3) uint8.
      scores: (p m) float32, m masks per prompt.
      logits: (p m s s) float32, low-resolution logits.
      notes: remarks on the photo's pixels, see ``data.photo.load_photo``.
    """

    index: int
    id: Any
    error: UsageError | None = None
    image: np.ndarray | None = None
    scores: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32))
    notes: tuple[str, ...] = ()
    _enlarge: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False)

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """The masks (p m h w) bool at the photo's size; they are computed, and take memory, on first use."""
        if self._enlarge is None:
            return np.zeros((0, 0, 0, 0), bool)
        return self._enlarge(self.logits)

    def mask(self, prompt: int, number: int = 0) -> np.ndarray:
        """Return one mask (h w) bool, without computing the others.

        Raises:
          UsageError: the item has an error.
        """
        if self._enlarge is None:
            raise UsageError(f"items[{self.index}]: has no masks ({self.error})")
        enlarged: np.ndarray = self._enlarge(self.logits[prompt, number])
        return enlarged


@dataclass(frozen=True, eq=False)
class Options:
    """How items are predicted; the arguments of ``Predictor.predict_many``."""

    num_masks: int = 1
    batch_size: int = 0
    fill_holes: int = 0
    drop_islands: int = 0
    pixel_range: str = AUTO


def default_batch_size() -> int:
    """Return the number of photos to encode at once; on a CPU larger batches aren't faster (docs/batches.md)."""
    return 2 if platforms.on_cpu() else 16


def predict_many(
    model: Model, variables: Mapping[str, Any], items: Iterable[Item], options: Options, priors: Rule = "off"
) -> Iterator[Result]:
    """Predict the masks of items; see ``Predictor.predict_many``.

    Args:
      model: the model.
      variables: its variables from ``compiled.for_inference``.
      items: are taken a few at a time, as far as reading ahead needs them.
      options: see ``Options``.
      priors: granularity priors for single clicks.

    Raises:
      UsageError: an option is out of range.
    """
    chosen_masks(options.num_masks)
    check_areas(options.fill_holes, options.drop_islands)
    parse_range(options.pixel_range)
    size = options.batch_size or default_batch_size()
    if not isinstance(size, int | np.integer) or size < 1:
        raise UsageError(f"batch_size: must be an integer of at least 1, got {options.batch_size!r}")
    return _Run(model, variables, dataclasses.replace(options, batch_size=int(size)), priors).results(items)


@dataclass(frozen=True, eq=False)
class _Read:
    """An item after reading: the photo in the model's frame and the prompts there, or an error."""

    index: int
    id: Any
    error: UsageError | None = None
    image: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    frame: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    input_size: tuple[int, int] = (0, 0)
    prompts: PromptArrays | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Started:
    """A batch on the device: its items, those without an error, and the tiles with their results to come."""

    reads: list[_Read]
    good: list[_Read]
    decoded: list[tuple[tiles.Tile, Any]]


@dataclass(frozen=True, eq=False)
class _Run:
    model: Model
    variables: Mapping[str, Any]
    options: Options
    priors: Rule

    def results(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in order.

        The device computes a batch while the results of the one before are finished and used.
        """
        earlier: _Started | None = None
        for reads in self._batches(items):
            started = self._start(reads)
            if earlier is not None:
                yield from self._finish(earlier)
            earlier = started
        if earlier is not None:
            yield from self._finish(earlier)

    def _batches(self, items: Iterable[Item]) -> Iterator[list[_Read]]:
        """Group items so that at most ``batch_size`` of a group have no error."""
        group: list[_Read] = []
        for read in self._read_ahead(items):
            group.append(read)
            if sum(r.error is None for r in group) == self.options.batch_size or len(group) == MOST_PENDING:
                yield group
                group = []
        if group:
            yield group

    def _read_ahead(self, items: Iterable[Item]) -> Iterator[_Read]:
        """Read items in threads, in order; at most a batch and a photo for each thread are in flight."""

        def checked() -> Iterator[tuple[int, Item]]:
            for index, item in enumerate(items):
                if not isinstance(item, Item):
                    raise UsageError(f"items[{index}]: expected an Item, got {type_text(item)}")
                yield index, item

        ahead = self.options.batch_size + READERS
        return in_threads(lambda pair: self._read(*pair), checked(), READERS, ahead, "photos")

    def _read(self, index: int, item: Item) -> _Read:
        config, notes = self.model.config, []  # type: ignore[var-annotated]
        try:
            if isinstance(item.image, str | Path):
                image = load_image(item.image, pixel_range=self.options.pixel_range, notes=notes, orient=item.orient)
            else:
                image = read_photo(item.image)
            frame, input_size = into_frame(image, config.image_size, config.frame)
            prompts = read_prompts(
                item.boxes, item.point_coords, item.point_labels, item.mask_inputs,
                (image.shape[0], image.shape[1]), input_size, config.mask_size,
            )  # fmt: skip
            if prompts.masks is not None:
                compiled.check_mask_input(config)
        except UsageError as error:
            return _Read(index, item.id, error)
        return _Read(index, item.id, None, image, frame, input_size, prompts, tuple(notes))

    def _start(self, reads: list[_Read]) -> _Started:
        """Encode a batch and decode its prompts, without waiting for the results."""
        config, options = self.model.config, self.options
        good = [read for read in reads if read.error is None]
        if not good:
            return _Started(reads, good, [])
        frames = np.zeros((options.batch_size, config.image_size, config.image_size, 3), np.uint8)
        sizes = np.zeros((options.batch_size, 2), np.int32)  # 0: padding, of which the encoder sees zeros
        for i, read in enumerate(good):
            frames[i], sizes[i] = read.frame, read.input_size
        prompts = [read.prompts for read in good if read.prompts is not None]
        if self.priors == "off":
            embeddings = compiled.encoder(config)(self.variables, frames, sizes)
        else:
            embeddings, boxes, scores = compiled.proposer(config)(self.variables, frames, sizes)
            proposals = zip(np.asarray(boxes), np.asarray(scores), strict=True)
            prompts = [_with_priors(p, found, self.priors) for p, found in zip(prompts, proposals, strict=False)]
        decode = tiles.decoder(config, int(options.num_masks))
        return _Started(
            reads, good,
            [
                (tile, decode(self.variables, embeddings, *tile.inputs))
                for tile in tiles.tiles(prompts, options.batch_size, config.mask_size)
            ],
        )  # fmt: skip

    def _finish(self, started: _Started) -> Iterator[Result]:
        """Wait for a batch and yield its results."""
        side, m = self.model.config.mask_size, int(self.options.num_masks)
        by_iou = self.model.metadata.get("score", "stability") == "iou"
        counts = [len(read.prompts) if read.prompts is not None else 0 for read in started.good]
        logits = [np.empty((count, m, side, side), np.float32) for count in counts]
        scores = [np.empty((count, m), np.float32) for count in counts]
        for tile, prediction in started.decoded:
            found = np.asarray(prediction.logits)
            rates = np.asarray(prediction.iou) if by_iou else stability_score(found[: len(tile.prompt)])
            for row, prompt in enumerate(tile.prompt.tolist()):
                photo = int(tile.photo[row])
                logits[photo][prompt], scores[photo][prompt] = found[row], rates[row]
        arrays = iter(zip(scores, logits, strict=True))
        for read in started.reads:
            if read.error is not None:
                yield Result(read.index, read.id, read.error)
                continue
            size = read.image.shape[0], read.image.shape[1]
            enlarge = functools.partial(self._enlarge, input_size=read.input_size, size=size)
            yield Result(read.index, read.id, None, read.image, *next(arrays), read.notes, enlarge)

    def _enlarge(self, logits: np.ndarray, input_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        config = self.model.config
        full = upscale_masks(logits, config.image_size, input_size, size, config.frame)
        return clean(full, self.options.fill_holes, self.options.drop_islands)


def _with_priors(prompts: PromptArrays, proposals: tuple[np.ndarray, np.ndarray], rule: Rule) -> PromptArrays:
    """Give single clicks the boxes of granularity priors, as ``BasePredictor``; NaN for prompts without one."""
    clicks = prompts.single_clicks
    if not clicks.any() or prompts.coords is None:
        return prompts
    boxes = np.full((len(prompts), 4), np.nan, np.float32) if prompts.boxes is None else prompts.boxes.copy()
    boxes[clicks] = merge(prompts.coords[clicks, 0], *proposals, rule)
    return dataclasses.replace(prompts, boxes=boxes)
