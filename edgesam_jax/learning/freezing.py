"""Frozen parameters: labels over the parameter tree, and ``stop_gradient`` on the frozen leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from edgesam_jax.config import Config

TRAINED, FROZEN = "trained", "frozen"
Rule = Callable[[tuple[str, ...], Config], bool]
"""Whether the parameter at a path, such as ("mask_decoder", "iou_token", "embedding"), is trained under a config."""


def label(params: Any, learns: Rule, config: Config) -> Any:
    """Label every leaf of ``params`` ``"trained"`` or ``"frozen"``."""

    def of(path: tuple[Any, ...], _: Any) -> str:
        return TRAINED if learns(tuple(str(key.key) for key in path), config) else FROZEN

    return jax.tree_util.tree_map_with_path(of, params)


def hold_frozen(params: Any, learns: Rule, config: Config) -> Any:
    """``params`` with ``stop_gradient`` on the frozen leaves, so that no gradient is computed for them."""
    labels = label(params, learns, config)
    return jax.tree.map(lambda x, kind: jax.lax.stop_gradient(x) if kind == FROZEN else x, params, labels)
