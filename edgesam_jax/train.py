"""``python -m edgesam_jax.train --config FILE --workdir DIR [--set a.b=c ...]``: train, resume, or run a study.

The same command on the same folder goes on where the last one stopped.  Exit codes: 0 done; 1 the loss or a gradient
was not finite; 2 wrong usage; 128 + the signal's number if SIGTERM or SIGINT asked it to save and leave.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from edgesam_jax import allocator
from edgesam_jax.config import Config, UsageError, apply_overrides, load_config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows the flags)")


def parse(argv: Sequence[str] | None) -> tuple[Config, Path]:
    """The config with its overrides, and the work folder.

    Raises:
      UsageError: see ``load_config`` and ``apply_overrides``.
    """
    parser = _Parser(prog="python -m edgesam_jax.train", description="Train, resume, or run a study.")
    parser.add_argument("--config", required=True, help="a Python file with get_config(), or a saved config.json")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; an earlier run there goes on")
    parser.add_argument(
        "--set", action="append", default=[], nargs="+", metavar="a.b=c", help="change a field of the config"
    )
    args = parser.parse_args(argv)
    return apply_overrides(load_config(args.config), [text for texts in args.set for text in texts]), args.workdir


def run(config: Config, workdir: Path) -> int:
    """Train (or run the config's study) and report; returns the exit code.

    Raises:
      UsageError: see ``trainer.fit``.
      FloatingPointError: the loss or a gradient was NaN or infinite.
    """
    # Imported late, so that a wrong flag is answered at once.
    from edgesam_jax import compile_cache, parallel

    compile_cache.enable()
    parallel.start_processes()
    from edgesam_jax import study, trainer

    with trainer.StopSignal() as signals:

        def asked_to_stop() -> bool:
            return signals.received != 0

        if config.study:
            report = study.run(config, workdir, stop=asked_to_stop)
        else:
            report = study.single(config, workdir, stop=asked_to_stop)
    if report is None:
        print(f"stopped by signal {signals.received}, saved; the same command goes on from there", file=sys.stderr)
        return 128 + signals.received
    print(report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        return run(*parse(argv))
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a second one, while saving or compiling
        print("stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    sys.exit(main())
