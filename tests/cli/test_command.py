"""Errors of a command become one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from edgesam_jax.cli.command import lost_process, run_command
from edgesam_jax.config import UsageError


def failing(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def test_the_commands_own_exit_code_is_returned() -> None:
    assert run_command(lambda: 143) == 143


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--a: b"), 2, "error: --a: b\n"),
        (FloatingPointError("nan"), 1, "error: nan\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_errors_that_are_expected(error, code, message, capsys) -> None:
    assert run_command(failing(error), (FloatingPointError,), "stopped") == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [FloatingPointError("nan"), KeyboardInterrupt(), ValueError("a bug")])
def test_other_errors_propagate(error) -> None:
    with pytest.raises(type(error)):
        run_command(failing(error), multiprocess=True)


def test_one_of_several_processes_ends_at_once(monkeypatch, capsys) -> None:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setitem(
        sys.modules, "jax", SimpleNamespace(distributed=SimpleNamespace(is_initialized=lambda: True))  # type: ignore[arg-type]
    )  # fmt: skip
    run_command(failing(UsageError("a")))
    assert not codes
    run_command(failing(UsageError("b")), multiprocess=True)
    run_command(failing(ValueError("c")), multiprocess=True)
    run_command(lambda: 0, multiprocess=True)
    assert codes == [2, 1]
    shown = capsys.readouterr().err
    assert "error: b\nTraceback" in shown and "ValueError: c" in shown


def test_the_loss_of_another_process_is_one_line_and_other_errors_keep_their_traceback():
    error = type("JaxRuntimeError", (RuntimeError,), {})
    text = "UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:547] Connection closed by peer [10.0.0.2]:4470\n"
    assert lost_process(error(text)) == (
        "error: lost another process of this job, which was killed or failed (Gloo all-reduce failed: Connection closed"
        " by peer [10.0.0.2]:4470); see its own messages, then start all processes again to resume from the last"
        " checkpoint"
    )
    for other in (error("RESOURCE_EXHAUSTED: Out of memory"), RuntimeError(text), ValueError("gloo")):
        assert lost_process(other) is None
