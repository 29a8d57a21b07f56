"""What a compiled program costs, as text and as JSON: memory, cycles by part, costliest operations, exchange, time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgesam_jax.planning.compiler_cost import Operation, short_path
from edgesam_jax.planning.compiling import Compiled
from edgesam_jax.reporting.tables import gigabytes, table

SHOWN = 20  # costliest operations listed
HOP = 1e-6  # seconds that a message takes from chip to chip, an assumption
Parts = Sequence[tuple[str, str]]  # (label, regular expression that the module path matches); the first match counts

# Parts of a training step, by the named scopes of ``learning/``.
STEP_PARTS: Parts = (
    ("teacher: encoder", r"(^|/)teacher/.*encode_image"),
    ("teacher: decoder", r"(^|/)teacher_decoder"),
    ("student: encoder, backward", r"(^|/)student'/.*encode_image"),
    ("student: encoder, forward", r"(^|/)student/.*encode_image"),
    ("student: decoder, backward", r"(^|/)student_decoder'"),
    ("student: decoder, forward", r"(^|/)student_decoder"),
    ("sampling of points", r"(^|/)sampling"),
    ("optimiser", r"(^|/)optimiser"),
    ("losses and the rest", r"."),
)
ENCODER_PARTS: Parts = (
    ("attention", r"/attn(/|$)|/context_module"),
    ("mlp", r"/mlp(/|$)|channel_mixer|local_module"),
    ("neck", r"/neck_|/fuse_"),
    ("rest", r"."),
)
DECODER_PARTS: Parts = (
    ("prompt encoder", r"prompt_encoder"),
    ("transformer", r"/transformer"),
    ("upscaling", r"/output_upscaling"),
    ("rest", r"."),
)
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


def estimate(compiled: Compiled, products: float) -> Estimate:
    """Estimate the time of a program whose matrix products take ``products`` FLOPs on a device, with all loops."""
    chip, devices = compiled.topology.accelerator, len(compiled.topology.devices)
    exchange = 0.0
    if devices > 1:
        sent = sum(op.size * op.times for op in compiled.cost.collectives)
        number = sum(op.times for op in compiled.cost.collectives)
        exchange = 2 * sent * (devices - 1) / devices / chip.links + number * HOP * sum(_sides(compiled))
    return Estimate(compiled.cost.cycles / chip.clock, exchange, products / chip.bfloat16)


def _sides(compiled: Compiled) -> list[int]:
    return [int(side) for side in compiled.topology.name.split(":")[1].split("x")]


def by_part(operations: Sequence[Operation], parts: Parts) -> dict[str, tuple[int, int]]:
    """Return the cycles of each part, and how many of them only move data."""
    found: dict[str, tuple[int, int]] = {label: (0, 0) for label, _ in parts}
    for op in operations:
        path = short_path(op.path)
        label = next((label for label, pattern in parts if re.search(pattern, path)), UNNAMED)
        total, moving = found.get(label, (0, 0))
        found[label] = total + op.total, moving + op.total * op.moves
    return {label: cycles for label, cycles in found.items() if cycles[0]}


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


def heading(compiled: Compiled, name: str) -> str:
    """Return the first lines: what was compiled, for what, with which compiler."""
    from importlib.metadata import version

    topology = compiled.topology
    return (
        f"{name}, compiled for {topology.name}: {len(topology.devices)} {topology.chip} on {topology.hosts}"
        f" host{'s' * (topology.hosts > 1)}\njax {version('jax')}, libtpu {version('libtpu')};"
        f" compiled in {compiled.seconds:.0f} s, not run"
    )


def memory_text(compiled: Compiled, estimated: int = 0) -> str:
    """Return the table of a chip's memory, with the estimate of the dry run if there is one."""
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


def work_text(compiled: Compiled, guess: Estimate, products: float) -> str:
    """Return the table of operations, bytes and cycles, with the lower bounds beside them."""
    cost, chip = compiled.cost, compiled.topology.accelerator
    floor = products / chip.product
    rows = [
        ("products and convolutions, GFLOP", f"{products / 1e9:,.1f}"),
        ("XLA's count, loops once, GFLOP", f"{compiled.flops / 1e9:,.1f}"),
        ("bytes accessed, loops once, GB", f"{compiled.accessed / 1e9:,.1f}"),
        ("cycles, M", f"{cost.cycles / 1e6:,.1f}"),
        ("of these only moving data, M", f"{cost.moving / 1e6:,.1f}"),
        ("cycles of the products alone at the peak, M", f"{floor / 1e6:,.1f}"),
        ("ratio", f"{cost.cycles / floor:.2f}" if floor else ""),
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


def parts_text(compiled: Compiled, parts: Parts) -> str:
    """Return the table of cycles by part."""
    total = compiled.cost.cycles or 1
    rows = [
        (label, f"{cycles / 1e6:,.2f}", f"{cycles / total:.1%}", f"{moving / cycles:.0%}")
        for label, (cycles, moving) in by_part(compiled.cost.operations, parts).items()
    ]
    return table(("cycles by part", "M", "share", "moving data"), rows)


def costliest_text(compiled: Compiled, count: int = SHOWN) -> str:
    """Return the table of the costliest operations."""
    total = compiled.cost.cycles or 1
    rows = [
        (f"{cycles / 1e6:,.2f}", f"{cycles / total:.1%}", f"{number}", f"  {kind}", path)
        for cycles, number, kind, path in costliest(compiled.cost.operations, count)
    ]
    return table(("M cycles", "share", "runs", "", ""), rows)


def exchange_text(compiled: Compiled) -> str:
    """Return the table of exchanges between devices; empty without any."""
    kinds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for op in compiled.cost.collectives:
        kind = op.opcode.removesuffix("-start")
        kinds[kind] += op.times
        sizes[kind] += op.size * op.times
    rows = [(kind, f"{number}", f"{sizes[kind] / 1e6:,.2f}") for kind, number in kinds.items()]
    return table(("exchanges of a run", "number", "MB"), rows) if rows else ""


def as_json(compiled: Compiled, guess: Estimate, products: float, parts: Parts, estimated: int = 0) -> dict[str, Any]:
    """Return everything that the text shows, and bytes, cycles and seconds unrounded."""
    cost, topology = compiled.cost, compiled.topology
    return {
        "topology": topology.name, "devices": len(topology.devices), "hosts": topology.hosts,
        "compile_seconds": compiled.seconds,
        "memory": {
            "arguments": compiled.arguments, "results": compiled.results, "shared": compiled.shared,
            "temporary": compiled.temporary, "code": compiled.code, "sum": compiled.memory,
            "chip": topology.accelerator.memory, "estimated": estimated or None,
        },
        "flops": {"products": products, "xla_loops_once": compiled.flops},
        "bytes_accessed_loops_once": compiled.accessed,
        "cycles": {
            "all": cost.cycles, "moving_data": cost.moving, "products_at_peak": products / topology.accelerator.product,
            "by_part": {k: {"cycles": c, "moving_data": m} for k, (c, m) in by_part(cost.operations, parts).items()},
            "costliest": [
                {"cycles": cycles, "runs": number, "kind": kind, "path": path}
                for cycles, number, kind, path in costliest(cost.operations)
            ],
            "open_loops": cost.open_loops,
        },
        "exchanges": [
            {"kind": op.opcode.removesuffix("-start"), "bytes": op.size, "runs": op.times, "path": short_path(op.path)}
            for op in cost.collectives
        ],
        "seconds": {"compute": guess.compute, "exchange": guess.exchange, "all": guess.seconds},
    }  # fmt: skip
