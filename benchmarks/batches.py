"""Photos per second of ``predict --prompts``, compared with a loop over photos and with encoder and decoder alone.

    python -m benchmarks.batches [--model tiny_teacher | edge_sam | CHECKPOINT] [--photos 16] [--rounds 3] [--torch]
                                 [--image FOLDER --prompts FILE]

Without ``--image``: generated JPEGs of 640x480 pixels with 7 boxes each on average, as COCO has. A name of a model
other than ``tiny_teacher`` means the tests' deterministic weights. The contenders take turns:

- ``command``: the command after loading the model: photos from disk to rows with COCO's run-length codes;
- ``loop``: the same with ``set_image`` and ``predict_prompts``, photo by photo;
- ``torch loop`` (``--torch``): the same with this project's torch model, all boxes of a photo at once;
- ``encoder``, ``decoder``: the compiled functions of ``command`` alone, on data that is ready. Their sum is the floor.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from benchmarks import timing
from benchmarks.models import benchmark_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.photo import load_image
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.portable.prompts import read_prompts
from edgesam_jax.predict import batching, compiled, folder, tiles
from edgesam_jax.predict.photo_prompts import match, read_prompt_file
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.reporting.rows import Rows

GOAL = 1.10  # of the sum of encoder and decoder alone


def make_photos(place: Path, count: int) -> tuple[Path, Path]:
    """Write photos with smooth structure, and JSON lines with 1 to 13 boxes each; return the folder and the file."""
    rng, lines = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(place / f"{number:04}.jpg", quality=90)
        low = rng.uniform(0, 0.6, (int(rng.integers(1, 14)), 2))
        boxes = np.concatenate([low, low + rng.uniform(0.05, 0.4, low.shape)], 1) * (640, 480, 640, 480)
        lines.append(json.dumps({"image": f"{number:04}.jpg", "boxes": boxes.tolist()}))
    (place / "prompts.jsonl").write_text("\n".join(lines))
    return place, place / "prompts.jsonl"


def encode_mask(mask: np.ndarray) -> Any:
    """A mask's run-length code and box."""
    code = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return code, coco.toBbox(code)


class Contenders:
    """The work of a list of photos, done in each way."""

    def __init__(self, model: Model, photos: Path, prompts: Path, limit: int) -> None:
        paths = folder.find_photos(str(photos))
        found, _ = match(read_prompt_file(prompts)[0], paths)
        self.listed = [(paths[number], found[number]) for number in sorted(found)][:limit]
        self.predictor, self.model = Predictor(model), model
        self.variables = compiled.for_inference(model.config, model.variables)
        config, size = model.config, batching.default_batch_size()
        self.batches: list[tuple[np.ndarray, np.ndarray, list[tiles.Tile]]] = []
        for first in range(0, len(self.listed), size):
            frames = np.zeros((size, config.image_size, config.image_size, 3), np.uint8)
            sizes, read = np.zeros((size, 2), np.int32), []
            for i, (path, listed) in enumerate(self.listed[first : first + size]):
                image = load_image(path)
                hw = image.shape[0], image.shape[1]
                frames[i], filled = into_frame(image, config.image_size, config.frame)
                sizes[i] = filled
                boxes = [p.on(hw).box for p in listed.prompts]
                read.append(read_prompts(boxes, None, None, None, hw, filled, config.mask_size))
            self.batches.append((frames, sizes, list(tiles.tiles(read, size, config.mask_size))))
        self.embeddings = [compiled.encoder(config)(self.variables, f, s) for f, s, _ in self.batches]
        self.arguments = argparse.Namespace(
            overlays=False, output="", num_masks=1, fill_holes=0, drop_islands=0, pixel_range="auto"
        )

    @property
    def prompts(self) -> int:
        """The number of prompts."""
        return sum(len(listed.prompts) for _, listed in self.listed)

    def command(self) -> None:
        """The command's own path, with rows in memory."""
        work = [folder.Work(path, listed) for path, listed in self.listed]
        folder.predict_photos(self.predictor, work, Rows(None, {}), self.arguments)

    def loop(self) -> None:
        """Photo by photo."""
        for path, listed in self.listed:
            image = load_image(path)
            self.predictor.set_image(image)
            masks, _, _ = self.predictor.predict_prompts([p.on(image.shape[:2]).box for p in listed.prompts])
            for mask in masks[:, 0]:
                encode_mask(mask)

    def encoder(self) -> None:
        """The encoder on frames that are ready."""
        run = compiled.encoder(self.model.config)
        jax.block_until_ready([run(self.variables, frames, sizes) for frames, sizes, _ in self.batches])

    def decoder(self) -> None:
        """The decoder on embeddings and tiles that are ready."""
        run = tiles.decoder(self.model.config, 1)
        for embedding, (_, _, some) in zip(self.embeddings, self.batches, strict=True):
            jax.block_until_ready([run(self.variables, embedding, *tile.inputs) for tile in some])

    def torch_loop(self) -> Any:
        """A function that does the same with the torch model, as published: resize, encode, decode, upscale, cut."""
        import torch
        import torch.nn.functional as F

        from convert.torch_twin.model import TorchSam
        from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD

        config = self.model.config
        twin = TorchSam(config).eval()
        mean, std = (torch.tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))

        @torch.no_grad()
        def run() -> None:
            for path, listed in self.listed:
                image = load_image(path)
                hw = image.shape[0], image.shape[1]
                frame, (rows, columns) = into_frame(image, config.image_size)
                x = (torch.from_numpy(frame[:rows, :columns].copy()).permute(2, 0, 1).float() - mean) / std
                x = F.pad(x, (0, config.image_size - columns, 0, config.image_size - rows))
                embedding = twin.encode_image(x[None])
                boxes = scale_coords(np.array([p.on(hw).box for p in listed.prompts]), hw, (rows, columns))
                logits, _ = twin.decode(embedding, boxes=torch.from_numpy(boxes), num_masks=1)
                large = F.interpolate(logits, (config.image_size,) * 2, mode="bilinear", align_corners=False)
                full = F.interpolate(large[..., :rows, :columns], hw, mode="bilinear", align_corners=False)
                for mask in (full[:, 0] > 0).numpy():
                    encode_mask(mask)

        return run


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny_teacher")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help="also time the torch model")
    parser.add_argument("--image", default="", help="folder of photos, instead of generated ones")
    parser.add_argument("--prompts", default="", help="their prompts, boxes only")
    arguments = parser.parse_args()
    flops, rate = timing.machine()
    print(f"{timing.cores()} cores, {flops / 1e9:.0f} GFLOP/s, copies at {rate / 1e9:.0f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as place:
        if arguments.image:
            photos, prompts = Path(arguments.image), Path(arguments.prompts)
        else:
            photos, prompts = make_photos(Path(place), arguments.photos)
        work = Contenders(benchmark_model(arguments.model), photos, prompts, arguments.photos)
        count = len(work.listed)
        print(
            f"{arguments.model}: {count} photos, {work.prompts} boxes, {batching.default_batch_size()} photos a batch"
        )
        contenders = {
            "command": work.command, "loop": work.loop, "encoder": work.encoder, "decoder": work.decoder
        }  # fmt: skip
        if arguments.torch:
            contenders["torch loop"] = work.torch_loop()
        times = timing.in_turn(contenders, arguments.rounds)
    timing.report(times, "command")
    for kind, name in ((0, "wall"), (1, "CPU / cores")):
        seconds = {key: median(run[kind] for run in runs) for key, runs in times.items()}
        floor = seconds["encoder"] + seconds["decoder"]
        rates = ", ".join(f"{key} {count / seconds[key]:.2f}" for key in times if key not in ("encoder", "decoder"))
        print(
            f"{name}: photos/s: {rates}; floor (encoder + decoder alone) {count / floor:.2f}; the command takes"
            f" {seconds['command'] / floor:.2f} of the floor (goal {GOAL:.2f})"
        )


if __name__ == "__main__":
    main()
