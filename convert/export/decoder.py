"""The prompt encoder and mask decoder, rewritten for export: fixed prompt slots, channels first, few reshapes.

All tensors are (b c 1 t) or (b c g g) for b prompts, normally one. Every dense layer is a 1x1 convolution; attention
needs no transpose, since splitting (c t) into heads is a reshape that moves no data. Layout: Apple, "Deploying
Transformers on the Apple Neural Engine" (2022). The weights are those of ``convert.torch_twin.model``.

One shape serves 1 to ``slots`` points and box corners. Slots with the label -2 (``portable.onnx_model.UNUSED``) are
unused: a bias on their keys keeps them out of every softmax, and they don't change the result. The decoder adds SAM's
learned padding token exactly where the predictor does: to prompts without a box, unless they already contain a point
with label -1.

With ``batched``, a call takes any number of prompts on one image, of equally many slots. Attention then has four axes,
(b heads d t), otherwise three.

Names of submodules and buffers become names of weights in the exported files, and so they stay as they are.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from convert.torch_twin.layers import ChannelNorm
from convert.torch_twin.model import Attention, LoraLinear, Mlp, PromptEncoder, TorchSam, TwoWayLayer

LABELS = (0, 1, 2, 3, -1)  # outside, inside, corners of a box, learned padding; any other label: an unused slot
MASKED = 1e4  # subtracted from the scores of unused keys; fits float16, and exp(-1e4) is 0
Score = Literal["stability", "iou"]


def _conv(linear: nn.Linear, scale: float = 1.0) -> nn.Conv2d:
    """Return a dense layer as a 1x1 convolution, with its low-rank update merged, times ``scale``."""
    weight = linear.weight
    if isinstance(linear, LoraLinear):
        weight = weight + linear.lora_B @ linear.lora_A / linear.lora_A.shape[0]
    out = nn.Conv2d(linear.in_features, linear.out_features, 1)
    out.weight.data = (weight * scale)[:, :, None, None].detach().clone()
    out.bias.data = (linear.bias * scale).detach().clone()
    return out


def _norm(norm: nn.LayerNorm) -> ChannelNorm:
    out = ChannelNorm(norm.weight.numel(), norm.eps)
    out.load_state_dict(norm.state_dict())
    return out


def repeated(x: Tensor, count: int) -> Tensor:
    """Return (1 ...) as (count ...)."""
    return x if isinstance(count, int) and count == 1 else x.expand(count, *x.shape[1:])


class Attend(nn.Module):
    """Attention of (b c h w) queries to (b c h w) keys and values; b may be 1 for an image that all prompts share.

    ``bias`` is added to the scores: (b 1 1 keys), or (b 1 keys 1) with ``image_queries``, without the first axis unless
    ``batched``. The last axis of the scores is the image in both cross-attentions: a few tokens there would fill only
    an eighth of a vector register.
    """

    def __init__(self, source: Attention, batched: bool = False) -> None:
        super().__init__()
        self.heads, self.batched = source.heads, batched
        width = source.q_proj.out_features // source.heads
        self.query = _conv(source.q_proj, 1 / math.sqrt(width))
        self.key, self.value, self.out = _conv(source.k_proj), _conv(source.v_proj), _conv(source.out_proj)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, image_queries: bool = False) -> Tensor:
        return self.projected(self.query(q), self.key(k), self.value(v), bias, image_queries)

    def projected(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, image_queries: bool = False) -> Tensor:
        """Return the attention of queries to keys and values that are projected already."""
        spatial = q.shape[2:]
        q, k, v = (self._split(x) for x in (q, k, v))  # ([b] heads d t)
        scores = k.transpose(-2, -1) @ q if image_queries else q.transpose(-2, -1) @ k
        if bias is not None:
            scores = scores + bias
        mixed = v @ scores.softmax(dim=-2) if image_queries else v @ scores.softmax(dim=-1).transpose(-2, -1)
        return self.out(mixed.reshape(mixed.shape[0] if self.batched else 1, -1, *spatial))

    def _split(self, x: Tensor) -> Tensor:
        prompts = x.shape[:1] if self.batched else ()
        return x.reshape(*prompts, self.heads, x.shape[1] // self.heads, -1)


class Layer(nn.Module):
    """One two-way layer; ``row`` and ``column`` mask unused slots as keys, (1 1 t) and (1 t 1)."""

    def __init__(self, source: TwoWayLayer, batched: bool = False) -> None:
        super().__init__()
        self.first = source.first
        self.own = Attend(source.self_attn, batched)
        self.to_image = Attend(source.cross_attn_token_to_image, batched)
        self.from_image = Attend(source.cross_attn_image_to_token, batched)
        self.norm1, self.norm2, self.norm3, self.norm4 = (
            _norm(n) for n in (source.norm1, source.norm2, source.norm3, source.norm4)
        )
        self.mlp = nn.Sequential(_conv(source.mlp.lin1), nn.ReLU(), _conv(source.mlp.lin2))

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = self.among_tokens(tokens, token_pe, row)
        keys = image + image_pe
        tokens = self.feed_forward(tokens, self.to_image(tokens + token_pe, keys, image, None))
        image = self.norm4(image + self.from_image(keys, tokens + token_pe, tokens, column, image_queries=True))
        return tokens, image

    def among_tokens(self, tokens: Tensor, token_pe: Tensor, row: Tensor) -> Tensor:
        """Return the tokens after their attention to each other."""
        if self.first:
            tokens = self.own(tokens, tokens, tokens, row)
        else:
            positioned = tokens + token_pe
            tokens = tokens + self.own(positioned, positioned, tokens, row)
        return self.norm1(tokens)

    def feed_forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Add what the tokens took from the image, and apply the MLP."""
        tokens = self.norm2(tokens + seen)
        return self.norm3(tokens + self.mlp(tokens))


class Slots(nn.Module):
    """Prompt slots to tokens: coords (b n 2), labels (b n) -> tokens (b c 1 n+1), and 1 for used ones (b 1 1 n+1).

    The last token is the learned padding. Slots with a label outside ``LABELS`` are unused.
    """

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        matrix = 2 * math.pi * cast(Tensor, source.pe_layer.positional_encoding_gaussian_matrix)  # (2 c/2)
        c = 2 * matrix.shape[1]
        # (2 (x + 0.5) / size - 1) times the matrix. Float16 programs compute this and the sine in float32, since
        # float16 resolves only half pixels from 512 px on.
        self.phase = nn.Conv2d(2, c // 2, 1)
        self.phase.weight.data = (matrix.T * (2 / source.image_size))[:, :, None, None]
        self.phase.bias.data = matrix.sum(0) * (1 / source.image_size - 1)
        vectors = [*(cast(nn.Embedding, e).weight for e in source.point_embeddings), source.not_a_point_embed.weight]
        self.kind = nn.Conv2d(len(LABELS), c, 1, bias=False)
        self.kind.weight.data = torch.cat(vectors).T[:, :, None, None].detach().clone()
        self.register_buffer("padding", vectors[-1].T[None, :, None].detach().clone(), persistent=False)
        self.register_buffer("kinds", torch.tensor(LABELS, dtype=torch.float32)[None, :, None, None], persistent=False)

    def forward(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        phase = self.phase(coords.transpose(1, 2)[:, :, None])
        position = torch.cat([phase.sin(), phase.cos()], dim=1)
        kinds = cast(Tensor, self.kinds)
        one_hot = (labels.to(kinds.dtype).reshape(labels.shape[0], 1, 1, -1) == kinds).to(kinds.dtype)  # (b 5 1 n)
        position = position * (1 - one_hot[:, 4:])  # the learned padding has no position
        padding = repeated(cast(Tensor, self.padding), labels.shape[0])
        tokens = torch.cat([position + self.kind(one_hot), padding], dim=3)
        pads = 1 - one_hot[:, 2:].amax(dim=(1, 3), keepdim=True)  # 1 for prompts without corners and padding
        return tokens, torch.cat([one_hot.sum(dim=1, keepdim=True), pads], dim=3)


class Hypernetworks(nn.Module):
    """The MLPs of all mask tokens, as grouped convolutions: (b c 1 m) -> (b m c/8), without b unless ``batched``."""

    def __init__(self, mlps: nn.ModuleList, batched: bool = False) -> None:
        super().__init__()
        count = len(mlps)
        stages = []
        for i in range(3):
            layers = [cast(nn.Linear, cast(Mlp, mlp).layers[i]) for mlp in mlps]
            conv = nn.Conv2d(count * layers[0].in_features, count * layers[0].out_features, 1, groups=count)
            conv.weight.data = torch.cat([x.weight for x in layers])[:, :, None, None].detach().clone()
            conv.bias.data = torch.cat([x.bias for x in layers]).detach().clone()
            stages.append(conv)
        self.count, self.batched = count, batched
        self.stages = nn.ModuleList(stages)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens.permute(0, 3, 1, 2).reshape(tokens.shape[0], -1, 1, 1)
        first, second, last = self.stages
        x = last(second(first(x).relu()).relu())
        return x.reshape(*(x.shape[:1] if self.batched else ()), self.count, -1)


class ExportDecoder(nn.Module):
    """An embedding (1 c g g) and prompt slots -> scores (b m) and logits (b m s s) of all mask tokens, in order.

    Args:
      sam: the model whose weights to use.
      score: ``stability`` of the low-resolution masks, or the prediction of the ``iou`` head.
      mask_input: whether ``forward`` also takes the logits of an earlier mask (b 1 s s), and (b) 1 to use them or 0.
      batched: whether b, the number of prompts, may differ from 1.
    """

    def __init__(self, sam: TorchSam, score: Score, mask_input: bool, batched: bool = False) -> None:
        super().__init__()
        prompt, decoder = sam.prompt_encoder, sam.mask_decoder
        self.score, self.takes_mask, self.batched = score, mask_input, batched
        self.slots = Slots(prompt)
        self.count = decoder.mask_tokens.num_embeddings
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).T[None, :, None]
        self.register_buffer("own", output_tokens.detach().clone(), persistent=False)
        self.register_buffer("always", torch.ones(1, 1, 1, 1 + self.count), persistent=False)
        self.register_buffer("image_pe", prompt.dense_position()[None].detach().clone(), persistent=False)
        self.register_buffer(
            "no_mask", prompt.no_mask_embed.weight[:, :, None, None].detach().clone(), persistent=False
        )
        self.mask_downscaling = prompt.mask_downscaling if mask_input else None
        self.layers = nn.ModuleList(Layer(cast(TwoWayLayer, layer), batched) for layer in decoder.transformer.layers)
        self.last = Attend(decoder.transformer.final_attn_token_to_image, batched)
        self.last_norm = _norm(decoder.transformer.norm_final_attn)
        self.upscaling = decoder.output_upscaling
        self.hypernetworks = Hypernetworks(decoder.output_hypernetworks_mlps, batched)
        first, second, third = (_conv(cast(nn.Linear, x)) for x in decoder.iou_prediction_head.layers)
        self.iou = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.eval()

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        image_pe, dense = cast(Tensor, self.image_pe), self.dense(mask_input, has_mask_input)
        image = image_embeddings + dense
        tokens, row, column = self.tokens(point_coords, point_labels)
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, row, column)
        tokens = self.last_norm(tokens + self.last(tokens + token_pe, image + image_pe, image, None))
        return self.answer(tokens, image)

    def answer(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and masks for the tokens and the image that the transformer returns."""
        feat = self.upscaling(image)
        query = self.query(tokens)
        pixels = feat.flatten(2) if self.batched else feat.flatten(2)[0]
        count = tokens.shape[0] if self.batched else 1
        masks = (query @ pixels).reshape(count, self.count, *feat.shape[2:])
        return self._scores(masks, tokens[:, :, :, :1]), masks

    def query(self, tokens: Tensor) -> Tensor:
        """Return what the masks' tokens look for among the pixels' channels, ([b] m c/8)."""
        return self.hypernetworks(tokens[:, :, :, 1 : 1 + self.count])

    def dense(self, mask_input: Tensor | None, has_mask_input: Tensor | None) -> Tensor:
        """Return what is added to the image: the embedding of the earlier mask (b c g g), or of no mask (1 c 1 1)."""
        dense = cast(Tensor, self.no_mask)
        if self.takes_mask:
            assert mask_input is not None and has_mask_input is not None and self.mask_downscaling is not None
            use_mask = has_mask_input.reshape(-1, 1, 1, 1) if self.batched else has_mask_input.reshape(1, 1, 1, 1)
            # Not "convolution - constant": coremltools 9.0 folds that into the bias with the wrong sign.
            dense = use_mask * self.mask_downscaling(mask_input) + (1 - use_mask) * dense
        return dense

    def tokens(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens of prompts (b c 1 t), and the biases of their keys as a row and as a column of scores."""
        prompt, used = self.slots(coords, labels)
        count = labels.shape[0]  # not len(), which torch.export takes for a constant
        tokens = torch.cat([repeated(cast(Tensor, self.own), count), prompt], dim=3)
        bias = (torch.cat([repeated(cast(Tensor, self.always), count), used], dim=3) - 1) * MASKED
        return tokens, *((bias, bias.transpose(2, 3)) if self.batched else (bias[0], bias.reshape(1, -1, 1)))

    def _scores(self, masks: Tensor, token: Tensor) -> Tensor:
        if self.score == "iou":
            return self.iou(token).flatten(1)
        # Means, axis by axis: a sum of 65,536 pixels overflows float16. Masks without logits above -1 give 0, not NaN.
        inner, outer = ((masks > threshold).float().mean(dim=3).mean(dim=2) for threshold in (1.0, -1.0))
        return inner / torch.clamp(outer, min=1 / (masks.shape[2] * masks.shape[3]))
