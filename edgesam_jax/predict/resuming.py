"""Runs over many photos that resume: their rows, the lock of their folder, and what they say of skipped entries."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgesam_jax.checkpoints.digest import digest_of
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.source import SkippedRow
from edgesam_jax.files import exclusive
from edgesam_jax.reporting.rows import Rows

LISTED = 1000  # skipped entries that a report lists individually


def check_output(output: Path) -> None:
    """Check that ``--output`` is no file.

    Raises:
      UsageError: it is one.
    """
    if os.path.exists(output) and not os.path.isdir(output):  # methods of Path raise for names that are too long
        raise UsageError(f"--output {output}: is a file; choose a folder")


@contextmanager
def resumable_rows(output: Path, model: Model, header: Mapping[str, Any]) -> Iterator[Rows]:
    """Open the rows of a run in its locked folder; remove them when the run is complete.

    Args:
      output: the folder.
      model: and its kind of score, which are part of the header.
      header: everything else that determines the results.

    Raises:
      UsageError: another run writes there, the rows are of another run, or the folder can't be written.
    """
    score = model.metadata.get("score", "stability")
    digest = digest_of({"config": repr(model.config), "score": score, "variables": model.variables})
    try:
        output.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if not stack.enter_context(exclusive(output)):
                raise UsageError(f"--output {output}: another run writes there; wait for it or choose another folder")
            rows = Rows(output / "predictions", {**header, "model": digest}, what="run")
            stack.callback(rows.close)
            yield rows
        rows.path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there ({error.strerror})") from None


def skipped_report(skipped: Sequence[SkippedRow]) -> dict[str, Any]:
    """Return ``counts`` by kind and the first ``LISTED`` entries, for a report."""
    return {"counts": dict(Counter(kind for kind, _ in skipped)), "listed": [list(row) for row in skipped[:LISTED]]}
