"""TPU slices that this machine doesn't have, as JAX describes them for its compiler (package ``libtpu``)."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.planning.accelerators import ACCELERATORS, Accelerator

EXAMPLES = "v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:2x4"
INSTALL = "install it with: pip install 'edgesam-jax[tpu]'"
# One device per chip, as JAX runs a v4 by default; libtpu's own default describes its two cores as devices.
SETTINGS = {"v4": {"chip_config_name": "megacore"}}
# Quiet; without questions to a cloud's metadata server, which take minutes elsewhere; and beside other processes that
# have loaded libtpu, since no TPU is used.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """A described slice.

    Attributes:
      name: such as ``v5e:4x4``.
      chip: name in ``ACCELERATORS``.
      devices: one per chip; they can be compiled for, not run on.
    """

    name: str
    chip: str
    devices: tuple[Any, ...]

    @property
    def accelerator(self) -> Accelerator:
        """Published figures of a chip."""
        return ACCELERATORS[self.chip]

    @property
    def hosts(self) -> int:
        """Usual number of hosts."""
        return -(-len(self.devices) // self.accelerator.per_host)

    def place(self, shapes: Any) -> Any:
        """Return the shapes (``jax.ShapeDtypeStruct``) as arrays on the first device."""
        import jax

        sharding = jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def check_name(text: str) -> tuple[str, str]:
    """Split a topology's name into chip and shape.

    Raises:
      UsageError: it isn't of the form CHIP:AxB or CHIP:AxBxC, or the chip is unknown.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", text)
    chips = [name.removeprefix("tpu-") for name in ACCELERATORS if name.startswith("tpu-")]
    if not found or found[1] not in chips:
        raise UsageError(
            f"--compile {text}: expected CHIP:SHAPE with a chip of {', '.join(chips)}; for example {EXAMPLES}"
        )
    return found[1], found[2]


def describe(text: str) -> Topology:
    """Return the slice of this name.

    Call it before JAX has initialised a device: it keeps JAX from looking for a TPU in this machine.

    Raises:
      UsageError: an unknown name, a shape that the installed ``libtpu`` refuses, or no ``libtpu``.
    """
    chip, shape = check_name(text)
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(f"--compile {text}: the TPU compiler is the package libtpu; {INSTALL}")
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import jax

    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    if shape.count("x") == 1 and chip in ("v4", "v5p"):
        shape = f"{shape}x1"
    try:
        found = topologies.get_topology_desc(f"{chip}:{shape}", "tpu", **SETTINGS.get(chip, {}))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0].removeprefix("INVALID_ARGUMENT: ")
        raise UsageError(f"--compile {text}: libtpu refuses this shape: {reason}") from None
    return Topology(f"{chip}:{shape}", f"tpu-{chip}", tuple(found.devices))
