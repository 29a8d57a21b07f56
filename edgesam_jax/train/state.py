"""The position of a run, and the model inside its train state."""

from __future__ import annotations

import dataclasses

from edgesam_jax.checkpoints.model import Model, score_kind
from edgesam_jax.config import Config
from edgesam_jax.train import parallel
from edgesam_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Position:
    """The data that a checkpoint holds in addition to the train state, so that resuming doesn't change the log.

    ``seconds`` is the time spent in steps.  ``window`` holds the metrics of the steps that no row of the log covers
    yet.  ``skipped`` (by kind) and ``used`` count the photos of the first process.  ``evaluated`` is the step of the
    last evaluation.  Checkpoints store the fields as JSON under these names.
    """

    seconds: float = 0.0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    used: int = 0
    nonfinite_in_a_row: int = 0
    evaluated: int = 0


def model_of(config: Config, state: TrainState) -> Model:
    """The model inside a train state, as host arrays."""
    variables = {"params": state.params, "batch_stats": state.batch_stats, "constants": state.constants}
    return Model(config.model, parallel.to_host(variables), {"source": config.name, "score": score_kind(config)})
