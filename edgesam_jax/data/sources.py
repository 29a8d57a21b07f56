"""What a data set has to offer, and the scenes as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.scenes import held_out_seed, scene
from edgesam_jax.data.schema import OBJECT, PART, Example

ENOUGH_TO_JUDGE = 1000  # photos seen before the share of bad ones is asked
Split = Literal["train", "heldout"]
Keep = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""Areas (n) in pixels of the photo and its (rows, columns) -> indices of the instances wanted, in their order."""


class Source(Protocol):
    """Random access to examples.  Sources pickle, so that workers can have them, and hold no open files.

    ``annotated`` says whether examples have instances to prompt with, ``true_masks`` whether their masks are ground
    truth rather than the inside of a box or a guess.
    """

    annotated: bool
    true_masks: bool

    def __len__(self) -> int:
        """How many examples make an epoch; 0 if they never end."""
        ...

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; ``keep`` chooses instances before their masks are decoded.

        Raises:
          BadExample: a photo or an annotation that can't be read; it is named.
        """
        ...


@dataclass(frozen=True)
class LeftOut:
    """What a data set lists but can't give, as found when it was opened.

    ``rows`` the kind and the message of each; ``listed`` the photos that the data set lists, ``damaged`` those of them
    that are lost, or poorer by an annotation, because an entry is wrong.  A photo that is not there, or that has no
    annotations, is no damage: people keep parts of data sets.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    listed: int = 0
    damaged: int = 0

    @property
    def note(self) -> str:
        """How many of each kind, and the first."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(kind for kind, _ in self.rows).most_common())
        return f"{len(self.rows)} entries of the data set are left out ({kinds}), the first: {self.rows[0][1]}"


def left_out(source: Source) -> LeftOut:
    """What a source left out when it was opened; nothing where it can't know yet."""
    found: LeftOut = getattr(source, "left_out", LeftOut())
    return found


def check_share(bad: int, seen: int, most: float, done: str) -> None:
    """Refuse to go on with a data set of which too much can't be used, once enough of it was seen.

    Args:
      done: what becomes of what was done so far.

    Raises:
      UsageError: more than ``most`` of the photos seen are bad.
    """
    if seen >= ENOUGH_TO_JUDGE and bad > most * seen:
        raise UsageError(
            f"{bad} of the first {seen} photos can't be used, more than --max-bad-share {most:g} allows: mend the data"
            f" set or raise the share; {done}"
        )


def select(example: Example, keep: Keep | None) -> Example:
    """The example with the instances that ``keep`` wants."""
    if keep is None:
        return example
    return example.take(keep(example.masks.sum((1, 2)), (example.image.shape[0], example.image.shape[1])))


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


@dataclass(frozen=True)
class Part:
    """A source and its weight in a mixture."""

    source: Source
    weight: float = 1.0


def open_parts(data: DataConfig, image_size: int, split: Split = "train") -> list[Part]:
    """The parts of the mixture that a config names, or its only source as one.

    Raises:
      UsageError: see ``open_source``; or a weight that is not above 0.
    """
    if not data.mixture:
        return [Part(open_source(data, image_size, split))]
    parts = []
    for number, entry in enumerate(data.mixture):
        if not entry.weight > 0:
            raise UsageError(f"data.mixture[{number}].weight={entry.weight}: it must be above 0")
        own = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "weight"}
        parts.append(Part(open_source(replace(data, mixture=(), **own), image_size, split), entry.weight))
    return parts


def open_source(data: DataConfig, image_size: int, split: Split = "train") -> Source:
    """The source that a config names.

    Scenes are drawn at ``image_size``.  Photographs have one split only: held-out ones are another ``root``.

    Raises:
      UsageError: a folder or annotation file that is missing, empty or damaged; or a list of photos that does not fit.
    """
    if data.ids:
        from edgesam_jax.data.chosen import ChosenSource

        whole = _open(replace(data, limit=0), image_size, split)
        source: Source = ChosenSource(whole, Path(data.ids), f"{data.source} {data.root}", data.limit)
    else:
        source = _open(data, image_size, split)
    if data.unlabelled != "none" and not source.annotated:
        from edgesam_jax.data.unlabelled import GuessedSource

        return GuessedSource(source, data.unlabelled)
    return source


def kind_of_folder(root: str | Path) -> Literal["prepared", "tars", "images"]:
    """How photos with annotations of their own lie in a folder: as ``prepare`` wrote them, in tars, or side by side."""
    if (Path(root) / "dataset_info.json").is_file():
        return "prepared"
    return "tars" if any(Path(root).glob("*.tar")) else "images"


def _open(data: DataConfig, image_size: int, split: Split) -> Source:
    if data.source == "scenes":
        return ScenesSource(data.seed, image_size, data.scene_difficulty, split, data.limit, data.scene_granularity)
    if data.source == "coco":
        from edgesam_jax.data.coco import CocoSource

        return CocoSource(data.root, data.annotations, data.limit)
    if data.source == "tars":
        from edgesam_jax.data.tars import TarsSource

        return TarsSource(data.root, data.subset, limit=data.limit)
    if data.source == "prepared":
        from edgesam_jax.data.prepared import PreparedSource

        return PreparedSource(data.root, data.split, data.limit)
    from edgesam_jax.data.images import ImagesSource

    return ImagesSource(data.root, data.limit)
