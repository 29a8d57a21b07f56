"""Run a command: errors as one line, exit codes, interrupts."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable

from edgesam_jax.config import UsageError
from edgesam_jax.portable.errors import one_line

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # 130 = 128 + SIGINT
LOST_PROCESS = 75  # EX_TEMPFAIL of sysexits.h: unlike the others, trying again may help
# In the messages of JAX's errors when a process of the job has gone: collectives, coordination service.
LOST = re.compile(
    r"gloo|nccl|closed by peer|reset by peer|broken pipe|socket closed|heartbeat|barrier|coordination service|"
    r"preempted|unavailable",
    re.IGNORECASE,
)


def run_command(
    command: Callable[[], int],
    failures: tuple[type[Exception], ...] = (),
    interrupted: str | None = None,
    multiprocess: bool = False,
) -> int:
    """Call ``command``, which parses its flags and runs, and turn its errors into messages on stderr and exit codes.

    A ``UsageError``, and an ``OSError`` of a file, print ``error: ...`` on one line and give exit code 2. Any other
    exception propagates, unless an argument names it. In a JAX job, the loss of another process prints one line too and
    gives exit code 75.

    Args:
      command: returns an exit code.
      failures: exceptions that print ``error: ...`` on one line too and give exit code 1.
      interrupted: message for a ``KeyboardInterrupt``, which then gives exit code 130.
      multiprocess: the command may run as one process of a JAX job. Such a process ends at once after an error, of any
        kind, so that the other processes notice instead of waiting for it.

    Returns:
      The exit code.
    """
    try:
        return command()
    except UsageError as error:
        message, code = f"error: {error}", USAGE
    except failures as error:
        message, code = f"error: {one_line(error)}", FAILED
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        message, code = interrupted, INTERRUPTED
    except Exception as error:
        in_a_job = multiprocess and _in_a_job()
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}; check the path, its permissions and the free disk space"
            message, code = f"error: {one_line(text)}", USAGE
        elif in_a_job:
            lost = lost_process(error)
            message, code = (lost, LOST_PROCESS) if lost else (traceback.format_exc(), FAILED)
        else:
            raise
    print(message, file=sys.stderr, flush=True)
    if multiprocess and _in_a_job():
        os._exit(code)
    return code


def print_note(text: str) -> None:
    """Print a remark for the user on stderr, as one line that begins with ``note:``."""
    print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


def lost_process(error: BaseException) -> str | None:
    """Return the message for an error of JAX that another process of the job has caused by ending; None for others."""
    text = " ".join(str(error).split())
    if type(error).__name__ not in ("JaxRuntimeError", "XlaRuntimeError") or not LOST.search(text):
        return None
    reason = re.sub(r"^\w+: |\[external[^]]*\] ", "", text)[:200]
    return (
        f"error: lost another process of this job, which was killed or failed ({reason}); see its own messages, then"
        " start all processes again to resume from the last checkpoint"
    )


def _in_a_job() -> bool:
    """Whether this process belongs to a multi-process JAX job. Doesn't import JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
