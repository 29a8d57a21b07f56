"""What a data set has to offer: the protocol of every reader, and what a reader left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import Example

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


@dataclass(frozen=True)
class Part:
    """A source and its weight in a mixture."""

    source: Source
    weight: float = 1.0
