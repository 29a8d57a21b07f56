"""The mask decoder against our torch model (eager) and ONNX Runtime: one box, and many points on one image.

    python -m benchmarks.decoder [--prompts 1 64] [--chunk 0 1 4] [--rounds 5] [--onnx] [--gradient]

Prints the predicted times first: work and memory traffic counted from shapes, divided by this machine's rates measured
in the same run.  ``--gradient`` times the forward and backward pass.  Each row includes XLA's temporary memory.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import timing
from convert.torch_twin.model import TorchSam
from edgesam_jax.checkpoints.published.names import to_tree
from edgesam_jax.config import SamConfig
from edgesam_jax.models.sam import MODELS, decode
from edgesam_jax.types import Prompts


def flops_per_prompt(config: SamConfig, tokens: int, moved: bool) -> float:
    """Floating-point operations of one additional prompt on an encoded image.

    Args:
      tokens: of output and prompt.
      moved: the image's projections are applied to the tokens instead (``models/decoder/transformer.py``); otherwise
        each prompt projects the image again, as in the published code.
    """
    c, s, d = config.embed_dim, config.grid**2, config.decoder
    inner = c // d.attention_downsample
    columns = min(inner, tokens * d.heads) if moved else inner
    # The first layer has 4 products with the image (keys, values, queries, output); only the last is per prompt if the
    # others are computed once per image.  Later layers have 4, the final attention 2.
    products = (1 if moved else 4) + 4 * (d.depth - 1) + 2
    attention = products * 2 * s * c * columns
    upscaling = 2 * s * (c * c + 4 * (c // 4) * (c // 2)) + 2 * 16 * s * (c // 8) * d.num_mask_tokens
    token_side = tokens * 2 * (2 * c * d.mlp_dim + 8 * c * c) * d.depth
    return attention + upscaling + token_side


def bytes_per_prompt(config: SamConfig) -> float:
    """Minimum memory traffic of one prompt without fusion: each map of the image is written once and read once."""
    s, c = config.grid**2, config.embed_dim
    maps = config.decoder.depth * s * c + 4 * s * (c // 4) + 16 * s * (c // 8) + 16 * s * config.decoder.num_mask_tokens
    return 2 * 4 * maps


def make_prompts(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One box, or ``count`` points with SAM's padding token: coordinates (p 2 2), labels (p 2)."""
    corners = np.sort(rng.uniform(0, 1000, (count, 2, 2)), axis=1).astype(np.float32)
    return corners, np.tile(np.array([2, 3] if count == 1 else [1, -1]), (count, 1))


def onnx_run(model: TorchSam, *inputs: torch.Tensor) -> Callable[[], object]:
    """A function that runs the exported torch decoder in ONNX Runtime on the same inputs."""
    import onnxruntime

    class Decode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, embedding: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.model.decode_tokens(embedding, coords, labels)[0]

    buffer = io.BytesIO()
    program = torch.onnx.export(Decode().eval(), inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[1, 64], help="numbers of prompts to time; 1 is a box"
    )
    parser.add_argument(
        "--chunk", type=int, nargs="+", default=[0, 1, 4], help="prompts decoded at a time; 0 decodes all"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--onnx", action="store_true", help="also time ONNX Runtime")
    parser.add_argument("--gradient", action="store_true", help="time forward and backward, for weights and embedding")
    args = parser.parse_args()

    config, rng = MODELS["edge_sam"], np.random.default_rng(0)
    model = TorchSam(config).eval()
    tree, _ = to_tree({k: v.numpy() for k, v in model.state_dict().items()})
    variables = jax.tree.map(jnp.asarray, {"params": tree["params"], "constants": tree["constants"]})
    variables["params"] = {k: v for k, v in variables["params"].items() if k != "image_encoder"}
    embedding = rng.normal(size=(1, config.grid, config.grid, config.embed_dim)).astype(np.float32)
    image = torch.from_numpy(embedding.transpose(0, 3, 1, 2).copy()).requires_grad_(args.gradient)
    rate, bandwidth = timing.machine()
    passes = 3 if args.gradient else 1
    print(f"current machine: {rate / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.0f} GB/s, {timing.cores()} cores")

    for count in args.prompts:
        tokens = 1 + config.decoder.num_mask_tokens + 2
        published, ours = (count * flops_per_prompt(config, tokens, moved) for moved in (False, True))
        ours += 3 * 2 * config.grid**2 * config.embed_dim * config.embed_dim // config.decoder.attention_downsample
        traffic = count * bytes_per_prompt(config)
        print(
            f"\n{count} prompt(s): as published {published / 1e9:.1f} GFLOP, ours {ours / 1e9:.1f} GFLOP "
            f"(lower bound {passes * ours / rate:.3f} s), unfused traffic {traffic / 1e9:.2f} GB "
            f"({passes * traffic / bandwidth:.3f} s)"
        )
        coords, labels = make_prompts(count, rng)
        prompts = Prompts(
            jnp.asarray(coords)[None], jnp.asarray(labels, jnp.int32)[None], jnp.ones((1, count, 2), bool)
        )
        torch_inputs = (torch.from_numpy(coords), torch.from_numpy(labels))

        def eager(inputs: tuple[torch.Tensor, torch.Tensor] = torch_inputs) -> torch.Tensor:
            with torch.set_grad_enabled(args.gradient):
                logits = model.decode_tokens(image, *inputs)[0]
                if args.gradient:
                    logits.square().mean().backward()
            return logits.detach()

        contenders: dict[str, Callable[[], object]] = {"torch eager": eager}
        for chunk in sorted({c for c in args.chunk if c < count}):

            def logits(v: dict, e: jax.Array, p: Prompts, chunk: int = chunk) -> jax.Array:
                return decode(config, v, e, p, chunk=chunk).logits

            def loss(v: dict, e: jax.Array, p: Prompts, f: Callable = logits) -> jax.Array:
                return jnp.mean(f(v, e, p) ** 2)

            function = jax.grad(loss, argnums=(0, 1)) if args.gradient else logits
            inputs = (variables, jnp.asarray(embedding), prompts)
            compiled = jax.jit(function).lower(*inputs).compile()
            memory = timing.temporary_bytes(compiled) / 1e6
            name = f"jax, chunk {chunk or 'all'} ({memory:.0f} MB)"
            run = contenders[name] = timing.compiled_run(compiled, *inputs)
            if not args.gradient:
                expected = eager().numpy()
                error = np.sqrt(np.mean((np.asarray(run())[0] - expected) ** 2) / np.mean(expected**2))
                assert error < 1e-4, f"{name} differs from torch by {error:.1e} relative RMS"
        if args.onnx and not args.gradient:
            contenders["ONNX Runtime"] = onnx_run(model, image, *torch_inputs)
        timing.report(timing.in_turn(contenders, args.rounds), "torch eager")


if __name__ == "__main__":
    main()
