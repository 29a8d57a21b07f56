"""``python -m edgesam_jax.ablate --table 5a ... [--scale tiny|small|full] [--seeds N]``: the paper's ablations.

Trains and scores the runs of the requested tables, and writes Markdown, JSON and a picture of each table to
``WORKDIR/tables``.  Tables share runs, and every run is trained once.  Run the same command again to resume; tables
requested later reuse the finished runs.  Scales: ``tiny`` needs two CPU cores; ``small`` is for one GPU (512 px;
``configs/ablate_small.py`` shows how to add photos); ``full`` is the paper's own scale.  Exit codes: as for
``edgesam_jax.train``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesam_jax.cli import allocator
from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser, count
from edgesam_jax.config import Config, UsageError, apply_overrides, load_config

if TYPE_CHECKING:
    from edgesam_jax.ablate.grid import Outcomes, Scorer
    from edgesam_jax.ablate.tables import Table

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCALES = ("tiny", "small", "full")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m edgesam_jax.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", nargs="+", required=True, metavar="TABLE", help="letters or names, such as 5a or loops; or all"
    )
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--seeds", type=count, default=3, metavar="N", help="seeds to train every row with; default 3")
    parser.add_argument("--workdir", type=Path, help="folder of the runs and tables; default runs/ablate_SCALE")
    parser.add_argument("--config", default="", metavar="FILE", help="default: configs/ablate_SCALE.py")
    parser.add_argument(
        "--set", action="append", default=[], nargs="+", metavar="a.b=c", help="change a field of the config"
    )
    parser.add_argument(
        "--evaluate", action="append", default=[], metavar="coco|lvis|sa1b=DIR",
        help="score on annotated photos, as edgesam_jax.eval does, instead of on the scale's held-out examples",
    )  # fmt: skip
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    path = CONFIGS / f"ablate_{arguments.scale}.py"
    if not arguments.config and not path.is_file():
        raise UsageError(f"--scale {arguments.scale}: {path} is missing; run in a checkout, or pass --config")
    return apply_overrides(load_config(arguments.config or path), [text for texts in arguments.set for text in texts])


def _scorer(config: Config, datasets: Sequence[str], examples: list[Any]) -> Scorer:
    from edgesam_jax.ablate import grid

    if not datasets:
        if not examples:
            raise UsageError("this config's data has no held-out examples to score on: pass --evaluate coco=DIR")
        return grid.held_out(config, examples)
    sets: dict[str, str] = {}
    for text in datasets:
        name, equals, root = text.partition("=")
        if name not in ("coco", "lvis", "sa1b") or not equals:
            raise UsageError(f"--evaluate {text}: write coco=DIR, lvis=DIR or sa1b=DIR")
        if not Path(root).is_dir():
            raise UsageError(f"--evaluate {text}: no such folder")
        sets[name] = root
    from edgesam_jax.ablate.dataset_scores import on_photos

    return on_photos(config.eval, sets)


def run(arguments: argparse.Namespace, stop: Callable[[], bool] = lambda: False) -> str | None:
    """Run the command; returns the tables as text, or None if ``stop`` ended it early.

    Args:
      arguments: the parsed command line.
      stop: called after every step; True saves and stops.

    Raises:
      UsageError: an unknown table, a config without the table's runs, or see ``train.run.fit``.
      FloatingPointError: a run's loss was NaN or infinite.
    """
    config = _config(arguments)
    workdir = arguments.workdir or Path("runs") / f"ablate_{arguments.scale}"
    from edgesam_jax import files
    from edgesam_jax.ablate import grid, report
    from edgesam_jax.ablate.tables import choose, tables
    from edgesam_jax.cli import compile_cache
    from edgesam_jax.eval import heldout

    names = [arm.name for arm in config.study]
    selected = choose(tables(names), arguments.table)
    grid.check_known(config.study, {table.letter: table.arms for table in selected})
    compile_cache.enable()
    examples = heldout.heldout_examples(config)
    score = _scorer(config, arguments.evaluate, examples)
    titles = {arm.name: arm.title for arm in config.study}
    costs = _costs(config, selected)

    def write(outcomes: Outcomes) -> str:
        parts = []
        (workdir / "tables").mkdir(parents=True, exist_ok=True)
        for table in selected:
            part = report.markdown(table, titles, outcomes, costs)
            target = workdir / "tables" / table.letter
            files.write_atomically(target.with_suffix(".md"), part + "\n")
            rows = {name: [dataclasses.asdict(o) for o in outcomes[name]] for name in table.arms}
            files.write_atomically(target.with_suffix(".json"), json.dumps(rows, indent=2))
            report.save_plot(target.with_suffix(".png"), table, titles, outcomes)
            parts.append(part)
        return "\n\n".join(parts)

    outcomes = grid.run(
        config, workdir, config.study, [name for table in selected for name in table.arms],
        range(arguments.seeds), score, examples=examples, stop=stop, after_seed=write,
        with_correlations=frozenset(name for table in selected if table.scores for name in table.arms),
    )  # fmt: skip
    return None if outcomes is None else f"{write(outcomes)}\n\nTables and pictures: {workdir / 'tables'}"


def _costs(config: Config, selected: Sequence[Table]) -> dict[str, tuple[float, float]]:
    """Return parameters (M) and multiply-accumulates (G) of the image encoders, by run, for tables that show them."""
    from edgesam_jax.eval.efficiency.model_cost import counts

    costs = {}
    for arm in config.study:
        if any(table.cost and arm.name in table.arms for table in selected):
            counted = counts(apply_overrides(config, arm.overrides).model)
            costs[arm.name] = counted["parameters"]["encoder"] / 1e6, counted["gmac"]["encoder"]
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        arguments = _parser().parse_args(argv)
        from edgesam_jax.train.signals import StopSignal

        with StopSignal() as signals:
            tables = run(arguments, stop=lambda: signals.received != 0)
        if tables is None:
            number = signals.received or signal.SIGTERM
            print(f"stopped by signal {number:d}, saved; run the same command again to resume", file=sys.stderr)
            return 128 + number
        print(tables)
        return 0

    return run_command(command, failures=(FloatingPointError,))


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    sys.exit(main())
