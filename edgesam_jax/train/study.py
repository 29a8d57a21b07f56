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

import numpy as np
from PIL import Image

from edgesam_jax import files
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import Length, arm_config
from edgesam_jax.data.schema import Example
from edgesam_jax.eval import heldout
from edgesam_jax.learning.checks import check_arms
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.predict import compiled
from edgesam_jax.reporting import pictures, tables
from edgesam_jax.train import log, parallel
from edgesam_jax.train.inputs import load_teacher
from edgesam_jax.train.run import fit
from edgesam_jax.train.workdir import RunResult, claim_workdir
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT

SHEET_SCENES, PANEL = 8, 160


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table; ``steps`` and ``seconds`` are None if nothing was trained for it."""

    name: str
    title: str
    scores: heldout.Scores
    steps: int | None = None
    seconds: float | None = None


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
        return table(self.config, rows, len(self.examples), sum(map(len, self.examples)))


def run(config: Config, workdir: Path, stop: Callable[[], bool] = lambda: False) -> str | None:
    """Train and evaluate the arms in order; write ``table.md``, ``table.json``, ``curves.png`` and ``masks.png``.

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
    report = _report_study(config, workdir, held_out, rows, results) if held_out else ""
    parallel.meet("study reported")
    return report


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
    config: Config, workdir: Path, held_out: HeldOut, rows: list[Row], results: Mapping[str, RunResult]
) -> str:
    """Write the study's files; returns the table and their names."""
    text = held_out.table(rows)
    files.write_atomically(workdir / "table.md", text + "\n")
    files.write_atomically(workdir / "table.json", json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    titles = {arm.name: arm.title for arm in config.study}
    log.save_curves(workdir / "curves.png", {titles[n]: workdir / n / "metrics.jsonl" for n in sorted(titles)})
    models = {"teacher": held_out.teacher} if held_out.teacher is not None else {}
    models |= {name: results[name].model for name in sorted(results)}
    pictures.save_picture(workdir / "masks.png", mask_sheet(held_out.examples[:SHEET_SCENES], models))
    return f"{text}\n\nPictures: {workdir / 'masks.png'}, {workdir / 'curves.png'}"


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


def table(config: Config, rows: list[Row], images: int, instances: int) -> str:
    """The rows as an aligned Markdown table, followed by a line that explains the numbers.

    Args:
      images, instances: numbers of held-out images and of the masks in them.
    """
    refine = config.eval.refine
    against_teacher = any("box_teacher" in row.scores for row in rows)
    heads = heldout.headings(refine)
    header = ["", "steps", "seconds", *heads, *([f"T {h}" for h in heads] if against_teacher else [])]
    body = [
        [
            row.title,
            "-" if row.steps is None else str(row.steps),
            "-" if row.seconds is None else f"{row.seconds:.0f}",
            *heldout.cells(row.scores, "", refine),
            *(heldout.cells(row.scores, "_teacher", refine) if against_teacher else []),
        ]
        for row in rows
    ]
    kind = "held-out scenes" if config.data.source == "scenes" else "photos"
    note = f"mIoU in percent, {instances} masks in {images} {kind}, against ground truth"
    if against_teacher:
        note += "; T: against the teacher's masks for the same prompts"
    return f"{tables.aligned_table(header, body)}\n\n{note}."


def mask_sheet(examples: list[Example], models: Mapping[str, Model]) -> np.ndarray:
    """Show, for each example's largest instance, the box, the true mask, and each model's mask for the box.

    Args:
      models: title -> model.

    Returns:
      A picture (h w 3) uint8 with a row for each example that has instances.
    """
    rows = []
    for example in (e for e in examples if len(e)):
        largest = int(np.argmax(example.masks.sum((1, 2))))
        panels: list[np.ndarray] = []
        for model in models.values():
            image, size = into_frame(example.image, model.config.image_size, model.config.frame)
            box = scale_coords(example.boxes[largest : largest + 1], example.image.shape[:2], size)
            variables = compiled.for_inference(model.config, model.variables)
            embedding = compiled.encoder(model.config)(variables, image[None], np.asarray(size, np.int32)[None])
            logits = compiled.decoder(model.config)(variables, embedding[0], box, None, None, None).logits
            if not panels:
                truth = example.masks[largest]
                resized = np.asarray(Image.fromarray(truth).resize(size[::-1], Image.Resampling.NEAREST))
                padded = np.zeros(image.shape[:2], bool)
                padded[: size[0], : size[1]] = resized
                labels = np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
                prompt = pictures.draw_prompt(image, box.reshape(2, 2), labels, np.ones(2, bool))
                panels += [prompt, pictures.tint(image, padded, pictures.GREEN)]
            panels.append(pictures.tint(image, np.asarray(logits[0, 0]) > 0, pictures.BLUE))
        rows.append([np.asarray(Image.fromarray(p).resize((PANEL, PANEL), Image.Resampling.LANCZOS)) for p in panels])
    return pictures.side_by_side(rows, ("box", "truth", *models))
