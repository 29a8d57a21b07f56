"""``python -m edgesam_jax.eval``: score models, exports and files of masks on annotated photos.

    python -m edgesam_jax.eval --checkpoint FILE --dataset coco --data-root DIR --prompt box --refine 2 --output r.json
    python -m edgesam_jax.eval compare A.json B.json     is the difference real?
    python -m edgesam_jax.eval efficiency                parameters, operations, photos per second

With ``--output`` every photo's results are on disk as soon as they are there, and the same command goes on after a
stop.  Exit codes: 0 done, 2 wrong usage or input.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser, count, part, share
from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.portable.priors import RULES

if TYPE_CHECKING:
    from edgesam_jax.data.source import Source
    from edgesam_jax.eval.scoring.protocol import Settings
    from edgesam_jax.eval.scoring.systems import System

COMMANDS = {"compare": "edgesam_jax.eval.compare", "efficiency": "edgesam_jax.eval.efficiency.command"}
DATASETS = {"coco": "coco", "lvis": "coco", "sa1b": "images", "folder": "images", "scenes": "scenes"}
SCENES = 200  # held-out scenes, where --limit does not say


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m edgesam_jax.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    system = parser.add_argument_group("what is scored (several make one table)")
    system.add_argument("--checkpoint", nargs="+", default=[], help="folders or files; default: the embedded model")
    system.add_argument("--onnx", nargs=2, action="append", default=[], metavar=("ENCODER", "DECODER"))
    system.add_argument("--predictions", nargs="+", default=[], metavar="FILE", help="masks in COCO's results format")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", choices=sorted(DATASETS), required=True,
        help="sa1b, folder: photos with annotations beside them, SA-1B's tars, or what prepare wrote",
    )  # fmt: skip
    data.add_argument("--data-root", default="", help="folder of the photos (not for scenes)")
    data.add_argument("--annotations", default="", help="COCO-format JSON; default: the one under --data-root")
    data.add_argument("--limit", type=_whole, default=0, metavar="N", help="the first N photos; 0: all")
    data.add_argument("--ids", default="", metavar="FILE", help="the photos of this list, one a line; default: all")
    data.add_argument("--max-instances", type=_whole, default=0, metavar="N", help="of a photo, drawn; SA-1K: 64")
    ask = parser.add_argument_group("prompts")
    ask.add_argument("--prompt", choices=("box", "center", "point", "detections"), required=True)
    ask.add_argument("--detections", default="", metavar="FILE", help="a detector's boxes, COCO's results format")
    ask.add_argument("--refine", type=_whole, default=0, metavar="N", help="points added one after another")
    ask.add_argument(
        "--refine-point", choices=("random", "largest"), default="random",
        help="a random wrong pixel, or the centre of the largest wrong region",
    )  # fmt: skip
    ask.add_argument("--box-noise", type=share, default=0.0, metavar="S", help="noise of corners, share of the side")
    ask.add_argument(
        "--priors", choices=RULES, default="off",
        help="granularity priors: a click gets a box from the proposals around it; needs a proposal network",
    )  # fmt: skip
    ask.add_argument("--num-masks", type=int, choices=(1, 3, 4), default=1, help="1: the first token's mask")
    ask.add_argument("--select", choices=("score", "stability", "area", "oracle"), help="of 3 or 4; default: score")
    ask.add_argument("--seed", type=_whole, default=0, help="of refinement points, noise and drawn instances")
    ask.add_argument("--protocol", choices=("exact", "published"), default="exact", help="docs/evaluation.md")
    work = parser.add_argument_group("work and report")
    work.add_argument("--batch-size", type=count, default=2, help="photos under way: speed only, not the result")
    work.add_argument("--part", type=part, default=(0, 1), metavar="I/N", help="this host of so many, from 0/N")
    work.add_argument("--no-boundary", action="store_true", help="leave boundary IoU and boundary AP out")
    work.add_argument("--output", default="", metavar="report.json", help="the report; Markdown and pictures beside it")
    work.add_argument("--no-pictures", action="store_true", help="no plots and no sheet of cases")
    return parser


# ------------------------------------------------------------------------------------------------------------ inputs


def _source(arguments: argparse.Namespace, image_size: int) -> Source:
    from edgesam_jax.data.opening import kind_of_folder, open_source
    from edgesam_jax.data.readers.coco import CocoSource

    kind, root = DATASETS[arguments.dataset], arguments.data_root
    if kind != "scenes" and not root:
        raise UsageError(f"--dataset {arguments.dataset}: give --data-root, the folder of its photos")
    if kind == "images":
        kind = kind_of_folder(root)
    limit = arguments.limit or (SCENES if kind == "scenes" else 0)
    if arguments.prompt == "detections":
        if kind != "coco":
            raise UsageError("--prompt detections: needs --dataset coco or lvis, whose annotations AP is measured on")
        if arguments.ids:
            raise UsageError("--ids: not with --prompt detections; use --limit, or an annotation file of these photos")
        return CocoSource(root, arguments.annotations, limit, bare=True)
    data = DataConfig(
        source=kind,  # type: ignore[arg-type]
        root=root,
        annotations=arguments.annotations,
        limit=limit,
        ids=arguments.ids,
    )
    return open_source(data, image_size, "heldout")


def _settings(arguments: argparse.Namespace) -> Settings:
    from edgesam_jax.eval.scoring.protocol import Settings

    if arguments.select and arguments.num_masks == 1:
        raise UsageError(f"--select {arguments.select}: there is one mask to choose from; give --num-masks 3 or 4")
    if arguments.prompt == "detections":
        if arguments.refine or arguments.select == "oracle" or arguments.max_instances:
            raise UsageError("--prompt detections: there is no ground truth to refine by, to choose by or to draw from")
        if not arguments.detections and not arguments.predictions:
            raise UsageError("--prompt detections: give --detections, the boxes of a detector in COCO's results format")
    elif arguments.detections:
        raise UsageError(f"--detections {arguments.detections}: only with --prompt detections")
    if arguments.priors != "off" and arguments.prompt not in ("center", "point"):
        raise UsageError(f"--priors {arguments.priors}: they are for clicks; use --prompt center or point")
    if arguments.priors != "off" and arguments.predictions:
        raise UsageError(f"--priors {arguments.priors}: a file of masks has no proposals; leave --predictions out")
    if arguments.box_noise and arguments.prompt not in ("box", "detections"):
        raise UsageError(f"--box-noise {arguments.box_noise}: there are no boxes with --prompt {arguments.prompt}")
    return Settings(
        prompt="box" if arguments.prompt == "detections" else arguments.prompt, refine=arguments.refine,
        refine_point=arguments.refine_point, protocol=arguments.protocol, num_masks=arguments.num_masks,
        select="first" if arguments.num_masks == 1 else arguments.select or "score", seed=arguments.seed,
        box_noise=arguments.box_noise, max_instances=arguments.max_instances, priors=arguments.priors,
    )  # fmt: skip


def _systems(arguments: argparse.Namespace, settings: Settings, image_ids: Any) -> list[System]:
    """What is scored, in the order of the flags; ``image_ids`` are called for if files of masks need them."""
    import jax

    from edgesam_jax.checkpoints.load import TINY_TEACHER, load_model
    from edgesam_jax.eval.scoring.systems import JaxSystem, OnnxSystem

    chosen, priors = (settings.num_masks, settings.select), settings.priors != "off"
    found: list[System] = []
    checkpoints = arguments.checkpoint or ([] if arguments.onnx or arguments.predictions else [TINY_TEACHER])
    for path in checkpoints:
        found.append(JaxSystem(Path(path).name or path, load_model(path), *chosen, jax.local_devices(), priors))
    found += [OnnxSystem(Path(encoder), Path(decoder), *chosen, priors) for encoder, decoder in arguments.onnx]
    found += [image_ids(Path(path)) for path in arguments.predictions]
    names = Counter(system.name for system in found)
    for number, system in enumerate(found):
        if names[system.name] > 1:
            system.name = f"{system.name}#{number + 1}"
    return found


# ------------------------------------------------------------------------------------------------------------- the run


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Do what the command line says; returns a report for each system, or none where other parts are still missing.

    Raises:
      UsageError: anything wrong with the arguments, the data or what is scored.
    """
    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.is_dir():
        raise UsageError(f"--output {output}: is a folder; name the report's file")
    if arguments.part[1] > 1 and output is None:
        raise UsageError("--part: give --output, where all parts leave their rows")
    settings = _settings(arguments)

    from edgesam_jax.cli import compile_cache
    from edgesam_jax.eval.job import Job, count_compilations

    compile_cache.enable()
    compiled = count_compilations()
    job = Job(
        settings, arguments.dataset, arguments.data_root, arguments.prompt, Path(arguments.detections or "."),
        part=arguments.part, at_once=arguments.batch_size, boundary=not arguments.no_boundary,
    )  # fmt: skip
    first = None
    if arguments.dataset == "scenes":  # drawn at the model's own size
        first = _systems(arguments, settings, job.predictions)
        job.open(_source(arguments, first[0].image_size))
    else:
        job.open(_source(arguments, 0))
    systems = first or _systems(arguments, settings, job.predictions)
    began, before = time.perf_counter(), compiled()
    reports = []
    for number, system in enumerate(systems):
        stem = output and output.with_name(output.stem if len(systems) == 1 else f"{output.stem}.{number + 1}")
        report = job.score(system, stem)
        if report is None:
            continue
        report["compilations"], before = compiled() - before, compiled()
        report["seconds"], began = round(time.perf_counter() - began, 3), time.perf_counter()
        reports.append(report)
    if output is not None and len(reports) == len(systems):
        job.write(output, systems, reports, pictures=not arguments.no_pictures)
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    flags = list(sys.argv[1:] if argv is None else argv)
    resume = "; run the same command again to resume" if any(flag.startswith("--output") for flag in flags) else ""
    command = _subcommand if flags and flags[0] in COMMANDS else _score
    return run_command(lambda: command(flags), interrupted=f"stopped{resume}")


def _subcommand(flags: list[str]) -> int:
    module = importlib.import_module(COMMANDS[flags[0]])
    parser = Parser(prog=f"python -m edgesam_jax.eval {flags[0]}", description=module.__doc__)
    module.add_arguments(parser)
    result = module.run(parser.parse_args(flags[1:]))
    print(result if isinstance(result, str) else module.table(result))
    return 0


def _score(flags: list[str]) -> int:
    arguments = _parser().parse_args(flags)
    reports = run(arguments)
    if not reports:
        print("this part is done; the report is written when all parts are done")
        return 0
    from edgesam_jax.eval.report.report import terminal

    print(terminal(reports))
    if arguments.output:
        print(f"report: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
