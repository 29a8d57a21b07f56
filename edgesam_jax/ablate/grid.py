"""Train and score the runs of several tables and seeds, each run once; a stopped grid can be resumed.

In the work folder, ``seedN/ARM`` is the folder of a run (see ``train.workdir``) with its ``scores.json``, and
``tables/`` holds the results.
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
    """One run with one seed: its steps, seconds spent in them, scores, and correlations if requested."""

    steps: int
    seconds: float
    scores: Scores
    correlations: score_quality.Correlations | None = None


Outcomes = dict[str, list[Outcome]]  # by arm, in the order of the seeds


def needed(arms: Sequence[ArmConfig], requested: Sequence[str]) -> list[ArmConfig]:
    """Return the requested arms and all that they start from or take their time from, in the order of ``arms``."""
    by_name = {arm.name: arm for arm in arms}
    selected: set[str] = set()
    todo = list(requested)
    while todo:
        name = todo.pop()
        if name not in selected:
            selected.add(name)
            todo += [other for other in (by_name[name].init_from, *by_name[name].time_from) if other]
    return [arm for arm in arms if arm.name in selected]


def expected_steps(config: Config, arms: Sequence[ArmConfig]) -> dict[str, int]:
    """Return the steps of each arm; for arms with ``time_from`` a guess, the sum of the steps of the named arms."""
    steps: dict[str, int] = {}
    for arm in arms:
        derived = arm_config(config, arm, dict.fromkeys(steps, Length(1, 1.0)))
        steps[arm.name] = sum(steps[name] for name in arm.time_from) if arm.time_from else derived.train.steps
    return steps


def of_seed(config: Config, seed: int) -> Config:
    """Return the scale's config for one seed of weights, data and draws; the evaluation data stay the same."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, seed=config.train.seed + seed),
        data=dataclasses.replace(config.data, seed=config.data.seed + 10 + seed),
    )


def held_out(config: Config, examples: list[Example]) -> Scorer:
    """Return a scorer on examples in memory."""

    def score(model: Model, _: Path) -> Scores:
        scores = heldout.measure(config, model.config, model.variables, examples, None, model.metadata["source"])
        return {"held-out": scores}

    return score


def run(
    config: Config,
    workdir: Path,
    arms: Sequence[ArmConfig],
    requested: Sequence[str],
    seeds: Sequence[int],
    score: Scorer,
    *,
    examples: list[Example],
    with_correlations: frozenset[str] = frozenset(),
    stop: Callable[[], bool] = lambda: False,
    after_seed: Callable[[Outcomes], object] = lambda outcomes: None,
) -> Outcomes | None:
    """Train and score the requested arms for every seed, seed by seed.

    Args:
      config: the scale's config.
      workdir: folder of all runs.
      arms: all runs of the scale.
      requested: names of the arms to score.
      seeds: numbers added to the config's seeds.
      score: measures a model, and may keep files in the folder of its run.
      examples: data for the correlations.
      with_correlations: names of the arms whose scores are correlated with the true overlap.
      stop: called after every step; True saves and stops.
      after_seed: called with the outcomes of the seeds that are complete.

    Returns:
      The outcomes, or None if ``stop`` ended the run early.

    Raises:
      UsageError: see ``learning.checks.check_arms`` and ``train.run.fit``.
      FloatingPointError: a run's loss was NaN or infinite.
    """
    todo = needed(arms, requested)
    check_arms(dataclasses.replace(config, study=tuple(todo)))
    steps = expected_steps(config, todo)
    outcomes: Outcomes = {name: [] for name in requested}
    before = 0
    with tqdm(total=len(seeds) * sum(steps.values()), unit="step", dynamic_ncols=True, smoothing=0.02) as bar:

        def count_and_stop() -> bool:  # called after every step
            bar.update()
            return stop()

        for seed in seeds:
            results: dict[str, RunResult] = {}
            for number, arm in enumerate(todo, 1):
                bar.set_description(f"seed {seed}, run {number} of {len(todo)}: {arm.name}")
                folder = workdir / f"seed{seed}" / arm.name
                lengths = {name: Length(result.step, result.seconds) for name, result in results.items()}
                derived = arm_config(of_seed(config, seed), arm, lengths)
                initial = results[arm.init_from].model if arm.init_from else None
                result = fit(derived, folder, initial=initial, stop=count_and_stop, quiet=True)
                if not result.finished or stop():
                    return None
                results[arm.name] = result
                before += steps[arm.name]
                bar.n = before  # corrects for finished runs and wrong guesses
                bar.refresh()
                if arm.name in outcomes:
                    correlated = examples if arm.name in with_correlations else None
                    outcomes[arm.name].append(_scored(config, result, folder, score, correlated))
            after_seed(outcomes)
    return outcomes


def _scored(config: Config, result: RunResult, folder: Path, score: Scorer, examples: list[Example] | None) -> Outcome:
    """Score a run, or read its stored scores if they were measured with the same settings."""
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


def check_known(arms: Sequence[ArmConfig], requested: Mapping[str, Sequence[str]]) -> None:
    """Check that every row of the requested tables is a run of the config.

    Raises:
      UsageError: a row without a run, or a table with fewer than two rows.
    """
    names = {arm.name for arm in arms}
    for table, rows in requested.items():
        if missing := [name for name in rows if name not in names]:
            raise UsageError(f"--table {table}: this scale has no run called {', '.join(missing)}")
        if len(rows) < 2:
            raise UsageError(f"--table {table}: this scale has no runs to compare in it")
