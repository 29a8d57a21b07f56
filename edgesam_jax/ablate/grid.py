"""Trains and scores the runs of several tables and seeds, each once, and goes on where it was stopped.

Folder: ``seedN/ARM`` for each run (see ``trainer``) with ``scores.json`` beside its model; ``tables/`` for the result.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edgesam_jax.ablate import score_quality
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import ArmConfig, Config, UsageError
from edgesam_jax.config.derive import Length, arm_config
from edgesam_jax.data.schema import Example
from edgesam_jax.eval import heldout
from edgesam_jax.files import write_atomically
from edgesam_jax.learning.checks import check_arms
from edgesam_jax.train.run import fit
from edgesam_jax.train.workdir import RunResult

Scores = dict[str, dict[str, list[float]]]  # data set -> "box", "center" -> [start, +1, +2], fractions
Scorer = Callable[[Model, Path], Scores]


@dataclass(frozen=True)
class Outcome:
    """One run of one seed: steps, seconds in steps, overlaps, and correlations of scores where asked for."""

    steps: int
    seconds: float
    scores: Scores
    correlations: score_quality.Correlations | None = None


Outcomes = dict[str, list[Outcome]]  # by arm, in the order of the seeds


def needed(arms: Sequence[ArmConfig], wanted: Sequence[str]) -> list[ArmConfig]:
    """The wanted arms and all that they start from or take their time from, in the order of ``arms``."""
    by_name = {arm.name: arm for arm in arms}
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [other for other in (by_name[name].init_from, *by_name[name].time_from) if other]
    return [arm for arm in arms if arm.name in found]


def expected_steps(config: Config, arms: Sequence[ArmConfig]) -> dict[str, int]:
    """Steps of each arm; of those that take the time of others a guess, their steps together."""
    steps: dict[str, int] = {}
    for arm in arms:
        own = arm_config(config, arm, dict.fromkeys(steps, Length(1, 1.0)))
        steps[arm.name] = sum(steps[name] for name in arm.time_from) if arm.time_from else own.train.steps
    return steps


def of_seed(config: Config, seed: int) -> Config:
    """The scale's config for one seed: of weights, data and draws.  What is evaluated on stays."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, seed=config.train.seed + seed),
        data=dataclasses.replace(config.data, seed=config.data.seed + 10 + seed),
    )


def held_out(config: Config, examples: list[Example]) -> Scorer:
    """Scores on examples in memory."""

    def score(model: Model, _: Path) -> Scores:
        found = heldout.measure(config, model.config, model.variables, examples, None, model.metadata["source"])
        return {"held-out": found}

    return score


def run(
    config: Config,
    workdir: Path,
    arms: Sequence[ArmConfig],
    wanted: Sequence[str],
    seeds: Sequence[int],
    score: Scorer,
    *,
    examples: list[Example],
    with_correlations: frozenset[str] = frozenset(),
    stop: Callable[[], bool] = lambda: False,
    after_seed: Callable[[Outcomes], object] = lambda outcomes: None,
) -> Outcomes | None:
    """Train and score the wanted arms for every seed, seed by seed.

    Args:
      score: measures a model; its folder is for what that leaves behind.
      examples: for correlations, of the arms ``with_correlations``.
      after_seed: called with what is complete.

    Returns:
      The outcomes, or None if asked to stop before the end.

    Raises:
      UsageError: see ``study.check_arms`` and ``trainer.fit``.
      FloatingPointError: a run's loss was NaN or infinite.
    """
    todo = needed(arms, wanted)
    check_arms(dataclasses.replace(config, study=tuple(todo)))
    steps = expected_steps(config, todo)
    outcomes: Outcomes = {name: [] for name in wanted}
    before = 0
    with tqdm(total=len(seeds) * sum(steps.values()), unit="step", dynamic_ncols=True, smoothing=0.02) as bar:

        def counted() -> bool:  # asked after every step
            bar.update()
            return stop()

        for seed in seeds:
            results: dict[str, RunResult] = {}
            for number, arm in enumerate(todo, 1):
                bar.set_description(f"seed {seed}, run {number} of {len(todo)}: {arm.name}")
                folder = workdir / f"seed{seed}" / arm.name
                lengths = {name: Length(result.step, result.seconds) for name, result in results.items()}
                own = arm_config(of_seed(config, seed), arm, lengths)
                initial = results[arm.init_from].model if arm.init_from else None
                result = fit(own, folder, initial=initial, stop=counted, quiet=True)
                if not result.finished or stop():
                    return None
                results[arm.name] = result
                before += steps[arm.name]
                bar.n = before  # runs that were there already, and guesses that were wrong
                bar.refresh()
                if arm.name in outcomes:
                    also = examples if arm.name in with_correlations else None
                    outcomes[arm.name].append(_scored(config, result, folder, score, also))
            after_seed(outcomes)
    return outcomes


def _scored(config: Config, result: RunResult, folder: Path, score: Scorer, examples: list[Example] | None) -> Outcome:
    """Measure, or read back what was measured with the same settings."""
    path = folder / "scores.json"
    settings = json.loads(json.dumps(dataclasses.asdict(config.eval)))
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("settings") != settings:
        kept = {"settings": settings}
    kept.setdefault("scores", None)
    kept["scores"] = kept["scores"] or score(result.model, folder)
    if examples is not None and "correlations" not in kept:
        kept["correlations"] = score_quality.correlations(result.model, examples)
    write_atomically(path, json.dumps(kept, indent=2))
    return Outcome(result.step, result.seconds, kept["scores"], kept.get("correlations"))


def check_known(arms: Sequence[ArmConfig], wanted: Mapping[str, Sequence[str]]) -> None:
    """Every table's rows must be runs of the config.

    Raises:
      UsageError: a row without its run, or a table without rows.
    """
    names = {arm.name for arm in arms}
    for table, rows in wanted.items():
        if missing := [name for name in rows if name not in names]:
            raise UsageError(f"--table {table}: this scale has no run called {', '.join(missing)}")
        if len(rows) < 2:
            raise UsageError(f"--table {table}: this scale has no runs to compare in it")
