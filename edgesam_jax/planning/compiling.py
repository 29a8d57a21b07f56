"""Compile a program for described devices, without owning one, and return its cost."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from edgesam_jax.config import UsageError
from edgesam_jax.models.kernels import platforms
from edgesam_jax.planning import compiler_cost
from edgesam_jax.planning.jaxpr_cost import Work
from edgesam_jax.planning.topology import Topology
from edgesam_jax.reporting.tables import gigabytes


@dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      name: for people.
      function: from ``jax.jit`` or, for several devices, from ``jax.pmap`` over a slice's.
      arguments: shapes (``jax.ShapeDtypeStruct``); for a jitted function they are placed on the slice's first device.
      work: operations of one device.
      parts: (label, regular expression of module paths) for the table of cycles by part; the first match counts.
      photos: processed in one run on all devices.
      advice: what to change if the program doesn't fit; ends the error message.
      mapped: ``function`` is from ``jax.pmap``.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    work: Work
    parts: Sequence[tuple[str, str]]
    photos: int
    advice: str
    mapped: bool = False


@dataclass(frozen=True)
class Compiled:
    """A program as compiled for one device of a slice.

    Attributes:
      program: what was compiled.
      cost: operations and their cycles.
      arguments, results, temporary, code: bytes on a device; ``shared`` is the part of the results that overwrites
        arguments.
      flops, accessed: FLOPs, and bytes read and written, as XLA counts them: the body of a loop once.
      seconds: spent tracing and compiling.
      hlo: text of the compiled program.
    """

    program: Program
    topology: Topology
    cost: compiler_cost.ProgramCost
    arguments: int
    results: int
    shared: int
    temporary: int
    code: int
    flops: float
    accessed: float
    seconds: float
    hlo: str

    @property
    def devices(self) -> int:
        """Number of devices that run the program: all of the slice, or one."""
        return len(self.topology.devices) if self.program.mapped else 1

    @property
    def memory(self) -> int:
        """Bytes in use on a device while the program runs."""
        return self.arguments + self.results - self.shared + self.temporary + self.code


def compile_for(topology: Topology, program: Program) -> Compiled:
    """Compile a program for a slice; takes seconds to minutes.

    Raises:
      UsageError: the program needs more memory than a chip has.
    """
    began = time.perf_counter()
    with platforms.traced_for(topology.platform):
        arguments = program.arguments if program.mapped else topology.place(program.arguments)
        lowered = program.function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        sizes = f" ({used[1]} of {used[2]})" if used else ""
        raise _too_large(sizes, topology, program) from None
    text = compiled.as_text()
    memory: Any = compiled.memory_analysis()
    work: Any = compiled.cost_analysis() or {}
    result = Compiled(
        program=program, topology=topology, cost=compiler_cost.read(text),
        arguments=memory.argument_size_in_bytes, results=memory.output_size_in_bytes,
        shared=memory.alias_size_in_bytes, temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(work.get("flops", 0.0)), accessed=float(work.get("bytes accessed", 0.0)),
        seconds=time.perf_counter() - began, hlo=text,
    )  # fmt: skip
    # The compiler for GPUs takes a program of any size.
    if result.memory > topology.accelerator.memory:
        limit = topology.accelerator.memory
        raise _too_large(f" ({gigabytes(result.memory)} of {limit / 1e9:.0f} GB)", topology, program)
    return result


def _too_large(sizes: str, topology: Topology, program: Program) -> UsageError:
    return UsageError(f"--compile {topology.name}: a chip would run out of memory{sizes}; {program.advice}")
