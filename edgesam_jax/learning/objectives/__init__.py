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
    return cast(Objective, importlib.import_module(f"{__name__}.{config.distill.mode}"))
