"""One step over four devices equals one step over the whole batch, and all replicas stay identical.

JAX's devices are fixed when a process first uses one, so the comparison runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import FAST_FLAGS

from edgesam_jax.config import UsageError
from edgesam_jax.train import parallel


@pytest.mark.slow
def test_pmap_over_four_devices_equals_jit_over_the_whole_batch():
    flags = f"{FAST_FLAGS} --xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("parallel_check.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=env, cwd=script.parents[2], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal" in done.stdout


def test_processes_that_would_take_different_steps_are_refused(monkeypatch):
    parallel.check_same_start(3, "config")  # alone
    for second, says in (([4, 1], "checkpoints of different steps there (3, 4)"), ([3, 2], "--config, --set")):
        monkeypatch.setattr(parallel, "gather", lambda numbers, second=second: np.array([[3, 1], second]))
        with pytest.raises(UsageError, match=re.escape(says)):
            parallel.check_same_start(3, "config")


def test_batch_must_divide():
    devices = jax.local_devices() * 3
    assert parallel.check_batch(6, devices) == 2
    with pytest.raises(UsageError, match=r"data.batch_size=7 is not divisible by 3 devices"):
        parallel.check_batch(7, devices)


def test_micro_batches_must_divide_too():
    devices = jax.local_devices() * 3
    assert parallel.check_batch(12, devices, accumulate=2) == 2
    with pytest.raises(UsageError, match=r"batch_size=9 is not divisible by 3 devices x 2 micro-batches.*accumulate"):
        parallel.check_batch(9, devices, accumulate=2)
    with pytest.raises(UsageError, match=r"train.accumulate=0: must be at least 1"):
        parallel.check_batch(9, devices, accumulate=0)


def test_a_half_named_job_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UsageError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        parallel.start_processes()
