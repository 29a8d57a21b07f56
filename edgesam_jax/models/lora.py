"""Low-rank updates merged into the kernels that they change, which gives a model without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgesam_jax.config import SamConfig


def merged(config: SamConfig, params: Any) -> tuple[SamConfig, Any]:
    """Return the config without LoRA, and the parameters with every ``lora_A`` and ``lora_B`` added to its kernel."""
    plain = replace(config, decoder=replace(config.decoder, lora_rank=0))
    return plain, _merged(params)


def _merged(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "lora_A" not in tree:
        return {name: _merged(branch) for name, branch in tree.items()}
    down, up = (np.asarray(tree[name], np.float64) for name in ("lora_A", "lora_B"))
    kernel = np.asarray(tree["kernel"])
    update = (down.T @ up.T) / len(down)
    rest = {name: leaf for name, leaf in tree.items() if name not in ("lora_A", "lora_B")}
    return {**rest, "kernel": (kernel + update).astype(kernel.dtype)}
