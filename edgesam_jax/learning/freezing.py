"""Which parameters learn, as labels over the parameter tree, and the tree without the gradients of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from edgesam_jax.config import Config

TRAINED, FROZEN = "trained", "frozen"
Rule = Callable[[tuple[str, ...], Config], bool]
"""Path of a parameter, such as ("mask_decoder", "iou_token", "embedding"), and the config -> whether it learns."""


def label(params: Any, learns: Rule, config: Config) -> Any:
    """``"trained"`` or ``"frozen"`` for every leaf of ``params``."""

    def of(path: tuple[Any, ...], _: Any) -> str:
        return TRAINED if learns(tuple(str(key.key) for key in path), config) else FROZEN

    return jax.tree_util.tree_map_with_path(of, params)


def hold_frozen(params: Any, learns: Rule, config: Config) -> Any:
    """``params`` with ``stop_gradient`` on the frozen leaves, so that no gradient is computed for them."""
    labels = label(params, learns, config)
    return jax.tree.map(lambda x, kind: jax.lax.stop_gradient(x) if kind == FROZEN else x, params, labels)
