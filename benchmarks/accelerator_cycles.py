"""Cycles of the project's programs on a TPU, as its compiler estimates them; needs no TPU (package ``libtpu``).

    python -m benchmarks.accelerator_cycles PROGRAM ... [--topology v5e:1x1] [--batch N] [--dtype float32|bfloat16]
                                            [--blocks N] [--text FILE]

Programs: ``encoder:MODEL`` (a name in ``MODELS``, as predict and embed run it), ``stage1`` and ``stage2`` (the step of
EdgeSAM's configs with the teacher's embeddings from a store), ``decoder:MODEL`` (256 prompts of one photo).

For each: cycles, those of the matrix products alone at the chip's peak, those of the products' operands and results at
the memory's bandwidth, and the ratio to the larger of the two; then the cycles by part and the costliest operations.
``--blocks`` shortens a ViT to its first blocks, for quick experiments.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from configs import edgesam_stage1, edgesam_stage2
from edgesam_jax.config import SamConfig, apply_overrides
from edgesam_jax.models.sam import MODELS
from edgesam_jax.planning import compile_report, compiling, plan, programs, topology
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
    parser.add_argument("--text", help="also write the compiled program's text to this file")
    args = parser.parse_args()
    target = topology.describe(args.topology)
    for name in args.programs:
        result = compiling.compile_for(target, _program(name, args, target))
        if args.text:
            Path(args.text).write_text(result.hlo)
        print(f"\n{args.dtype}; {compile_report.report(result)}", flush=True)


def _program(name: str, args: argparse.Namespace, target: topology.Topology) -> compiling.Program:
    kind, _, model_name = name.partition(":")
    if kind in STAGES:
        module, batch = STAGES[kind]
        total = (args.batch or batch) * len(target.devices)
        settings = ["data.embeddings=store", f"model.compute_dtype={args.dtype}", f"data.batch_size={total}"]
        config = apply_overrides(module.get_config(), settings)
        return programs.step_program(plan.plan(config, MODELS["sam_vit_h"], len(target.devices), target.chip), target)
    model = _shortened(dataclasses.replace(MODELS[model_name], compute_dtype=args.dtype), args.blocks)
    if kind == "encoder":
        return programs.encoder_program(name, model, predict_compiled.encoder(model), args.batch or 8)
    return programs.decoder_program(name, model, predict_compiled.decoder(model), args.prompts)


def _shortened(model: SamConfig, blocks: int) -> SamConfig:
    if not blocks:
        return model
    encoder: Any = model.encoder
    return dataclasses.replace(model, encoder=dataclasses.replace(encoder, depth=blocks))


if __name__ == "__main__":
    main()
