"""Training checkpoints: everything that a run needs to resume, written atomically in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesam_jax.checkpoints.digest import digest_of, json_digest
from edgesam_jax.checkpoints.orbax import alone, orbax, quiet, reason_of, remove_unfinished
from edgesam_jax.checkpoints.steps import CHECKPOINTS, COLLECTIONS, newest_step
from edgesam_jax.config import Config, UsageError, from_json, to_json
from edgesam_jax.files import write_atomically
from edgesam_jax.types import TrainState


class TrainCheckpointer:
    """Writes checkpoints to ``workdir/checkpoints``: the state, the config, and the run's position.

    A step's folder gets its number only when it is complete. ``save`` returns immediately; an error in the background
    is raised by the next ``save`` or by ``wait``. In a multi-process job all processes hold the same state, and only
    the first one writes.

    Args:
      workdir: the run's folder; its ``best.json`` names the best checkpoint.
      keep: number of newest checkpoints to keep.
      keep_best: number of checkpoints with the highest scores to keep in addition.
      writes: whether this process writes the checkpoints.
    """

    def __init__(self, workdir: str | Path, keep: int = 2, keep_best: int = 1, writes: bool = True) -> None:
        self._workdir = Path(workdir).absolute()
        self.directory = self._workdir / CHECKPOINTS
        self._under_way: Future[None] | None = None
        self._manager: Any = None
        if not writes:
            return
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        policies = orbax().checkpoint_managers
        best = policies.BestN(get_metric_fn=_score, n=keep_best, keep_checkpoints_without_metrics=False)
        options = orbax().CheckpointManagerOptions(
            best_fn=_score,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            enable_async_checkpointing=False,  # the entire save, checksums included, runs in its own thread
            cleanup_tmp_directories=True,  # of saves that were killed
            multiprocessing_options=alone(),
            create=False,  # Orbax can't create the folder from one process of several
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with quiet():
                self._manager = orbax().CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise UsageError(f"{self.directory}: cannot write there ({error.strerror})") from None

    def save(
        self,
        step: int,
        state: TrainState,
        config: Config,
        position: dict[str, Any] | None = None,
        score: float | None = None,
    ) -> None:
        """Start saving a state of host arrays as ``step``. The arrays must not change any more.

        Does nothing if that step exists.

        Args:
          position: further data that the run needs to resume; plain JSON.
          score: higher is better; None if the step wasn't evaluated.

        Raises:
          UsageError: the previous save failed.
        """
        self.wait()
        if self._manager is not None and step not in self._manager.all_steps():
            self._under_way = self._thread.submit(self._write, step, state, config, position or {}, score)

    def _write(
        self, step: int, state: TrainState, config: Config, position: dict[str, Any], score: float | None
    ) -> None:
        args = orbax().args
        variables = {name: getattr(state, name) for name in COLLECTIONS}
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        sha256 = {"variables": digest_of(variables), "optimizer": digest_of(optimizer)}
        extra = {"config": to_json(config), "data": position, "sha256": sha256}
        items = args.Composite(
            variables=args.StandardSave(variables),
            optimizer=args.StandardSave(optimizer),
            extra=args.JsonSave(extra | {"own_sha256": json_digest(extra)}),
        )
        try:
            with quiet():
                self._manager.save(
                    step, args=items, force=True, metrics=None if score is None else {"score": float(score)}
                )
            if score is not None:
                self._note_best()
        except Exception as error:  # a full disk may raise tensorstore's, Orbax's or the system's types
            _silence()
            remove_unfinished(self.directory, f"{step}.*tmp*")
            last = newest_step(self.directory)
            raise UsageError(
                f"{self.directory}: step {step} could not be saved ({reason_of(error)});"
                f" {f'step {last.name} is still valid' if last else 'there is no earlier checkpoint'}."
                " Make room or choose another --workdir, then run the same command again to resume"
            ) from error

    def _note_best(self) -> None:
        best = self._manager.best_step()
        score = self._manager.metrics(best)["score"]
        write_atomically(self._workdir / "best.json", json.dumps({"step": best, "score": score}))

    def wait(self) -> None:
        """Wait until the current save is complete.

        Raises:
          UsageError: the save failed; earlier checkpoints are unchanged.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def latest_step(self) -> int | None:
        """Return the number of the newest complete step, or None."""
        newest = newest_step(self.directory)
        return int(newest.name) if newest else None

    def close(self) -> None:
        """Wait for the current save and release the folder."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._thread.shutdown()
                self._manager.close()

    def __enter__(self) -> TrainCheckpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        with (
            contextlib.suppress(UsageError) if kind else contextlib.nullcontext()
        ):  # the block's own error is the cause
            self.close()


def restore(folder: str | Path, template: TrainState) -> tuple[TrainState, dict[str, Any], Config]:
    """Restore a checkpoint as numpy arrays in the structure of ``template``.

    Args:
      folder: a step folder; or a workdir or its checkpoint folder, whose newest step is restored.

    Returns:
      The state, and the position and config that were passed to ``save``.

    Raises:
      UsageError: no checkpoint, a damaged one, or one whose arrays don't match ``template``.
    """
    step = newest_step(Path(folder).absolute())
    if step is None:
        raise UsageError(f"{folder}: no checkpoint to resume from")
    blank = jax.tree.map(lambda x: np.empty(np.shape(x), x.dtype), template)
    targets = {
        "variables": {name: getattr(blank, name) for name in COLLECTIONS},
        "optimizer": {"step": blank.step, "opt_state": blank.opt_state},
    }
    try:
        with quiet(), orbax().StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
            parts = {name: checkpointer.restore(step / name, tree) for name, tree in targets.items()}
        extra = json.loads((step / "extra" / "metadata").read_text())
        for name, tree in parts.items():
            if digest_of(tree) != extra["sha256"][name]:
                raise ValueError(f"its {name} don't match their checksum")
        sha256 = extra.pop("own_sha256", None)  # older checkpoints don't have it
        if sha256 is not None and sha256 != json_digest(extra):
            raise ValueError("its config or position don't match their checksum")
    except Exception as error:
        numbers = [int(p.name) for p in step.parent.iterdir() if p.name.isdecimal()] if step.name.isdecimal() else []
        others = [number for number in numbers if number < int(step.name)]
        remedy = f"; remove it to resume from step {max(others)}" if others else ""
        raise UsageError(
            f"checkpoint {step}: damaged, or of another model or optimiser"
            f" ({type(error).__name__}: {reason_of(error)}){remedy}"
        ) from error
    state = dataclasses.replace(template, **parts["variables"], **parts["optimizer"])
    return state, extra["data"], from_json(Config, extra["config"], f"checkpoint {step}")


def _silence() -> None:
    """Silence absl's log for the rest of the run: Orbax's threads would print tracebacks of the error being raised."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)


def _score(metrics: Any) -> float:
    return float(metrics["score"])
