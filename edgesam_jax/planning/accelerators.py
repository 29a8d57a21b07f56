"""Published figures of accelerators, and the memory and peak rate of local devices."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgesam_jax.config import Config


@dataclass(frozen=True)
class Accelerator:
    """Published peaks of one device.

    Attributes:
      bfloat16: FLOP/s of dense bfloat16 products.
      float32: FLOP/s of float32 products at JAX's default precision: TF32 on a GPU, one bfloat16 pass on a TPU.
      memory: bytes.
      per_host: usual number of devices in a host.
      bandwidth: bytes/s of the memory.
      links: bytes/s that a device sends to its neighbours of a slice, or of a host for a GPU, in one direction.
      product: FLOPs of bfloat16 products in one cycle; 0 for a GPU.
    """

    bfloat16: float
    float32: float
    memory: float
    per_host: int
    bandwidth: float
    links: float
    product: int = 0

    @property
    def clock(self) -> float:
        """Cycles/s: the peak divided by what the matrix units do in a cycle."""
        return self.bfloat16 / self.product


MXU = 2 * 128 * 128  # FLOPs of a TPU's matrix unit in one cycle; a v6e's unit has twice the side
ACCELERATORS = {
    "a100": Accelerator(312e12, 156e12, 80e9, 8, 2039e9, 300e9),
    "h100": Accelerator(989e12, 494e12, 80e9, 8, 3352e9, 450e9),
    "h200": Accelerator(989e12, 494e12, 141e9, 8, 4800e9, 450e9),
    "tpu-v4": Accelerator(275e12, 275e12, 32e9, 4, 1200e9, 300e9, 8 * MXU),
    "tpu-v5e": Accelerator(197e12, 197e12, 16e9, 4, 819e9, 200e9, 4 * MXU),
    "tpu-v5p": Accelerator(459e12, 459e12, 95e9, 4, 2765e9, 600e9, 8 * MXU),
    "tpu-v6e": Accelerator(918e12, 918e12, 32e9, 4, 1640e9, 448e9, 4 * 4 * MXU),
}
# Patterns of JAX's device kinds, by name in ``ACCELERATORS``.
KINDS = {
    "a100": "A100", "h100": "H100", "h200": "H200", "tpu-v4": "TPU v4", "tpu-v5e": "TPU v5 lite|TPU v5e",
    "tpu-v5p": "TPU v5p|TPU v5$", "tpu-v6e": "TPU v6",
}  # fmt: skip


def peak_memory(devices: Sequence[Any]) -> int:
    """Return the peak bytes in use: of the fullest device if devices report it, else the process's resident memory."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    if any(peaks):
        return int(max(peaks))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_flops(config: Config, device_kind: str) -> float:
    """Return the peak FLOP/s of one device: ``train.peak_tflops`` if set, else the published figure, else 0."""
    if config.train.peak_tflops > 0:
        return config.train.peak_tflops * 1e12
    for name, pattern in KINDS.items():
        if re.search(pattern, device_kind):
            return float(getattr(ACCELERATORS[name], config.model.compute_dtype))
    return 0.0
