"""Memory of one training step at full size under each option that trades it for something, as XLA plans it.

    python -m benchmarks.memory [--only NAME ...] [--batch 4] [--size 1024] [--output table.md]

EdgeSAM's two stages on one device, with a teacher of ViT-B's shape.  Steps are compiled from shapes and never run, so
this needs neither weights nor the memory that it reports.  "peak" is XLA's own plan: arguments (weights, optimiser
state, batch) plus temporaries plus results, less the results that take the arguments' place.  "products" counts the
matrix products and dense convolutions of the program with all passes of its loops, which XLA's own count leaves out:
what an option costs in work.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesam_jax.cli import allocator
from edgesam_jax.config import Config, DataConfig, DistillConfig, LossConfig, TrainConfig, UsageError, apply_overrides
from edgesam_jax.types import Batch

PROMPTS, TEACHER = 16, "sam_vit_b"
STORE, ONLINE = "from a store", "online"
BFLOAT16, REMAT = "model.compute_dtype=bfloat16", "model.encoder.remat=true"


@dataclass(frozen=True)
class Row:
    """One step to compile: images on the device, where the teacher's embedding comes from, overrides of the config."""

    stage: int
    batch: int
    teacher: str = STORE
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        options = [text.split(".", 1)[1] for text in self.overrides]
        teacher = ["teacher online"] if self.teacher == ONLINE else []
        return ", ".join([f"batch {self.batch}", *teacher, *options])


def rows(batch: int) -> Iterator[Row]:
    """The table: each option against the same batch, then what they give together."""
    for stage in (1, 2):
        yield from (Row(stage, b) for b in (1, 2, 4) if b != batch)
        yield Row(stage, batch)
        yield Row(stage, batch, ONLINE)
        yield Row(stage, batch, overrides=(BFLOAT16,))
        yield Row(stage, batch, overrides=(REMAT,))
        yield from (Row(stage, batch, overrides=(f"train.accumulate={n}",)) for n in (2, 4))
        if stage == 2:
            yield from (Row(stage, batch, overrides=(f"train.prompt_chunk={n}",)) for n in (4, 1))
            yield Row(stage, batch, overrides=(REMAT, "train.prompt_chunk=1"))
        best = (BFLOAT16, REMAT) if stage == 1 else (BFLOAT16, REMAT, "train.prompt_chunk=1")
        yield Row(stage, batch, overrides=best)


def config_of(row: Row, size: int) -> Config:
    """The published stage with this row's batch and options."""
    stage1 = DistillConfig(mode="encoder_only")
    stage2 = DistillConfig(mode="prompt_in_the_loop", rounds=1, loss=LossConfig(bce=5.0, dice=5.0))
    config = Config(
        data=DataConfig(batch_size=row.batch, max_prompts=PROMPTS),
        distill=stage1 if row.stage == 1 else stage2,
        train=TrainConfig(steps=1000),
    )
    return apply_overrides(config, (f"model.image_size={size}", *row.overrides))


def measure(row: Row, size: int) -> dict[str, float]:
    """GB and GFLOP of the row's step, and the seconds that its compilation took."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from edgesam_jax.learning.optim import make_optimizer
    from edgesam_jax.models.init import abstract_variables
    from edgesam_jax.models.sam import MODELS
    from edgesam_jax.train import parallel
    from edgesam_jax.types import TrainState

    config = config_of(row, size)
    teacher_config = dataclasses.replace(MODELS[TEACHER], image_size=size)
    variables = abstract_variables(config.model)
    tx, _ = make_optimizer(config, variables["params"])
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32), opt_state=jax.eval_shape(tx.init, variables["params"]), **variables
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    given = state, abstract_variables(teacher_config), abstract_batch(row, config), key
    devices = parallel.request_devices(1)
    parallel.check_batch(row.batch, devices, config.train.accumulate)
    step: Any = parallel.make_train_step(config, teacher_config, tx, devices)
    began = time.perf_counter()
    traced = step.trace(*given)
    plan = traced.lower().compile().memory_analysis()
    jax.clear_caches()  # else this process grows with every row
    peak = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {
        "arguments": plan.argument_size_in_bytes / 1e9,
        "temporaries": plan.temp_size_in_bytes / 1e9,
        "peak": peak / 1e9,
        "products": products(traced.jaxpr) / 1e9,
        "seconds": time.perf_counter() - began,
    }


def abstract_batch(row: Row, config: Config) -> Batch:
    """Shapes of a batch as the pipeline gives it; the store holds float16."""
    import jax
    import jax.numpy as jnp

    b, p, s, g = row.batch, PROMPTS, config.model.image_size, config.model.grid

    def leaf(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    return Batch(
        image=leaf(b, s, s, 3, dtype=jnp.uint8),
        valid_size=leaf(b, 2, dtype=jnp.int32),
        boxes=leaf(b, p, 4),
        points=leaf(b, p, 2),
        prompt_valid=leaf(b, p, dtype=bool),
        teacher_embedding=leaf(b, g, g, config.model.embed_dim, dtype=jnp.float16) if row.teacher == STORE else None,
    )


def products(jaxpr: Any) -> float:
    """Floating-point operations of all products and convolutions in a program; loops count all their passes."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "shape")]
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = shapes[1]
            out = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * math.prod(shapes[-1]) * math.prod(n for i, n in enumerate(kernel) if i != out)
        passes = equation.params.get("length", 1) if name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += passes * products(inner)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose stage and name contain one of these texts")
    parser.add_argument("--batch", type=int, default=4, help="images on the device")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--output", type=Path, help="also write the table there, as it grows")
    args = parser.parse_args()
    os.environ |= allocator.settings()  # the compiler's settings that the train command gives itself
    lines = ["| | arguments GB | temporaries GB | peak GB | products GFLOP |", "|---|--:|--:|--:|--:|"]
    print("\n".join(lines), flush=True)
    for row in rows(args.batch):
        name = f"stage {row.stage}, {row.name}"
        if args.only and not any(text in name for text in args.only):
            continue
        try:
            found = measure(row, args.size)
        except UsageError as error:  # a batch that does not divide
            print(f"{name}: {error}")
            continue
        figures = (
            f"{found['arguments']:.2f} | {found['temporaries']:.2f} | {found['peak']:.2f} | {found['products']:.0f}"
        )
        lines.append(f"| {name} | {figures} |")
        print(f"{lines[-1]}  compiled in {found['seconds']:.0f} s", flush=True)
        if args.output:
            args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
