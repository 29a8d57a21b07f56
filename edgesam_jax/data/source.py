"""The protocol that every data set implements, and the record of entries that a data set had to skip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import Example
from edgesam_jax.portable.errors import one_line

ENOUGH_TO_JUDGE = 1000  # photos seen before the fraction of bad ones is checked
Split = Literal["train", "heldout"]
Keep = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""Areas (n) in pixels of the photo and its (rows, columns) -> indices of the instances to load, in this order."""
SkippedRow = tuple[str, str]
"""The kind and the message of an entry, a photo or an annotation that is not used."""
CONSEQUENCE = "no annotations"  # the kind of photos that lost all annotations for another reason
ASSUMED = "mask assumed"  # the kind of masks that are used; their message says what was assumed about the file


class Source(Protocol):
    """Random access to examples.  Sources can be pickled, to be sent to workers, and hold no open files.

    ``annotated`` is whether examples have instances to prompt with; ``true_masks`` is whether their masks are ground
    truth rather than filled boxes or generated regions.
    """

    annotated: bool
    true_masks: bool

    def __len__(self) -> int:
        """The number of examples in an epoch; 0 for an endless source."""
        ...

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; ``keep`` selects instances before their masks are decoded.

        Raises:
          BadExample: the photo or an annotation can't be read; the message names it.
        """
        ...


@dataclass(frozen=True)
class SkippedEntries:
    """Entries that a data set lists but can't provide, as found on opening.

    ``rows`` has a row for each.  ``listed`` is the number of photos that the data set lists, and
    ``damaged`` the number of photos that are lost, or lose an annotation, because an entry is wrong.  A photo that is
    missing or has no annotations doesn't count as damaged: it is common to keep only part of a data set.
    """

    rows: list[SkippedRow] = field(default_factory=list)
    listed: int = 0
    damaged: int = 0

    @property
    def note(self) -> str:
        """The number of entries, the count of each kind, and the first message of the commonest."""
        kinds, first = _reasons(self.rows)
        return one_line(f"{len(self.rows)} entries of the data set are skipped ({kinds}), the first: {first}")


def commonest(rows: Sequence[SkippedRow]) -> str:
    """Return the commonest kind of rows; the kind of photos that only lost their annotations comes last."""
    return _by_kind(rows)[0][0]


def reasons(rows: Sequence[SkippedRow]) -> str:
    """Describe why entries are not used: the count of each kind, the commonest first, and the first message of that."""
    kinds, first = _reasons(rows)
    return f"{kinds}, the first: {first}"


def _reasons(rows: Sequence[SkippedRow]) -> tuple[str, str]:
    counts = _by_kind(rows)
    first = next(message for kind, message in rows if kind == counts[0][0])
    return ", ".join(f"{kind} {count}" for kind, count in counts), first


def _by_kind(rows: Sequence[SkippedRow]) -> list[tuple[str, int]]:
    counts = Counter(kind for kind, _ in rows).most_common()
    return sorted(counts, key=lambda item: item[0] == CONSEQUENCE)


def skipped_entries(source: Source) -> SkippedEntries:
    """Return the entries that a source skipped on opening; none if it only finds them on loading."""
    entries: SkippedEntries = getattr(source, "skipped_entries", SkippedEntries())
    return entries


def check_bad_share(bad: int, seen: int, most: float, progress: str) -> None:
    """Stop when too large a fraction of a data set can't be used, once ``ENOUGH_TO_JUDGE`` photos were seen.

    Args:
      bad, seen: number of photos.
      most: largest fraction allowed.
      progress: says in the message what happens to the work done so far.

    Raises:
      UsageError: more than ``most`` of the photos seen are bad.
    """
    if seen >= ENOUGH_TO_JUDGE and bad > most * seen:
        raise UsageError(
            f"{bad} of the first {seen} photos can't be used, more than --max-bad-share {most:g} allows: fix the data"
            f" set or raise --max-bad-share; {progress}"
        )


def select(example: Example, keep: Keep | None) -> Example:
    """Return the example with the instances that ``keep`` selects."""
    if keep is None:
        return example
    return example.take(keep(example.masks.sum((1, 2)), (example.image.shape[0], example.image.shape[1])))


@dataclass(frozen=True)
class Part:
    """A source and its weight in a mixture."""

    source: Source
    weight: float = 1.0
