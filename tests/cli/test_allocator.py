import os
import platform
import subprocess
import sys

import pytest

from edgesam_jax.cli import allocator

SCRIPT = """
import os, sys
from edgesam_jax.cli import allocator
print("before", flush=True)
allocator.restart_with_huge_pages()
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""


def run(**environment):
    clean = {k: v for k, v in os.environ.items() if k != allocator.SETTING}
    command = [sys.executable, "-c", SCRIPT, "a b", "--set", "x=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean | environment)
    out = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    return process.pid, out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_command_restarts_in_the_same_process_with_the_setting():
    pid, out = run()
    again = [] if any(map(allocator.importlib.util.find_spec, allocator.ACCELERATORS)) else ["before"]
    setting = allocator.TUNABLES if again else None
    assert out == ["before", *again, f"{pid} ['a b', '--set', 'x=1'] {setting}"]


def test_the_users_setting_is_kept():
    pid, out = run(GLIBC_TUNABLES="")
    assert out == ["before", f"{pid} ['a b', '--set', 'x=1'] "]


def test_the_users_flags_are_kept(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    assert allocator.settings()["XLA_FLAGS"] == f"--xla_a=1 {allocator.SCHEDULER}"
    own = allocator.SCHEDULER.replace("false", "true")
    monkeypatch.setenv("XLA_FLAGS", own)
    assert allocator.settings()["XLA_FLAGS"] == own
    monkeypatch.setattr(allocator, "KNOWN_TO", ())
    monkeypatch.delenv("XLA_FLAGS")
    assert allocator.settings() == {allocator.SETTING: allocator.TUNABLES}


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.delenv(allocator.SETTING, raising=False)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.os, "execv", lambda *_: pytest.fail("started again"))
    allocator.restart_with_huge_pages()
    assert allocator.SETTING not in os.environ
