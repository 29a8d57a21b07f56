"""The folder of a run: whose it is, and what it holds when the run is done."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import Config, UsageError, from_json, to_json
from edgesam_jax.config.rules import differing_fields
from edgesam_jax.files import write_atomically
from edgesam_jax.train import parallel


def check_workdir(config: Config, workdir: Path) -> None:
    """Refuse a folder that holds a run of another config, unless it failed before its first checkpoint.

    Raises:
      UsageError: it does; the fields that differ are named.
    """
    saved = workdir / "config.json"
    if not saved.exists() or not any(workdir.glob("**/checkpoints/*/")):
        return
    difference = differing_fields(from_json(Config, saved.read_text(), str(saved)), config)
    if difference:
        raise UsageError(
            f"--workdir {workdir}: it holds a run with another config: {'; '.join(difference)}."
            " Use the same config to go on with it, or another folder"
        )


@contextlib.contextmanager
def claim_workdir(config: Config, workdir: Path) -> Iterator[None]:
    """Make the folder and note its config; a folder that holds a run of another config is refused.

    A run that fails before its first checkpoint gives the folder back, so that it can be started with a mended config;
    where the loss was not finite the config stays there for ``--replay``.

    Raises:
      UsageError: another config's run, naming the fields that differ; or a path that is no folder.
    """
    saved = workdir / "config.json"
    fresh, made = not saved.exists(), not workdir.exists()
    check_workdir(config, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if parallel.is_first():
            write_atomically(saved, to_json(config))
    except OSError as error:
        raise UsageError(f"--workdir {workdir}: cannot write there ({error.strerror})") from None
    try:
        yield
    except FloatingPointError:
        raise
    except BaseException:
        if fresh and parallel.is_first() and not any(workdir.glob("**/checkpoints/*/")):
            saved.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # something else is in it
                    workdir.rmdir()
        raise


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    ``model`` holds host arrays; ``seconds`` is the time spent in steps, over all resumptions, without compilation,
    pictures and checkpoints; ``finished`` is False if the run was asked to stop before its last step.
    """

    model: Model
    step: int
    seconds: float
    finished: bool


def finished_run(config: Config, workdir: Path) -> RunResult | None:
    """The result of a run that this folder already holds complete, else None.

    Raises:
      UsageError: the folder holds a run of another config.
    """
    note = workdir / "run.json"
    if not note.exists():
        return None
    with claim_workdir(config, workdir):  # refuses another config
        values = json.loads(note.read_text())
    return RunResult(load_model(str(workdir / "model")), values["steps"], values["seconds"], True)
