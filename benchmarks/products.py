"""The matrix products of RepViT-M1's training step on their own: a lower bound on the time of a step.

    python -m benchmarks.products jax|torch [--size 1024] [--rounds 15]

Times each product of the forward pass, of the inputs' gradients and of the kernels' gradients separately, for one
image in float32.  Norms, GELUs, depthwise convolutions, the stem and the optimiser are not included.  A process runs
only one framework, because the idle threads of the other would slow it down.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from edgesam_jax.cli import allocator
from edgesam_jax.models.encoders.repvit import REPVIT_M1, block_table
from edgesam_jax.models.kernels import ops

PARTS = "forward", "inputs' gradients", "kernels' gradients"


class Case(NamedTuple):
    """A dense convolution with stride 1: sides of the square map and kernel, and numbers of channels."""

    side: int
    channels_in: int
    channels_out: int
    kernel: int


def products(size: int) -> Counter[Case]:
    """How often each dense convolution with stride 1 occurs in the encoder."""
    counts: Counter[Case] = Counter()
    side, before = size // 4, REPVIT_M1.widths[0]
    for width, stride, _, _ in block_table(REPVIT_M1):
        if stride:
            side //= stride
            counts[Case(side, before, width, 1)] += 1
        counts[Case(side, width, 2 * width, 1)] += 1
        counts[Case(side, 2 * width, width, 1)] += 1
        before = width
    fine, coarse = size // 16, size // 32
    neck = (fine, REPVIT_M1.widths[2], 256, 1), (coarse, before, 256, 1), (fine, 256, 256, 1), (fine, 256, 256, 3)
    counts.update(Case(*shape) for shape in neck)
    return counts


def jax_runs(case: Case) -> list[Callable[[], object]]:
    """A function for each of PARTS, implemented as in training."""
    x, kernel, g = (jnp.asarray(a) for a in arrays(case))
    convolve = ops.conv if case.kernel > 1 else lambda x, kernel: ops.pointwise(x, kernel[0, 0])
    gradient = [jax.jit(lambda x, k, g, i=i: jax.vjp(convolve, x, k)[1](g)[i]) for i in (0, 1)]
    return [
        timing.compiled_run(jax.jit(convolve), x, kernel),
        *(timing.compiled_run(f, x, kernel, g) for f in gradient),
    ]


def torch_runs(case: Case) -> list[Callable[[], object]]:
    """A function for each of PARTS."""
    import torch

    torch.set_num_threads(timing.cores())
    x, kernel, g = (torch.from_numpy(a) for a in arrays(case))
    x, g = (v.permute(0, 3, 1, 2).contiguous() for v in (x, g))
    kernel = kernel.permute(3, 2, 0, 1).contiguous()
    pad = case.kernel // 2
    backward = partial(
        torch.ops.aten.convolution_backward, g, x, kernel, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1
    )
    return [
        lambda: torch.nn.functional.conv2d(x, kernel, padding=pad),
        lambda: backward([True, False, False]),
        lambda: backward([False, True, False]),
    ]


def arrays(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random input, kernel and gradient of the output."""
    side, c, d, k = case
    shapes = (1, side, side, c), (k, k, c, d), (1, side, side, d)
    x, kernel, g = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, kernel, g


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("jax", "torch"), help="framework to time")
    parser.add_argument("--size", type=int, default=1024, help="image size in pixels")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls, of which the median is used")
    arguments = parser.parse_args()
    allocator.restart_with_huge_pages()
    total: Counter[str] = Counter()
    flop = 0
    for case, count in products(arguments.size).items():
        flop += 2 * count * case.side**2 * case.channels_in * case.channels_out * case.kernel**2
        runs = dict(zip(PARTS, (jax_runs if arguments.side == "jax" else torch_runs)(case), strict=True))
        for part, times in timing.in_turn(runs, arguments.rounds).items():
            total[part] += count * median(wall for wall, _ in times)
    rate = timing.machine()[0]
    print(f"lower bound: {3 * flop / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s, {3 * flop / rate:.2f} s")
    print(f"{arguments.side}: {total.total():.2f} s;", ", ".join(f"{part} {total[part]:.2f} s" for part in PARTS))


if __name__ == "__main__":
    main()
