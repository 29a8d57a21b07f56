"""The cost of a compiled program, read from the compiler's own text: cycles by operation, loops, collectives.

XLA's TPU compiler writes ``estimated_cycles`` beside most instructions of the scheduled program, together with the path
of the module that the instruction comes from.  The estimate is the compiler's model, by which it chooses its
schedules; it is not a measurement.  It has no figure for copies that run beside the computation (``copy-start``) and
none for exchanges between devices, which are listed separately.

The text of other back ends has no such figures: operations then have no cycles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that compute nothing: they only change where and how values lie in memory.
MOVES = {
    "bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "copy", "dynamic-slice",
    "dynamic-update-slice", "get-tuple-element", "iota", "pad", "parameter", "reshape", "reverse", "slice", "transpose",
    "tuple",
}  # fmt: skip
# Instructions without a cost of their own.
FREE = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple", "after-all", "partition-id", "replica-id"}
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}  # other types end in their number of bits

CALLS = {"", "shard_map", "eval_jaxpr", "closed_call", "jit_core"}  # parts of a path that name no module

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PATH = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Operation:
    """One instruction of the scheduled program.

    Attributes:
      name: in the program.
      opcode: XLA's; for a fusion, ``fusion``.
      path: module path that the instruction comes from, as JAX named it; "" if the compiler added it.
      shape: of the result, with XLA's layout.
      cycles: of one run; None if the compiler gives no figure.
      times: number of runs, from the surrounding loops.
      moves: it only moves or copies data.
    """

    name: str
    opcode: str
    path: str
    shape: str
    cycles: int | None
    times: int
    moves: bool

    @property
    def total(self) -> int:
        """Cycles of all runs; 0 if there is no figure."""
        return (self.cycles or 0) * self.times

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return shape_bytes(self.shape)


@dataclass(frozen=True)
class ProgramCost:
    """The operations of a program that cost something, and the number of loops whose passes are unknown."""

    operations: tuple[Operation, ...]
    open_loops: int

    @cached_property
    def cycles(self) -> int:
        """Sum over all operations, with the passes of their loops."""
        return sum(op.total for op in self.operations)

    @cached_property
    def moving(self) -> int:
        """Cycles of operations that only move data."""
        return sum(op.total for op in self.operations if op.moves)

    @cached_property
    def collectives(self) -> tuple[Operation, ...]:
        """Exchanges between devices."""
        return tuple(op for op in self.operations if op.opcode.removesuffix("-start") in COLLECTIVES)


def shape_bytes(shape: str) -> int:
    """Return the bytes of all arrays in XLA's text of a shape, without the padding of its layout."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = BITS.get(kind) or int(re.sub(r"\D*(\d+).*", r"\1", kind))
        total += math.prod(map(int, filter(None, sizes.split(",")))) * bits // 8
    return total


def read(text: str) -> ProgramCost:
    """Read the text of a compiled program (``compiled.as_text()``).

    Raises:
      ValueError: the text has no entry computation.
    """
    entry, programs = _computations(text)
    open_loops = 0
    operations: list[Operation] = []

    def walk(name: str, times: int) -> None:
        nonlocal open_loops
        for op, line in programs[name]:
            if op.opcode == "while":
                passes = _passes(line, programs)
                open_loops += passes is None
                walk(_called(line)[0], times * (passes or 1))
            elif op.opcode == "conditional":
                walk(max(_called(line), key=lambda branch: _alone(branch, programs)), times)
            elif op.opcode in ("call", "async-start"):
                for called in _called(line):
                    walk(called, times)
            elif op.opcode not in FREE and not op.opcode.endswith(("-done", "-update")):
                operations.append(replace(op, times=times))

    walk(entry, 1)
    return ProgramCost(tuple(operations), open_loops)


def short_path(path: str) -> str:
    """Return a module path without the names of transformations: ``jit(f)/a/transpose(jvp(b))/c`` gives ``a/b'/c``.

    A prime marks what belongs to a backward pass.
    """
    parts = []
    for part in path.split("/"):
        inner = re.sub(r"^(?:\w+\()+|\)+$", "", part) if "(" in part else part
        if part.startswith(("jit(", "pjit(", "pmap(")) or inner in CALLS:
            continue
        parts.append(inner + "'" * part.startswith("transpose("))
    return "/".join(parts)


# -------------------------------------------------------------------------------------------------------------- text


_Line = tuple[Operation, str]


def _computations(text: str) -> tuple[str, dict[str, list[_Line]]]:
    """Return the name of the entry and the instructions of every computation, with their lines."""
    programs: dict[str, list[_Line]] = {}
    entry, current = "", ""
    fused: dict[str, set[str]] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = header[1]
            programs[current], fused[current] = [], set()
            entry = current if line.startswith("ENTRY") else entry
        elif current and (found := _INSTRUCTION.match(line)):
            opcode = _OPCODE.search(" " + found[2])
            if opcode is None:
                continue
            shape = found[2][: max(opcode.start() - 1, 0)]
            cycles, path = _CYCLES.search(line), _PATH.search(line)
            fused[current].add(opcode[1])
            # A computation is printed before its callers.
            moves = opcode[1] in MOVES or (
                opcode[1] == "fusion" and all(fused.get(called, {"?"}) <= MOVES for called in _called(line))
            )
            op = Operation(
                found[1], opcode[1], path[1] if path else "", shape, int(cycles[1]) if cycles else None, 1, moves
            )
            programs[current].append((op, line))
    if not entry:
        raise ValueError("the text has no entry computation")
    return entry, programs


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    named = _CALLED.findall(line)
    return named + ([name.strip(" %") for name in branches[1].split(",")] if branches else [])


def _passes(line: str, programs: dict[str, list[_Line]]) -> int | None:
    """Return the number of passes of a loop: as XLA knows it, else the limit that its condition compares with."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    limits = [
        int(value[1])
        for _, text in (programs.get(condition[1], []) if condition else [])
        if (value := re.search(r"s32\[\]\S* constant\((\d+)\)", text))
    ]
    return limits[0] if len(limits) == 1 else None


def _alone(name: str, programs: dict[str, list[_Line]]) -> int:
    """Cycles of a branch, nested loops counted once."""

    def lines() -> Iterator[int]:
        for op, line in programs[name]:
            yield op.cycles or 0
            if op.opcode in ("while", "call", "conditional", "async-start"):
                yield sum(_alone(called, programs) for called in _called(line))

    return sum(lines())
