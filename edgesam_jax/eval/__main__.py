"""``python -m edgesam_jax.eval``: score models, exports and files of masks on annotated photos.

    python -m edgesam_jax.eval --checkpoint FILE --dataset coco --data-root DIR --prompt box --refine 2 --output r.json
    python -m edgesam_jax.eval compare A.json B.json     is the difference significant?
    python -m edgesam_jax.eval efficiency                parameters, operations, photos per second

With ``--output``, each photo's results are written as soon as they are available; after a stop, run the same command
again to resume.  Exit codes: 0 done, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesam_jax.cli.command import print_note, run_command
from edgesam_jax.cli.flags import Parser, count, part, share
from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.portable.priors import RULES

if TYPE_CHECKING:
    from edgesam_jax.data.source import Source
    from edgesam_jax.eval.scoring.everything import EverythingSystem, Generation
    from edgesam_jax.eval.scoring.protocol import Settings
    from edgesam_jax.eval.scoring.systems import System

COMMANDS = {"compare": "edgesam_jax.eval.compare", "efficiency": "edgesam_jax.eval.efficiency.command"}
DATASETS = {"coco": "coco", "lvis": "coco", "sa1b": "images", "folder": "images", "scenes": "scenes"}
SCENES = 200  # held-out scenes without --limit


def _non_negative(text: str) -> int:
    """Parse an integer of at least 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return value


def _points_per_side(text: str) -> int:
    """Parse an integer from 1 to 1024."""
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 1024, not {text!r}")
    return int(text)


def _threshold(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        return share(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m edgesam_jax.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    system = parser.add_argument_group("systems to score (all in one table)")
    system.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        help="checkpoint folders or files; default without another system: tiny_teacher, the bundled model",
    )
    system.add_argument(
        "--onnx", nargs=2, action="append", default=[], metavar=("ENCODER", "DECODER"), help="a pair of exported files"
    )
    system.add_argument(
        "--predictions", nargs="+", default=[], metavar="FILE", help="files of masks in COCO's results format"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", choices=sorted(DATASETS), required=True,
        help="sa1b, folder: photos with an annotation file each, SA-1B tar files, or a folder written by prepare",
    )  # fmt: skip
    data.add_argument("--data-root", default="", help="folder of the photos; not used by scenes")
    data.add_argument("--annotations", default="", help="COCO-format JSON file; default: the one under --data-root")
    data.add_argument(
        "--limit", type=_non_negative, default=0, metavar="N", help="score the first N photos; 0 scores all"
    )
    data.add_argument("--ids", default="", metavar="FILE", help="score the photos in this list, one per line")
    data.add_argument(
        "--pixel-range", default="auto", metavar="LO,HI",
        help="map these pixel values to 0 and 255, for photos of more than 8 bits; default: auto",
    )  # fmt: skip
    data.add_argument(
        "--max-instances",
        type=_non_negative,
        default=0,
        metavar="N",
        help="sample at most N instances per photo; 0 uses all (SA-1K: 64)",
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--prompt",
        choices=("box", "center", "point", "detections", "everything"),
        required=True,
        help="the first prompt of each instance; everything: none, all masks of a photo are matched with its instances",
    )
    prompts.add_argument("--detections", default="", metavar="FILE", help="a detector's boxes in COCO's results format")
    prompts.add_argument("--refine", type=_non_negative, default=0, metavar="N", help="number of refinement points")
    prompts.add_argument(
        "--refine-point", choices=("random", "largest"), default="random",
        help="a random wrong pixel, or the centre of the largest error region",
    )  # fmt: skip
    prompts.add_argument(
        "--box-noise", type=share, default=0.0, metavar="S", help="noise on the corners, as a fraction of the side"
    )
    prompts.add_argument(
        "--priors", choices=RULES, default="off",
        help="granularity priors: add a box to each click from nearby proposals; needs a proposal network",
    )  # fmt: skip
    prompts.add_argument(
        "--num-masks", type=int, choices=(1, 3, 4), default=1, help="masks decoded per prompt; 1 is the first token's"
    )
    prompts.add_argument(
        "--select", choices=("score", "stability", "area", "oracle"), help="mask to score out of 3 or 4; default: score"
    )
    prompts.add_argument(
        "--seed", type=_non_negative, default=0, help="of refinement points, box noise and sampled instances"
    )
    prompts.add_argument("--protocol", choices=("exact", "published"), default="exact", help="see docs/evaluation.md")
    prompts.add_argument(
        "--center", choices=("exact", "published"),
        help="how --prompt center finds a mask's centre, if not by the protocol's rule",
    )  # fmt: skip
    everything = parser.add_argument_group("everything mode (--prompt everything)")
    everything.add_argument(
        "--points-per-side", type=_points_per_side, metavar="N", help="the grid has N x N points; default: 32"
    )
    everything.add_argument(
        "--pred-iou-thresh", type=_threshold, metavar="T",
        help="keep masks with a score above T; default: 0.88 (SAM's)",
    )  # fmt: skip
    everything.add_argument(
        "--stability-score-thresh", type=_threshold, metavar="T",
        help="keep masks with a stability score of at least T; default: 0.95 (SAM's)",
    )  # fmt: skip
    everything.add_argument(
        "--coarse-to-fine", action="store_true", help="skip points inside masks found before: faster, finds fewer parts"
    )
    work = parser.add_argument_group("execution and report")
    work.add_argument("--batch-size", type=count, default=2, help="photos in flight; affects speed, not results")
    work.add_argument(
        "--part", type=part, default=(0, 1), metavar="I/N", help="score part I (from 0) of N, one per host"
    )
    work.add_argument("--no-boundary", action="store_true", help="skip boundary IoU and boundary AP")
    work.add_argument(
        "--output", default="", metavar="report.json", help="report file; Markdown and pictures go to the same folder"
    )
    work.add_argument("--no-pictures", action="store_true", help="skip the plots and the contact sheet")
    return parser


# ------------------------------------------------------------------------------------------------------------ inputs


def _source(arguments: argparse.Namespace, image_size: int) -> Source:
    from edgesam_jax.data.opening import kind_of_folder, open_source
    from edgesam_jax.data.pixels import parse_range
    from edgesam_jax.data.readers.coco import CocoSource
    from edgesam_jax.data.readers.ranged import with_pixel_range

    parse_range(arguments.pixel_range)
    kind, root = DATASETS[arguments.dataset], arguments.data_root
    if kind != "scenes" and not root:
        raise UsageError(f"--dataset {arguments.dataset}: pass --data-root, the folder of the photos")
    if kind == "images":
        kind = kind_of_folder(root)
    limit = arguments.limit or (SCENES if kind == "scenes" else 0)
    if arguments.prompt == "detections":
        if kind != "coco":
            raise UsageError("--prompt detections: average precision needs --dataset coco or lvis")
        if arguments.ids:
            raise UsageError(
                "--ids: not supported with --prompt detections; use --limit, or an annotation file of these photos"
            )
        return with_pixel_range(CocoSource(root, arguments.annotations, limit, bare=True), arguments.pixel_range)
    data = DataConfig(
        source=kind,  # type: ignore[arg-type]
        root=root,
        annotations=arguments.annotations,
        limit=limit,
        ids=arguments.ids,
        pixel_range=arguments.pixel_range,
    )
    return open_source(data, image_size, "heldout")


def _settings(arguments: argparse.Namespace) -> Settings:
    from edgesam_jax.eval.scoring.protocol import Settings

    if arguments.select and arguments.num_masks == 1:
        raise UsageError(f"--select {arguments.select}: only one mask is decoded per prompt; pass --num-masks 3 or 4")
    if arguments.prompt == "everything":
        _check_everything(arguments)
    if arguments.prompt == "detections":
        if arguments.refine or arguments.select == "oracle" or arguments.max_instances:
            raise UsageError(
                "--prompt detections: boxes have no ground truth; remove --refine, --max-instances and --select oracle"
            )
        if not arguments.detections and not arguments.predictions:
            raise UsageError("--prompt detections: pass --detections, a detector's boxes in COCO's results format")
    elif arguments.detections:
        raise UsageError(f"--detections {arguments.detections}: only valid with --prompt detections")
    if arguments.priors != "off" and arguments.prompt not in ("center", "point"):
        raise UsageError(f"--priors {arguments.priors}: priors apply to clicks only; use --prompt center or point")
    if arguments.priors != "off" and arguments.predictions:
        raise UsageError(f"--priors {arguments.priors}: a file of masks has no proposals; remove --predictions")
    if arguments.box_noise and arguments.prompt not in ("box", "detections"):
        raise UsageError(
            f"--box-noise {arguments.box_noise}: --prompt {arguments.prompt} has no boxes; use box or detections"
        )
    if arguments.center and arguments.prompt != "center":
        raise UsageError(
            f"--center {arguments.center}: --prompt {arguments.prompt} clicks no centre; use --prompt center"
        )
    return Settings(
        prompt="box" if arguments.prompt in ("detections", "everything") else arguments.prompt, refine=arguments.refine,
        refine_point=arguments.refine_point, protocol=arguments.protocol, num_masks=arguments.num_masks,
        select="first" if arguments.num_masks == 1 else arguments.select or "score", seed=arguments.seed,
        box_noise=arguments.box_noise, max_instances=arguments.max_instances, priors=arguments.priors,
        center=None if arguments.center == arguments.protocol else arguments.center,
    )  # fmt: skip


def _check_everything(arguments: argparse.Namespace) -> None:
    """Refuse flags that have no meaning in everything mode."""
    given = {
        "--refine": arguments.refine, "--refine-point": arguments.refine_point != "random",
        "--box-noise": arguments.box_noise, "--priors": arguments.priors != "off",
        "--num-masks": arguments.num_masks != 1, "--center": arguments.center,
        "--max-instances": arguments.max_instances, "--protocol": arguments.protocol != "exact",
    }  # fmt: skip
    if flags := [flag for flag, value in given.items() if value]:
        raise UsageError(
            f"--prompt everything: has no prompts from annotations, and scores all instances exactly; remove"
            f" {', '.join(flags)}"
        )


def _generation(arguments: argparse.Namespace) -> Generation | None:
    """The options of everything mode; None with another prompt."""
    from edgesam_jax.eval.scoring.everything import Generation

    options = {
        "points_per_side": arguments.points_per_side, "pred_iou_thresh": arguments.pred_iou_thresh,
        "stability_score_thresh": arguments.stability_score_thresh, "coarse_to_fine": arguments.coarse_to_fine or None,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if given and arguments.prompt != "everything":
        raise UsageError(f"{names}: only valid with --prompt everything")
    if given and arguments.predictions and not arguments.checkpoint and not arguments.onnx:
        raise UsageError(f"{names}: files of masks have no such option; add --checkpoint or --onnx, or remove it")
    return Generation(**given) if arguments.prompt == "everything" else None


def _systems(
    arguments: argparse.Namespace,
    settings: Settings,
    generation: Generation | None,
    predictions: Callable[[Path], System | EverythingSystem],
) -> list[System | EverythingSystem]:
    """The systems to score, in the order of the flags; ``predictions`` makes a system of a file of masks."""
    import jax

    from edgesam_jax.checkpoints.load import TINY_TEACHER, load_model
    from edgesam_jax.eval.scoring.everything import GeneratorSystem
    from edgesam_jax.eval.scoring.systems import JaxSystem, OnnxSystem

    selection, priors = (settings.num_masks, settings.select), settings.priors != "off"
    systems: list[System | EverythingSystem] = []
    checkpoints = arguments.checkpoint or ([] if arguments.onnx or arguments.predictions else [TINY_TEACHER])
    for path in checkpoints:
        name, model = Path(path).name or path, load_model(path)
        if generation is not None:
            systems.append(GeneratorSystem.of_model(name, model, generation, jax.local_devices()))
        else:
            systems.append(JaxSystem(name, model, *selection, jax.local_devices(), priors))
    for encoder, decoder in arguments.onnx:
        if generation is not None:
            systems.append(GeneratorSystem.of_pair(Path(encoder), Path(decoder), generation))
            continue
        pair = OnnxSystem(Path(encoder), Path(decoder), *selection, priors)
        if settings.resize == "torch" and not pair.takes_float:
            raise UsageError(
                f"--protocol published: {encoder} takes pixels in uint8, and this protocol doesn't round resized"
                " photos; export the encoder without --image-input, or use --protocol exact"
            )
        systems.append(pair)
    systems += [predictions(Path(path)) for path in arguments.predictions]
    names = Counter(system.name for system in systems)
    for number, system in enumerate(systems):
        if names[system.name] > 1:
            system.name = f"{system.name}#{number + 1}"
    return systems


# ----------------------------------------------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run an evaluation.

    Returns:
      A report for each system; systems whose other parts are missing are omitted.

    Raises:
      UsageError: an invalid argument, data set or system.
    """
    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.is_dir():
        raise UsageError(f"--output {output}: is a folder; pass a file name for the report")
    if arguments.part[1] > 1 and output is None:
        raise UsageError("--part: pass --output, in a folder that all hosts share")
    settings, generation = _settings(arguments), _generation(arguments)

    from edgesam_jax.cli import compile_cache
    from edgesam_jax.data.readers.ranged import pixel_note
    from edgesam_jax.eval.job import Job, count_compilations

    compile_cache.enable()
    compiled = count_compilations()
    job = Job(
        settings, arguments.dataset, arguments.data_root, arguments.prompt,
        detections_file=Path(arguments.detections) if arguments.detections else None, part=arguments.part,
        at_once=arguments.batch_size, boundary=not arguments.no_boundary and generation is None,
    )  # fmt: skip
    if arguments.dataset == "scenes":  # the model comes first, because scenes are drawn at its image size
        systems = _systems(arguments, settings, generation, job.predictions)
        job.open(_source(arguments, systems[0].image_size))
    else:
        job.open(_source(arguments, 0))
        systems = _systems(arguments, settings, generation, job.predictions)
    if note := pixel_note(job.source):
        print_note(note)
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
