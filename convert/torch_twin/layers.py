"""Modules shared by the torch image encoders: norms, convolutions, fusion and neck.

Sources: Segment Anything, appendix A (neck); EdgeSAM, section 3.1 (fusion).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel of (b c h w).

    Written in a form that coremltools recognises and fuses to one operation; it doesn't recognise ``var`` or ``pow``.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        d = x - x.mean(dim=1, keepdim=True)
        normed = d * torch.rsqrt((d * d).mean(dim=1, keepdim=True) + self.eps)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def conv_neck(channels: int, embed_dim: int) -> nn.Sequential:
    """Return SAM's neck: two convolutions with channel norms, without activation."""
    return nn.Sequential(
        nn.Conv2d(channels, embed_dim, 1, bias=False),
        ChannelNorm(embed_dim),
        nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
        ChannelNorm(embed_dim),
    )


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm: ``c`` and ``bn``."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class UpsampleConv(nn.Module):
    """1x1 convolution, then x2 up-sampling."""

    def __init__(self, cin: int, cout: int, mode: str) -> None:
        super().__init__()
        self.op_list = nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.op_list(x), scale_factor=2.0, mode=self.mode, align_corners=False)


class FusedEncoder(nn.Module):
    """Base of encoders that end with EdgeSAM's fusion of strides 16 and 32, if ``fuse`` is set, and SAM's neck."""

    def add_end(self, fine: int, coarse: int, embed_dim: int, fuse: bool, upsample: str) -> None:
        """Create the modules of the end; ``fine`` and ``coarse`` are the channels of the two maps."""
        self.fuse = fuse
        if fuse:
            self.fuse_stage2 = nn.Conv2d(fine, embed_dim, 1, bias=False)
            self.fuse_stage3 = UpsampleConv(coarse, embed_dim, upsample)
        self.neck = conv_neck(embed_dim if fuse else coarse, embed_dim)

    def embed(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Both maps -> (b embed_dim g g); without fusion only the second is used."""
        return self.neck(self.fuse_stage2(fine) + self.fuse_stage3(coarse) if self.fuse else coarse)
