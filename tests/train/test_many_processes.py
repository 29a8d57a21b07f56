"""A job of many processes: they exchange numbers, decide together, and only the first one evaluates."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from paths import ROOT
from tiny import CONV, FAST_FLAGS, configured

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.config import ArmConfig
from edgesam_jax.eval import heldout
from edgesam_jax.models.init import init_variables
from edgesam_jax.train import parallel, study
from edgesam_jax.train.loop import Loop
from edgesam_jax.train.workdir import RunResult

SCRIPT = Path(__file__).with_name("many_processes_check.py")
COUNT = 8


def test_many_processes_exchange_numbers_and_stop_together(tmp_path):
    save_model(tmp_path / "model", Model(CONV, init_variables(CONV)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM", "XLA_FLAGS"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_FLAGS, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(COUNT)], env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(COUNT)]
    for seen in found:
        assert seen["numbers"] == [[index, index << 40] for index in range(COUNT)]
        assert seen["seconds"] == 0.1, "the first process's"
        # A process that compiled later than the others would keep them waiting in the exchange, which has a time-out.
        assert seen["events"][-1] == "met gathering" and "compiled" in seen["events"], seen["events"]
    assert len({seen["stopped"] for seen in found}) == 1 and found[0]["stopped"] < 600


def test_everything_is_imported_before_processes_connect():
    code = """
import sys
from pathlib import Path
from edgesam_jax.train import __main__ as train, parallel

def connect(*job):
    before = set(sys.modules)
    from edgesam_jax.train import study, signals
    print(job, sorted(set(sys.modules) - before))
    sys.exit(7)

parallel.start_processes = connect
train.run(train.Command(train.Config(), Path("nowhere"), train.Job("localhost:1", 256, 3)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7 and done.stdout == "('localhost:1', 256, 3) []\n", done.stdout + done.stderr


def test_processes_may_start_half_an_hour_apart(monkeypatch, capsys):
    limits, timers = [], []

    def initialize(*args, initialization_timeout):
        limits.append(initialization_timeout)
        timers.append(next(thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)))
        assert timers[-1].interval == 60 and timers[-1].daemon
        timers[-1].function(*timers[-1].args)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    parallel.start_processes("localhost:1", 256, 3)
    assert "note: waiting for the 256 processes of this job at localhost:1, at most 30 min" in capsys.readouterr().err
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    parallel.start_processes("auto")
    assert limits == [1800, 1800]
    assert all(timer.finished.is_set() for timer in timers), "no note once the job has started"


@pytest.fixture
def not_first(monkeypatch):
    """Run as a process that isn't the first; evaluating fails.  Returns the names of the meetings."""
    meetings: list[str] = []

    def fail(*_, **__):
        raise AssertionError("only the first process evaluates")

    monkeypatch.setattr(parallel, "is_first", lambda: False)
    monkeypatch.setattr(parallel, "meet", meetings.append)
    monkeypatch.setattr(heldout, "heldout_examples", fail)
    monkeypatch.setattr(heldout, "measure", fail)
    return meetings


def test_the_others_wait_for_the_evaluation_between_steps(not_first):
    loop = SimpleNamespace(
        _read_metrics=lambda keep: None, first=False, timer=SimpleNamespace(discard_elapsed=lambda: None)
    )
    Loop._evaluate(loop, 20, None)  # type: ignore[arg-type]
    assert not_first == ["evaluation 20"]


def test_the_others_wait_for_the_report(not_first, monkeypatch, tmp_path):
    config = dataclasses.replace(
        configured("eval.images=4", "distill.targets=ground_truth"),
        study=(ArmConfig("A"), ArmConfig("B", time_from=("A",))),
    )
    steps = []

    def fit(config, *_, **__):
        steps.append(config.train.steps)
        return RunResult(Model(config.model, {}), 10, 2.5, True)

    monkeypatch.setattr(study, "fit", fit)
    assert study.single(config, tmp_path) == ""
    assert study.run(config, tmp_path / "study") == ""
    assert not_first == ["run reported", "study reported"]
    assert steps[-1] == 10 and not list(tmp_path.rglob("*.json"))
