"""What a compiled program costs, as text and as JSON: memory, cycles by part, costliest operations, exchange, time."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from edgesam_jax.planning.accelerators import Accelerator
from edgesam_jax.planning.compiler_cost import Operation, short_path
from edgesam_jax.planning.compiling import Compiled
from edgesam_jax.reporting.tables import gigabytes, hours, table

SHOWN = 20  # costliest operations listed
HOP = 1e-6  # seconds that a message takes from chip to chip, an assumption
UNNAMED = "added by the compiler"


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a program, computed from its cycles and exchanges.

    ``products`` is the time of the matrix products alone at the chip's peak.
    """

    compute: float
    exchange: float
    products: float

    @property
    def seconds(self) -> float:
        """Compute, then exchange: no overlap is assumed."""
        return self.compute + self.exchange


def estimate(compiled: Compiled) -> Estimate:
    """Estimate the time of a run."""
    cost, topology = compiled.cost, compiled.topology
    chip = topology.accelerator
    sides = [int(side) for side in topology.name.split(":")[1].split("x")]
    sent = sum(op.size * op.times for op in cost.collectives)
    exchange = exchange_seconds(chip, sides, sent, sum(op.times for op in cost.collectives))
    return Estimate(cost.cycles / chip.clock, exchange, compiled.program.work.products / chip.bfloat16)


def exchange_seconds(chip: Accelerator, sides: Sequence[int], sent: float, number: int) -> float:
    """Return the seconds of ``number`` all-reduces of ``sent`` bytes in all, over a torus with these sides.

    A ring's traffic over all links of a chip, and a message's time along the sides for each all-reduce.
    """
    devices = math.prod(sides)
    if devices == 1:
        return 0.0
    return 2 * sent * (devices - 1) / devices / chip.links + number * HOP * sum(sides)


def by_part(operations: Sequence[Operation], parts: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return the cycles of each part, and how many of them only move data."""
    return _sums(operations, parts, lambda op: (op.total, op.total * op.moves))


def kernels(operations: Sequence[Operation], parts: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return the kernels and library calls of each part, with all passes of loops, and the bytes of their results."""
    return _sums(operations, parts, lambda op: (op.times, op.size * op.times))


def _sums(
    operations: Sequence[Operation], parts: Sequence[tuple[str, str]], of: Callable[[Operation], tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return the sums of two figures over each part's operations, in the parts' order, without empty parts."""
    found: dict[str, tuple[int, int]] = {label: (0, 0) for label, _ in parts}
    for op in operations:
        path = short_path(op.path)
        label = next((label for label, pattern in parts if re.search(pattern, path)), UNNAMED)
        sums, figures = found.get(label, (0, 0)), of(op)
        found[label] = sums[0] + figures[0], sums[1] + figures[1]
    return {label: sums for label, sums in found.items() if sums[0]}


def costliest(operations: Sequence[Operation], count: int = SHOWN) -> list[tuple[int, int, str, str]]:
    """Return (cycles, number of operations, kind, module path), equal modules of a stack of blocks added up."""
    groups: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    for op in operations:
        path = re.sub(r"(?<=_)\d+(?=/|'|$)", "*", short_path(op.path)) or UNNAMED
        kind = "moves data" if op.moves else re.sub(r"[.\d]+$|(\.clone)+", "", op.name)
        groups[path, kind] += op.total
        numbers[path, kind] += op.times
    return [(cycles, numbers[key], key[1], key[0]) for key, cycles in groups.most_common(count) if cycles]


# --------------------------------------------------------------------------------------------------------------- text


def report(compiled: Compiled, estimated: int = 0, runs: int = 0) -> str:
    """Return the text of a compiled program.

    Args:
      estimated: bytes of memory that the dry run estimates; 0: no estimate.
      runs: number of runs to give the time for; 0: none.
    """
    blocks = [_heading(compiled), _memory(compiled, estimated)]
    if compiled.topology.accelerator.product:
        blocks += [_work(compiled), _parts(compiled), _costliest(compiled), _exchange(compiled), _time(compiled, runs)]
    else:
        blocks += [_bounds(compiled), _kernels(compiled), _exchange(compiled)]
    return "\n\n".join(block for block in blocks if block)


def _heading(compiled: Compiled) -> str:
    topology, several = compiled.topology, compiled.topology.hosts > 1
    return (
        f"{compiled.program.name}\ncompiled for {topology.name}: {len(topology.devices)} {topology.chip}"
        f" on {topology.hosts} host{'s' * several}\njax {version('jax')}, {topology.compiler};"
        f" compiled in {compiled.seconds:.0f} s, not run"
    )


def _memory(compiled: Compiled, estimated: int) -> str:
    limit = compiled.topology.accelerator.memory
    rows = [
        ("arguments", gigabytes(compiled.arguments)),
        ("results that don't overwrite arguments", gigabytes(compiled.results - compiled.shared)),
        ("temporary values", gigabytes(compiled.temporary)),
        ("program", gigabytes(compiled.code)),
        ("sum", f"{gigabytes(compiled.memory)} of {limit / 1e9:.0f}"),
    ]
    if estimated:
        rows.append(("estimate of the dry run", f"{gigabytes(estimated)} ({estimated / compiled.memory:.2f} of XLA's)"))
    return table(("memory of a chip, XLA's plan", "GB"), rows)


def _work(compiled: Compiled) -> str:
    cost, chip, work, guess = compiled.cost, compiled.topology.accelerator, compiled.program.work, estimate(compiled)
    floor, traffic = work.products / chip.product, work.traffic / chip.bandwidth * chip.clock
    rows = [
        ("products and convolutions, GFLOP", f"{work.products / 1e9:,.1f}"),
        ("XLA's count, loops once, GFLOP", f"{compiled.flops / 1e9:,.1f}"),
        ("bytes accessed, loops once, GB", f"{compiled.accessed / 1e9:,.1f}"),
        ("cycles, M", f"{cost.cycles / 1e6:,.1f}"),
        ("of these only moving data, M", f"{cost.moving / 1e6:,.1f}"),
        ("cycles of the products alone at the peak, M", f"{floor / 1e6:,.1f}"),
        ("their operands and results at the memory's rate, M", f"{traffic / 1e6:,.1f}"),
        ("cycles / the larger of the two", f"{cost.cycles / max(floor, traffic):.2f}" if floor else ""),
        ("exchange between chips, ms", f"{guess.exchange * 1e3:.2f}"),
        ("estimated time, ms", f"{guess.seconds * 1e3:.1f}"),
        ("fraction of the peak", f"{guess.products / guess.seconds:.0%}" if guess.seconds else ""),
    ]
    missing = sum(op.times for op in cost.operations if op.cycles is None and not op.opcode.startswith("copy"))
    notes = [f"Cycles are the compiler's estimate at {chip.clock / 1e9:.2f} GHz, not a measurement."]
    if missing:
        notes.append(f"It has no figure for {missing} operations, exchanges among them.")
    if cost.open_loops:
        notes.append(f"{cost.open_loops} loops of unknown length are counted once.")
    return table(("work of a chip", ""), rows) + "\n" + " ".join(notes)


def _bounds(compiled: Compiled) -> str:
    products, traffic = bounds(compiled)
    rows = [
        ("products and convolutions, GFLOP", f"{compiled.program.work.products / 1e9:,.1f}"),
        ("the products alone at the peak of bfloat16, ms", f"{products * 1e3:.2f}"),
        ("their operands and results at the memory's rate, ms", f"{traffic * 1e3:.2f}"),
    ]
    return table(("work of a GPU", ""), rows) + (
        "\nA run takes longer than either. The compiler has no estimate of time for GPUs, and chose kernels without"
        "\ntrying them. The memory lacks the workspace of cuDNN's convolutions."
    )


def bounds(compiled: Compiled) -> tuple[float, float]:
    """Return two lower bounds in seconds: the products at the peak, their operands and results at the memory's rate."""
    chip, work = compiled.topology.accelerator, compiled.program.work
    return work.products / chip.bfloat16, work.traffic / chip.bandwidth


def _kernels(compiled: Compiled) -> str:
    rows = [
        (label, f"{number:,}", f"{size / 1e9:,.2f}")
        for label, (number, size) in kernels(compiled.cost.operations, compiled.program.parts).items()
    ]
    return table(("kernels and calls by part", "number", "GB of results"), rows)


def _parts(compiled: Compiled) -> str:
    total = compiled.cost.cycles or 1
    rows = [
        (label, f"{cycles / 1e6:,.2f}", f"{cycles / total:.1%}", f"{moving / cycles:.0%}")
        for label, (cycles, moving) in by_part(compiled.cost.operations, compiled.program.parts).items()
    ]
    return table(("cycles by part", "M", "share", "moving data"), rows)


def _costliest(compiled: Compiled) -> str:
    total = compiled.cost.cycles or 1
    rows = [
        (f"{cycles / 1e6:,.2f}", f"{cycles / total:.1%}", f"{number}", f"  {kind}", path)
        for cycles, number, kind, path in costliest(compiled.cost.operations)
    ]
    return table(("M cycles", "share", "runs", "", ""), rows)


def _exchange(compiled: Compiled) -> str:
    kinds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for op in compiled.cost.collectives:
        kind = op.opcode.removesuffix("-start")
        kinds[kind] += op.times
        sizes[kind] += op.size * op.times
    rows = [(kind, f"{number}", f"{sizes[kind] / 1e6:,.2f}") for kind, number in kinds.items()]
    return table(("exchanges of a run", "number", "MB"), rows) if rows else ""


def _time(compiled: Compiled, runs: int) -> str:
    guess, devices = estimate(compiled), compiled.devices
    rows = [
        ("seconds a run", f"{guess.seconds:.3g}"),
        (f"photos/s, {'all chips' if devices > 1 else 'one chip'}", f"{compiled.program.photos / guess.seconds:,.0f}"),
    ]
    if runs:
        rows += [
            (f"{runs:,} runs", hours(runs * guess.seconds)),
            ("chip-hours", f"{runs * guess.seconds * devices / 3600:,.1f}"),
        ]
    return table(("estimate of time", ""), rows) + (
        "\nFrom the compiler's cycles and the links' published rates; nothing was run.  Input, compilation, checkpoints"
        "\nand evaluation come on top."
    )


def as_json(compiled: Compiled, estimated: int = 0, runs: int = 0) -> dict[str, Any]:
    """Return what ``report`` shows, in bytes, cycles and seconds."""
    topology, work = compiled.topology, compiled.program.work
    return {
        "program": compiled.program.name,
        "topology": topology.name, "devices": compiled.devices, "hosts": topology.hosts,
        "compile_seconds": compiled.seconds,
        "memory": {
            "arguments": compiled.arguments, "results": compiled.results, "shared": compiled.shared,
            "temporary": compiled.temporary, "code": compiled.code, "sum": compiled.memory,
            "chip": topology.accelerator.memory, "estimated": estimated or None,
        },
        "flops": {"products": work.products, "xla_loops_once": compiled.flops or None},
        "bytes_accessed_loops_once": compiled.accessed or None,
        **(_cycles_json(compiled) if topology.accelerator.product else _kernels_json(compiled)),
        "exchanges": [
            {"kind": op.opcode.removesuffix("-start"), "bytes": op.size, "runs": op.times, "path": short_path(op.path)}
            for op in compiled.cost.collectives
        ],
        "photos": compiled.program.photos, "runs": runs or None,
    }  # fmt: skip


def _cycles_json(compiled: Compiled) -> dict[str, Any]:
    cost, guess = compiled.cost, estimate(compiled)
    parts = by_part(cost.operations, compiled.program.parts)
    return {
        "cycles": {
            "all": cost.cycles, "moving_data": cost.moving,
            "products_at_peak": compiled.program.work.products / compiled.topology.accelerator.product,
            "by_part": {label: {"cycles": both[0], "moving_data": both[1]} for label, both in parts.items()},
            "costliest": [
                {"cycles": cycles, "runs": number, "kind": kind, "path": path}
                for cycles, number, kind, path in costliest(cost.operations)
            ],
            "open_loops": cost.open_loops,
        },
        "seconds": {"compute": guess.compute, "exchange": guess.exchange, "all": guess.seconds},
    }  # fmt: skip


def _kernels_json(compiled: Compiled) -> dict[str, Any]:
    products, traffic = bounds(compiled)
    found = kernels(compiled.cost.operations, compiled.program.parts)
    return {
        "kernels": {label: {"number": number, "bytes": size} for label, (number, size) in found.items()},
        "seconds_at_least": {"products": products, "traffic": traffic},
    }
