"""The folder of a run: the config it belongs to, and the result of a finished run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.provenance import PROVENANCE
from edgesam_jax.config import Config, UsageError, to_json
from edgesam_jax.config.parse import from_plain
from edgesam_jax.config.rules import differing_fields
from edgesam_jax.files import exclusive, read_json, write_atomically
from edgesam_jax.train import parallel


def check_workdir(config: Config, workdir: Path) -> None:
    """Refuse a folder with a run of another config, unless that run failed before its first checkpoint.

    Raises:
      UsageError: the run there has another config; the message names the fields that differ.
    """
    saved = workdir / "config.json"
    if not saved.exists() or not any(workdir.glob("**/checkpoints/*/")):
        return
    difference = differing_fields(from_plain(Config, read_json(saved, "--workdir"), str(saved)), config)
    if difference:
        raise UsageError(
            f"--workdir {workdir}: already contains a run with another config: {'; '.join(difference)};"
            " use that config to resume the run, or choose a new folder"
        )


@contextlib.contextmanager
def claim_workdir(config: Config, workdir: Path) -> Iterator[None]:
    """Create the folder and save the config there, unless the folder has a run of another config.

    If the run fails before its first checkpoint, the config is removed (and the folder, if it was created here), and
    the run can be started again with a corrected config.  After a loss that was not finite the config stays, for
    ``--replay``.  While the block runs, no other job can claim the folder.

    Raises:
      UsageError: the folder has a run of another config (the message names the fields that differ), is in use by
        another job, or can't be created or written to.
    """
    saved = workdir / "config.json"
    new_config, new_folder = not saved.exists(), not workdir.exists()
    check_workdir(config, workdir)
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if parallel.is_first():
                if not stack.enter_context(exclusive(workdir)):
                    raise UsageError(
                        f"--workdir {workdir}: in use by another training job; wait for its end or choose a new folder"
                    )
                write_atomically(saved, to_json(config))
        except OSError as error:
            raise UsageError(f"--workdir {workdir}: cannot write there ({error.strerror})") from None
        with _config_only_of_a_run(workdir, new_config, new_folder):
            yield


@contextlib.contextmanager
def _config_only_of_a_run(workdir: Path, new_config: bool, new_folder: bool) -> Iterator[None]:
    """Remove a new config, and a new folder, if the block fails before the run's first checkpoint."""
    saved = workdir / "config.json"
    try:
        yield
    except FloatingPointError:
        raise
    except BaseException:
        if new_config and parallel.is_first() and not any(workdir.glob("**/checkpoints/*/")):
            saved.unlink(missing_ok=True)
            (workdir / PROVENANCE).unlink(missing_ok=True)
            if new_folder:
                with contextlib.suppress(OSError):  # it has other files by now
                    workdir.rmdir()
        raise


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    ``model`` holds host arrays.  ``step`` counts finished steps.  ``seconds`` is the time spent in steps, over all
    resumptions, without compilation, pictures, evaluations and checkpoints.  ``finished`` is False if the run was
    stopped before its last step.
    """

    model: Model
    step: int
    seconds: float
    finished: bool


def finished_run(config: Config, workdir: Path) -> RunResult | None:
    """The result of the finished run in this folder; None if there is none.

    Raises:
      UsageError: the folder has a run of another config.
    """
    summary = workdir / "run.json"
    if not summary.exists():
        return None
    with claim_workdir(config, workdir):  # refuses another config
        values = read_json(summary, "--workdir")
    try:
        steps, seconds = int(values["steps"]), float(values["seconds"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UsageError(f"{summary}: damaged; remove it, and the run is finished again") from None
    return RunResult(load_model(str(workdir / "model")), steps, seconds, True)
