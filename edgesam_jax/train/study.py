"""Runs that end with a table: a single run with its final evaluation, or the arms of a study side by side.

Each arm has its own folder inside the study's; arms that are finished there are not trained again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from edgesam_jax import files
from edgesam_jax.checkpoints.load import load_weights
from edgesam_jax.checkpoints.model import BACKBONE, Model
from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import Length, arm_config
from edgesam_jax.data.schema import Example
from edgesam_jax.eval import heldout
from edgesam_jax.learning.checks import check_arms
from edgesam_jax.reporting import pictures
from edgesam_jax.train import log, mask_sheet, parallel, study_report
from edgesam_jax.train.inputs import load_teacher
from edgesam_jax.train.run import fit
from edgesam_jax.train.study_report import Row
from edgesam_jax.train.workdir import RunResult, claim_workdir


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out examples of a config, and the teacher whose masks models are compared with, if any."""

    config: Config
    examples: list[Example]
    teacher: Model | None

    def scores(self, model: Model, cache: Path, title: str) -> heldout.Scores:
        """Measure a model, or read its scores from ``cache`` if they were measured with the same settings."""
        config = self.config
        settings = json.loads(
            json.dumps([dataclasses.asdict(config.eval), dataclasses.asdict(config.data), config.teacher])
        )
        saved = None
        if cache.exists():
            with contextlib.suppress(UsageError):  # damaged: measured again
                saved = files.read_json(cache, "scores")
        if isinstance(saved, dict) and saved.get("settings") == settings and "scores" in saved:
            found: heldout.Scores = saved["scores"]
            return found
        teacher = self.teacher if model is not self.teacher else None
        scores = heldout.measure(config, model.config, model.variables, self.examples, teacher, title)
        files.write_atomically(cache, json.dumps({"settings": settings, "scores": scores}, indent=2))
        return scores

    def baseline_rows(self) -> list[Row]:
        """Rows for masks that need no model."""
        baselines = heldout.trivial_baselines(self.examples)
        return [Row("", name, {"box": [value]}) for name, value in baselines.items()]

    def table(self, rows: list[Row]) -> str:
        """Format these rows as a table."""
        return study_report.table(self.config, rows, len(self.examples), sum(map(len, self.examples)))


def run(config: Config, workdir: Path, stop: Callable[[], bool] = lambda: False) -> str | None:
    """Train and evaluate the arms in order; write ``table.md``, ``table.json``, ``curves.png`` and ``masks.png``; and
    ``photo.png``, a held-out photo for the commands that the report suggests, if an arm is compared with another.

    Args:
      stop: called before each arm and after every step; True saves and stops.

    Returns:
      The table as text, or None if the study was stopped before its end.  Only the first process of a job evaluates;
      the text of the others is empty.

    Raises:
      UsageError: see ``learning.checks.check_arms`` and ``train.run.fit``.
      FloatingPointError: an arm's loss or gradient norm was NaN or infinite.
    """
    check_arms(config)
    with claim_workdir(config, workdir):
        return _run_arms(config, workdir, stop)


def _run_arms(config: Config, workdir: Path, stop: Callable[[], bool]) -> str | None:
    held_out = _held_out_of_study(config) if parallel.is_first() else None
    rows = held_out.baseline_rows() if held_out else []
    if held_out and held_out.teacher is not None:
        scores = held_out.scores(held_out.teacher, workdir / "teacher_eval.json", "teacher")
        rows.append(Row("", "teacher", scores))
    start = _start(config) if held_out else None
    if held_out and start is not None:
        scores = held_out.scores(start, workdir / "start_eval.json", "start")
        rows.append(Row("", f"start: {Path(config.train.init_from).name}", scores))
    results: dict[str, RunResult] = {}
    trained = []
    for number, arm in enumerate(config.study, 1):
        if stop():
            return None
        lengths = {name: Length(result.step, result.seconds) for name, result in results.items()}
        job, folder = arm_config(config, arm, lengths), workdir / arm.name
        if held_out:
            print(f"[{number}/{len(config.study)}] {arm.title}: {job.train.steps} steps", file=sys.stderr, flush=True)
        initial = results[arm.init_from].model if arm.init_from else None
        result = fit(job, folder, initial=initial, stop=stop)
        if not result.finished:
            return None
        results[arm.name] = result
        if held_out:
            scores = held_out.scores(result.model, folder / "eval.json", arm.name)
            trained.append(Row(arm.name, arm.title, scores, result.step, result.seconds))
    rows += sorted(trained, key=lambda row: row.name)
    report = _report_study(config, workdir, held_out, rows, start, results) if held_out else ""
    parallel.meet("study reported")
    return report


def _start(config: Config) -> Model | None:
    """The complete model that the study starts from, if there is one."""
    start = load_weights(config.train.init_from) if config.train.init_from else None
    return None if start is None or start.metadata.get("holds") == BACKBONE else start


def _held_out_of_study(config: Config) -> HeldOut:
    """The held-out examples of a study.

    Raises:
      UsageError: there are none.
    """
    held_out = HeldOut(config, heldout.heldout_examples(config), load_teacher(config))
    if not held_out.examples:
        raise UsageError(
            f"study: data.source={config.data.source} provides no held-out masks to evaluate on; use scenes or coco,"
            " without data.mixture"
        )
    return held_out


def _report_study(
    config: Config,
    workdir: Path,
    held_out: HeldOut,
    rows: list[Row],
    start: Model | None,
    results: Mapping[str, RunResult],
) -> str:
    """Write the study's files; return what they say in words, the table, and what to try next."""
    text = held_out.table(rows)
    files.write_atomically(workdir / "table.md", text + "\n")
    files.write_atomically(workdir / "table.json", json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    titles = {arm.name: arm.title for arm in config.study}
    log.save_curves(workdir / "curves.png", {titles[n]: workdir / n / "metrics.jsonl" for n in sorted(titles)})
    models = {"teacher": held_out.teacher, "start": start} | {n: results[n].model for n in sorted(results)}
    pair = next(((arm.name, arm.against) for arm in config.study if arm.against), None)
    sheet = mask_sheet.draw(held_out.examples, {n: model for n, model in models.items() if model is not None}, pair)
    pictures.save_picture(workdir / "masks.png", sheet)
    blocks = [text, f"Pictures: {workdir / 'masks.png'}, {workdir / 'curves.png'}"]
    if pair:
        example = next(example for example in held_out.examples if len(example))
        pictures.save_picture(workdir / "photo.png", example.image)
        blocks = [
            study_report.in_words(rows, *pair), *blocks,
            study_report.next_commands(workdir / pair[0], workdir / "photo.png", example.boxes[0]),
        ]  # fmt: skip
    return "\n\n".join(blocks)


def single(config: Config, workdir: Path, stop: Callable[[], bool] = lambda: False) -> str | None:
    """Train and evaluate a single run; returns its report, or None if it was stopped before its end.

    Only the first process of a job evaluates; the report of the others is empty.

    Raises:
      UsageError, FloatingPointError: see ``train.run.fit``.
    """
    result = fit(config, workdir, stop=stop)
    if not result.finished:
        return None
    report = _report_single(config, workdir, result) if parallel.is_first() else ""
    parallel.meet("run reported")
    return report


def _report_single(config: Config, workdir: Path, result: RunResult) -> str:
    """Evaluate a finished run, and write its table; returns the report."""
    summary = f"{result.step} steps, {result.seconds:.0f} s in steps; model in {workdir / 'model'}"
    examples = heldout.heldout_examples(config) if config.eval.images else []
    if not examples:
        return summary
    held_out = HeldOut(config, examples, load_teacher(config))
    scores = held_out.scores(result.model, workdir / "eval.json", config.name)
    row = Row(config.name, config.name, scores, result.step, result.seconds)
    text = held_out.table([*held_out.baseline_rows(), row])
    files.write_atomically(workdir / "table.md", text + "\n")
    return f"{summary}\n\n{text}"
