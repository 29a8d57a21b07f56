"""Real processes on one machine, talking over gloo: however a job is cut, it computes the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from multiprocess_check import STEPS, prepare
from tiny import FAST_FLAGS

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.config import UsageError
from edgesam_jax.train import parallel
from edgesam_jax.train.log import read_metrics

SCRIPT = Path(__file__).with_name("multiprocess_check.py")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def job(
    workdir: Path,
    processes: int,
    devices: int,
    terminate: int = -1,
    broken: int = -1,
    timeout: float = 600,
    number: signal.Signals = signal.SIGTERM,
):
    """Run a job to its end: the exit code and the errors of each process.

    ``terminate``: the process that gets the signal ``number`` as soon as a step is logged; batches then come slowly.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM", "XLA_FLAGS"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_FLAGS}
    address = f"localhost:{free_port()}"
    running = []
    for index in range(processes):
        command = [sys.executable, SCRIPT, workdir, address, processes, index, devices, 3 if terminate >= 0 else 0]
        command += ["break"] if index == broken else []
        with (workdir.parent / f"{workdir.name}.{index}.err").open("w") as errors:
            running.append(
                subprocess.Popen([str(c) for c in command], env=environment, stderr=errors, stdout=subprocess.DEVNULL)
            )
    until = time.monotonic() + timeout
    try:
        if terminate >= 0:
            while not read_metrics(workdir / "metrics.jsonl") and time.monotonic() < until:
                time.sleep(0.1)
            running[terminate].send_signal(number)
        codes = [process.wait(max(1, until - time.monotonic())) for process in running]
    finally:
        for process in running:
            process.kill()
    return codes, [(workdir.parent / f"{workdir.name}.{i}.err").read_text() for i in range(processes)]


def losses(workdir: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([row["loss"] for row in rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    prepare(folder)
    return folder


def assert_same(one: Path, other: Path) -> None:
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-5)
    a, b = (load_model(path / "model").variables for path in (one, other))
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_however_a_job_is_cut_it_computes_the_same(folder):
    """One process with four devices; and two with two, stopped, resumed by one with one and by four with one each."""
    whole, workdir, again = folder / "1x4", folder / "resumed", folder / "resumed4"
    codes, errors = job(whole, 1, 4)
    assert codes == [0], errors
    codes, errors = job(workdir, 2, 2, terminate=1)  # the one that writes nothing hears it
    assert codes == [143, 143] and all("saved; run the same command again to resume" in text for text in errors), errors
    (saved,) = (int(p.name) for p in (workdir / "checkpoints").iterdir() if int(p.name) % 2 or int(p.name) < STEPS)
    assert not (workdir / "model").exists()
    shutil.copytree(workdir, again)
    for place, processes in ((workdir, 1), (again, 4)):
        codes, errors = job(place, processes, 1)
        assert codes == [0] * processes, errors
        assert f"start: resume {place} at step {saved}" in errors[0]
        assert_same(whole, place)
        assert sorted(p.name for p in (place / "pictures").iterdir()) == ["0000008.png"]
        assert not list(place.rglob("*.part"))


@pytest.mark.slow
def test_one_failing_process_ends_the_job(folder):
    broken = 1
    began = time.monotonic()
    codes, errors = job(folder / "broken", 2, 1, broken=broken, timeout=300)
    assert codes[broken] == 2 and errors[broken].splitlines()[-1] == "error: the disk of this host is gone"
    assert codes[1 - broken] != 0, errors
    assert time.monotonic() - began < 200


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_one_line(folder):
    codes, errors = job(folder / "killed", 2, 1, terminate=1, number=signal.SIGKILL, timeout=300)
    assert codes == [75, -9], errors
    assert errors[0].splitlines()[-1].startswith("error: lost another process of this job"), errors
    assert "Traceback" not in errors[0]


def test_clusters_are_recognised():
    for environment, expected in (
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),  # an interactive shell, or a job of one task
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
    ):
        assert parallel.in_cluster(environment) is expected


def test_wrong_numbers_are_refused():
    for given, message in (
        (("", 2, 0), "need --coordinator"),
        (("localhost:1", 2, 2), "--process 2: must be between 0 and 1 with --processes 2"),
        (("localhost:1", 2, -1), "set --processes and --process"),
    ):
        with pytest.raises(UsageError, match=message):
            parallel.start_processes(*given)
