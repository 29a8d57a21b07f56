"""One module per objective, named as in ``distill.mode``.

A new objective is a new module here; its name joins the choices of ``DistillConfig.mode``.

Each module has the functions of ``learning.objective.Objective``.
"""

from __future__ import annotations

import importlib
from typing import cast

from edgesam_jax.config import Config
from edgesam_jax.learning.objective import Objective


def objective_of(config: Config) -> Objective:
    """The objective that a config trains."""
    return cast(Objective, importlib.import_module(f"{__name__}.{config.distill.mode}"))
