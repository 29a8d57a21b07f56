"""GPUs that this machine doesn't have, as XLA's CUDA compiler takes them (package ``jax-cuda12-plugin``).

The compiler needs no GPU and no driver, only a description of the GPU and CUDA's library of device functions.  It gives
the program and its memory; it has no estimate of time, and chooses kernels without trying them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from edgesam_jax.config import UsageError
from edgesam_jax.planning.accelerators import ACCELERATORS, Accelerator

PLUGIN = "jax-cuda12-plugin"
INSTALL = "pip install --no-deps jax-cuda12-plugin=={0} jax-cuda12-pjrt=={0} nvidia-cuda-nvcc-cu12"


@dataclass(frozen=True)
class Card:
    """What XLA asks about a GPU beyond ``Accelerator``: NVIDIA's published figures.

    Attributes:
      name: as CUDA gives it.
      capability: compute capability.
      cores: streaming multiprocessors.
      units: float32 units of a multiprocessor.
      clock: GHz, the highest.
      shared: bytes of shared memory that a block may ask for.
      cache: bytes of the second-level cache.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    clock: float
    shared: int
    cache: int


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 163 << 10, 40 << 20),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 227 << 10, 50 << 20),
    "h200": Card("NVIDIA H200", (9, 0), 132, 128, 1.98, 227 << 10, 50 << 20),
}


def target_config(name: str) -> str:
    """Return the text of XLA's ``GpuTargetConfigProto`` for a card."""
    card, chip = CARDS[name], ACCELERATORS[name]
    major, minor = card.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: {48 << 10}  shared_memory_per_block_optin: {card.shared}
  shared_memory_per_core: {card.shared + 1024}  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  core_count: {card.cores}  fpus_per_core: {card.units}  clock_rate_ghz: {card.clock}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}  l2_cache_size: {card.cache}  device_memory_size: {chip.memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{card.name}"
"""


def hosts_and_devices(chip: Accelerator, shape: str) -> tuple[int, int]:
    """Return the hosts and the GPUs of each for a shape ``N`` or ``HOSTSxN``.

    Raises:
      ValueError: no GPU, or more GPUs than a host holds that don't fill whole hosts.
    """
    sides = [int(side) for side in shape.split("x")]
    hosts, each = sides if len(sides) == 2 else (max(1, sides[0] // chip.per_host), min(sides[0], chip.per_host))
    if not hosts or not 0 < each <= chip.per_host or (len(sides) == 1 and hosts * each != sides[0]):
        raise ValueError(f"a host has 1 to {chip.per_host} GPUs; several hosts: a multiple of that, or HOSTSxGPUS")
    return hosts, each


def check_compiler(text: str) -> None:
    """Check that the compiler is installed; without CUDA's device functions it would end the process.

    Raises:
      UsageError: it isn't; the message begins with ``--compile`` and ``text``.
    """
    import jax

    if importlib.util.find_spec("jax_cuda12_plugin") is None or not _has_device_functions():
        raise UsageError(
            f"--compile {text}: XLA's compiler for GPUs is missing (no GPU or driver is needed); install it with: "
            + INSTALL.format(jax.__version__)
        )


def _has_device_functions() -> bool:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) / "cuda_nvcc" for place in (spec.submodule_search_locations if spec else None) or ()]
    return any((folder / "nvvm" / "libdevice").is_dir() for folder in [*folders, Path("/usr/local/cuda")])
