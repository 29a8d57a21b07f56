"""A case, how it ended, and the verdict: what counts as a fault of the project."""

from __future__ import annotations

import contextlib
import io
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgesam_jax.config import UsageError

TRACEBACK, SILENT, LEFTOVER, WORDING = "traceback", "accepted in silence", "left over", "message"
FAULTS = (TRACEBACK, SILENT, LEFTOVER, WORDING)
LONGEST = 2000  # characters of a message
TEMPORARY = ("*.part", "*.old", "*.orbax-checkpoint-tmp*", "*.tmp")


@dataclass(frozen=True)
class Case:
    """One damaged input.

    Attributes:
      name: says what was damaged, and how.
      run: calls the project; returns whether the damage was reported (a counted row, a note).  May raise.
      wrong: the input is surely wrong, so that silence is a fault.  Other damage may leave a valid input.
      outputs: paths that must not exist after an error.
    """

    name: str
    run: Callable[[], bool]
    wrong: bool = True
    outputs: tuple[Path, ...] = ()


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Tally:
    """Counts of a group: cases by outcome, and a line for each fault."""

    cases: int = 0
    refused: int = 0
    reported: int = 0
    accepted: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """Return the number of faults of one kind."""
        return sum(found == kind for found, _ in self.faults)


class Failed(Exception):
    """A command ended in a way that no input may cause; the text says how."""


def command(main: Callable[[list[str]], int], flags: list[str]) -> Ended:
    """Run a command in this process, with its output captured.

    Raises:
      UsageError: the command ended with exit code 2 and one line.
      Failed: it ended with another error code, or with code 2 and anything but one line.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(flags)
    except SystemExit as stop:  # --help and --version
        raise Failed(f"SystemExit({stop.code!r})") from None
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 2 and len(errors) == 1 and lines[-1] == errors[0]:
        raise UsageError(errors[0].removeprefix("error: "))
    if code != 0:
        raise Failed(f"exit code {code}, standard error: {err.getvalue()[-300:]!r}")
    return Ended(code, out.getvalue(), err.getvalue())


def judge(case: Case, tally: Tally, folder: Path) -> None:
    """Run a case and add its outcome to the tally.  ``folder`` is searched for temporary files afterwards."""
    tally.cases += 1
    before = set(leftovers(folder))
    try:
        with quiet():
            reported = case.run()
    except UsageError as error:
        tally.refused += 1
        fault = fault_of_message(str(error))
        if fault:
            tally.faults.append((WORDING, f"{case.name}: {fault}: {str(error)[:200]!r}"))
        left = [path.name for path in case.outputs if path.exists()]
        if left:
            tally.faults.append((LEFTOVER, f"{case.name}: {', '.join(left)} after {str(error)[:120]!r}"))
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        tally.faults.append((TRACEBACK, f"{case.name}: {type(error).__name__} in {where}: {str(error)[:160]!r}"))
    else:
        if reported:
            tally.reported += 1
        else:
            tally.accepted += 1
            if case.wrong:
                tally.faults.append((SILENT, case.name))
    new = set(leftovers(folder)) - before
    if new:
        tally.faults.append((LEFTOVER, f"{case.name}: {', '.join(sorted(path.name for path in new))}"))


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files and folders below a folder."""
    for pattern in TEMPORARY:
        yield from folder.rglob(pattern)


def fault_of_message(text: str) -> str:
    """Describe what is wrong with an error message; empty if nothing is."""
    if not text.strip():
        return "empty"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        return "control characters"
    if len(text) > LONGEST:
        return f"{len(text)} characters"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings: NumPy and Pillow warn about what the project then refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
