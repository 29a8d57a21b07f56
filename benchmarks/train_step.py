"""One training step of RepViT-M1 at full size against torch autograd on our torch model.

    python -m benchmarks.train_step --stage 1|2 [--rounds 3] [--chunk 4] [--size 1024]

Stage 1: forward, feature loss, backward and AdamW of the encoder, 1 image.  Stage 2: 1 image, 16 prompts, one loop (two
decode rounds of student and teacher, new points where they differ), the teacher's embedding given, as in the published
recipe.  Each contender runs in a process of its own, so that its peak memory is its own; they do not take
turns, so the figure wants an otherwise idle machine.
Prints the floor first: the work of the forward pass, three times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks import timing
from edgesam_jax import allocator
from edgesam_jax.config import Config, DataConfig, DistillConfig, OptimConfig, TrainConfig
from edgesam_jax.models.sam import MODELS

ENCODER_GFLOP, PROMPT_GFLOP = 40.1, 3.5  # forward; the decoder's published order of operations (docs/performance.md)
PROMPTS = 16


def arrays(size: int) -> dict[str, np.ndarray]:
    """A batch of one image with boxes, and the teacher's embedding."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, size * 0.6, (1, PROMPTS, 2))
    return {
        "image": rng.integers(0, 256, (1, size, size, 3), np.uint8),
        "boxes": np.concatenate([low, low + size * 0.3], -1).astype(np.float32),
        "embedding": rng.standard_normal((1, size // 16, size // 16, 256)).astype(np.float32),
    }


def jax_step(stage: int, size: int, chunk: int) -> Callable[[], float]:
    """Our own step, through the same function that training calls."""
    import jax
    import jax.numpy as jnp

    from edgesam_jax import parallel
    from edgesam_jax.models.init import init_variables
    from edgesam_jax.optim import make_optimizer
    from edgesam_jax.types import Batch, TrainState

    model = replace(MODELS["edge_sam"], image_size=size)
    config = Config(
        model=model,
        data=DataConfig(batch_size=1),
        distill=DistillConfig(mode="encoder_only" if stage == 1 else "prompt_in_the_loop", start="box"),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(prompt_chunk=chunk),
    )
    given = arrays(size)
    batch = Batch(
        image=given["image"],
        valid_size=np.array([[size, size]], np.int32),
        boxes=given["boxes"],
        points=given["boxes"][..., :2],
        prompt_valid=np.ones((1, PROMPTS), bool),
        teacher_embedding=given["embedding"],
    )
    devices = parallel.request_devices(1)
    variables = init_variables(model, 0)
    teacher = init_variables(model, 1)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    step = parallel.make_train_step(config, model, tx, devices)
    state, teacher, key = parallel.replicate((state, teacher, jax.random.key(0)), devices)
    batch = parallel.shard_batch(batch, devices)
    held = [state]

    def run() -> float:
        held[0], metrics = step(held[0], teacher, batch, key)
        return float(metrics["loss"])

    return run


def torch_step(stage: int, size: int, chunk: int) -> Callable[[], float]:
    """The same work in eager torch."""
    import torch
    import torch.nn.functional as F

    from convert.torch_model import TorchSam

    del chunk
    torch.manual_seed(0)
    torch.set_num_threads(timing.cores())
    model = replace(MODELS["edge_sam"], image_size=size)
    student, teacher = TorchSam(model).train(), TorchSam(model).eval().requires_grad_(False)
    student.prompt_encoder.requires_grad_(False)
    given = arrays(size)
    pixels = torch.from_numpy(given["image"]).float().permute(0, 3, 1, 2)
    image = (pixels - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / torch.tensor([58.4, 57.1, 57.4])[
        :, None, None
    ]
    target = torch.from_numpy(given["embedding"]).permute(0, 3, 1, 2).contiguous()
    corners = torch.from_numpy(given["boxes"][0]).view(PROMPTS, 2, 2)
    learning = list((student.image_encoder if stage == 1 else student).parameters())
    optimizer = torch.optim.AdamW([p for p in learning if p.requires_grad], lr=1e-4)

    def masks(logits: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
        p = logits.sigmoid()
        dice = 1 - (2 * (p * want).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + want.sum((-2, -1)) + 1)
        return 5 * F.binary_cross_entropy_with_logits(logits, want) + 5 * dice.mean()

    def run() -> float:
        embedding = student.encode_image(image)
        if stage == 1:
            loss = (embedding - target).square().mean()
        else:
            coords, labels = corners, torch.tensor([2, 3]).expand(PROMPTS, 2)
            loss = torch.zeros(())
            for _ in range(2):
                own = student.decode_tokens(embedding, coords, labels)[0]
                with torch.no_grad():
                    want = teacher.decode_tokens(target, coords, labels)[0] > 0
                loss = loss + masks(own[:, :1], want[:, :1].float()) / 2
                differ = ((own[:, 0] > 0) != want[:, 0]).flatten(1).float() + 1e-9
                index = torch.multinomial(differ, 1)
                side = own.shape[-1]
                point = torch.cat([index % side, index // side], 1).float()[:, None] * 4 + 1.5
                coords = torch.cat([coords, point], 1)
                labels = torch.cat([labels, want[:, 0].flatten(1).gather(1, index).long()], 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--contender", choices=("jax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        run = (jax_step if args.contender == "jax" else torch_step)(args.stage, args.size, args.chunk)
        begin = time.perf_counter()
        run()
        first, seconds = time.perf_counter() - begin, []
        for _ in range(args.rounds):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"first": first, "median": sorted(seconds)[len(seconds) // 2], "peak_gb": peak}))
        return
    share = (args.size / 1024) ** 2
    decode = 0 if args.stage == 1 else PROMPTS * 2 * PROMPT_GFLOP * (3 + 1)
    print(f"floor: {share * (3 * ENCODER_GFLOP + decode):.0f} GFLOP (forward three times, the teacher's decoder once)")
    results = {}
    for name in ("torch", "jax"):
        command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--contender", name]
        # The train command gives itself the same setting.
        environment = os.environ | (allocator.settings() if name == "jax" else {})
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        results[name] = json.loads(out.strip().splitlines()[-1])
        r = results[name]
        print(
            f"{name:6s} first {r['first']:.1f} s, then median {r['median']:.2f} s, peak {r['peak_gb']:.2f} GB",
            flush=True,
        )
    ours, theirs = results["jax"], results["torch"]
    print(
        f"jax / torch: time {ours['median'] / theirs['median']:.2f}, memory {ours['peak_gb'] / theirs['peak_gb']:.2f}"
    )


if __name__ == "__main__":
    main()
