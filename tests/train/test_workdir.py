"""A run's folder belongs to one job at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgesam_jax.config import Config, UsageError
from edgesam_jax.files import exclusive
from edgesam_jax.train.workdir import claim_workdir


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path):
    workdir = tmp_path / "run"
    with claim_workdir(Config(), workdir):
        before = {path.name: path.read_bytes() for path in workdir.iterdir()}
        with pytest.raises(UsageError, match="in use by another training job"), claim_workdir(Config(), workdir):
            pass
        assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before
    with claim_workdir(Config(), workdir):  # free again
        pass


def test_a_killed_process_holds_no_lock(tmp_path):
    code = "import sys, time, pathlib\nfrom edgesam_jax.files import exclusive\n"
    code += "with exclusive(pathlib.Path(sys.argv[1])) as held: print(held, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    with exclusive(tmp_path) as held:
        assert not held
    process.kill()
    process.communicate()
    with exclusive(tmp_path) as held:
        assert held
    assert not list(tmp_path.iterdir())
