"""Everything mode for this package's models; the rules are in ``portable/everything.py``."""

from __future__ import annotations

from typing import Any

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.portable import everything
from edgesam_jax.portable.predictor import BasePredictor
from edgesam_jax.predict.predictor import Predictor


class EverythingGenerator(everything.EverythingGenerator):
    """Finds masks of everything on a photo, from a model or from any predictor (an ``OnnxPredictor``, for instance).

    The other arguments, the records and the errors are those of ``portable.everything.EverythingGenerator``.
    """

    def __init__(self, model: Model | BasePredictor, *options: Any, **named: Any) -> None:
        predictor = model if isinstance(model, BasePredictor) else Predictor(model)
        super().__init__(predictor, *options, **named)
