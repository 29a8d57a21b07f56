"""Hours of the published recipe on slices of different sizes, from the compiler's figures for one chip.

    python -m edgesam_jax.embed --teacher sam_vit_h --teacher-dtype bfloat16 --batch-size 8 \\
        --dry-run --compile v5e:1x1 --json > embed.json
    TRAIN="python -m edgesam_jax.train --dry-run --json --teacher-model vit_h --set model.compute_dtype=bfloat16"
    STORE='data.embeddings=("store",)'
    $TRAIN $STORE data.batch_size=32 --config configs/edgesam_stage1.py --compile v5e:2x2 > stage1.json
    $TRAIN $STORE data.batch_size=16 --config configs/edgesam_stage2.py --compile v5e:2x2 > stage2.json
    # No compiler: an assumed fraction of the peak, and the bytes of the products.
    $TRAIN --config configs/edgesam_stage1.py > plan.json
    $TRAIN $STORE --config configs/edgesam_stage1.py > plan1.json
    $TRAIN $STORE data.batch_size=32 --config configs/edgesam_stage2.py > plan2.json
    python -m benchmarks.pods --chip v5e embed.json stage1.json stage2.json --gpus plan.json plan1.json plan2.json

Chips compute independently except for the exchange of gradients and batch statistics, whose time follows from its
bytes, the number of exchanges and the slice's shape (``planning.compile_report.exchange_seconds``).  A phase takes as
long as the slowest of: the chips; the hosts' cores, at ``--photos-per-core``; the network, which brings photos and
stored embeddings to each host.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesam_jax.planning.accelerators import ACCELERATORS
from edgesam_jax.planning.compile_report import exchange_seconds
from edgesam_jax.reporting.tables import aligned_table, hours

PHOTOS = {"1 %": 110_000, "10 %": 1_100_000, "100 %": 11_000_000}
SLICES = {
    "v5e": ("2x4", "8x8", "16x16"), "v4": ("4x4x8",), "v5p": ("4x4x4",), "v6e": ("8x8", "16x16"), "h100": ("8",)
}  # fmt: skip
PHASES = ("embed", "stage 1", "stage 2")
EPOCHS = (1, 10, 5)
STORED = 2.1e6  # bytes of an embedding in float16
PHOTO = 0.94e6  # bytes of an SA-1B photo without its masks
CORES = {"v5e": 28, "v4": 60, "v5p": 52, "v6e": 45, "h100": 26}  # virtual CPUs of a host for each chip, as published
NETWORK = 3.1e9  # bytes/s for each chip: a v5e host has 200 Gbit/s for 8 chips


@dataclass(frozen=True)
class Phase:
    """A phase on one chip: seconds of a run, photos in it, memory, and its exchange."""

    seconds: float
    photos: int
    memory: int
    exchanged: float  # bytes
    exchanges: int


def read(path: str) -> Phase:
    """Read the output of a dry run with ``--compile`` and ``--json``."""
    content: Any = json.loads(Path(path).read_text())
    found = content[0] if isinstance(content, list) else content["compiled"]
    exchanges = found["exchanges"]
    return Phase(
        found["seconds"]["compute"], found["photos"] // found["devices"], found["memory"]["sum"],
        sum(e["bytes"] * e["runs"] for e in exchanges), sum(e["runs"] for e in exchanges),
    )  # fmt: skip


def read_plans(with_teacher: str, *stages: str) -> list[Phase]:
    """Read the dry runs of a step with the teacher, whose encoder is the phase of embedding, and of both stages.

    A step takes at least as long as its products' operands and results take to pass through memory.
    """
    first, *plans = [json.loads(Path(path).read_text()) for path in (with_teacher, *stages)]
    rate, bandwidth = first["seconds"]["assumed_flops"], ACCELERATORS["h100"].bandwidth
    encoder = first["flops"]["by_part"]["teacher: encoder"]
    phases = [Phase(encoder / rate, first["photos_of_a_device"], 0, 0.0, 0)]
    for plan in plans:
        seconds = max(plan["flops"]["step_of_a_device"] / rate, plan["product_bytes_of_a_device"] / bandwidth)
        memory, exchange = sum(plan["memory"].values()), plan["exchange"]
        phases.append(Phase(seconds, plan["photos_of_a_device"], memory, exchange["bytes"], exchange["waits"]))
    return phases


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chip", nargs=4, action="append", required=True, metavar=("CHIP", "EMBED", "STAGE1", "STAGE2")
    )
    parser.add_argument(
        "--photos-per-core", type=float, default=20.8, help="photos/s that a core prepares (benchmarks.data_pipeline)"
    )
    parser.add_argument(
        "--gpus", nargs=3, metavar=("WITH_TEACHER", "STAGE1", "STAGE2"), help="dry runs for one host of 8 h100"
    )
    args = parser.parse_args()
    chips = {chip: [read(path) for path in files] for chip, *files in args.chip}
    if args.gpus:
        chips["h100"] = read_plans(*args.gpus)
    needs = [
        _needs(chip, name, phase, args.photos_per_core)
        for chip, phases in chips.items()
        for name, phase in zip(PHASES, phases, strict=True)
    ]
    header = ["chip, phase", "photos", "GB", "ms", "photos/s", "cores", "of", "store MB/s"]
    print(aligned_table(header, needs))
    print("\nOf one chip: photos in a step, memory, time without exchange, rate; cores to feed it, of those it has.\n")
    rows = [
        _row(chip, shape, share, phases, args.photos_per_core)
        for chip, phases in chips.items()
        for shape in SLICES[chip]
        for share in PHOTOS
    ]
    print(aligned_table(["slice, share of SA-1B", *PHASES, "chip-hours"], rows))
    print("\nHours of each phase, what binds it, and the share of the exchange in a step.")


def _needs(chip: str, name: str, phase: Phase, per_core: float) -> list[str]:
    rate = phase.photos / phase.seconds
    return [
        f"{chip}, {name}", f"{phase.photos}", f"{phase.memory / 1e9:.1f}" if phase.memory else "",
        f"{phase.seconds * 1e3:.0f}", f"{rate:.0f}", f"{rate / per_core:.1f}", f"{CORES[chip]}",
        f"{rate * STORED / 1e6:.0f}",
    ]  # fmt: skip


def _row(chip: str, shape: str, share: str, phases: list[Phase], per_core: float) -> list[str]:
    sides = [int(side) for side in shape.split("x")]
    chips, total, cells = math.prod(sides), 0.0, []
    accelerator = ACCELERATORS[chip if chip == "h100" else f"tpu-{chip}"]
    for number, (phase, epochs) in enumerate(zip(phases, EPOCHS, strict=True)):
        exchange = exchange_seconds(accelerator, sides, phase.exchanged, phase.exchanges)
        rates = {
            "chips": phase.photos / (phase.seconds + exchange),
            "cores": per_core * CORES[chip],
            "network": NETWORK / (PHOTO + STORED),
        }
        binding = min(rates, key=lambda name: rates[name])
        seconds = PHOTOS[share] * epochs / (rates[binding] * chips)
        total += seconds
        shown = f", exchange {exchange / (phase.seconds + exchange):.0%}" if number else ""
        cells.append(f"{hours(seconds)} ({binding}{shown})")
    return [f"{chip}:{shape}, {share}", *cells, f"{total * chips / 3600:,.0f}"]


if __name__ == "__main__":
    main()
