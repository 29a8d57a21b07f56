"""``python -m edgesam_jax.predict``: predict masks from a photo and prompts.

Each ``--box`` is a separate prompt. All ``--point``s together are one prompt, combined with the box if exactly one is
given. Coordinates are pixels of the photo as displayed (EXIF orientation applied).

With ``--everything`` there are no prompts: the masks of a photo, or of all photos of a folder, come from a grid of
points, as in SAM's automatic mask generator (``predict/everything.py``).

The output folder gets ``predictions.json`` (per prompt and mask: COCO RLE, box, area, score) and ``overlay_I.png`` per
prompt; with ``--save-masks`` also ``mask_I_J.png``, mask J of prompt I as a black and white picture of the photo's
size, and with ``--save-logits`` also ``logits.npz``. Exit codes: 0 success, 2 wrong usage or input.

With ``--prompts``, a file of prompts for many photos, see ``predict/folder.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesam_jax.cli.command import print_note, run_command
from edgesam_jax.cli.flags import Parser, count
from edgesam_jax.config import UsageError
from edgesam_jax.files import staged_files
from edgesam_jax.portable.errors import one_line
from edgesam_jax.portable.priors import RULES
from edgesam_jax.predict.mask_input import read_mask_input

if TYPE_CHECKING:
    from edgesam_jax.predict.predictor import Predictor

Point = tuple[float, float, int]
EVERYTHING: tuple[tuple[str, type, float, str], ...] = (
    ("--points-per-side", int, 32, "points along each side of the grid"),
    ("--pred-iou-thresh", float, 0.88, "drop masks whose score is not above this; 0 keeps all"),
    ("--stability-score-thresh", float, 0.95, "drop masks whose stability score is below this; 0 keeps all"),
    ("--crop-n-layers", int, 0, "also search this many layers of crops"),
    ("--min-mask-region-area", int, 0, "fill holes and drop separate parts of masks of fewer pixels"),
    ("--min-area", int, 0, "drop masks of fewer pixels"),
    ("--max-masks", int, 0, "keep only so many masks of a photo, those of the highest score; 0 keeps all"),
)  # flag, type, default, help
OUTPUT_FILES = r"overlay_\d+\.png|mask_\d+_\d+\.png|predictions\.json|logits\.npz"


class _Parser(Parser):
    """Accepts a value that begins with a minus sign, ``--box -5,0,20,30``, for a better error message later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._negative_number_matcher = re.compile(r"-[\d.,-]+$")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m edgesam_jax.predict", description="Segment the objects marked by boxes or points on a photo."
    )
    parser.add_argument(
        "--checkpoint",
        default="tiny_teacher",
        help="checkpoint folder or file; default: tiny_teacher, the bundled model",
    )
    parser.add_argument(
        "--image", required=True,
        help="the photo; with --everything or --prompts also a folder, a pattern or a list of photos",
    )  # fmt: skip
    parser.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="a prompt; may be repeated")
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y,LABEL", help="label 1 inside, 0 outside; may be repeated"
    )
    parser.add_argument(
        "--mask-input", default="", metavar="FILE", help="logits.npz of an earlier run, which the prompts refine"
    )
    parser.add_argument(
        "--prompts", default="", metavar="FILE",
        help="prompts for many photos: COCO annotations or results, or JSON lines (docs/batches.md)",
    )  # fmt: skip
    parser.add_argument(
        "--annotations", default="", metavar="FILE", help="with results as --prompts: COCO file with the photos' names"
    )
    parser.add_argument("--overlays", action="store_true", help="with --prompts: also write a picture of each photo")
    parser.add_argument(
        "--priors", choices=RULES, default="off",
        help="granularity priors: a single click gets a box from the proposals around it; needs a proposal network",
    )  # fmt: skip
    parser.add_argument("--num-masks", type=int, choices=(1, 3, 4), default=1, help="masks per prompt")
    parser.add_argument("--output", required=True, help="folder for the pictures and predictions.json")
    parser.add_argument("--save-masks", action="store_true", help="also write every mask as a PNG")
    parser.add_argument("--save-logits", action="store_true", help="also write logits.npz")
    parser.add_argument(
        "--fill-holes", type=count, default=0, metavar="N", help="fill holes in masks of fewer than N pixels"
    )
    parser.add_argument(
        "--drop-islands", type=count, default=0, metavar="N",
        help="drop separate parts of masks of fewer than N pixels; the largest part always stays",
    )  # fmt: skip
    parser.add_argument(
        "--pixel-range", default="auto", metavar="LO,HI",
        help="map these pixel values to 0 and 255, for photos of more than 8 bits; default: auto",
    )  # fmt: skip
    everything = parser.add_argument_group("everything mode", "masks of everything, without prompts")
    everything.add_argument("--everything", action="store_true", help="find all objects from a grid of points")
    for flag, kind, default, text in EVERYTHING:
        everything.add_argument(flag, type=kind, default=None, metavar="N", help=f"{text}; default: {default}")
    everything.add_argument(
        "--coarse-to-fine", action="store_true", help="skip points inside the smallest masks of earlier points"
    )
    return parser


def _read_everything(arguments: argparse.Namespace) -> None:
    """Fill in the defaults of everything mode, and refuse flags that don't go with the mode.

    Raises:
      UsageError: a flag of one mode with the other.
    """
    names = {flag: flag[2:].replace("-", "_") for flag, *_ in EVERYTHING}
    if arguments.everything:
        others = (
            "box", "point", "mask_input", "prompts", "annotations", "overlays", "save_masks", "save_logits",
            "fill_holes", "drop_islands",
        )  # fmt: skip
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name)]
        given += ["--num-masks"] if arguments.num_masks != 1 else []
        given += ["--priors"] if arguments.priors != "off" else []
        if given:
            raise UsageError(f"{given[0]} can't be used with --everything; leave one of them out")
        for flag, _, default, _ in EVERYTHING:
            if getattr(arguments, names[flag]) is None:
                setattr(arguments, names[flag], default)
        return
    given = [flag for flag, name in names.items() if getattr(arguments, name) is not None]
    given += ["--coarse-to-fine"] if arguments.coarse_to_fine else []
    if given:
        raise UsageError(f"{given[0]} needs --everything")


def _numbers(flag: str, text: str, count: int) -> list[float]:
    parts = text.split(",")
    try:
        if len(parts) != count:
            raise ValueError
        return [float(part) for part in parts]
    except ValueError:
        raise UsageError(f"{flag} {text}: expected {count} numbers separated by commas") from None


def _prompts(
    boxes: Sequence[str], points: Sequence[str], size: tuple[int, int]
) -> list[tuple[list[float] | None, list[Point]]]:
    """Return (box or None, points) for each prompt, checked against the photo's rows and columns."""
    from edgesam_jax.portable.prompts import check_box, check_point

    if not boxes and not points:
        raise UsageError("no prompt: pass --box X0,Y0,X1,Y1 or --point X,Y,LABEL")
    if len(boxes) > 1 and points:
        raise UsageError("--point can't be used with several --box flags, because each box is a separate prompt")
    read_boxes = [_numbers("--box", text, 4) for text in boxes]
    read_points: list[Point] = []
    for box in read_boxes:
        check_box(box, size, "--box")
    for text in points:
        x, y, label = _numbers("--point", text, 3)
        check_point((x, y), int(label) if label.is_integer() else label, size, "--point")
        read_points.append((x, y, int(label)))
    return [(box, read_points) for box in read_boxes] or [(None, read_points)]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the command; return the content of predictions.json.

    Raises:
      UsageError: invalid arguments, photo or checkpoint.
    """
    from edgesam_jax.data.photo import load_image

    output = Path(arguments.output)
    if os.path.exists(output) and not os.path.isdir(output):  # methods of Path raise for names that are too long
        raise UsageError(f"--output {output}: is a file; choose a folder")
    if os.path.isdir(arguments.image):
        raise UsageError(f"--image {arguments.image}: is a folder; for many photos pass --everything or --prompts FILE")
    notes: list[str] = []
    image = load_image(arguments.image, f"--image {arguments.image}", arguments.pixel_range, notes)
    prompts = _prompts(arguments.box, arguments.point, (image.shape[0], image.shape[1]))

    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.cli import compile_cache
    from edgesam_jax.predict.predictor import Predictor

    compile_cache.enable()
    model = load_model(arguments.checkpoint)
    predictor = Predictor(model, arguments.priors)
    for note in notes:
        print_note(note)
    predictor.set_image(image)
    boxes = None if prompts[0][0] is None else np.asarray([box for box, _ in prompts])
    points = np.asarray([points for _, points in prompts])  # (p n 3), n may be 0
    coords, labels = (points[..., :2], points[..., 2]) if points.size else (None, None)
    mask_inputs = None
    if arguments.mask_input:
        mask_inputs = read_mask_input(Path(arguments.mask_input), len(prompts), predictor.mask_size)
    masks, scores, logits = predictor.predict_prompts(
        boxes, coords, labels, mask_inputs, num_masks=arguments.num_masks, fill_holes=arguments.fill_holes,
        drop_islands=arguments.drop_islands,
    )  # fmt: skip
    report = {
        "image": str(arguments.image),
        "width": image.shape[1],
        "height": image.shape[0],
        "checkpoint": str(arguments.checkpoint),
        "score": model.metadata.get("score", "stability"),
        "prompts": [_entry(i, *prompts[i], masks[i], scores[i], arguments.save_masks) for i in range(len(prompts))],
    }
    if coords is not None and boxes is None and labels is not None and labels.tolist() == [[1]]:
        prior = predictor.prior_boxes(coords[:, 0])[0]
        if not np.isnan(prior).any():
            report["prompts"][0]["prior_box"] = prior.tolist()
    _write(output, image, report, masks, logits, scores, predictor if arguments.save_logits else None)
    return report


def _entry(
    index: int, box: list[float] | None, points: list[Point], masks: Any, scores: Any, saved: bool
) -> dict[str, Any]:
    from pycocotools import mask as coco

    entries = []
    for number, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        entries.append(
            {
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "bbox": [float(v) for v in coco.toBbox(rle)],  # x, y, width, height; all 0 for an empty mask
                "area": int(coco.area(rle)),
                "score": float(score),
                **({"mask": f"mask_{index}_{number}.png"} if saved else {}),
            }
        )
    prompt: dict[str, Any] = {"overlay": f"overlay_{index}.png"}
    if box is not None:
        prompt["box"] = box
    if points:
        prompt["points"] = [list(point) for point in points]
    return {**prompt, "best": int(np.argmax(scores)), "masks": entries}


def _write(
    output: Path,
    image: np.ndarray,
    report: dict[str, Any],
    masks: Any,
    logits: Any,
    scores: Any,
    save: Predictor | None,
) -> None:
    """Write the output files; remove those of an earlier run that this one doesn't replace."""
    from PIL import Image

    from edgesam_jax.reporting import overlay

    try:
        with staged_files(output, obsolete=OUTPUT_FILES) as folder:
            for entry, prompt_masks in zip(report["prompts"], masks, strict=True):
                best = entry["best"]
                text = f"{report['score']} {entry['masks'][best]['score']:.3f}"
                text += f"  mask {best + 1} of {len(prompt_masks)}" if len(prompt_masks) > 1 else ""
                picture = overlay.draw(
                    image, prompt_masks[best], text, entry.get("box", entry.get("prior_box")), entry.get("points", ())
                )
                picture.save(folder / entry["overlay"])
                for mask_entry, mask in zip(entry["masks"], prompt_masks, strict=True):
                    if "mask" in mask_entry:
                        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / mask_entry["mask"])
            if save is not None:
                embedding = np.asarray(save.embedding.values, np.float32)
                arrays = {"low_res_logits": logits, "scores": scores, "image_embedding": embedding, "masks": masks}
                np.savez_compressed(folder / "logits.npz", **arrays)
            (folder / "predictions.json").write_text(json.dumps(report, indent=1))
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write there ({error.strerror})") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        arguments = _parser().parse_args(argv)
        _read_everything(arguments)
        if arguments.everything:
            from edgesam_jax.predict import everything

            return everything.run(arguments)
        if arguments.prompts:
            from edgesam_jax.predict import folder

            for line in folder.lines_of(folder.run(arguments), arguments.output):
                print(one_line(line))
            return 0
        for flag in ("annotations", "overlays"):
            if getattr(arguments, flag):
                raise UsageError(f"--{flag}: goes with --prompts, a file of prompts for many photos")
        report = run(arguments)
        for entry in report["prompts"]:
            best = entry["masks"][entry["best"]]
            picture = Path(arguments.output) / entry["overlay"]
            print(one_line(f"{picture}: {best['area']} pixels, {report['score']} score {best['score']:.3f}"))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
