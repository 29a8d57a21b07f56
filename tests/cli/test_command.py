"""Errors of a command become one line and an exit code."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from edgesam_jax.cli.command import lost_process, print_note, run_command
from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import BadExample
from edgesam_jax.portable.errors import one_line


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
        (
            UsageError("--image a\nb\x1b[31m\u202e\udcff.png: no such file"),
            2,
            r"error: --image a\nb\x1b[31m\u202e\udcff.png: no such file" + "\n",
        ),
        (FloatingPointError("step 1:\r\nnan"), 1, r"error: step 1:\r\nnan" + "\n"),
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


def test_messages_are_one_printable_line() -> None:
    text = "a photo's name \u00e4\u4e2d \U0001f600, C:\\photos"
    assert one_line(text) == text and str(UsageError(text)) == text
    odd = UsageError("a\tb\u2028c\u00a0d\x00")
    assert str(odd) == r"a\tb\u2028c\xa0d\x00"
    for error in (odd, BadExample("kind", "a\nb")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
    long = str(UsageError("a" * 5000 + "\n" + "b" * 5000))
    assert len(long) <= 2000 and long.startswith("aaa") and long.endswith("bbb") and " ... " in long
    assert one_line(long) == long


def test_notes_are_one_line(capsys) -> None:
    print_note("a\nb")
    assert capsys.readouterr().err == "note: a\\nb\n"


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
    lost = type("JaxRuntimeError", (RuntimeError,), {})("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    run_command(failing(lost), multiprocess=True)
    run_command(lambda: 0, multiprocess=True)
    assert codes == [2, 1, 75]
    shown = capsys.readouterr().err
    assert "error: b\nTraceback" in shown and "ValueError: c" in shown


def test_a_file_that_cannot_be_used_is_one_line(tmp_path, capsys):
    assert run_command(lambda: len((tmp_path / ("x" * 300)).read_bytes())) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "File name too long; check the path" in line
    with pytest.raises(OSError, match="of a socket"):
        run_command(lambda: (_ for _ in ()).throw(OSError("of a socket")))


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
