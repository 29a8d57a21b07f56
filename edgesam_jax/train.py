"""``python -m edgesam_jax.train --config FILE --workdir DIR [--set a.b=c ...]``: train, resume, or run a study.

The same command on the same folder goes on where the last one stopped.  On several hosts or processes that share the
folder, start it once in each: SLURM and TPU slices are recognised, elsewhere ``--coordinator HOST:PORT --processes N
--process I`` say who is who.  Exit codes: 0 done; 1 the loss or a gradient
was not finite; 2 wrong usage; 128 + the signal's number if SIGTERM or SIGINT asked it to save and leave.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from edgesam_jax import allocator
from edgesam_jax.config import Config, UsageError, apply_overrides, load_config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows the flags)")


def parse(argv: Sequence[str] | None) -> tuple[Config, Path, tuple[str, int, int]]:
    """The config with its overrides, the work folder, and what ``parallel.start_processes`` wants to know.

    Raises:
      UsageError: see ``load_config`` and ``apply_overrides``.
    """
    parser = _Parser(prog="python -m edgesam_jax.train", description="Train, resume, or run a study.")
    parser.add_argument("--config", required=True, help="a Python file with get_config(), or a saved config.json")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; an earlier run there goes on")
    parser.add_argument(
        "--set", action="append", default=[], nargs="+", metavar="a.b=c", help="change a field of the config"
    )
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of the first process of several")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    parser.add_argument("--process", type=int, default=-1, metavar="I", help="which of them this is, from 0")
    args = parser.parse_args(argv)
    config = apply_overrides(load_config(args.config), [text for texts in args.set for text in texts])
    return config, args.workdir, (args.coordinator, args.processes, args.process)


def run(config: Config, workdir: Path, job: tuple[str, int, int] = ("", 0, -1)) -> int:
    """Train (or run the config's study) and report; returns the exit code.

    Raises:
      UsageError: see ``trainer.fit``.
      FloatingPointError: the loss or a gradient was NaN or infinite.
    """
    # Imported late, so that a wrong flag is answered at once.
    from edgesam_jax import compile_cache, parallel

    compile_cache.enable()
    parallel.start_processes(*job)
    from edgesam_jax import study, trainer

    with trainer.StopSignal() as signals:

        def asked_to_stop() -> bool:
            return signals.received != 0

        if config.study:
            report = study.run(config, workdir, stop=asked_to_stop)
        else:
            report = study.single(config, workdir, stop=asked_to_stop)
    if report is None:
        number = signals.received or signal.SIGTERM  # JAX's preemption service hears that one alone
        print(f"stopped by signal {number:d}, saved; the same command goes on from there", file=sys.stderr)
        return 128 + number
    if parallel.is_first():
        print(report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        return run(*parse(argv))
    except FloatingPointError as error:
        return _fail(f"error: {error}", 1)
    except UsageError as error:
        return _fail(f"error: {error}", 2)
    except KeyboardInterrupt:  # a second one, while saving or compiling
        return _fail("stopped at once; the same command goes on from the last checkpoint", 130)
    except Exception:
        if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            return _fail(traceback.format_exc(), 1)
        raise


def _fail(message: str, code: int) -> int:
    """Say why; one of several processes then ends at once, so that the others notice instead of waiting for it."""
    print(message, file=sys.stderr, flush=True)
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        os._exit(code)
    return code


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    sys.exit(main())
