"""Write the golden values: what the torch model gives on small configs, for where torch is not installed.

    python tests/make_golden.py          # needs torch; writes tests/data/golden_*.npz

Weights and inputs come from ``deterministic_weights``; only outputs are stored.
"""

from __future__ import annotations

import dataclasses

import deterministic_weights
import numpy as np
from paths import GOLDEN

from edgesam_jax.config import DecoderConfig, RepVitConfig, SamConfig, VitConfig

DATA = GOLDEN

_SMALL = {"decoder": DecoderConfig(heads=4, mlp_dim=48), "image_size": 64, "embed_dim": 32, "mask_in_chans": 8}
_REPVIT = RepVitConfig(widths=(16, 24, 32, 48), depths=(2, 2, 3, 2))  # with and without gates
CONFIGS = {
    "repvit": SamConfig(encoder=_REPVIT, **_SMALL),
    "repvit_bilinear_lora": SamConfig(
        encoder=dataclasses.replace(_REPVIT, depths=(2, 1, 1, 1), upsample="bilinear", stem_strides=(2, 1)),
        **{**_SMALL, "image_size": 48, "decoder": DecoderConfig(heads=2, mlp_dim=40, lora_rank=3)},
    ),
    "repvit_no_fuse": SamConfig(encoder=dataclasses.replace(_REPVIT, depths=(2, 1, 1, 1), fuse=False), **_SMALL),
    "vit": SamConfig(
        encoder=VitConfig(width=48, depth=3, heads=4, global_blocks=(1,), window_size=3, patch_size=8), **_SMALL
    ),
}

# Each kind of prompt: coordinates, labels, which slots are real, and whether a mask of an earlier round is given.
KINDS = {
    "point": ([[20.5, 9.0], [0.0, 0.0]], [1, -1], [True, True], False),
    "box": ([[5.0, 6.5], [40.0, 33.0], [0.0, 0.0]], [2, 3, -1], [True, True, False], False),
    "box_and_points": ([[5.0, 6.5], [40.0, 33.0], [30.0, 8.0], [12.0, 40.0]], [2, 3, 0, 1], [True] * 4, False),
    "padded_points": (
        [[0.0, 0.0], [7.0, 7.0], [33.0, 21.0], [9.0, 9.0]],
        [-1, 0, 1, 0],
        [True, True, True, False],
        False,
    ),
    "mask": ([[20.5, 9.0], [0.0, 0.0]], [1, -1], [True, True], True),
}


def mask_input(config: SamConfig) -> np.ndarray:
    """(1 1 s s) logits of an earlier round."""
    return (4 * deterministic_weights.uniform("mask", (1, 1, config.mask_size, config.mask_size))).astype(np.float32)


def torch_outputs(config: SamConfig) -> dict[str, np.ndarray]:
    """Everything that is stored for a config."""
    import torch

    from convert.torch_twin.model import TorchSam

    model = TorchSam(config).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in deterministic_weights.published(config).items()})
    found = {}
    with torch.inference_mode():
        image = torch.from_numpy(deterministic_weights.image(config.image_size)).permute(0, 3, 1, 2)
        embedding = model.encode_image(image)
        found["embedding"] = embedding.permute(0, 2, 3, 1)
        for kind in KINDS:
            coords, labels, valid, masked = KINDS[kind]
            mask = torch.from_numpy(mask_input(config)) if masked else None
            given = torch.tensor([coords]), torch.tensor([labels]), torch.tensor([valid])
            logits, iou, targets = model.decode_tokens(embedding, *given, mask, num_masks=4)
            found |= {f"{kind}.logits": logits, f"{kind}.iou": iou, f"{kind}.query": targets["query"]}
    return {name: value.numpy() for name, value in found.items()}


def main() -> None:
    for name, config in CONFIGS.items():
        path = DATA / f"golden_{name}.npz"
        np.savez_compressed(path, **torch_outputs(config))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
