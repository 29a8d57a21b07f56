"""The steps of fine-tuning: survey, split, recipe, training, figures."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.config import Config, DataConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers.id_list import ids_text
from edgesam_jax.data.source import Source
from edgesam_jax.files import read_json, write_atomically
from edgesam_jax.finetune import recipe as recipes
from edgesam_jax.finetune import scores
from edgesam_jax.finetune.split import Split, split
from edgesam_jax.finetune.survey import Survey, survey
from edgesam_jax.models import lora
from edgesam_jax.train.run import fit

ENDED = "ended_early.json"  # in the run's folder: the step after which it was ended
SCENES = 50  # generated scenes on which forgetting is measured
ENCODERS_OF_SCENES = 256  # px; larger models were not trained on generated scenes, which say little about them


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune as the command line says; return the exit code.

    Raises:
      UsageError: see the flags; the data, the checkpoint or the folder can't be used.
      FloatingPointError: the loss was not finite.
    """
    start = load_model(arguments.checkpoint)
    if start.config.variant != "sam":
        raise UsageError(f"--checkpoint {arguments.checkpoint}: EfficientSAM can't be fine-tuned; use another model")
    found = survey(arguments.data, arguments.annotations, arguments.pixel_range)
    print(found.text(), flush=True)
    share = 0.0 if arguments.held_out_data else arguments.held_out
    parts = split(found.photos, share, arguments.seed, arguments.group)
    print(
        f"  {len(parts.train)} to train on, {len(parts.choose)} to choose the best step,"
        f" {arguments.held_out_data or len(parts.held_out)} held out (seed {arguments.seed})",
        flush=True,
    )
    if arguments.survey:
        return 0
    lists = _write_lists(arguments.output, parts)
    data = dataclasses.replace(found.data, ids=str(lists["train"]))
    chosen = _recipe(arguments, start, data, len(parts.train))
    print(f"recipe: {chosen.text()}", flush=True)
    choosing = lists["choose"] if parts.choose else None
    config = recipes.config_for(chosen, start.config, data, str(arguments.checkpoint), arguments.seed, choosing)
    model = train(config, arguments.output / "training")
    held_out, where = _held_out(arguments, found, lists), arguments.held_out_data or arguments.data
    gains = scores.measure(start, model, held_out, where, arguments.output / "report")
    blocks = [scores.verdict(gains, len(held_out)), scores.table(gains)]
    for title, source, name in _others(arguments, start):
        rows = scores.measure(start, model, source, name, arguments.output / f"forgetting_{name}", pictures=False)
        blocks += [f"Forgetting, {title}:", scores.table(rows)]
    text = "\n\n".join(blocks)
    write_atomically(arguments.output / "table.md", text + "\n")
    save_model(arguments.output / "model", _with_figures(model, text, found, parts))
    saved = arguments.output / "model"
    print(
        f"\n{text}\n\nworst, median and most improved cases: {arguments.output / 'report' / 'cases.png'}\nTry next:\n"
        f"  python -m edgesam_jax.predict --checkpoint {saved} --image PHOTO --point X,Y,1 --output out\n"
        f"  python -m convert.to_web {saved} --output site --serve"
    )
    return 0


def train(config: Config, workdir: Path) -> Model:
    """Train, end early if the photos that choose the step don't improve, and return the best step's plain model.

    Raises:
      UsageError, FloatingPointError: see ``train.run.fit``.
    """
    ended = workdir / ENDED
    if not ended.is_file():
        stopper = EarlyStop(workdir, config.eval.every)
        result = fit(config, workdir, stop=stopper)
        model, step = result.model, result.step
        if stopper.stopped:
            write_atomically(ended, json.dumps({"step": step}))
    if ended.is_file():
        step = int(read_json(ended, "--output")["step"])
        print(f"training ended early, after {step} of {config.train.steps} steps", flush=True)
    best = workdir / "best.json"
    if config.eval.every and best.is_file():
        step = int(read_json(best, "--output")["step"])
        model = load_model(workdir / "checkpoints" / str(step))
    print(f"the model is that of step {step}", flush=True)
    if model.config.decoder.lora_rank:
        plain, params = lora.merged(model.config, model.variables["params"])
        model = dataclasses.replace(model, config=plain, variables={**model.variables, "params": params})
    told = {**model.metadata.get("provenance", {}), "steps": step}
    return dataclasses.replace(model, metadata={**model.metadata, "source": "finetune", "provenance": told})


class EarlyStop:
    """Says when the best evaluation of a run lies ``PATIENCE`` evaluations back."""

    def __init__(self, workdir: Path, every: int) -> None:
        self._best, self._log, self._every = workdir / "best.json", workdir / "metrics.jsonl", every
        self._calls = 0
        self.stopped = False

    def __call__(self) -> bool:
        self._calls += 1
        if not self._every or self._calls % self._every or not self._best.is_file():
            return False
        last = max((json.loads(line).get("step", 0) for line in self._log.read_text().splitlines()), default=0)
        self.stopped = last - read_json(self._best, "best step")["step"] >= recipes.PATIENCE * self._every
        return self.stopped


def _write_lists(output: Path, parts: Split) -> dict[str, Path]:
    """Write the lists of photos; a run that is already there must have the same.

    Raises:
      UsageError: the folder has a run with other photos, or can't be written.
    """
    written: dict[str, Path] = {}
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there ({error.strerror})") from None
    for name, ids in dataclasses.asdict(parts).items():
        path = output / f"{name}.txt"
        if path.is_file() and [line for line in path.read_text().splitlines() if line[:1] != "#"] != list(ids):
            raise UsageError(f"--output {output}: has a run on other photos; choose a new folder")
        if ids:
            write_atomically(path, ids_text(ids, [f"fine-tuning: {name}"]))
        written[name] = path
    return written


def _recipe(arguments: argparse.Namespace, start: Model, data: DataConfig, photos: int) -> recipes.Recipe:
    asked = arguments.train, arguments.steps, arguments.learning_rate
    batch = arguments.batch_size
    if not batch:
        trial = recipes.choose(photos, 1, *asked)
        batch = recipes.batch_for(
            recipes.config_for(trial, start.config, data, str(arguments.checkpoint), arguments.seed, None)
        )
    return recipes.choose(photos, batch, *asked)


def _held_out(arguments: argparse.Namespace, found: Survey, lists: dict[str, Path]) -> Source:
    if not arguments.held_out_data:
        return open_source(dataclasses.replace(found.data, ids=str(lists["held_out"])), 0, "heldout")
    other = survey(arguments.held_out_data, "", arguments.pixel_range)
    print(other.text(), flush=True)
    return open_source(other.data, 0, "heldout")


def _others(arguments: argparse.Namespace, start: Model) -> list[tuple[str, Source, str]]:
    """Return what forgetting is measured on: title, photos, and a name for the files."""
    found = []
    if start.config.image_size <= ENCODERS_OF_SCENES:
        scenes = DataConfig(source="scenes", limit=SCENES)
        found.append((f"{SCENES} generated scenes", open_source(scenes, start.config.image_size, "heldout"), "scenes"))
    if arguments.other_data:
        data = survey(arguments.other_data, "", arguments.pixel_range).data
        found.append((Path(arguments.other_data).name, open_source(data, 0, "heldout"), "other"))
    return found


def _with_figures(model: Model, text: str, found: Survey, parts: Split) -> Model:
    """Return the model with the figures in its metadata, for the model card."""
    known: dict[str, Any] = dict(model.metadata.get("provenance", {}))
    chosen = set(parts.train) | set(parts.choose)
    known["figures"] = text.split("\n")
    known["data"] = [
        {**entry, "masks": sum(len(photo.areas) for photo in found.photos if photo.id in chosen)}
        for entry in known.get("data", [])
    ]
    host = jax.device_get(model.variables)
    return dataclasses.replace(model, variables=host, metadata={**model.metadata, "provenance": known})
