"""EfficientSAM in torch with the published names.

Sources: EfficientSAM (arXiv 2312.00863); docs/published_code.md, "Other models".
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.torch_twin.layers import conv_neck
from edgesam_jax.config import DecoderConfig, PlainVitConfig, SamConfig

POINTS = 6


class Attention(nn.Module):
    """Global self-attention of (b n c), qkv packed as [q | k | v]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class FeedForward(nn.Module):
    """``fc1``, GELU, ``fc2``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: PlainVitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = FeedForward(config.width, config.mlp_ratio * config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PlainVit(nn.Module):
    """EfficientSAM's image encoder, a ViT without windows; (b 3 s s) -> (b c g g)."""

    def __init__(self, config: PlainVitConfig, embed_dim: int) -> None:
        super().__init__()
        self.side = config.trained_grid
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, config.width))
        self.patch_embed = PatchEmbed(config.width, config.patch_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.neck = conv_neck(config.width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        b, c, h, w = x.shape
        positions = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, c, self.side, self.side)
        x = (x + F.interpolate(positions, (h, w), mode="bicubic", align_corners=False)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.transpose(1, 2).reshape(b, c, h, w))


class Positions(nn.Module):
    """Random Fourier features of positions in [0, 1]."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, embed_dim // 2))

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * torch.pi * ((2 * x - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Points (p n 2) with labels (p n) -> tokens (p 6 c)."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.size, self.grid = config.image_size, config.grid
        self.pe_layer = Positions(config.embed_dim)
        self.invalid_points = nn.Embedding(1, config.embed_dim)
        self.point_embeddings = nn.Embedding(1, config.embed_dim)
        self.bbox_top_left_embeddings = nn.Embedding(1, config.embed_dim)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, config.embed_dim)

    def dense_position(self) -> Tensor:
        """Return the positional encoding of the cell centres of the embedding, (c g g)."""
        centre = (torch.arange(self.grid) + 0.5) / self.grid
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).permute(2, 0, 1)

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        coords, labels = coords[:, :POINTS], labels[:, :POINTS]
        fill = POINTS - coords.shape[1]
        coords, labels = F.pad(coords, (0, 0, 0, fill), value=-1.0), F.pad(labels, (0, fill), value=-1)
        tokens = self.pe_layer((coords + 0.5) / self.size)
        vectors = {
            -1: self.invalid_points, 1: self.point_embeddings, 2: self.bbox_top_left_embeddings,
            3: self.bbox_bottom_right_embeddings,
        }  # fmt: skip
        for label, module in vectors.items():
            tokens = tokens + (labels == label)[..., None] * module.weight[0]
        return tokens


class Mlp(nn.Module):
    """``layers`` with GELU after each, then ``fc``."""

    def __init__(self, cin: int, hidden: int, cout: int, depth: int) -> None:
        super().__init__()
        widths = [cin, *[hidden] * depth]
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in pairs)
        self.fc = nn.Linear(hidden, cout)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class CrossAttention(nn.Module):
    """Multi-head attention with an inner width."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

        x = F.scaled_dot_product_attention(split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v)))
        return self.out_proj(x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self attention, tokens to image, MLP, image to tokens."""

    def __init__(self, config: DecoderConfig, width: int, first: bool) -> None:
        super().__init__()
        inner, self.first = width // config.attention_downsample, first
        self.self_attn = CrossAttention(width, width, config.heads)
        self.cross_attn_token_to_image = CrossAttention(width, inner, config.heads)
        self.cross_attn_image_to_token = CrossAttention(width, inner, config.heads)
        self.mlp = Mlp(width, config.mlp_dim, width, 1)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        if not self.first:
            tokens = tokens + token_pe
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens, tokens))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens))
        return tokens, image


class Transformer(nn.Module):
    """Two-way layers, then a final token-to-image attention."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, width, i == 0) for i in range(config.depth))
        self.final_attn_token_to_image = CrossAttention(width, width // config.attention_downsample, config.heads)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        out = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + out), image


class MaskDecoder(nn.Module):
    """Embedding (1 c g g) and tokens (p 6 c) -> logits (p 4 4g 4g), IoU (p 4)."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        c, count = config.embed_dim, config.decoder.num_mask_tokens
        self.iou_token, self.mask_tokens = nn.Embedding(1, c), nn.Embedding(count, c)
        self.transformer = Transformer(config.decoder, c)
        self.final_output_upscaling_layers = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(c, c // 4, 2, 2), nn.GroupNorm(1, c // 4), nn.GELU()),
                nn.Sequential(nn.ConvTranspose2d(c // 4, c // 8, 2, 2), nn.GELU()),
            ]
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(c, c, c // 8, 2) for _ in range(count))
        self.iou_prediction_head = Mlp(c, c, count, 2)

    def forward(self, embedding: Tensor, image_pe: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        p, (_, c, g, _) = prompt.shape[0], embedding.shape
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(p, -1, -1)
        image = embedding.flatten(2).transpose(1, 2).expand(p, -1, -1)
        positions = image_pe.flatten(1).T[None]
        tokens, image = self.transformer(torch.cat([output_tokens, prompt], dim=1), image, positions)
        x = image.transpose(1, 2).reshape(p, c, g, g)
        for layer in self.final_output_upscaling_layers:
            x = layer(x)
        query = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        logits = (query @ x.flatten(2)).view(p, -1, *x.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])


class TorchEfficientSam(nn.Module):
    """A complete model; ``state_dict`` has 278 entries."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        assert isinstance(config.encoder, PlainVitConfig)
        self.image_encoder = PlainVit(config.encoder, config.embed_dim)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    def encode_image(self, x: Tensor) -> Tensor:
        """x (b 3 s s), normalised -> (b c g g)."""
        return self.image_encoder(x)

    def decode(self, embedding: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Points and corners (p n 2) in the frame with labels (p n) 0 to 3 -> logits (p 4 4g 4g), IoU (p 4)."""
        tokens = self.prompt_encoder(coords, labels)
        return self.mask_decoder(embedding, self.prompt_encoder.dense_position(), tokens)
