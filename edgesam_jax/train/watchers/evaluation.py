"""Evaluation on held-out photos between the steps of a run."""

from __future__ import annotations

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config
from edgesam_jax.data.schema import Example
from edgesam_jax.eval import heldout
from edgesam_jax.train.state import model_of
from edgesam_jax.types import TrainState

BEST_BY = "eval/box+0"  # the metric that rates checkpoints


class PeriodicEvaluation:
    """Evaluates the student every ``eval.every`` steps; the held-out examples are loaded when they are first needed.

    Args:
      teacher: also measure the agreement with its masks.
      last: step of the last evaluation.
    """

    def __init__(self, config: Config, teacher: Model | None, last: int) -> None:
        self._config, self._teacher = config, teacher
        self._examples: list[Example] | None = None
        self.last = last

    def due(self, done: int) -> bool:
        """Whether to evaluate after ``done`` steps; the evaluation after the last one belongs to ``train.study``."""
        return self._on_schedule(done) and done < self._config.train.steps

    def overdue(self, done: int) -> bool:
        """Whether the run was stopped after ``done`` steps, before the evaluation that was due then."""
        return done > 0 and self._on_schedule(done) and self.last != done

    def _on_schedule(self, done: int) -> bool:
        return self._config.eval.every > 0 and done % self._config.eval.every == 0

    @property
    def impossible(self) -> bool:
        """Whether there is never anything to evaluate: it is switched off, or the data set has no held-out examples."""
        return not self._config.eval.every or self._examples == []

    def run(self, done: int, state: TrainState) -> dict[str, float]:
        """Mean IoU by name (``eval/box+0``, ``eval/box+1``, ...); empty if there are no held-out examples."""
        if self._examples is None:
            self._examples = heldout.heldout_examples(self._config)
        self.last = done
        if not self._examples:
            return {}
        model = model_of(self._config, state)
        scores = heldout.measure(
            self._config, model.config, model.variables, self._examples, self._teacher, f"step {done}"
        )
        return {f"eval/{prompt}+{i}": v for prompt, values in scores.items() for i, v in enumerate(values)}
