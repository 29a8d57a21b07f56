"""Cycles of the project's programs on a TPU, as its compiler estimates them; needs no TPU (package ``libtpu``).

    python -m benchmarks.accelerator_cycles PROGRAM ... [--topology v5e:1x1] [--batch N] [--dtype float32|bfloat16]
                                            [--blocks N] [--list N]

Programs: ``encoder:MODEL`` (a name in ``MODELS``, as predict and embed run it), ``stage1`` and ``stage2`` (the step of
EdgeSAM's configs with the teacher's embeddings from a store), ``decoder:MODEL`` (256 prompts of one photo).

For each: cycles, those of the matrix products alone at the chip's peak, those of the products' operands and results at
the memory's bandwidth, and the ratio to the larger of the two; then the cycles by part and the costliest operations.
``--blocks`` shortens a ViT to its first blocks, for quick experiments.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from configs import edgesam_stage1, edgesam_stage2
from edgesam_jax.config import Config, SamConfig, apply_overrides
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.kernels import ops
from edgesam_jax.models.sam import MODELS
from edgesam_jax.planning import compile_report, compiling, jaxpr_cost, plan, topology
from edgesam_jax.predict import compiled as predict_compiled

STAGES = {"stage1": (edgesam_stage1, 8), "stage2": (edgesam_stage2, 4)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--batch", type=int, default=0, help="photos on a chip; default: 8 (stage2: 4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of activations")
    parser.add_argument("--blocks", type=int, default=0, help="only the first N blocks of a ViT")
    parser.add_argument("--prompts", type=int, default=256, help="prompts of the decoder")
    parser.add_argument("--list", type=int, default=20, help="costliest operations listed")
    parser.add_argument("--text", help="also write the compiled program's text to this file")
    args = parser.parse_args()
    target = topology.describe(args.topology)
    for program in args.programs:
        kind, _, name = program.partition(":")
        function, arguments, parts = _program(kind, name, args)
        with ops.traced_for("tpu"):
            work = jaxpr_cost.work(jax.make_jaxpr(function)(*arguments))
        result = compiling.compile_for(target, jax.jit(function), target.place(arguments), "use a smaller --batch")
        if args.text:
            with open(args.text, "w") as file:
                file.write(result.hlo)
        _print(program, args, result, work, parts)


def _program(kind: str, name: str, args: Any) -> tuple[Callable[..., Any], tuple[Any, ...], compile_report.Parts]:
    if kind in STAGES:
        module, batch = STAGES[kind]
        config = apply_overrides(
            module.get_config(), ["data.embeddings=store", f"model.compute_dtype={args.dtype}", "data.batch_size=8"]
        )
        return _step(config, args.batch or batch)
    model = _shortened(dataclasses.replace(MODELS[name], compute_dtype=args.dtype), args.blocks)
    variables = jax.eval_shape(lambda: fold(model, init_variables(model)))
    if kind == "encoder":
        side, batch = model.image_size, args.batch or 8
        images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
        sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
        encode = predict_compiled.encoder(model)
        return lambda *x: encode(*x), (variables, images, sizes), compile_report.ENCODER_PARTS
    embedding = jax.ShapeDtypeStruct((model.grid, model.grid, model.embed_dim), jnp.float32)
    boxes = jax.ShapeDtypeStruct((args.prompts, 4), jnp.float32)
    decode = predict_compiled.decoder(model)
    return (
        lambda v, e, b: decode(v, e, b, None, None, None),
        (variables, embedding, boxes),
        compile_report.DECODER_PARTS,
    )


def _step(config: Config, images: int) -> tuple[Callable[..., Any], tuple[Any, ...], compile_report.Parts]:
    teacher = MODELS["sam_vit_h"]
    body, arguments = plan.step_and_shapes(config, teacher, images)
    return body, arguments, compile_report.STEP_PARTS


def _shortened(model: SamConfig, blocks: int) -> SamConfig:
    if not blocks:
        return model
    encoder: Any = model.encoder
    return dataclasses.replace(model, encoder=dataclasses.replace(encoder, depth=blocks))


def _print(program: str, args: Any, result: Any, work: Any, parts: compile_report.Parts) -> None:
    chip = result.topology.accelerator
    floor = work.products / chip.product
    memory = work.traffic / chip.bandwidth * chip.clock
    print(f"\n{program}, {args.dtype}, {result.topology.name}, batch {args.batch or 'default'}")
    print(
        f"{result.cost.cycles / 1e6:.1f} M cycles; products alone {floor / 1e6:.1f} M, their operands and results"
        f" {memory / 1e6:.1f} M: {result.cost.cycles / max(floor, memory):.2f} x the larger, "
        f"{result.cost.cycles / floor:.2f} x the products"
    )
    print(
        f"only moving data {result.cost.moving / 1e6:.1f} M; temporaries {result.temporary / 1e9:.2f} GB;"
        f" compiled in {result.seconds:.0f} s; {result.cost.open_loops} open loops"
    )
    print(f"\n{compile_report.parts_text(result, parts)}\n\n{compile_report.costliest_text(result, args.list)}")


if __name__ == "__main__":
    main()
