"""Memory of one full-size training step, as planned by XLA, for each option that reduces it at some cost.

    python -m benchmarks.memory [--only NAME ...] [--batch 4] [--size 1024] [--output table.md]

EdgeSAM's two stages on one device, with a ViT-B teacher.  Steps are compiled from shapes and never run, which needs
neither weights nor the memory reported.  "peak" is XLA's plan: arguments (weights, optimiser state, batch) plus
temporaries plus results, minus the results that alias arguments.  "products" is the work of an option: the matrix
products and dense convolutions of the program with all iterations of its loops, which XLA's own count ignores.
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
from edgesam_jax.learning.device_step import make_train_step
from edgesam_jax.types import Batch

PROMPTS, TEACHER = 16, "sam_vit_b"
STORE, ONLINE = "from a store", "online"
BFLOAT16, REMAT = "model.compute_dtype=bfloat16", "model.encoder.remat=true"


@dataclass(frozen=True)
class Row:
    """One step to compile: stage, batch size, source of the teacher's embeddings, and overrides of the config."""

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
    """The rows of the table: each option for the same batch size, then the options combined."""
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
    """The config of the published stage with this row's batch size and options."""
    stage1 = DistillConfig(mode="encoder_only")
    stage2 = DistillConfig(mode="prompt_in_the_loop", rounds=1, loss=LossConfig(bce=5.0, dice=5.0))
    config = Config(
        data=DataConfig(batch_size=row.batch, max_prompts=PROMPTS),
        distill=stage1 if row.stage == 1 else stage2,
        train=TrainConfig(steps=1000),
    )
    return apply_overrides(config, (f"model.image_size={size}", *row.overrides))


def measure(row: Row, size: int) -> dict[str, float]:
    """Memory in GB and work in GFLOP of the row's step, and the seconds of its compilation."""
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
    inputs = state, abstract_variables(teacher_config), abstract_batch(row, config), key
    devices = parallel.request_devices(1)
    parallel.check_batch(row.batch, devices, config.train.accumulate)
    step: Any = make_train_step(config, teacher_config, tx, devices)
    began = time.perf_counter()
    traced = step.trace(*inputs)
    plan = traced.lower().compile().memory_analysis()
    jax.clear_caches()  # otherwise this process grows with every row
    peak = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {
        "arguments": plan.argument_size_in_bytes / 1e9,
        "temporaries": plan.temp_size_in_bytes / 1e9,
        "peak": peak / 1e9,
        "products": products(traced.jaxpr) / 1e9,
        "seconds": time.perf_counter() - began,
    }


def abstract_batch(row: Row, config: Config) -> Batch:
    """Shapes of a batch as the data pipeline produces it; embeddings in the store are float16."""
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
    """Floating-point operations of all products and convolutions in a program, with all iterations of its loops."""
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
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], help="only rows whose stage and name contain one of these strings"
    )
    parser.add_argument("--batch", type=int, default=4, help="images per device")
    parser.add_argument("--size", type=int, default=1024, help="image size in pixels")
    parser.add_argument("--output", type=Path, help="also write the table to this file, row by row")
    args = parser.parse_args()
    os.environ |= allocator.settings()  # the settings that the train command uses
    lines = ["| | arguments GB | temporaries GB | peak GB | products GFLOP |", "|---|--:|--:|--:|--:|"]
    print("\n".join(lines), flush=True)
    for row in rows(args.batch):
        name = f"stage {row.stage}, {row.name}"
        if args.only and not any(text in name for text in args.only):
            continue
        try:
            result = measure(row, args.size)
        except UsageError as error:  # a batch size that isn't divisible
            print(f"{name}: {error}")
            continue
        figures = (
            f"{result['arguments']:.2f} | {result['temporaries']:.2f} | {result['peak']:.2f} | {result['products']:.0f}"
        )
        lines.append(f"| {name} | {figures} |")
        print(f"{lines[-1]}  compiled in {result['seconds']:.0f} s", flush=True)
        if args.output:
            args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
