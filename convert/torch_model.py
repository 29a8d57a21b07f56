"""EdgeSAM and SAM in torch with the published names: the parity oracle and the bridge to the exporters.

The classes cover what the checkpoints of EdgeSAM (RepViT M1/M2/M3) and SAM (ViT B/L/H) hold, so ``state_dict`` has
exactly the published keys, in the published order.  Every size comes from ``edgesam_jax.config.SamConfig``: tiny models
are the same classes.  Tensors are NCHW; prompts of one call all belong to one image, or one prompt to each image.

Sources: EdgeSAM section 3.1; RepViT (CVPR 2024) section 3; Segment Anything, appendix A.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_jax.config import RepVitConfig, SamConfig, VitConfig
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel of (b c h w), eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-6) * self.weight[:, None, None] + self.bias[:, None, None]


def conv_neck(channels: int, embed_dim: int) -> nn.Sequential:
    """The two convolutions with channel norms that end every image encoder; no activation."""
    return nn.Sequential(
        nn.Conv2d(channels, embed_dim, 1, bias=False),
        ChannelNorm(embed_dim),
        nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
        ChannelNorm(embed_dim),
    )


# ------------------------------------------------------------------------------------------------------ RepViT


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm: ``c`` and ``bn``."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


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


class UpsampleConv(nn.Module):
    """1x1 convolution, then x2 up-sampling."""

    def __init__(self, cin: int, cout: int, mode: str) -> None:
        super().__init__()
        self.op_list = nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.op_list(x), scale_factor=2.0, mode=self.mode, align_corners=False)


class RepVit(nn.Module):
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
            for j in range(plain):  # gates alternate from the first plain block; the last one of a stage has none
                blocks.append(RepVitBlock(width, width, 1, entry=False, gate=j % 2 == 0 and j < plain - 1))
            self.stage_ends.append(len(blocks) - 1)
        self.features = nn.ModuleList(blocks)
        self.fuse = config.fuse
        if config.fuse:
            self.fuse_stage2 = nn.Conv2d(widths[2], embed_dim, 1, bias=False)
            self.fuse_stage3 = UpsampleConv(widths[3], embed_dim, config.upsample)
        self.neck = conv_neck(embed_dim if config.fuse else widths[3], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        stages = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.stage_ends:
                stages.append(x)
        if self.fuse:
            x = self.fuse_stage2(stages[2]) + self.fuse_stage3(stages[3])
        return self.neck(x)


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
        q, k, v = self.qkv(x).view(b, s * s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        grid = q.reshape(b, self.heads, s, s, -1)  # the bias is taken from the unscaled queries
        at = torch.arange(s, device=x.device)
        offset = at[:, None] - at[None, :] + s - 1
        bias_h = torch.einsum("bnyxd,ykd->bnyxk", grid, self.rel_pos_h[offset])
        bias_w = torch.einsum("bnyxd,xkd->bnyxk", grid, self.rel_pos_w[offset])
        bias = (bias_h[..., :, None] + bias_w[..., None, :]).reshape(b, self.heads, s * s, s * s)
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
    """Pre-norm transformer block; ``window`` 0 attends globally.  Padding to whole windows comes after the norm."""

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
        x = x.view(b, rows, k, cols, k, c).transpose(2, 3).reshape(-1, k, k, c)
        x = self.attn(x).view(b, rows, cols, k, k, c).transpose(2, 3)
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


# ---------------------------------------------------------------------------------------- prompts and mask decoder


class FourierPosition(nn.Module):
    """Random Fourier features of positions in the unit square, (x, y) order."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, unit: Tensor) -> Tensor:
        phase = 2 * math.pi * ((2 * unit - 1) @ cast(Tensor, self.positional_encoding_gaussian_matrix))
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Prompt slots -> tokens, and mask prompts -> a dense map."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        c, m = config.embed_dim, config.mask_in_chans
        self.image_size, self.grid = config.image_size, config.grid
        self.pe_layer = FourierPosition(c // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, c) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, c)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, m // 4, 2, 2),
            ChannelNorm(m // 4),
            nn.GELU(),
            nn.Conv2d(m // 4, m, 2, 2),
            ChannelNorm(m),
            nn.GELU(),
            nn.Conv2d(m, c, 1),
        )
        self.no_mask_embed = nn.Embedding(1, c)

    def dense_position(self) -> Tensor:
        """Positional encoding of the cell centres of the embedding, (c g g)."""
        at = (torch.arange(self.grid, device=self.no_mask_embed.weight.device) + 0.5) / self.grid
        y, x = torch.meshgrid(at, at, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).permute(2, 0, 1)

    def tokens(self, coords: Tensor, labels: Tensor) -> Tensor:
        """coords (p n 2) in input pixels, labels (p n) in {-1, 0, 1, 2, 3} -> (p n c)."""
        table = torch.cat([cast(nn.Embedding, e).weight for e in self.point_embeddings])
        labels = labels.long()
        point = self.pe_layer((coords + 0.5) / self.image_size) + table[labels.clamp(min=0)]
        return torch.where((labels == NOT_A_POINT)[..., None], self.not_a_point_embed.weight, point)

    def dense(self, mask_input: Tensor | None) -> Tensor:
        """mask_input (p 1 s s) logits, or None -> (p c g g) or (1 c 1 1)."""
        if mask_input is None:
            return self.no_mask_embed.weight[:, :, None, None]
        return self.mask_downscaling(mask_input)


class LoraLinear(nn.Linear):
    """Dense layer plus a low-rank update B A with alpha 1 (EdgeSAM Table 5c)."""

    def __init__(self, cin: int, cout: int, rank: int) -> None:
        super().__init__(cin, cout)
        self.lora_A = nn.Parameter(torch.empty(rank, cin))
        self.lora_B = nn.Parameter(torch.zeros(cout, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.lora_A.T) @ self.lora_B.T / self.lora_A.shape[0]


class Attention(nn.Module):
    """Multi-head attention with an inner width of its own; returns the map too, (p heads queries keys)."""

    def __init__(self, width: int, inner: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = LoraLinear(width, inner, rank) if rank else nn.Linear(width, inner)
        self.v_proj = LoraLinear(width, inner, rank) if rank else nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
        attention = scores.softmax(dim=-1)
        return self.out_proj((attention @ v).transpose(1, 2).flatten(2)), attention


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens; post-norm, eps 1e-5."""

    def __init__(self, config: SamConfig, first: bool) -> None:
        super().__init__()
        c, d = config.embed_dim, config.decoder
        inner = c // d.attention_downsample
        self.first = first
        self.self_attn = Attention(c, c, d.heads, d.lora_rank)
        self.norm1 = nn.LayerNorm(c)
        self.cross_attn_token_to_image = Attention(c, inner, d.heads, d.lora_rank)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = VitMlp(c, d.mlp_dim, nn.ReLU())
        self.norm3 = nn.LayerNorm(c)
        self.norm4 = nn.LayerNorm(c)
        self.cross_attn_image_to_token = Attention(c, inner, d.heads, d.lora_rank)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        if self.first:  # the first self-attention has neither positions nor a residual
            tokens, t2t = self.self_attn(tokens, tokens, tokens, valid)
        else:
            out, t2t = self.self_attn(tokens + token_pe, tokens + token_pe, tokens, valid)
            tokens = tokens + out
        tokens = self.norm1(tokens)
        out, t2i = self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        tokens = self.norm2(tokens + out)
        tokens = self.norm3(tokens + self.mlp(tokens))
        out, i2t = self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens, valid)
        return tokens, self.norm4(image + out), [t2t, t2i, i2t]


class TwoWayTransformer(nn.Module):
    """The layers and a last token-to-image attention."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        c, d = config.embed_dim, config.decoder
        self.layers = nn.ModuleList(TwoWayLayer(config, first=i == 0) for i in range(d.depth))
        self.final_attn_token_to_image = Attention(c, c // d.attention_downsample, d.heads, d.lora_rank)
        self.norm_final_attn = nn.LayerNorm(c)

    def forward(
        self, tokens: Tensor, image: Tensor, image_pe: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        token_pe = tokens
        maps: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            tokens, image, found = layer(tokens, image, token_pe, image_pe, valid)
            maps |= {f"{name}_{i}": m for name, m in zip(("t2t", "t2i", "i2t"), found, strict=True)}
        out, maps["t2i_final"] = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + out), image, maps


class Mlp(nn.Module):
    """Three dense layers with ReLU between."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class MaskDecoder(nn.Module):
    """Tokens and an image embedding -> mask logits at 4 pixels a cell, and IoU predictions."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        c, m = config.embed_dim, config.decoder.num_mask_tokens
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, c)
        self.mask_tokens = nn.Embedding(m, c)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(c, c // 4, 2, 2),
            ChannelNorm(c // 4),
            nn.GELU(),
            nn.ConvTranspose2d(c // 4, c // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(c, c // 8) for _ in range(m))
        self.iou_prediction_head = Mlp(c, m)

    def forward(
        self, image: Tensor, image_pe: Tensor, prompt: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """image (p c g g) with the dense prompt added, image_pe (c g g), prompt (p n c), valid (p n) or None.

        Returns logits (p m 4g 4g), IoU (p m) and the distillation targets (query, feat, attention maps).
        """
        p, c, g, _ = image.shape
        m = self.mask_tokens.num_embeddings
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(p, -1, -1), prompt], dim=1)
        if valid is not None:
            valid = torch.cat([valid.new_ones(p, m + 1), valid], dim=1)
        tokens, cells, maps = self.transformer(
            tokens, image.flatten(2).transpose(1, 2), image_pe.flatten(1).T[None], valid
        )
        feat = self.output_upscaling(cells.transpose(1, 2).reshape(p, c, g, g))
        query = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        logits = (query @ feat.flatten(2)).view(p, m, *feat.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0]), {"query": query, "feat": feat, **maps}


class TorchSam(nn.Module):
    """A whole model.  ``state_dict`` of EdgeSAM has 821 entries, of SAM ViT-B 314."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder: RepVit | Vit
        if isinstance(config.encoder, RepVitConfig):
            self.image_encoder = RepVit(config.encoder, config.embed_dim)
        else:
            self.image_encoder = Vit(config.encoder, config.image_size, config.embed_dim)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    def encode_image(self, x: Tensor) -> Tensor:
        """x (b 3 h w), normalised and padded -> (b c g g)."""
        return self.image_encoder(x)

    def decode_tokens(
        self,
        embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        mask_input: Tensor | None = None,
        num_masks: int = 4,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Decode prompt slots exactly as given: no padding token is added.

        Args:
          embedding: (1 c g g), shared by all prompts, or (p c g g).
          coords: (p n 2) pixels of the input frame.  labels: (p n) in {-1, 0, 1, 2, 3}.
          valid: (p n) bool; slots that are not valid take no part in any attention.  None: all valid.
          mask_input: (p 1 4g 4g) logits of an earlier mask.
          num_masks: 1 (token 0), 3 (tokens 1 to 3) or 4.

        Returns:
          logits (p m 4g 4g), IoU (p m), distillation targets.

        Raises:
          ValueError: another ``num_masks``.
        """
        keep = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}.get(num_masks)
        if keep is None:
            raise ValueError(f"num_masks must be 1, 3 or 4, got {num_masks}")
        image = (embedding + self.prompt_encoder.dense(mask_input)).expand(coords.shape[0], -1, -1, -1)
        tokens = self.prompt_encoder.tokens(coords, labels)
        logits, iou, targets = self.mask_decoder(image, self.prompt_encoder.dense_position(), tokens, valid)
        targets["query"] = targets["query"][:, keep]
        return logits[:, keep], iou[:, keep], targets

    def decode(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        num_masks: int = 4,
    ) -> tuple[Tensor, Tensor]:
        """Decode as SAM's predictor does: boxes become two corners, points without a box get one token of label -1.

        Args:
          embedding: (1 c g g) or (p c g g).  points: (p n 2), labels: (p n).  boxes: (p 4) XYXY.
          mask_input: (p 1 4g 4g).  num_masks: 1, 3 or 4.

        Returns:
          logits (p m 4g 4g), IoU (p m).
        """
        p = next(x.shape[0] for x in (points, boxes, mask_input, embedding) if x is not None)
        coords, kinds = embedding.new_zeros(p, 0, 2), embedding.new_zeros(p, 0, dtype=torch.long)
        if points is not None and labels is not None:
            coords, kinds = points, labels.long()
            if boxes is None:
                coords = torch.cat([coords, coords.new_zeros(p, 1, 2)], dim=1)
                kinds = torch.cat([kinds, kinds.new_full((p, 1), NOT_A_POINT)], dim=1)
        if boxes is not None:
            coords = torch.cat([coords, boxes.view(p, 2, 2)], dim=1)
            corners = kinds.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
            kinds = torch.cat([kinds, corners.expand(p, 2)], dim=1)
        return self.decode_tokens(embedding, coords, kinds, None, mask_input, num_masks)[:2]
