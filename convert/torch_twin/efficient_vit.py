"""EfficientViT-B1 in torch with the published names (without ``backbone.``): EdgeSAM's student of Table 5c.

Sources: EfficientViT (arXiv 2205.14756), section 3; docs/published_code.md, "Other models".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.torch_twin.layers import FusedEncoder
from edgesam_jax.config import EfficientVitConfig
from edgesam_jax.models.encoders.efficient_vit import EPSILON


class ConvLayer(nn.Module):
    """Convolution ``conv``, batch norm ``norm`` unless the convolution has a bias, hard-swish unless ``act`` is off."""

    def __init__(
        self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1,
        *, norm: bool = True, bias: bool = False, act: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(cout) if norm else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return F.hardswish(x) if self.act else x


class DSConv(nn.Module):
    """Depthwise 3x3, then 1x1 without activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth_conv = ConvLayer(channels, channels, 3, groups=channels)
        self.point_conv = ConvLayer(channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.point_conv(self.depth_conv(x))


class MBConv(nn.Module):
    """Inverted residual; with ``few_norms`` only the last convolution has a norm, the others a bias."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int, few_norms: bool) -> None:
        super().__init__()
        hidden, norm = expansion * cin, not few_norms
        self.inverted_conv = ConvLayer(cin, hidden, norm=norm, bias=few_norms)
        self.depth_conv = ConvLayer(hidden, hidden, 3, stride, hidden, norm=norm, bias=few_norms)
        self.point_conv = ConvLayer(hidden, cout, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.point_conv(self.depth_conv(self.inverted_conv(x)))


class LiteMLA(nn.Module):
    """Linear attention at two scales, in float32."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        wide, self.head_dim = 3 * channels, head_dim
        self.qkv = ConvLayer(channels, wide, norm=False, act=False)
        sums = nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False)
        mixed = nn.Conv2d(wide, wide, 1, groups=wide // head_dim, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(sums, mixed)])
        self.proj = ConvLayer(2 * channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x)
        heads = torch.cat([qkv, self.aggreg[0](qkv)], dim=1).reshape(b, -1, 3 * self.head_dim, h * w).float()
        q, k, v = heads.split(self.head_dim, dim=2)
        q, k = q.relu(), k.relu()
        total = k.sum(dim=3, keepdim=True).transpose(2, 3) @ q
        # Not a sum with EPSILON: torch's ONNX exporter drops it, and 0 / 0 remains.
        mixed = (v @ k.transpose(2, 3)) @ q / total.clamp(min=EPSILON)
        return self.proj(mixed.reshape(b, 2 * c, h, w).to(x.dtype))


class Residual(nn.Module):
    """``main``, with its input added if ``shortcut`` is set."""

    def __init__(self, main: nn.Module, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.shortcut else self.main(x)


class AttentionBlock(nn.Module):
    """x + linear attention, then x + inverted residual."""

    def __init__(self, channels: int, head_dim: int, expansion: int) -> None:
        super().__init__()
        self.context_module = Residual(LiteMLA(channels, head_dim))
        self.local_module = Residual(MBConv(channels, channels, 1, expansion, few_norms=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.local_module(self.context_module(x))


class Stage(nn.Module):
    """A sequence of blocks, named ``op_list``."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.op_list:
            x = block(x)
        return x


class EfficientVit(FusedEncoder):
    """EfficientViT with EdgeSAM's fusion and SAM's neck; (b 3 h w) -> (b c g g)."""

    def __init__(self, config: EfficientVitConfig, embed_dim: int) -> None:
        super().__init__()
        widths, depths, expansion = config.widths, config.depths, config.expansion
        stem = ConvLayer(3, widths[0], 3, config.stem_stride)
        self.input_stem = Stage(stem, *(Residual(DSConv(widths[0])) for _ in range(depths[0])))
        self.stages = nn.ModuleList()
        last = len(widths) - 1
        for i in range(1, last + 1):
            width, attention = widths[i], i >= last - 1
            stride = 1 if i == last and not config.fuse else 2
            blocks: list[nn.Module] = [
                Residual(MBConv(widths[i - 1], width, stride, expansion, attention), shortcut=False)
            ]
            if attention:
                blocks += [AttentionBlock(width, config.head_dim, expansion) for _ in range(depths[i])]
            else:
                blocks += [Residual(MBConv(width, width, 1, expansion, False)) for _ in range(depths[i] - 1)]
            self.stages.append(Stage(*blocks))
        self.add_end(widths[-2], widths[-1], embed_dim, config.fuse, config.upsample)

    def forward(self, x: Tensor, pyramid: bool = False) -> Any:
        x = self.input_stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        embedding = self.embed(maps[-2], x)
        return (embedding, maps[-3:]) if pyramid else embedding
