"""One module per objective, named as in ``distill.mode``.

Each module has the functions of ``learning.objective.Objective``.  To add an objective, add a module here and its name
to the choices of ``DistillConfig.mode``.
"""

from __future__ import annotations

import importlib
from typing import cast

from edgesam_jax.config import Config
from edgesam_jax.learning.objective import Objective


def objective_of(config: Config) -> Objective:
    """The objective that a config trains."""
    return _module(config.distill.mode)


def needs_masks(config: Config) -> bool:
    """Whether a run reads the masks of its batches: in the objective, or for pictures of the prompt loop."""
    pictures = config.train.picture_every > 0 and _module("prompt_in_the_loop").reads_masks(config)
    return pictures or objective_of(config).reads_masks(config)


def _module(mode: str) -> Objective:
    return cast(Objective, importlib.import_module(f"{__name__}.{mode}"))
