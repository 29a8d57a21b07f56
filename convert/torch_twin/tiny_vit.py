"""TinyViT in torch with the published names: MobileSAM's image encoder, and EdgeSAM's student (Table 5c).

Source: TinyViT (ECCV 2022), section 3.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.torch_twin.layers import ConvBN, FusedEncoder
from edgesam_jax.config import TinyVitConfig
from edgesam_jax.models.encoders.tiny_vit import offset_index


class MBConv(nn.Module):
    """Inverted residual of three convolutions with batch norm; GELU between them and after the sum."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.conv1 = ConvBN(channels, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """Change the width and, with stride 2, halve the grid."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(cin, cout)
        self.conv2 = ConvBN(cout, cout, 3, stride, groups=cout)
        self.conv3 = ConvBN(cout, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class TinyVitAttention(nn.Module):
    """Pre-norm attention in windows (n w*w c) with a bias by offset; qkv packed head by head."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.register_buffer("index", torch.from_numpy(offset_index(window)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, self.heads, -1).transpose(1, 2).chunk(3, dim=-1)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + self.attention_biases[:, cast(Tensor, self.index)]
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, t, c))


class TinyVitMlp(nn.Module):
    """Norm, then two dense layers with GELU between them."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyVitBlock(nn.Module):
    """x + attention, a depthwise convolution, x + MLP, on (b c h w)."""

    def __init__(self, width: int, heads: int, window: int, ratio: int) -> None:
        super().__init__()
        self.window = window
        self.attn = TinyVitAttention(width, heads, window)
        self.local_conv = ConvBN(width, width, 3, groups=width)
        self.mlp = TinyVitMlp(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        k = self.window
        rows, cols = math.ceil(h / k), math.ceil(w / k)
        # The padding precedes the norm and isn't masked.
        y = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, cols * k - w, 0, rows * k - h))
        y = y.reshape(b * rows, k, cols, k * c).transpose(1, 2).reshape(-1, k * k, c)
        y = self.attn(y).view(b * rows, cols, k, k * c).transpose(1, 2)
        x = x + y.reshape(b, rows * k, cols * k, c)[:, :h, :w].permute(0, 3, 1, 2)
        x = self.local_conv(x).permute(0, 2, 3, 1)
        return (x + self.mlp(x)).permute(0, 3, 1, 2)


class TinyVitStage(nn.Module):
    """Blocks, then down-sampling in all stages but the last."""

    def __init__(self, config: TinyVitConfig, index: int) -> None:
        super().__init__()
        width, last = config.widths[index], len(config.widths) - 1
        if index == 0:
            self.blocks = nn.ModuleList(MBConv(width, config.mlp_ratio) for _ in range(config.depths[0]))
        else:
            self.blocks = nn.ModuleList(
                TinyVitBlock(width, config.heads[index], config.windows[index], config.mlp_ratio)
                for _ in range(config.depths[index])
            )
        self.downsample = None
        if index < last:
            stride = 1 if index == last - 1 and not config.fuse else 2
            self.downsample = PatchMerging(width, config.widths[index + 1], stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class TinyVitPatchEmbed(nn.Module):
    """Two strided convolutions with GELU between them."""

    def __init__(self, width: int, strides: tuple[int, int]) -> None:
        super().__init__()
        first, second = strides
        self.seq = nn.Sequential(ConvBN(3, width // 2, 3, first), nn.GELU(), ConvBN(width // 2, width, 3, second))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class TinyVit(FusedEncoder):
    """MobileSAM's image encoder, or a student with EdgeSAM's fusion; (b 3 h w) -> (b c g g)."""

    def __init__(self, config: TinyVitConfig, embed_dim: int) -> None:
        super().__init__()
        self.patch_embed = TinyVitPatchEmbed(config.widths[0], config.stem_strides)
        self.layers = nn.ModuleList(TinyVitStage(config, i) for i in range(len(config.widths)))
        self.add_end(config.widths[-2], config.widths[-1], embed_dim, config.fuse, config.upsample)

    def forward(self, x: Tensor, pyramid: bool = False) -> Any:
        x = self.patch_embed(x)
        before = []
        for layer in self.layers:
            kept, x = layer(x)
            before.append(kept)
        embedding = self.embed(before[-2], x)
        return (embedding, [before[-3], before[-2], x]) if pyramid else embedding
