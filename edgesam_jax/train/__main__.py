"""``python -m edgesam_jax.train --config FILE --workdir DIR [--set a.b=c ...]``: train, resume, or run a study.

``--dry-run`` in place of ``--workdir`` prints the memory, work and time that the run would need (docs/scale.md).

Run the same command on the same folder again to resume.  On several hosts or processes that share the folder, start
the command once in each: SLURM and TPU slices are detected; elsewhere pass ``--coordinator HOST:PORT --processes N
--process I``.

Exit codes: 0 done; 1 the loss or a gradient was not finite; 2 wrong usage, or a full disk; 75 another process of the
job was lost; 143 or 130 (128 + the signal's number) after SIGTERM or SIGINT, with everything saved.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgesam_jax.cli import allocator
from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import Config, apply_overrides, load_config
from edgesam_jax.config.derive import started
from edgesam_jax.config.rules import check_values
from edgesam_jax.planning import dry_run
from edgesam_jax.planning.setup import Setup


class Job(NamedTuple):
    """The arguments of ``parallel.start_processes``."""

    coordinator: str = ""
    processes: int = 0
    process: int = -1


@dataclass(frozen=True)
class Command:
    """The parsed command line.

    ``replay`` is the step to run again, None to train; ``planned`` is set for a dry run.
    """

    config: Config
    workdir: Path
    job: Job
    replay: int | None = None
    planned: Setup | None = None


def parse(argv: Sequence[str] | None) -> Command:
    """Parse the flags, and load the config with its overrides.

    Raises:
      UsageError: see ``load_config`` and ``apply_overrides``.
    """
    parser = Parser(prog="python -m edgesam_jax.train", description="Train, resume, or run a study.")
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:name=value,...]",
        help="a Python file with get_config(), its arguments after a colon; or a saved config.json",
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run; a run that is already there is resumed")
    parser.add_argument(
        "--set", action="append", default=[], nargs="+", metavar="a.b=c", help="change a field of the config"
    )
    parser.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="address of the first process of a multi-process job"
    )
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="number of processes in the job")
    parser.add_argument("--process", type=int, default=-1, metavar="I", help="index of this process, from 0")
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="run a step listed in nonfinite.jsonl again and print each photo's loss",
    )
    dry_run.add_flags(parser)
    args = parser.parse_args(argv)
    setup = dry_run.setup_of(args)
    if not (args.workdir or args.dry_run):
        parser.error("the following arguments are required: --workdir")
    config = started(apply_overrides(load_config(args.config), [text for texts in args.set for text in texts]))
    check_values(config)
    job = Job(args.coordinator, args.processes, args.process)
    return Command(config, args.workdir, job, args.replay, setup if args.dry_run else None)


def run(command: Command) -> int:
    """Train (or run the config's study) and report, replay a step, or only plan; return the exit code.

    Raises:
      UsageError: see ``train.run.fit``.
      FloatingPointError: the loss or a gradient was NaN or infinite.
    """
    config, workdir = command.config, command.workdir
    if command.planned:
        print(dry_run.report(config, command.planned))
        return 0
    # Imported here, so that a wrong flag is reported without waiting for JAX; and everything before the processes
    # connect: from then on they may be two minutes apart until they have their devices, and hosts that read packages
    # from one shared disk import them at different speeds.
    from edgesam_jax.cli import compile_cache
    from edgesam_jax.train import parallel, study
    from edgesam_jax.train.signals import StopSignal

    compile_cache.enable()
    parallel.start_processes(*command.job)
    if command.replay is not None:
        from edgesam_jax.train.replay import replay

        print(replay(config, workdir, command.replay))
        return 0
    with StopSignal() as signals:

        def asked_to_stop() -> bool:
            return signals.received != 0

        if config.study:
            report = study.run(config, workdir, stop=asked_to_stop)
        else:
            report = study.single(config, workdir, stop=asked_to_stop)
    if report is None:
        number = signals.received or signal.SIGTERM  # the only signal that JAX's preemption service handles
        print(f"stopped by signal {number:d}, saved; run the same command again to resume", file=sys.stderr)
        return 128 + number
    if parallel.is_first():
        print(report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(
        lambda: run(parse(argv)),
        failures=(FloatingPointError,),
        # By a second signal, while saving or compiling.
        interrupted="stopped at once; run the same command again to resume from the last checkpoint",
        multiprocess=True,
    )


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    sys.exit(main())
