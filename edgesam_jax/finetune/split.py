"""Which photos are trained on, which choose the best step, and which are held out for the figures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgesam_jax.config import UsageError
from edgesam_jax.finetune.survey import Photo

CHOOSING = 0.15  # share of the rest that chooses the best step, once there are enough photos
FEWEST_TO_CHOOSE = 20  # photos to train on; below, all are trained on and the last step is taken


@dataclass(frozen=True)
class Split:
    """Ids of photos. ``choose`` may be empty; ``held_out`` is never seen before the figures."""

    train: tuple[str, ...]
    choose: tuple[str, ...]
    held_out: tuple[str, ...]


def split(photos: Sequence[Photo], share: float = 0.2, seed: int = 0, group: str = "") -> Split:
    """Split photos at random, by photo; what belongs together stays together.

    Args:
      share: of the photos to hold out; 0: none (another folder gives the figures).
      seed: of the draw. Adding photos moves few of the others.
      group: regular expression; photos whose ids it matches with the same text stay on one side, such as frames of a
        video. Files that are equal byte for byte always do.

    Raises:
      UsageError: a wrong expression, or too few photos or groups to hold one out.
    """
    try:
        pattern = re.compile(group) if group else None
    except re.error as error:
        raise UsageError(f"--group {group}: not a regular expression ({error})") from None
    groups: dict[str, list[str]] = {}
    by_file: dict[str, str] = {}
    for photo in photos:
        found = pattern.search(photo.id) if pattern else None
        key = by_file.setdefault(photo.sha256, f"group {found[0]}" if found else f"photo {photo.id}")
        groups.setdefault(key, []).append(photo.id)
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    if share and len(order) < 2:
        what = "photo" if len(photos) == 1 else "group of photos"
        raise UsageError(
            f"--data: one {what} can't be both trained on and held out, so no gain could be shown; add photos, or pass"
            " other labelled photos with --held-out-data"
        )
    held_out, rest = _take(order, groups, share * len(photos))
    choose: list[str] = []
    if sum(len(groups[key]) for key in rest) >= FEWEST_TO_CHOOSE:
        choose, rest = _take(rest, groups, CHOOSING * sum(len(groups[key]) for key in rest))
    chosen = (set(choose), set(held_out))
    ids = [photo.id for photo in photos]
    return Split(
        tuple(i for i in ids if not any(i in part for part in chosen)),
        tuple(i for i in ids if i in chosen[0]), tuple(i for i in ids if i in chosen[1]),
    )  # fmt: skip


def _take(order: Sequence[str], groups: dict[str, list[str]], wanted: float) -> tuple[list[str], list[str]]:
    """Return the photos of the first groups that make up the wanted number, and the other groups."""
    taken: list[str] = []
    for number, key in enumerate(order):
        if not wanted or (taken and len(taken) + len(groups[key]) / 2 > wanted) or number == len(order) - 1:
            return taken, list(order[number:])
        taken += groups[key]
    return taken, []
