"""SAM's own automatic mask generator (package ``segment-anything`` 1.0) with the weights of one of our models.

The package imports torchvision for box suppression and for resizing with Pillow.  Where torchvision is not installed,
stand-ins in torch and Pillow with the same results take its place.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import numpy as np
import torch
from PIL import Image

from convert.to_torch import state_dict
from convert.torch_twin.encoders import image_encoder
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import SamConfig, VitConfig
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD


def _suppress(boxes: torch.Tensor, scores: torch.Tensor, _groups: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy suppression by falling score; all boxes are of one group here."""
    order = torch.argsort(scores, descending=True, stable=True)
    sorted_boxes = boxes[order]
    areas = (sorted_boxes[:, 2:] - sorted_boxes[:, :2]).prod(1)
    alive, kept = torch.ones(len(order), dtype=torch.bool), []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(sorted_boxes[i, :2], sorted_boxes[:, :2])
        high = torch.minimum(sorted_boxes[i, 2:], sorted_boxes[:, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        alive &= ~(shared / (areas[i] + areas - shared) > iou_threshold)
    return order[kept]


def _stand_in() -> None:
    """Put the parts of torchvision that the package imports into ``sys.modules``."""
    names = ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms")
    for name in (*names, "torchvision.transforms.functional"):
        sys.modules[name] = types.ModuleType(name)
    boxes: Any = sys.modules["torchvision.ops.boxes"]
    boxes.batched_nms = _suppress
    boxes.box_area = lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    functional: Any = sys.modules["torchvision.transforms.functional"]
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def is_installed() -> bool:
    """Whether ``segment-anything`` is installed."""
    return importlib.util.find_spec("segment_anything") is not None


def package() -> Any:
    """Import ``segment_anything``.

    Raises:
      ImportError: it is not installed.
    """
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        _stand_in()
    import segment_anything

    return segment_anything


def _vit(config: SamConfig, modeling: Any) -> torch.nn.Module:
    import functools

    vit = config.encoder
    assert isinstance(vit, VitConfig)
    encoder: torch.nn.Module = modeling.ImageEncoderViT(
        img_size=config.image_size, patch_size=vit.patch_size, embed_dim=vit.width, depth=vit.depth,
        num_heads=vit.heads, mlp_ratio=vit.mlp_ratio, out_chans=config.embed_dim, qkv_bias=True, use_rel_pos=True,
        window_size=vit.window_size, global_attn_indexes=vit.global_blocks,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return encoder


def sam_of(model: Model) -> torch.nn.Module:
    """Return the package's ``Sam`` with a model's weights; an encoder that SAM doesn't have is our torch twin's.

    Raises:
      UsageError: the variables don't match ``model.config``.
    """
    modeling = package().modeling
    config, decoder = model.config, model.config.decoder
    if isinstance(config.encoder, VitConfig):
        encoder = _vit(config, modeling)
    else:
        encoder = image_encoder(config)
        encoder.img_size = config.image_size  # type: ignore[assignment]
    sam: torch.nn.Module = modeling.Sam(
        image_encoder=encoder,
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.embed_dim, image_embedding_size=(config.grid, config.grid),
            input_image_size=(config.image_size, config.image_size), mask_in_chans=config.mask_in_chans,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=decoder.num_mask_tokens - 1,
            transformer=modeling.TwoWayTransformer(
                depth=decoder.depth, embedding_dim=config.embed_dim, mlp_dim=decoder.mlp_dim, num_heads=decoder.heads
            ),
            transformer_dim=config.embed_dim, iou_head_depth=3, iou_head_hidden_dim=config.embed_dim,
        ),
        pixel_mean=list(PIXEL_MEAN), pixel_std=list(PIXEL_STD),
    ).eval().requires_grad_(False)  # fmt: skip
    entries = {name: torch.from_numpy(np.array(value)) for name, value in state_dict(model).items()}
    sam.load_state_dict(entries, strict=True)
    return sam


def generator_of(model: Model, **options: Any) -> Any:
    """Return SAM's automatic mask generator for a model; its scores are those of the IoU head."""
    return package().SamAutomaticMaskGenerator(sam_of(model), **options)
