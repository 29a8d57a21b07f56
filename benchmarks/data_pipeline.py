"""Throughput of the entire data pipeline against decoding and resizing alone, in photos per second and core.

    python -m benchmarks.data_pipeline --source coco --data-root DATA/coco [--annotations FILE] [--rounds 7]
    python -m benchmarks.data_pipeline --source images|tars|prepared --data-root DATA

The pipeline is everything a worker does for a batch: reading, decoding, masks, prompts, the padded frame, stacking.
The limits only convert JPEG bytes in memory to pixels of the frame's size, one limit for each installed library
(Pillow, optionally simplejpeg, OpenCV and torch); the table also shows how far their pixels are from the pipeline's.
Pillow may be pillow-simd.  Every contender uses one thread.  Contenders take turns and are measured in processor time,
so that other work disturbs little.  Goal: 0.8 of the fastest limit that has the pipeline's pixels.
"""

from __future__ import annotations

import argparse
import importlib
import io
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import PIL
from PIL import Image

from edgesam_jax.config import DataConfig, SamConfig
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.pipeline import BatchSource
from edgesam_jax.data.readers.records import Record
from edgesam_jax.data.schema import Example
from edgesam_jax.data.source import Keep, Part
from edgesam_jax.models.sam import MODELS
from edgesam_jax.portable.frame import target_size

EPOCH = 110_000  # photos in 1 % of SA-1B; per photo, shuffling a handful takes longer than shuffling many
Decoder = Callable[[bytes], Any]


class Repeated:
    """A few photos, repeated to a data set of realistic length."""

    annotated = true_masks = True

    def __init__(self, source: Any, photos: int) -> None:
        self._source, self._photos = source, min(photos or len(source), len(source))

    def __len__(self) -> int:
        return EPOCH // self._photos * self._photos

    def record(self, index: int) -> Record:
        """Read a photo's file and annotations; see ``records.Record``."""
        return self._source.record(index % self._photos)

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return self._source.load(index % self._photos, keep)


def limits(size: int) -> dict[str, Decoder]:
    """Return the functions from JPEG bytes to resized pixels, for the libraries installed."""

    def target(height: int, width: int) -> tuple[int, int]:
        return target_size(height, width, size)[::-1]

    def with_pillow(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize(target(image.height, image.width), Image.Resampling.BILINEAR))

    def opened(photo: bytes, draft: bool = False) -> Image.Image:
        image = Image.open(io.BytesIO(photo))
        size = target(image.height, image.width)
        if draft:
            image.draft("RGB", size)
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return rgb.resize(size, Image.Resampling.BILINEAR)

    decoders: dict[str, Decoder] = {
        "Pillow": lambda photo: np.asarray(opened(photo)),
        "Pillow, reduced decoding": lambda photo: np.asarray(opened(photo, draft=True)),
    }
    modules: dict[str, Any] = {}
    for name in ("simplejpeg", "cv2", "torch"):
        try:
            modules[name] = importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed: skipped")
    if "cv2" in modules:
        cv2 = modules["cv2"]
        cv2.setNumThreads(1)

        def with_opencv(photo: bytes, flag: int, filter_: int) -> np.ndarray:
            image = cv2.imdecode(np.frombuffer(photo, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
            resized = cv2.resize(image, target(*image.shape[:2]), interpolation=filter_)
            return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB, resized)

        decoders["OpenCV, no antialiasing"] = lambda p: with_opencv(p, cv2.IMREAD_COLOR, cv2.INTER_LINEAR)
        decoders["OpenCV, areas"] = lambda p: with_opencv(p, cv2.IMREAD_COLOR, cv2.INTER_AREA)
        decoders["OpenCV, reduced decoding"] = lambda p: with_opencv(p, cv2.IMREAD_REDUCED_COLOR_2, cv2.INTER_LINEAR)
    if "simplejpeg" in modules:
        decode = modules["simplejpeg"].decode_jpeg
        decoders["simplejpeg, then Pillow"] = lambda photo: with_pillow(Image.fromarray(decode(photo)))
        if "torch" in modules:
            torch = modules["torch"]
            torch.set_num_threads(1)

            def with_torch(photo: bytes) -> np.ndarray:
                pixels = torch.from_numpy(decode(photo)).permute(2, 0, 1)[None]
                rows_columns = target(*pixels.shape[2:])[::-1]
                resized = torch.nn.functional.interpolate(pixels, rows_columns, mode="bilinear", antialias=True)
                return resized[0].permute(1, 2, 0).numpy()

            decoders["simplejpeg, then torch"] = with_torch
    return decoders


def processor_seconds(run: Callable[[], object]) -> float:
    """Return the processor time that a call takes."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def differences(frames: list[np.ndarray], photos: list[bytes], decode: Decoder) -> tuple[int, float]:
    """Compare a decoder's pixels with the pipeline's frames: largest difference, and fraction of values that differ."""
    largest, differing, total = 0, 0, 0
    for frame, photo in zip(frames, photos, strict=True):
        pixels = decode(photo)
        change = np.abs(frame[: pixels.shape[0], : pixels.shape[1]].astype(np.int16) - pixels)
        largest, differing, total = (
            max(largest, int(change.max())),
            differing + int((change > 0).sum()),
            total + change.size,
        )
    return largest, differing / total


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", choices=["coco", "images", "tars", "prepared"], required=True, help="kind of the data set"
    )
    parser.add_argument("--data-root", required=True, help="folder of the data set")
    parser.add_argument("--annotations", default="", help="coco: the JSON file; default: the only one in --data-root")
    parser.add_argument("--embeddings", nargs="*", default=(), help="stores to read the teacher's embeddings from")
    parser.add_argument("--max-prompts", type=int, default=16, help="prompts per photo")
    parser.add_argument("--photos", type=int, default=32, help="number of photos, from the first; 0 uses all")
    parser.add_argument("--rounds", type=int, default=7, help="number of measurements of each contender")
    args = parser.parse_args()

    model: SamConfig = MODELS["edge_sam"]
    data = DataConfig(
        source=args.source, root=args.data_root, annotations=args.annotations, batch_size=1,
        max_prompts=args.max_prompts, embeddings=tuple(args.embeddings),
    )  # fmt: skip
    source: Any = open_source(data, model.image_size)
    repeated = Repeated(source, args.photos)
    records = [repeated.record(i) for i in range(min(args.photos or len(source), len(source)))]
    photos = [record.photo for record in records]
    steps = BatchSource(data, model, [Part(repeated)])
    # In the order of the photos, to compare pixels.
    frames = BatchSource(replace(data, shuffle=False), model, [Part(repeated)])
    expected = [frames[i].arrays["image"][0] for i in range(len(photos))]
    prompts = float(np.mean([frames[i].arrays["prompt_valid"].sum() for i in range(len(photos))]))
    size = sum(map(len, photos)) / len(photos)
    print(f"{len(photos)} photos of {size / 1e6:.2f} MB, {prompts:.1f} prompts each; Pillow {PIL.__version__}")

    decoders = limits(model.image_size)
    contenders: dict[str, Callable[[int], object]] = {
        name: (lambda _, decode=decode: [decode(photo) for photo in photos]) for name, decode in decoders.items()
    }  # type: ignore[misc]
    contenders["pipeline"] = lambda turn: [steps[turn * len(photos) + i] for i in range(len(photos))]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(0)
    for turn in range(1, args.rounds + 1):
        for name, run in contenders.items():
            times[name].append(processor_seconds(lambda run=run, turn=turn: run(turn)) / len(photos))  # type: ignore[misc]

    heading = f"{'processor time of one photo':30s} {'ms':>7s} {'1/s':>7s} {'ratio':>6s} {'(range)':>14s}"
    print(f"{heading}  pixel values that differ: by at most, fraction")
    for name in sorted(contenders, key=lambda n: median(times[n])):
        ratios = [limit / pipeline for limit, pipeline in zip(times[name], times["pipeline"], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        note = "" if name == "pipeline" else "  {}, {:.1e}".format(*differences(expected, photos, decoders[name]))
        seconds = median(times[name])
        print(
            f"{name:30s} {seconds * 1e3:7.2f} {1 / seconds:7.1f} {median(ratios):6.2f} {spread:>14s}{note}", flush=True
        )


if __name__ == "__main__":
    main()
