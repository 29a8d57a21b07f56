"""The image encoders, rewritten for export: folded weights, exact up-sampling, optional normalisation.

The modules are those of ``convert.torch_twin``, except where an exported program would be wrong or slow:

- batch norms and parallel branches are folded by ``edgesam_jax.models.fold``: a unit becomes one biased convolution;
- Core ML has no bicubic up-sampling. It is linear and separable: a product with a constant matrix on either side.

Source of the up-sampling weights: Keys (1981) with a = -0.75 and half-pixel centres, as in torch and
``edgesam_jax.models.layers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.torch_twin.efficient_vit import ConvLayer
from convert.torch_twin.encoders import DepthwiseUnit, image_encoder
from convert.torch_twin.layers import ConvBN, UpsampleConv
from convert.torch_twin.proposals import Proposals, pyramid_widths
from edgesam_jax.checkpoints.published import names
from edgesam_jax.config import STUDENTS, SamConfig
from edgesam_jax.models.anchors import CLAMP, anchors_of
from edgesam_jax.models.fold import fold, folds
from edgesam_jax.models.layers import resize_matrix
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD

PREFIX = "image_encoder."
LETTERBOX = (124, 116, 104)  # padding of an image input: the mean colour, rounded to integers
Input = Literal["tensor", "image", "photo", "hwc"]


class FoldedUnit(nn.Module):
    """A depthwise unit after folding: one biased 3x3 convolution."""

    def __init__(self, unit: DepthwiseUnit) -> None:
        super().__init__()
        self.conv = _biased(unit.conv.c)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MatrixUpsample(nn.Module):
    """1x1 convolution, then x2 bicubic up-sampling as products with a constant matrix (2g g)."""

    def __init__(self, source: UpsampleConv, side: int) -> None:
        super().__init__()
        self.op_list = source.op_list
        matrix = torch.from_numpy(resize_matrix(side, 2 * side, source.mode))
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        matrix = cast(Tensor, self.matrix)
        return matrix @ self.op_list(x) @ matrix.T


def _biased(convolution: nn.Conv2d) -> nn.Conv2d:
    c = convolution
    size: Any = c.kernel_size, c.stride, c.padding
    return nn.Conv2d(c.in_channels, c.out_channels, *size, groups=c.groups, bias=True)


def _for_folded_weights(module: nn.Module) -> None:
    """Replace the batch norms and branches of an encoder, in place, so that its state_dict has the folded names."""
    for name, child in module.named_children():
        if isinstance(child, DepthwiseUnit):
            setattr(module, name, FoldedUnit(child))
        elif isinstance(child, ConvBN):
            child.c, child.bn = _biased(child.c), cast(Any, nn.Identity())
        elif isinstance(child, ConvLayer):
            if child.norm is not None:
                child.conv, child.norm = _biased(child.conv), None
        else:
            _for_folded_weights(child)


class ExportEncoder(nn.Module):
    """A photo to its embedding (1 c g g).

    Args:
      input: ``tensor``: (1 3 s s) float32, normalised and padded with zeros, as published. ``image``: (1 3 s s) with
        values 0 to 255, padded with the colour ``LETTERBOX``. ``photo``: (1 3 h w) uint8 with 1 <= h, w <= s and the
        longest side s; the module normalises and pads it. ``hwc``: the same as (h w 3) float32.
      priors: also return the boxes (1 n 4) of all anchors in the frame, not clipped, and their scores (1 n). The caller
        selects the proposals (``portable.priors.select``), because sorting would be slow on phones.
    """

    def __init__(
        self, config: SamConfig, variables: Mapping[str, Any], input: Input = "tensor", priors: bool = False
    ) -> None:
        super().__init__()
        self.input, self.size = input, config.image_size
        self.encoder = image_encoder(config)
        if folds(config):
            _for_folded_weights(self.encoder)
        entries = names.to_published(fold(config, variables))
        state = {
            n.removeprefix(PREFIX): torch.from_numpy(np.array(v)) for n, v in entries.items() if n.startswith(PREFIX)
        }
        self.encoder.load_state_dict(state, strict=True)
        if isinstance(config.encoder, STUDENTS) and config.encoder.fuse:
            coarse = cast(UpsampleConv, self.encoder.fuse_stage3)
            self.encoder.fuse_stage3 = MatrixUpsample(coarse, config.grid // 2)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN)[None, :, None, None], persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(PIXEL_STD)[None, :, None, None], persistent=False)
        self.proposals = None
        if priors:
            assert config.proposals is not None
            self.proposals = Proposals(config.proposals, pyramid_widths(config))
            state = {
                n.removeprefix("proposals."): torch.from_numpy(np.array(v))
                for n, v in entries.items()
                if n.startswith("proposals.")
            }
            self.proposals.load_state_dict(state, strict=True)
            anchors = torch.from_numpy(anchors_of(config))
            self.register_buffer("centres", (anchors[:, :2] + anchors[:, 2:]) / 2, persistent=False)
            self.register_buffer("sizes", anchors[:, 2:] - anchors[:, :2], persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> Any:
        mean, scale = cast(Tensor, self.mean), cast(Tensor, self.scale)
        if self.input == "image":
            # SAM pads with zeros after normalising, and the mean colour has no integer values. Pixels as near to the
            # mean in all channels as LETTERBOX become 0, like the model's padding. 0.6: in float16 the mean of blue
            # is 103.5.
            offset = image - mean
            image = offset * (offset.abs().amax(dim=1, keepdim=True) > 0.6) * scale
        elif self.input in ("photo", "hwc"):
            if self.input == "hwc":
                image = image.permute(2, 0, 1)[None]
            height, width = image.shape[2:]
            image = F.pad((image.float() - mean) * scale, (0, self.size - width, 0, self.size - height))
        if self.proposals is None:
            return self.encoder(image)
        embedding, maps = self.encoder(image, True)
        logits, codes = self.proposals(maps)
        sizes = cast(Tensor, self.sizes)
        centre = cast(Tensor, self.centres) + codes[..., :2] * sizes
        half = sizes * codes[..., 2:].clamp(-CLAMP, CLAMP).exp() / 2
        return embedding, torch.cat([centre - half, centre + half], dim=-1), logits.sigmoid()
