"""Compile a program for described devices, without owning one, and return its cost."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from edgesam_jax.config import UsageError
from edgesam_jax.models.kernels import ops
from edgesam_jax.planning import compiler_cost
from edgesam_jax.planning.topology import Topology


@dataclass(frozen=True)
class Compiled:
    """A program as compiled for one device of a slice.

    Attributes:
      cost: operations and their cycles.
      arguments, results, temporary, code: bytes on a device; ``shared`` is the part of the results that overwrites
        arguments.
      flops, accessed: FLOPs, and bytes read and written, as XLA counts them: the body of a loop once.
      seconds: spent tracing and compiling.
      hlo: text of the compiled program.
    """

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
    def memory(self) -> int:
        """Bytes in use on a device while the program runs."""
        return self.arguments + self.results - self.shared + self.temporary + self.code


def compile_for(topology: Topology, function: Any, arguments: Sequence[Any], advice: str) -> Compiled:
    """Compile a function for a slice.

    Args:
      function: from ``jax.jit`` or, for several devices, from ``jax.pmap`` over the slice's.  It must not have been
        traced for another platform: JAX keeps traces, and the form of an operation depends on the platform.
      arguments: shapes (``jax.ShapeDtypeStruct``); those of a jitted function from ``Topology.place``.
      advice: what to change if the program doesn't fit; ends the error message.

    Raises:
      UsageError: the program needs more memory than a chip has.
    """
    began = time.perf_counter()
    with ops.traced_for("tpu"):
        lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        sizes = f" ({used[1]} of {used[2]})" if used else ""
        raise UsageError(f"--compile {topology.name}: a chip would run out of memory{sizes}; {advice}") from None
    text = compiled.as_text()
    memory: Any = compiled.memory_analysis()
    work: Any = compiled.cost_analysis() or {}
    return Compiled(
        topology=topology, cost=compiler_cost.read(text),
        arguments=memory.argument_size_in_bytes, results=memory.output_size_in_bytes,
        shared=memory.alias_size_in_bytes, temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(work.get("flops", 0.0)), accessed=float(work.get("bytes accessed", 0.0)),
        seconds=time.perf_counter() - began, hlo=text,
    )  # fmt: skip
