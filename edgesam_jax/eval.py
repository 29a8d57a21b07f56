"""``python -m edgesam_jax.eval``: mIoU of box and point prompts on annotated photos, with refinement points.

Exit codes: 0 done, 2 wrong usage or input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.flags import Parser

if TYPE_CHECKING:
    from edgesam_jax.data.schema import Example
    from edgesam_jax.data.sources import Source

DATASETS = {"coco": "coco", "lvis": "coco", "sa1b": "images", "folder": "images", "scenes": "scenes"}
SCENES = 200  # held-out scenes, where --limit does not say
AHEAD = 2  # photos read while the device works


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m edgesam_jax.eval", description="Score a model on annotated photos.")
    parser.add_argument("--checkpoint", default="tiny_teacher", help="folder or file; default: the embedded tiny model")
    parser.add_argument(
        "--dataset", choices=sorted(DATASETS), required=True, help="folder: photos, each with SA-1B's JSON beside it"
    )
    parser.add_argument("--data-root", default="", help="folder of the photos (not for scenes)")
    parser.add_argument("--annotations", default="", help="COCO-format JSON; default: the one under --data-root")
    parser.add_argument("--prompt", choices=("box", "center", "point", "detections"), required=True)
    parser.add_argument("--detections", help="results JSON of a detector, for --prompt detections")
    parser.add_argument("--refine", type=_count, default=0, metavar="N", help="points added one after another")
    parser.add_argument("--limit", type=_count, default=0, metavar="N", help="the first N photos; 0: all")
    parser.add_argument("--ids", default="", metavar="FILE", help="the photos of this list, one a line; default: all")
    parser.add_argument("--protocol", choices=("exact", "published"), default="exact")
    parser.add_argument("--seed", type=_count, default=0, help="of the refinement points")
    parser.add_argument("--batch-size", type=_count, default=4, help="photos at a time: speed only, not the result")
    parser.add_argument("--output", default="", metavar="report.json", help="where the report goes")
    return parser


def _source(arguments: argparse.Namespace, image_size: int) -> Source:
    from edgesam_jax.data.sources import left_out, open_source

    kind = DATASETS[arguments.dataset]
    if kind != "scenes" and not arguments.data_root:
        raise UsageError(f"--dataset {arguments.dataset}: give --data-root, the folder of its photos")
    data = DataConfig(
        source=kind,  # type: ignore[arg-type]
        root=arguments.data_root,
        annotations=arguments.annotations,
        limit=arguments.limit or (SCENES if kind == "scenes" else 0),
        ids=arguments.ids,
    )
    source = open_source(data, image_size, "heldout")
    if (found := left_out(source)).rows:
        print(f"note: {found.note}", file=sys.stderr)
    return source


def _examples(source: Source) -> Iterator[Example]:
    """All examples in order, the next ones read by a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Example]] = deque()
        for index in range(len(source)):
            waiting.append(pool.submit(source.load, index))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line says; returns the report.

    Raises:
      UsageError: anything wrong with the arguments, the data or the checkpoint.
    """
    if arguments.prompt == "detections" or arguments.detections:
        raise UsageError("--prompt detections: not supported yet; use box, center or point")
    if arguments.protocol == "published":
        raise UsageError("--protocol published: not supported yet; use exact")
    if not arguments.batch_size:
        raise UsageError("--batch-size: must be at least 1")
    if arguments.output and Path(arguments.output).is_dir():
        raise UsageError(f"--output {arguments.output}: is a folder; name the report's file")

    from tqdm import tqdm

    from edgesam_jax import compile_cache
    from edgesam_jax.checkpoint import load_model
    from edgesam_jax.evaluation import evaluate

    compile_cache.enable()
    model = load_model(arguments.checkpoint)
    source = _source(arguments, model.config.image_size)
    with tqdm(total=len(source), unit="photo", desc=f"{arguments.prompt} on {arguments.dataset}") as bar:
        result = evaluate(
            model.config,
            model.variables,
            _examples(source),
            prompt=arguments.prompt,
            refine=arguments.refine,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            on_image=bar.update,
        )
    if not len(result.iou):
        raise UsageError(f"--data-root {arguments.data_root}: no photo there has annotations")
    instances = zip(result.image_ids, result.annotation_ids, result.iou, strict=True)
    report = {
        "dataset": arguments.dataset,
        "data_root": arguments.data_root,
        "prompt": arguments.prompt,
        "checkpoint": str(arguments.checkpoint),
        "protocol": arguments.protocol,
        "seed": arguments.seed,
        "num_images": result.num_images,
        "num_instances": len(result.iou),
        "miou": result.miou,
        "seconds": round(result.seconds, 3),
        "instances": [
            # NaN (an empty mask of an empty annotation) is no JSON
            {"image_id": image, "annotation_id": annotation, "iou": [None if v != v else float(v) for v in iou]}
            for image, annotation, iou in instances
        ],
    }
    if arguments.output:
        _write(Path(arguments.output), report)
    return report


def _write(path: Path, report: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(report, indent=1))
        beside.replace(path)
    except OSError as error:
        raise UsageError(f"--output {path}: cannot write there ({error.strerror})") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        report = run(_parser().parse_args(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [report["prompt"], *(f"+{i}" for i in range(1, len(report["miou"])))]
    print(
        "  ".join(f"{name} {100 * value:.2f}" for name, value in zip(names, report["miou"], strict=True)), "mIoU in %"
    )
    print(f"{report['num_instances']} instances on {report['num_images']} photos, {report['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
