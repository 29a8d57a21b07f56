"""TPU slices and GPUs that this machine doesn't have, as JAX describes them for its compilers.

TPUs: package ``libtpu``.  GPUs: ``gpus.py``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from edgesam_jax.config import UsageError
from edgesam_jax.planning import gpus
from edgesam_jax.planning.accelerators import ACCELERATORS, Accelerator

EXAMPLES = "v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:2x4, h100:8, h100:4x8 (4 hosts)"
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
    """A described slice, or GPUs of one or several hosts.

    Attributes:
      name: such as ``v5e:4x4``.
      chip: name in ``ACCELERATORS``.
      devices: one per chip; they can be compiled for, not run on.
      compiler: its package and version.
      described_hosts: number of hosts; 0: as many as the devices usually have.
    """

    name: str
    chip: str
    devices: tuple[Any, ...]
    compiler: str = ""
    described_hosts: int = 0

    @property
    def accelerator(self) -> Accelerator:
        """Published figures of a chip."""
        return ACCELERATORS[self.chip]

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.described_hosts or -(-len(self.devices) // self.accelerator.per_host)

    @property
    def platform(self) -> str:
        """``tpu`` or ``gpu``: the form in which programs are traced."""
        return "tpu" if self.chip.startswith("tpu-") else "gpu"

    def place(self, shapes: Any) -> Any:
        """Return the shapes (``jax.ShapeDtypeStruct``) as arrays on the first device."""
        import jax

        sharding = jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def check_name(text: str) -> tuple[str, str]:
    """Split a topology's name into chip and shape.

    Raises:
      UsageError: it isn't of the form CHIP:AxB or CHIP:AxBxC (TPUs), CHIP:N or CHIP:HOSTSxN (GPUs), or the chip is
        unknown.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", text)
    chips = {name.removeprefix("tpu-"): (0, 1) if name in gpus.CARDS else (1, 2) for name in ACCELERATORS}
    if not found or found[2].count("x") not in chips.get(found[1], ()):
        raise UsageError(
            f"--compile {text}: expected CHIP:SHAPE with a chip of {', '.join(chips)}; for example {EXAMPLES}"
        )
    return found[1], found[2]


def describe(text: str) -> Topology:
    """Return the slice, or the GPUs, of this name.

    Call it before JAX has initialised a device: it keeps JAX from looking for a TPU or GPU in this machine.

    Raises:
      UsageError: an unknown name, a shape that doesn't exist, or a compiler that is not installed.
    """
    chip, shape = check_name(text)
    return _describe_gpus(text, chip, shape) if chip in gpus.CARDS else _describe_slice(text, chip, shape)


def _describe_gpus(text: str, chip: str, shape: str) -> Topology:
    import jax

    try:
        hosts, each = gpus.hosts_and_devices(ACCELERATORS[chip], shape)
    except ValueError as error:
        raise UsageError(f"--compile {text}: {error}") from None
    gpus.check_compiler(text)
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda", target_config=gpus.target_config(chip), topology=f"1x{hosts}x{each}"
    )
    return Topology(text, chip, tuple(found.devices), f"{gpus.PLUGIN} {version(gpus.PLUGIN)}", hosts)


def _describe_slice(text: str, chip: str, shape: str) -> Topology:
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
    return Topology(f"{chip}:{shape}", f"tpu-{chip}", tuple(found.devices), f"libtpu {version('libtpu')}")
