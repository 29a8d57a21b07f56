"""The up-sampling to masks as products; the pixels of a cell stay apart until the masks are made.

A transposed convolution of stride and size 2 is a product per cell. ONNX Runtime's is slower than the product, and its
means over the channels of (1 c h w) take ten times as long as those over the first axis of (c pixels).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.export.decoder import ExportDecoder
from convert.export.photo_maps import upscaling_of, vector


class Upscaling(nn.Module):
    """The first product's result without constants (c g*g), and the hypernetworks' (m c/8) -> logits (1 m 4g 4g).

    Attributes:
      weight: of the first product (c c).

    Args:
      constant: what is to be added to the image before the first product, (c 1) float64.
    """

    def __init__(self, whole: ExportDecoder, constant: Tensor | None = None) -> None:
        super().__init__()
        kind = whole.last_norm.weight.dtype
        weight, bias = upscaling_of(whole)
        bias = bias if constant is None else weight @ constant + bias
        second = cast(nn.ConvTranspose2d, whole.upscaling[3])
        self.norm = whole.upscaling[1]
        self.register_buffer("weight", weight.to(kind), persistent=False)
        self.register_buffer("bias", bias.to(kind), persistent=False)
        # Rows are the channels of the four new pixels in turn.
        product = second.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
        self.register_buffer("second", product.clone(), persistent=False)
        self.register_buffer("second_bias", vector(second.bias).repeat(4, 1).to(kind), persistent=False)

    def forward(self, query: Tensor, pixels: Tensor) -> Tensor:
        m, g = query.shape[0], math.isqrt(pixels.shape[1])
        x = (pixels + cast(Tensor, self.bias)).reshape(4, -1, g * g)  # centred
        x = x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + cast(float, self.norm.eps))
        x = F.gelu(x * cast(Tensor, self.norm.weight)[:, None] + cast(Tensor, self.norm.bias)[:, None])
        x = F.gelu(cast(Tensor, self.second) @ x + cast(Tensor, self.second_bias))
        masks = query @ x.reshape(16, -1, g * g)  # (16 m g*g)
        masks = masks.reshape(4, 4, m, g * g).permute(2, 1, 0, 3).reshape(1, 16 * m, g, g)
        return F.pixel_shuffle(F.pixel_shuffle(masks, 2), 2)
