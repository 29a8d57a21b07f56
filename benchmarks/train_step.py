"""One full-size training step of RepViT-M1 against torch autograd on our torch model.

    python -m benchmarks.train_step --stage 1|2 [--rounds 5] [--chunk 2] [--size 1024] [--jax-python PYTHON]

Stage 1: forward pass, feature loss, backward pass and AdamW for the encoder, with 1 image.  Stage 2: 1 image and 16
prompts, one loop (two decode rounds of student and teacher, with new points where they differ) and precomputed teacher
embeddings, as in the published recipe.  Each contender runs in a separate process, which gives it its own peak memory.
They take turns step by step, so that other load on the machine affects both.  ``--jax-python`` is the interpreter for
our side if torch isn't available for the JAX environment.
Prints the lower bound first: the work of the forward pass, times three.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np

from benchmarks import timing
from edgesam_jax.cli import allocator
from edgesam_jax.config import Config, DataConfig, DistillConfig, OptimConfig, TrainConfig
from edgesam_jax.learning.device_step import make_train_step
from edgesam_jax.models.sam import MODELS

ENCODER_GFLOP, PROMPT_GFLOP = 40.1, 3.5  # forward; decoder with the published order of operations (docs/performance.md)
PROMPTS = 16
PAUSE = 0.5  # seconds between turns, for the other side's spinning threads to go to sleep


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
    """A function that runs our step, built by the same function as in training."""
    import jax
    import jax.numpy as jnp

    from edgesam_jax.learning.optim import make_optimizer
    from edgesam_jax.models.init import init_variables
    from edgesam_jax.train import parallel
    from edgesam_jax.types import Batch, TrainState

    model = replace(MODELS["edge_sam"], image_size=size)
    config = Config(
        model=model,
        data=DataConfig(batch_size=1),
        distill=DistillConfig(mode="encoder_only" if stage == 1 else "prompt_in_the_loop", start="box"),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(prompt_chunk=chunk),
    )
    inputs = arrays(size)
    batch = Batch(
        image=inputs["image"],
        valid_size=np.array([[size, size]], np.int32),
        boxes=inputs["boxes"],
        points=inputs["boxes"][..., :2],
        prompt_valid=np.ones((1, PROMPTS), bool),
        teacher_embedding=inputs["embedding"],
    )
    devices = parallel.request_devices(1)
    variables = init_variables(model, 0)
    teacher = init_variables(model, 1)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=tx.init(variables["params"]), **variables)
    step = make_train_step(config, model, tx, devices)
    state, teacher, key = parallel.replicate((state, teacher, jax.random.key(0)), devices)
    batch = parallel.shard_batch(batch, devices)
    current = [state]

    def run() -> float:
        current[0], metrics = step(current[0], teacher, batch, key)
        return float(metrics["loss"])

    return run


def torch_step(stage: int, size: int, chunk: int) -> Callable[[], float]:
    """A function that runs the same step in eager torch."""
    import torch
    import torch.nn.functional as F

    from convert.torch_twin.model import TorchSam

    del chunk
    torch.manual_seed(0)
    torch.set_num_threads(timing.cores())
    model = replace(MODELS["edge_sam"], image_size=size)
    student, teacher = TorchSam(model).train(), TorchSam(model).eval().requires_grad_(False)
    student.prompt_encoder.requires_grad_(False)
    inputs = arrays(size)
    pixels = torch.from_numpy(inputs["image"]).float().permute(0, 3, 1, 2)
    image = (pixels - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / torch.tensor([58.4, 57.1, 57.4])[
        :, None, None
    ]
    target = torch.from_numpy(inputs["embedding"]).permute(0, 3, 1, 2).contiguous()
    corners = torch.from_numpy(inputs["boxes"][0]).view(PROMPTS, 2, 2)
    parameters = list((student.image_encoder if stage == 1 else student).parameters())
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-4)

    def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = logits.sigmoid()
        dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)
        return 5 * F.binary_cross_entropy_with_logits(logits, target) + 5 * dice.mean()

    def run() -> float:
        embedding = student.encode_image(image)
        if stage == 1:
            loss = (embedding - target).square().mean()
        else:
            coords, labels = corners, torch.tensor([2, 3]).expand(PROMPTS, 2)
            loss = torch.zeros(())
            for _ in range(2):
                logits = student.decode_tokens(embedding, coords, labels)[0]
                with torch.no_grad():
                    masks = teacher.decode_tokens(target, coords, labels)[0] > 0
                loss = loss + mask_loss(logits[:, :1], masks[:, :1].float()) / 2
                differ = ((logits[:, 0] > 0) != masks[:, 0]).flatten(1).float() + 1e-9
                index = torch.multinomial(differ, 1)
                side = logits.shape[-1]
                point = torch.cat([index % side, index // side], 1).float()[:, None] * 4 + 1.5
                coords = torch.cat([coords, point], 1)
                labels = torch.cat([labels, masks[:, 0].flatten(1).gather(1, index).long()], 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return run


def contend(run: Callable[[], float]) -> None:
    """Run a step, then one per line of standard input; prints the seconds of each, and finally peak memory in GB."""

    def timed() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    print(timed(), flush=True)
    for _ in sys.stdin:
        print(timed(), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--chunk", type=int, default=2, help="train.prompt_chunk of our step")
    parser.add_argument("--size", type=int, default=1024, help="image size in pixels")
    parser.add_argument("--jax-python", default=sys.executable, metavar="PYTHON", help="interpreter for our side")
    parser.add_argument("--contender", choices=("jax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        contend((jax_step if args.contender == "jax" else torch_step)(args.stage, args.size, args.chunk))
        return
    share = (args.size / 1024) ** 2
    decode = 0 if args.stage == 1 else PROMPTS * 2 * PROMPT_GFLOP * (3 + 1)
    work = share * (3 * ENCODER_GFLOP + decode)
    print(f"lower bound: {work:.0f} GFLOP (forward pass times three, the teacher's decoder once)")
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, python in (("torch", sys.executable), ("jax", args.jax_python)):
            command = [python, "-m", "benchmarks.train_step", *sys.argv[1:], "--contender", name]
            # The same setting as in the train command.
            environment = os.environ | (allocator.settings() if name == "jax" else {})
            process = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            processes[name] = stack.enter_context(process)
            print(f"{name:6s} first step {answer(process):.1f} s", flush=True)
        times: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(args.rounds):
            for name, process in processes.items():
                assert process.stdin
                time.sleep(PAUSE)
                process.stdin.write("\n")
                process.stdin.flush()
                times[name].append(answer(process))
        peaks = {}
        for name, process in processes.items():
            assert process.stdin
            process.stdin.close()
            peaks[name] = answer(process)
            print(
                f"{name:6s} median {median(times[name]):.2f} s, best {min(times[name]):.2f}, peak {peaks[name]:.2f} GB"
            )
    ratios = [a / b for a, b in zip(times["jax"], times["torch"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"jax / torch: time {median(ratios):.2f} ({spread}), memory {peaks['jax'] / peaks['torch']:.2f}")


def answer(process: subprocess.Popen[str]) -> float:
    """The next number that a contender prints."""
    assert process.stdout
    return float(process.stdout.readline())


if __name__ == "__main__":
    main()
