"""Find a model's weights in what a training system saved: the dicts around them, and the prefixes of their names.

Only forms with one meaning are unwrapped. A file with several sets of weights is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from edgesam_jax.config import UsageError

V = TypeVar("V")
WRAPPERS = (  # keys under which training systems save the weights
    "model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "params", "weights",
    "ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema",
)  # fmt: skip
DEPTH = 4  # of wrappers in each other
ANYWHERE = ("module", "_orig_mod")  # segments that DistributedDataParallel and torch.compile insert
LEADING = ("model", "sam")  # attributes of the classes that contain a model, such as Lightning's


def is_array(value: Any) -> bool:
    """Return whether a value is an array or a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def weight_sets(content: Any, depth: int = DEPTH) -> dict[tuple[str, ...], Mapping[Any, Any]]:
    """Return the mappings with arrays that are wrapped in ``content``, by the keys that lead to them."""
    if not isinstance(content, Mapping) or depth < 0:
        return {}
    found = {
        (key, *keys): inner for key in WRAPPERS for keys, inner in weight_sets(content.get(key), depth - 1).items()
    }
    return found or ({(): content} if any(map(is_array, content.values())) else {})


def clean_names(entries: Mapping[str, V], what: str) -> dict[str, V]:
    """Return the entries without the prefixes that wrapping a model adds to their names.

    Raises:
      UsageError: two entries have the same name without their prefixes.
    """
    cleaned: dict[str, V] = {}
    origin: dict[str, str] = {}
    for name, value in entries.items():
        short = _clean(name)
        if short in origin:
            raise UsageError(
                f"{what}: contains {origin[short]} and {name}, which are the same entry of two models; save only one"
                " model's entries"
            )
        cleaned[short], origin[short] = value, name
    return cleaned


def _clean(name: str) -> str:
    segments = [segment for segment in name.split(".") if segment not in ANYWHERE] or [name]
    while len(segments) > 1 and segments[0] in LEADING:
        segments = segments[1:]
    return ".".join(segments)


def first_segments(names: Iterable[str]) -> str:
    """Return the beginnings of entries' names for a message: "student., teacher."."""
    starts = sorted({name.partition(".")[0] for name in names})
    return ", ".join(f"{start}." for start in starts[:4]) + (", ..." if len(starts) > 4 else "")
