"""The training command on tiny scenes: trains, resumes to the bit, stops on NaN and signals, refuses what is wrong."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import CONV

from edgesam_jax import train, trainer
from edgesam_jax.checkpoint import load_model
from edgesam_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
    to_json,
)
from edgesam_jax.data.pipeline import batches
from edgesam_jax.reporting import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIG = Config(
    name="tiny",
    model=CONV,
    data=DataConfig(batch_size=2, max_prompts=2),
    distill=DistillConfig(targets="ground_truth", rounds=1, freeze_prompt_encoder=False, loss=LossConfig(iou=1.0)),
    optim=OptimConfig(schedule="constant"),  # the number of steps is not part of the program: it is compiled once
    train=TrainConfig(steps=4, log_every=2, picture_every=4, checkpoint_every=2, devices=1),
    eval=EvalConfig(images=2, batch_size=2, refine=1),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory, quick_compile):
    """Programs are compiled once for the whole module, subprocesses included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESAM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(to_json(CONFIG))
    return str(path)


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory, cache):
    """A run of four steps through the command itself."""
    workdir = tmp_path_factory.mktemp("runs") / "four"
    assert train.main(["--config", config_file, "--workdir", str(workdir)]) == 0
    return workdir


def test_a_run_leaves_everything_behind(finished, config_file, capfd):
    assert load_model(finished / "model").config == CONV
    assert load_model(finished).config == CONV, "the folder of a run is a checkpoint too"
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[1]["loss"] != rows[0]["loss"] and {"grad_norm", "learning_rate"} <= set(rows[0])
    with Image.open(finished / "pictures" / "0000004.png") as picture:
        assert picture.width > 4 * CONV.image_size and np.asarray(picture).std() > 10
    assert (finished / "curves.png").exists() and list((finished / "tensorboard").iterdir())
    assert not list(finished.rglob("*.part"))
    # The same command again trains nothing and prints the same table.
    before = (finished / "model" / "config.json").stat().st_mtime_ns
    capfd.readouterr()
    assert train.main(["--config", config_file, "--workdir", str(finished)]) == 0
    out = capfd.readouterr().out
    assert "inscribed ellipse" in out and "centre" in out and out.strip().endswith("against ground truth.")
    assert (finished / "model" / "config.json").stat().st_mtime_ns == before


def test_two_steps_and_two_more_equal_four_to_the_bit(finished, tmp_path):
    asked = []

    def stop_after_two() -> bool:
        asked.append(1)
        return len(asked) == 3  # asked once before the first step

    first = trainer.fit(CONFIG, tmp_path / "run", stop=stop_after_two, quiet=True)
    assert (first.step, first.finished) == (2, False) and not (tmp_path / "run" / "model").exists()
    second = trainer.fit(CONFIG, tmp_path / "run", quiet=True)
    assert (second.step, second.finished) == (4, True)
    straight = load_model(finished / "model")
    resumed = jax.tree_util.tree_leaves_with_path(second.model.variables)
    for (path, a), b in zip(resumed, jax.tree.leaves(straight.variables), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*(jax.tree.leaves(r.model.variables["params"]) for r in (first, second)), strict=True)
    ]
    assert max(moved) > 1e-5, "the last two steps did nothing"
    timing = ("seconds", "step_seconds")
    logs = [[{k: v for k, v in row.items() if k not in timing} for row in read_metrics(w / "metrics.jsonl")]
            for w in (finished, tmp_path / "run")]  # fmt: skip
    assert logs[0] == logs[1]


def kept_steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(config_file, tmp_path, capfd, monkeypatch):
    def poisoned(data, model, start_step=0, **given):
        for number, batch in enumerate(batches(data, model, start_step, **given), start_step + 1):
            bad = np.nan if number == 3 else 0
            yield dataclasses.replace(batch, boxes=batch.boxes + bad, points=batch.points + bad)

    monkeypatch.setattr(trainer, "batches", poisoned)
    code = train.main(["--config", config_file, "--workdir", str(tmp_path / "run")])
    error = capfd.readouterr().err.splitlines()[-1]
    assert code == 1 and error.startswith("error: step 3: loss is nan") and "last good checkpoint is 2" in error
    assert kept_steps(tmp_path / "run") == [2] and not (tmp_path / "run" / "model").exists()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(tmp_path / "run").variables))


def test_parameters_that_overflow_are_not_saved(tmp_path, monkeypatch):
    def step(state, teacher, batch, key):
        """Its loss is fine; what it leaves behind is not."""
        params = jax.tree.map(lambda x: x * (np.inf if state.step == 2 else 1), state.params)
        return state.replace(step=state.step + 1, params=params), {"loss": np.ones(()), "grad_norm": np.ones(())}

    monkeypatch.setattr(trainer.parallel, "make_train_step", lambda *_: step)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, checkpoint_every=1, picture_every=0))
    with pytest.raises(FloatingPointError, match=r"^step 3: the parameters are no longer finite.* checkpoint is 2 in"):
        trainer.fit(config, tmp_path / "run", quiet=True)
    assert kept_steps(tmp_path / "run") == [1, 2]


def test_another_config_in_the_folder_is_refused(finished, config_file, capsys):
    before = (finished / "config.json").read_text()
    code = train.main(
        ["--config", config_file, "--workdir", str(finished), "--set", "optim.b2=0.5", "--set", "train.seed=3"]
    )
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and str(finished) in error
    assert "optim.b2 (0.999 there, 0.5 here)" in error and "train.seed (0 there, 3 here)" in error
    assert (finished / "config.json").read_text() == before
    # What only changes how the run is watched is free.
    assert train.main(["--config", config_file, "--workdir", str(finished), "--set", "train.log_every=1"]) == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "train.stepz=3"], "--set train.stepz=3: no field 'stepz'"),
        (["--set", "train.steps"], "--set train.steps: write it as a.b=value"),
        (["--set", "optim.schedule=cosin"], "must be one of cosine"),
        (["--config", "nothing.py"], "--config nothing.py: no such file"),
        (["--sat", "a=b"], "unrecognized arguments: --sat"),
        (["--set", "teacher=/nothing", "distill.targets=teacher"], "checkpoint /nothing: no such file or folder"),
        (["--set", "train.init_from=/nothing"], "checkpoint /nothing: no such file or folder"),
        (["--set", "data.source=coco", "data.root=/nothing"], "/nothing"),
        (["--set", "distill.mode=encoder_only"], "needs a teacher"),
        (["--workdir", "/proc/nothing"], "--workdir /proc/nothing: cannot write there"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(config_file, tmp_path, capfd, flags, says):
    code = train.main(["--config", config_file, "--workdir", str(tmp_path / "run"), *flags])
    error = capfd.readouterr().err
    assert code == 2 and says in error and error.startswith("error: ") and error.count("\n") == 1, error


def test_sigterm_saves_and_leaves(config_file, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "edgesam_jax.train", "--config", config_file, "--workdir", str(workdir)]
    command += [
        "--set",
        "train.steps=100000",
        "train.log_every=1",
        "train.picture_every=0",
        "train.checkpoint_every=100000",
    ]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 240
        while not read_metrics(workdir / "metrics.jsonl") and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "saved; the same command goes on from there" in error and "Traceback" not in error
    assert kept_steps(workdir) == [read_metrics(workdir / "metrics.jsonl")[-1]["step"]]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 100_000


def test_phases_of_a_run():
    loss = LossConfig(grouping=2.0, grouping_until=0.2)
    distill = dataclasses.replace(CONFIG.distill, rounds=3, rounds_from=0.5, mask_feedback=0.5, loss=loss)
    config = dataclasses.replace(CONFIG, distill=distill, train=TrainConfig(steps=100))
    seen = [trainer.phase(config, step).distill for step in (0, 19, 20, 49, 50, 99)]
    assert [(d.loss.grouping, d.rounds, d.mask_feedback) for d in seen] == [
        (2.0, 0, 0.0), (2.0, 0, 0.0), (0.0, 0, 0.0), (0.0, 0, 0.0), (0.0, 3, 0.5), (0.0, 3, 0.5)
    ]  # fmt: skip
    always = dataclasses.replace(config, distill=dataclasses.replace(distill, rounds_from=0.0))
    assert trainer.phase(always, 99) == trainer.phase(always, 20)
