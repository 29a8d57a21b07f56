"""The image encoders in torch with the published names: RepViT, SAM's ViT, and the small one of this project.

``image_encoder`` builds the encoder of a config, also those of other modules. Tensors are NCHW; every encoder maps
(b 3 h w) to (b c g g).

Sources: EdgeSAM section 3.1; RepViT (CVPR 2024) section 3; Segment Anything, appendix A.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.torch_twin.efficient_vit import EfficientVit
from convert.torch_twin.layers import ChannelNorm, ConvBN, FusedEncoder, conv_neck
from convert.torch_twin.tiny_vit import TinyVit
from edgesam_jax.config import (
    ConvEncoderConfig,
    EfficientVitConfig,
    RepVitConfig,
    SamConfig,
    TinyVitConfig,
    VitConfig,
)

# ------------------------------------------------------------------------------------------------------ RepViT


class DepthwiseUnit(nn.Module):
    """RepVGG-style depthwise unit: 3x3 branch + 1x1 branch + identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, groups=channels)
        self.conv1 = ConvBN(channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x) + x


class SqueezeExcite(nn.Module):
    """Channel gate; the hidden width is a quarter, rounded to a multiple of 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, int(channels / 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ChannelMixer(nn.Module):
    """Residual pointwise MLP of expansion 2; its last batch norm starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.m = nn.Sequential(ConvBN(channels, 2 * channels), nn.GELU(), ConvBN(2 * channels, channels))
        nn.init.zeros_(cast(ConvBN, self.m[2]).bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class RepVitBlock(nn.Module):
    """A token mixer (depthwise) and a channel mixer (pointwise); ``entry`` blocks change width and stride."""

    def __init__(self, cin: int, cout: int, stride: int, entry: bool, gate: bool) -> None:
        super().__init__()
        if entry:
            self.token_mixer = nn.Sequential(ConvBN(cin, cin, 3, stride, groups=cin), nn.Identity(), ConvBN(cin, cout))
        else:
            self.token_mixer = nn.Sequential(DepthwiseUnit(cin), SqueezeExcite(cin) if gate else nn.Identity())
        self.channel_mixer = ChannelMixer(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.token_mixer(x))


class RepVit(FusedEncoder):
    """RepViT with EdgeSAM's two-level fusion neck; (b 3 h w) -> (b c g g).  EdgeSAM section 3.1."""

    def __init__(self, config: RepVitConfig, embed_dim: int) -> None:
        super().__init__()
        widths, (s0, s1) = config.widths, config.stem_strides
        stem = nn.Sequential(ConvBN(3, widths[0] // 2, 3, s0), nn.GELU(), ConvBN(widths[0] // 2, widths[0], 3, s1))
        blocks: list[nn.Module] = [stem]
        self.stage_ends: list[int] = []
        for stage, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
            plain = depth
            if stage > 0:
                stride = 1 if stage == 3 and not config.fuse else 2
                blocks.append(RepVitBlock(widths[stage - 1], width, stride, entry=True, gate=False))
                plain -= 1
            for j in range(plain):  # gates alternate from the first plain block; the last block of a stage has none
                blocks.append(RepVitBlock(width, width, 1, entry=False, gate=j % 2 == 0 and j < plain - 1))
            self.stage_ends.append(len(blocks) - 1)
        self.features = nn.ModuleList(blocks)
        self.add_end(widths[2], widths[3], embed_dim, config.fuse, config.upsample)

    def forward(self, x: Tensor, pyramid: bool = False) -> Any:
        stages = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.stage_ends:
                stages.append(x)
        embedding = self.embed(stages[2], stages[3])
        return (embedding, stages[1:]) if pyramid else embedding


# --------------------------------------------------------------------------------------------------------- ViT


class VitAttention(nn.Module):
    """Self-attention over a (b s s c) map with decomposed relative positions, qkv packed as [q | k | v]."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _, c = x.shape
        q, k, v = self.qkv(x).view(b, s * s, 3 * self.heads, -1).transpose(1, 2).chunk(3, dim=1)
        grid = q.reshape(b * self.heads, s, s, -1)  # the bias is taken from the unscaled queries
        index = torch.arange(s, device=x.device)
        offset = index[:, None] - index[None, :] + s - 1
        bias_h = grid @ self.rel_pos_h[offset].transpose(1, 2)  # (b heads, y, x, key's y)
        bias_w = (grid.transpose(1, 2) @ self.rel_pos_w[offset].transpose(1, 2)).transpose(1, 2)
        bias = bias_h.reshape(-1, s * s, s, 1) + bias_w.reshape(-1, s * s, 1, s)
        bias = bias.view(b, self.heads, s * s, s * s)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, s, s, c))


class VitMlp(nn.Module):
    """Two dense layers; GELU in the image encoder, ReLU in the mask decoder."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.activation(self.lin1(x)))


class VitBlock(nn.Module):
    """Pre-norm transformer block; ``window`` 0 attends globally. Padding to complete windows follows the norm."""

    def __init__(self, config: VitConfig, side: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = VitAttention(config.width, config.heads, window or side)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = VitMlp(config.width, config.mlp_ratio * config.width, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self._windowed(y) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        k = self.window
        rows, cols = math.ceil(h / k), math.ceil(w / k)
        x = F.pad(x, (0, 0, 0, cols * k - w, 0, rows * k - h))
        # As few axes as possible: Core ML programs support rank 5, the Neural Engine rank 4.
        x = x.view(b * rows, k, cols, k * c).transpose(1, 2).reshape(-1, k, k, c)
        x = self.attn(x).view(b * rows, cols, k, k * c).transpose(1, 2)
        return x.reshape(b, rows * k, cols * k, c)[:, :h, :w]


class PatchEmbed(nn.Module):
    """Non-overlapping patches to a channel-last map."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Vit(nn.Module):
    """SAM's ViT image encoder; (b 3 h w) -> (b c g g)."""

    def __init__(self, config: VitConfig, image_size: int, embed_dim: int) -> None:
        super().__init__()
        side = image_size // config.patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.patch_embed = PatchEmbed(config.width, config.patch_size)
        self.blocks = nn.ModuleList(
            VitBlock(config, side, 0 if i in config.global_blocks else config.window_size) for i in range(config.depth)
        )
        self.neck = conv_neck(config.width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


# ------------------------------------------------------------------------------- the encoder of the tiny models


class ResidualBlock(nn.Module):
    """ReLU(x + norm(conv(ReLU(norm(conv(x)))))), 3x3 convolutions without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class GridAttention(nn.Module):
    """Residual pre-norm self-attention over the cells of a (b c h w) map, with a learned position per cell."""

    def __init__(self, width: int, side: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1) + self.pos_embed
        q, k, v = self.qkv(self.norm(x)).view(b, h * w, 3 * self.heads, -1).transpose(1, 2).chunk(3, dim=1)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c)
        return (x + self.proj(out)).permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """The small encoder of this project: every stage halves the grid; the last two maps are fused after attention."""

    def __init__(self, config: ConvEncoderConfig, image_size: int, embed_dim: int) -> None:
        super().__init__()
        widths = config.widths
        self.downsample = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, padding=1, bias=False) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.norm = nn.ModuleList(ChannelNorm(width) for width in widths)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, config.depths, strict=True)
        )
        self.attention = GridAttention(widths[-1], image_size // 2 ** len(widths))
        self.fuse_fine = nn.Conv2d(widths[-2], embed_dim, 1, bias=False)
        self.fuse_coarse = nn.Conv2d(widths[-1], embed_dim, 1, bias=False)
        convolution = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False)
        self.neck = nn.ModuleList([ChannelNorm(embed_dim), convolution, ChannelNorm(embed_dim)])

    def forward(self, x: Tensor, pyramid: bool = False) -> Any:
        maps = []
        for shrink, norm, blocks in zip(self.downsample, self.norm, self.stages, strict=True):
            x = blocks(F.relu(norm(shrink(x))))
            maps.append(x)
        fine = maps[-2]
        coarse = self.fuse_coarse(self.attention(x))
        x = self.fuse_fine(fine) + F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        first, convolution, last = self.neck
        embedding = last(convolution(F.relu(first(x))))
        return (embedding, maps[-3:]) if pyramid else embedding


def image_encoder(config: SamConfig) -> nn.Module:
    """Return the image encoder of a config."""
    if isinstance(config.encoder, RepVitConfig):
        return RepVit(config.encoder, config.embed_dim)
    if isinstance(config.encoder, TinyVitConfig):
        return TinyVit(config.encoder, config.embed_dim)
    if isinstance(config.encoder, EfficientVitConfig):
        return EfficientVit(config.encoder, config.embed_dim)
    if isinstance(config.encoder, VitConfig):
        return Vit(config.encoder, config.image_size, config.embed_dim)
    assert isinstance(config.encoder, ConvEncoderConfig)
    return ConvEncoder(config.encoder, config.image_size, config.embed_dim)
