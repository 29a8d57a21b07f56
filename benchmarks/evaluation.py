"""The evaluation against a straightforward loop over our torch model: instances per second, and time by stage.

    python -m benchmarks.evaluation [--instances 20] [--photos 3] [--refine 0] [--rounds 3]

RepViT-M1 at 1024 px, photos of 640x480 with rectangles as annotations, box prompts.  The loop is the usual one: encode
the photo, then for each instance and round decode its prompt, upscale the mask as SAM's predictor does, compare it with
the annotation, and draw the next point from the wrong pixels.  The contenders take turns in each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks import timing
from convert.to_torch import state_dict
from convert.torch_twin.model import TorchSam
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.data.threads import in_threads
from edgesam_jax.eval.scoring import protocol
from edgesam_jax.eval.scoring.photos import Photo, from_example
from edgesam_jax.eval.scoring.prompted import score_photo
from edgesam_jax.eval.scoring.protocol import HEAD, Settings
from edgesam_jax.eval.scoring.systems import JaxSystem
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import MODELS
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD, into_frame, target_size

SIZE = (480, 640)


def make_photo(instances: int, seed: int) -> Photo:
    """A photo of noise with rectangles as instances."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((instances, *SIZE), bool)
    for mask in masks:
        y, x = rng.integers(0, SIZE[0] - 20), rng.integers(0, SIZE[1] - 20)
        mask[y : y + rng.integers(20, 200), x : x + rng.integers(20, 200)] = True
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    ids = np.arange(instances)
    points = np.zeros((instances, 2), np.float32)
    return from_example(Example(image, masks, boxes_of(masks), points, seed, ids, np.zeros(instances, np.int8)), seed)


@torch.no_grad()
def torch_loop(model: TorchSam, photo: Photo, settings: Settings) -> np.ndarray:
    """Overlaps (n 1+refine) of one photo, computed one instance at a time."""
    size = MODELS["edge_sam"].image_size
    frame = target_size(*photo.size, size)
    image, _ = into_frame(photo.image, size)
    x = (torch.from_numpy(image).permute(2, 0, 1).float() - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(
        PIXEL_STD
    )[:, None, None]
    x[:, frame[0] :] = 0
    x[:, :, frame[1] :] = 0
    embedding = model.encode_image(x[None])
    start = protocol.start(photo, frame, settings)
    truth = protocol.truth(photo, frame, size, size // 4, "exact")
    cells = protocol.photo_cells(frame, size, size // 4, "exact")
    iou = np.zeros((len(photo), 1 + settings.refine))
    for i in range(len(photo)):
        mask = np.zeros(photo.size, bool)
        photo.masks[i].paste(mask)
        for number in range(1 + settings.refine):
            used = start.valid[i]
            coords, labels = (
                torch.from_numpy(start.coords[i][used])[None],
                torch.from_numpy(start.labels[i][used])[None],
            )
            logits, _, _ = model.decode_tokens(embedding, coords, labels, num_masks=1)
            framed = functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
            full = functional.interpolate(
                framed[..., : frame[0], : frame[1]], photo.size, mode="bilinear", align_corners=False
            )
            prediction = (full[0, 0] > 0).numpy()
            iou[i, number] = (prediction & mask).sum() / (prediction | mask).sum()
            if number < settings.refine:
                low = (logits[0, 0] > 0).numpy()
                seeds = [settings.seed, number, *photo.stream(i)]
                point = protocol.random_point(low, truth.low[i], cells, seeds, 4.0, "exact")
                if point is not None:
                    start.put(i, HEAD + number, *point)
    return iou


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=20, help="instances per photo")
    parser.add_argument("--photos", type=int, default=3, help="photos per round")
    parser.add_argument("--refine", type=int, default=0, help="refinement points per instance")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, of which the median is reported")
    arguments = parser.parse_args()
    config = MODELS["edge_sam"]
    model = Model(config, jax.device_get(init_variables(config, 0)))
    twin = TorchSam(config).eval()
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state_dict(model).items()})
    system, settings = JaxSystem("jax", model), Settings("box", arguments.refine)
    photos = [make_photo(arguments.instances, seed) for seed in range(arguments.photos)]
    rate, bandwidth = timing.machine()
    print(f"current machine: {rate / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.0f} GB/s, {timing.cores()} cores")
    decodes = arguments.instances * (1 + arguments.refine)
    floor = (40e9 + decodes * 1.8e9) / rate  # encoder; decoder with our order of operations (docs/performance.md)
    print(f"lower bound from matrix products: {floor / arguments.instances * 1e3:.0f} ms per instance")
    jax_iou = score_photo(system, photos[0], settings).iou  # compiles
    torch_iou = torch_loop(twin, photos[0], settings)
    print(f"IoUs of the first prompts agree to within {np.abs(jax_iou[:, 0] - torch_iou[:, 0]).max():.1e}")
    times: dict[str, list[float]] = {"torch loop": [], "evaluation": []}
    stages: Counter[str] = Counter()
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        for photo in photos:
            torch_loop(twin, photo, settings)
        middle = time.perf_counter()
        for scored in in_threads(lambda photo: score_photo(system, photo, settings), photos, 2, 2, "scoring"):
            stages.update(scored.seconds)
        end = time.perf_counter()
        times["torch loop"].append(middle - began)
        times["evaluation"].append(end - middle)
    count = arguments.instances * arguments.photos
    for name, values in times.items():
        print(f"{name}: {count / statistics.median(values):.1f} instances/s")
    ratios = [a / b for a, b in zip(times["torch loop"], times["evaluation"], strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    total = sum(stages.values())
    print("stages: " + ", ".join(f"{stage} {100 * value / total:.0f} %" for stage, value in stages.most_common()))


if __name__ == "__main__":
    main()
