"""EdgeSAM and SAM in torch with the published names: the reference of the parity tests, and the source of the exports.

``state_dict`` has exactly the keys of the published checkpoints of EdgeSAM (RepViT M1/M2/M3) and SAM (ViT B/L/H), in
the published order. All sizes come from ``edgesam_jax.config.SamConfig``; tiny models use the same classes. Tensors are
NCHW. The prompts of a call belong to a single image, or to one image each.

The image encoders are in ``convert.torch_twin.encoders``. Source: Segment Anything (arXiv 2304.02643), appendix A.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.torch_twin.efficient_sam import TorchEfficientSam
from convert.torch_twin.encoders import VitMlp, image_encoder
from convert.torch_twin.layers import ChannelNorm
from convert.torch_twin.proposals import Proposals, pyramid_widths
from edgesam_jax.config import SamConfig
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT

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
        """Return the positional encoding of the cell centres of the embedding, (c g g)."""
        weight = self.no_mask_embed.weight
        centres = (torch.arange(self.grid, device=weight.device, dtype=weight.dtype) + 0.5) / self.grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
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
    """Dense layer plus a low-rank update B A with alpha 1 (EdgeSAM Table 6)."""

    def __init__(self, cin: int, cout: int, rank: int) -> None:
        super().__init__(cin, cout)
        self.lora_A = nn.Parameter(torch.empty(rank, cin))
        self.lora_B = nn.Parameter(torch.zeros(cout, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.lora_A.T) @ self.lora_B.T / self.lora_A.shape[0]


class Attention(nn.Module):
    """Multi-head attention with a separate inner width; also returns the attention map, (p heads queries keys)."""

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
    """Two-way layers, then a final token-to-image attention."""

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
            tokens, image, layer_maps = layer(tokens, image, token_pe, image_pe, valid)
            maps |= {f"{name}_{i}": m for name, m in zip(("t2t", "t2i", "i2t"), layer_maps, strict=True)}
        out, maps["t2i_final"] = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + out), image, maps


class Mlp(nn.Module):
    """Three dense layers with ReLU between them."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class MaskDecoder(nn.Module):
    """Tokens and an image embedding -> mask logits, 4 x 4 pixels per cell, and IoU predictions."""

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
        """Decode prompts.

        Args:
          image: (p c g g), with the dense prompt added.  image_pe: (c g g).
          prompt: (p n c).  valid: (p n) bool, or None if all tokens are valid.

        Returns:
          logits (p m 4g 4g), IoU (p m), distillation targets (query, feat, attention maps).
        """
        p, c, g, _ = image.shape
        m = self.mask_tokens.num_embeddings
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(p, -1, -1), prompt], dim=1)
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
    """A complete model; ``state_dict`` has 821 entries for EdgeSAM and 314 for SAM ViT-B."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.proposals = None
        if config.proposals is not None:
            self.proposals = Proposals(config.proposals, pyramid_widths(config))

    def propose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (b 3 h w) -> embedding (b c g g), and the score logits (b n) and box codes (b n 4) of all anchors."""
        assert self.proposals is not None
        embedding, maps = self.image_encoder(x, True)
        return embedding, *self.proposals(maps)

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
        """Decode prompt slots as they are, without adding a padding token.

        Args:
          embedding: (1 c g g), shared by all prompts, or (p c g g).
          coords: (p n 2) pixels of the input frame.  labels: (p n) in {-1, 0, 1, 2, 3}.
          valid: (p n) bool; other slots are masked in every attention.  None: all valid.
          mask_input: (p 1 4g 4g) logits of an earlier mask.
          num_masks: 1 (token 0), 3 (tokens 1 to 3) or 4.

        Returns:
          logits (p m 4g 4g), IoU (p m), distillation targets.

        Raises:
          ValueError: ``num_masks`` is not 1, 3 or 4.
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
        """Decode as SAM's predictor: boxes become two corners, points without a box get a padding point of label -1.

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


def twin_of(config: SamConfig) -> TorchSam | TorchEfficientSam:
    """Return a model of a config with the published names and torch's random initial weights."""
    return TorchEfficientSam(config) if config.variant == "efficient_sam" else TorchSam(config)
