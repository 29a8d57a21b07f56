"""SAM's ViT image encoder at 1024x1024 against our torch model in eager mode.

    python -m benchmarks.vit [--model sam_vit_b] [--rounds 3] [--only jax|torch]

With ``--only``, the process runs only one of the two, so that its peak memory is that of this one.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import timing
from convert.torch_twin.encoders import image_encoder
from edgesam_jax.config import SamConfig, VitConfig
from edgesam_jax.models.encoders.vit import Vit
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import MODELS


def flops(config: SamConfig) -> float:
    """Floating-point operations (two per multiply-add) of patches, blocks with padded windows, and neck."""
    v = config.encoder
    assert isinstance(v, VitConfig)
    grid = config.grid
    padded = -(-grid // v.window_size) * v.window_size
    total = 2.0 * grid**2 * (3 * v.patch_size**2 * v.width + config.embed_dim * (v.width + 9 * config.embed_dim))
    for i in range(v.depth):
        side, tokens = (grid, grid**2) if i in v.global_blocks else (v.window_size, padded**2)
        attention = 4 * v.width * v.width + 2 * side**2 * v.width + 2 * side * v.width
        total += 2.0 * (tokens * attention + grid**2 * 2 * v.mlp_ratio * v.width**2)
    return total


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam_vit_b", choices=[n for n in MODELS if n.startswith("sam_vit")])
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each contender")
    parser.add_argument("--only", choices=["jax", "torch"], help="run only this one")
    args = parser.parse_args()

    config = MODELS[args.model]
    assert isinstance(config.encoder, VitConfig)
    size = config.image_size
    image = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    rate, _ = timing.machine()
    work = flops(config)
    print(f"lower bound: {work / 1e9:.0f} GFLOP at this machine's {rate / 1e9:.0f} GFLOP/s, {work / rate:.2f} s")

    contenders: dict[str, Callable[[], object]] = {}
    if args.only != "jax":
        model = image_encoder(config).eval()
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())

        @torch.no_grad()
        def eager() -> None:
            model(pixels)

        contenders["torch eager"] = eager
    if args.only != "torch":
        variables = {"params": jax.tree.map(jnp.asarray, init_variables(config)["params"]["image_encoder"])}
        vit = Vit(config.encoder, size, config.embed_dim)
        x = jnp.asarray(image)
        compiled = jax.jit(vit.apply).lower(variables, x).compile()
        memory = timing.temporary_bytes(compiled) / 1e9
        contenders[f"jax ({memory:.2f} GB temporary)"] = timing.compiled_run(compiled, variables, x)
    timing.report(timing.in_turn(contenders, args.rounds), next(iter(contenders)))
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
