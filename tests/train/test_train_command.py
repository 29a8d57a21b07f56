"""The training command on tiny scenes: trains, resumes to the bit, stops on NaN and signals, refuses what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from tiny import CONV

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
    UsageError,
    derive,
    to_json,
)
from edgesam_jax.data.pipeline import BatchSource, batches
from edgesam_jax.planning.accelerators import peak_flops
from edgesam_jax.planning.plan import flops_per_step
from edgesam_jax.train import __main__ as train
from edgesam_jax.train import inputs, run, setup
from edgesam_jax.train.log import read_metrics
from edgesam_jax.train.timing import TIMES
from edgesam_jax.train.watchers import nonfinite
from edgesam_jax.train.watchers.evaluation import BEST_BY

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
def cache():
    """Subprocesses compile like this process, so that they find its programs in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(to_json(CONFIG))
    return str(path)


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory, cache):
    """The folder of a run of four steps, made by the command."""
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


def stop_after(steps: int):
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == steps + 1  # asked once before the first step

    return stop


def started(capfd) -> list[str]:
    """What the last run printed first."""
    return capfd.readouterr().err.splitlines()[:1]


def test_three_steps_and_one_more_equal_four_to_the_bit(finished, tmp_path, capfd):
    """The third step has not been logged when the run is interrupted: rows cover two."""
    first = run.fit(CONFIG, tmp_path / "run", stop=stop_after(3))
    assert (first.step, first.finished) == (3, False) and not (tmp_path / "run" / "model").exists()
    assert started(capfd) == [f"start: scratch, in {tmp_path / 'run'}"]
    second = run.fit(CONFIG, tmp_path / "run")
    assert started(capfd) == [f"start: resume {tmp_path / 'run'} at step 3"]
    assert (second.step, second.finished) == (4, True)
    straight = load_model(finished / "model")
    resumed = jax.tree_util.tree_leaves_with_path(second.model.variables)
    for (path, a), b in zip(resumed, jax.tree.leaves(straight.variables), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*(jax.tree.leaves(r.model.variables["params"]) for r in (first, second)), strict=True)
    ]
    assert max(moved) > 1e-5, "the last step did nothing"
    assert timeless(finished) == timeless(tmp_path / "run")


def timeless(workdir: Path) -> list[dict[str, float]]:
    """The rows of a log without the metrics that measure speed or memory."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(workdir / "metrics.jsonl")]


def changed(config: Config, **train: object) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def test_a_fork_goes_on_from_another_run_and_weights_alone_begin_anew(finished, tmp_path, capfd):
    forked = run.fit(changed(CONFIG, steps=6, fork_from=str(finished)), tmp_path / "fork")
    assert started(capfd)[0].startswith(f"start: fork of {finished} at its step 4, with optimiser, into ")
    straight = run.fit(changed(CONFIG, steps=6), tmp_path / "straight", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, forked.model.variables, straight.model.variables)
    assert [row["step"] for row in read_metrics(tmp_path / "fork" / "metrics.jsonl")] == [6]

    capfd.readouterr()
    run.fit(changed(CONFIG, init_from=str(finished)), tmp_path / "init", stop=lambda: True)
    assert started(capfd)[0].startswith(f"start: init-from {finished}, weights alone, at step 0, in ")
    with pytest.raises(UsageError, match=r"train\.fork_from and train\.init_from: set only one of them"):
        run.fit(changed(CONFIG, init_from="a", fork_from="b"), tmp_path / "both", quiet=True)
    with pytest.raises(UsageError, match="/nothing: no checkpoint to resume from"):
        run.fit(changed(CONFIG, fork_from="/nothing"), tmp_path / "none", quiet=True)


def test_the_best_checkpoint_is_rated_by_the_evaluation(tmp_path):
    config = dataclasses.replace(changed(CONFIG, keep_checkpoints=1, checkpoint_every=1), eval=EvalConfig(1, 1, 1, 0))
    run.fit(config, tmp_path / "run", quiet=True)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if BEST_BY in row}
    assert set(rows) == {1, 2, 3}
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["score"] == max(row[BEST_BY] for row in rows.values()) == rows[best["step"]][BEST_BY]
    assert kept_steps(tmp_path / "run") == sorted({best["step"], 4})


def kept_steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(config_file, tmp_path, capfd, monkeypatch):
    def poisoned(data, model, start_step=0, **options):
        for number, batch in enumerate(batches(data, model, start_step, **options), start_step + 1):
            bad = np.nan if number == 3 else 0
            yield dataclasses.replace(batch, boxes=batch.boxes + bad, points=batch.points + bad)

    monkeypatch.setattr(inputs, "batches", poisoned)
    code = train.main(["--config", config_file, "--workdir", str(tmp_path / "run")])
    error = capfd.readouterr().err.splitlines()[-1]
    assert code == 1 and error.startswith("error: step 3: loss is nan") and "last good checkpoint is 2" in error
    assert "--replay 2 runs it again" in error
    assert kept_steps(tmp_path / "run") == [2] and not (tmp_path / "run" / "model").exists()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(tmp_path / "run").variables))


def poison(monkeypatch, *positions: int) -> None:
    """Photos at these positions of the sequence have a box that is not a number."""
    read = BatchSource._read

    def bad(self, source, index, position):
        name, arrays, unused = read(self, source, index, position)
        poison = {"boxes": arrays["boxes"] * np.nan, "points": arrays["points"] * np.nan}
        return name, arrays | (poison if position in positions else {}), unused

    monkeypatch.setattr(BatchSource, "_read", bad)


def test_a_batch_that_is_not_finite_can_be_skipped_and_run_again(finished, tmp_path, capfd, monkeypatch):
    poison(monkeypatch, 5)  # the second photo of the third batch
    config = changed(CONFIG, nonfinite="skip", log_every=1)
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    command = ["--config", str(path), "--workdir", str(tmp_path / "run")]
    assert train.main(command) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [("loss" in row, row["nonfinite"]) for row in rows] == [(True, 0), (True, 0), (False, 1), (True, 1)]
    ids = [str(scene) for scene in range(4, 6)]
    (listed,) = read_metrics(tmp_path / "run" / "nonfinite.jsonl")
    assert listed["step"] == 2 and listed["loss"] == "nan" and listed["ids"] == ids
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(tmp_path / "run").variables))

    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*"))
    capfd.readouterr()
    assert train.main([*command, "--replay", "2"]) == 0
    first, *photos = capfd.readouterr().out.splitlines()
    assert first.startswith("step 2 of ") and "loss nan" in first
    assert [line.split(":")[0] for line in photos] == [f"photo {name}" for name in ids]
    assert "not finite" not in photos[0] and photos[1].endswith("not finite: boxes, points")
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")) == before, "replay writes nothing"
    # A step of the finished run gives the loss that its log has.
    assert train.main([*command, "--replay", "3"]) == 0
    assert f"loss {rows[3]['loss']:.6g}" in capfd.readouterr().out.splitlines()[0]
    for step, says in (("4", "must be from 0 to 3"), ("-1", "must be from 0 to 3")):
        assert train.main([*command, "--replay", step]) == 2 and says in capfd.readouterr().err


def test_a_first_step_that_is_not_finite_can_be_run_again(tmp_path, capfd, monkeypatch):
    poison(monkeypatch, 1)
    path = tmp_path / "config.json"
    path.write_text(to_json(CONFIG))
    command = ["--config", str(path), "--workdir", str(tmp_path / "run")]
    assert train.main(command) == 1
    error = capfd.readouterr().err
    assert "step 1: loss is nan" in error and "--replay 0" in error
    saved = ["--config", str(tmp_path / "run" / "config.json"), "--workdir", str(tmp_path / "run"), "--replay", "0"]
    assert train.main(saved) == 0
    assert "loss nan" in capfd.readouterr().out
    path.write_text(to_json(changed(CONFIG, nonfinite="skip")))  # there is no checkpoint yet, so the config may change
    assert train.main(command) == 0


def test_skipping_ends_where_nothing_is_finite_any_more(tmp_path, monkeypatch):
    poison(monkeypatch, *range(8))
    monkeypatch.setattr(nonfinite, "MAX_IN_A_ROW", 3)
    with pytest.raises(FloatingPointError, match="step 3: 3 steps in a row were not finite"):
        run.fit(changed(CONFIG, nonfinite="skip"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_ruined_by_an_update_are_neither_saved_nor_handed_out(steps, tmp_path):
    """Later steps are skipped, because no batch gives a finite loss any more; the run must not end as if it were well.

    With one step, no later step would show it.
    """
    wild = dataclasses.replace(CONFIG, optim=OptimConfig(schedule="constant", learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=rf"step {min(steps, 2)}: .* is \w+ even on a batch .* not saved"):
        run.fit(changed(wild, nonfinite="skip", steps=steps), tmp_path / "run", quiet=True)
    assert kept_steps(tmp_path / "run") == [] and not (tmp_path / "run" / "model").exists()


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_goes_on(finished, config_file, tmp_path, capfd, monkeypatch):
    original = Path.open

    def full(path: Path, mode: str = "r", *more: object, **named: object) -> object:
        if mode == "a":
            raise OSError(28, "No space left on device", str(path))
        return original(path, mode, *more, **named)

    workdir = tmp_path / "run"
    run.fit(CONFIG, workdir, stop=stop_after(2), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)  # as the log is written
        assert train.main(["--config", config_file, "--workdir", str(workdir)]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "metrics.jsonl: No space left on device; the checkpoints" in error
    assert kept_steps(workdir) == [2]
    assert train.main(["--config", config_file, "--workdir", str(workdir)]) == 0
    assert timeless(workdir) == timeless(finished)


def test_a_few_steps_are_profiled_and_rated(tmp_path):
    config = changed(CONFIG, steps=5, profile_steps=2, picture_every=0, log_every=5, peak_tflops=2.0)
    run.fit(config, tmp_path / "run", quiet=True)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row["mfu"] * 2e12 * row["step_seconds"] == pytest.approx(flops_per_step(config, None))
    assert row["photos_per_second"] * row["step_seconds"] == pytest.approx(2)
    assert 0 < row["device_seconds"] <= row["step_seconds"] and row["memory_bytes"] > 1e8
    assert {"round_0/loss", "round_1/loss", "round_0/agreement", "round_1/agreement"} <= set(row)
    rounds = (row["round_0/loss"] + row["round_1/loss"]) / 2
    assert rounds == pytest.approx(row["loss"], rel=1e-5)


def test_parameters_that_overflow_are_not_saved(tmp_path, monkeypatch):
    def step(state, teacher, batch, key):
        """Its loss is fine; what it leaves behind is not."""
        params = jax.tree.map(lambda x: x * (np.inf if state.step == 2 else 1), state.params)
        return state.replace(step=state.step + 1, params=params), {"loss": np.ones(()), "grad_norm": np.ones(())}

    monkeypatch.setattr(setup, "make_train_step", lambda *_: step)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, checkpoint_every=1, picture_every=0))
    with pytest.raises(FloatingPointError, match=r"^step 3: the parameters are no longer finite.* checkpoint is 2 in"):
        run.fit(config, tmp_path / "run", quiet=True)
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
    given = {"--config": config_file, "--workdir": str(tmp_path / "run")}
    code = train.main([*(part for flag in given if flag not in flags for part in (flag, given[flag])), *flags])
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
        "data.workers=1",
    ]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        end = time.monotonic() + 240
        while not read_metrics(workdir / "metrics.jsonl") and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the worker hears it too
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "saved; run the same command again to resume" in error and "Traceback" not in error
    assert kept_steps(workdir) == [read_metrics(workdir / "metrics.jsonl")[-1]["step"]]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 100_000


def test_peaks_of_accelerators_are_known_by_their_names():
    """As ``jax.Device.device_kind`` has them."""
    kinds = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "cpu")
    assert [peak_flops(CONFIG, kind) / 1e12 for kind in kinds] == [156, 494, 275, 197, 459, 918, 0]
    assert peak_flops(changed(CONFIG, peak_tflops=3.0), "cpu") == 3e12


def test_phases_of_a_run():
    loss = LossConfig(grouping=2.0, grouping_until=0.2)
    distill = dataclasses.replace(CONFIG.distill, rounds=3, rounds_from=0.5, mask_feedback=0.5, loss=loss)
    config = dataclasses.replace(CONFIG, distill=distill, train=TrainConfig(steps=100))
    seen = [derive.phase(config, step).distill for step in (0, 19, 20, 49, 50, 99)]
    assert [(d.loss.grouping, d.rounds, d.mask_feedback) for d in seen] == [
        (2.0, 0, 0.0), (2.0, 0, 0.0), (0.0, 0, 0.0), (0.0, 0, 0.0), (0.0, 3, 0.5), (0.0, 3, 0.5)
    ]  # fmt: skip
    always = dataclasses.replace(config, distill=dataclasses.replace(distill, rounds_from=0.0))
    assert derive.phase(always, 99) == derive.phase(always, 20)
