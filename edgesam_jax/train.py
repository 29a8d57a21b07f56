"""``python -m edgesam_jax.train --config FILE --workdir DIR [--set a.b=c ...]``: train, resume, or run a study.

The same command on the same folder goes on where the last one stopped.  Exit codes: 0 done; 1 the loss or a gradient was
not finite; 2 wrong usage; 128 + the signal's number if SIGTERM or SIGINT asked it to save and leave.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgesam_jax.config import Config, UsageError, apply_overrides, load_config


def parse(argv: Sequence[str] | None) -> tuple[Config, Path]:
    """The config with its overrides, and the work folder.

    Raises:
      UsageError: see ``load_config`` and ``apply_overrides``.
    """
    parser = argparse.ArgumentParser(prog="python -m edgesam_jax.train", description="Train, resume, or run a study.")
    parser.add_argument("--config", required=True, help="a Python file with get_config(), or a saved config.json")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; an earlier run there goes on")
    parser.add_argument(
        "--set", action="append", default=[], nargs="+", metavar="a.b=c", help="change a field of the config"
    )
    args = parser.parse_args(argv)
    return apply_overrides(load_config(args.config), [text for texts in args.set for text in texts]), args.workdir


def run(config: Config, workdir: Path) -> int:
    """Train (or run the config's study) and report; returns the exit code."""
    # Imported late, so that a wrong flag is answered at once.
    from edgesam_jax import compile_cache, parallel

    compile_cache.enable()
    parallel.start_processes()
    from edgesam_jax import study, trainer

    with trainer.StopSignal() as signals:

        def asked_to_stop() -> bool:
            return signals.received != 0

        if config.study:
            finished = study.run(config, workdir, stop=asked_to_stop)
        else:
            result = trainer.fit(config, workdir, stop=asked_to_stop)
            finished = result.finished
            if finished:
                report = study.final_evaluation(config, result.model, workdir)
                print(f"trained {result.step} steps in {result.seconds:.0f} s; model in {workdir / 'model'}")
                print(report)
    if not finished:
        print(f"stopped by signal {signals.received}, saved; the same command goes on from there", file=sys.stderr)
        return 128 + signals.received
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        config, workdir = parse(argv)
        from edgesam_jax.trainer import NotFinite

        try:
            return run(config, workdir)
        except NotFinite as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
