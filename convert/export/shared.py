"""The decoder for many tokens, in two graphs: the first layer's products with the photo, and the rest of the decoder.

With 8 heads of 16 channels, the products of ``convert.export.folded`` cost more than these from about 14 tokens on.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from convert.export.decoder import ExportDecoder
from convert.export.photo_maps import layers_of
from convert.export.upscaling import Upscaling
from convert.torch_twin.layers import ChannelNorm

NAMES = ["image", "keys", "values", "queries"]


class FirstProducts(nn.Module):
    """An embedding (1 c g g) and an earlier mask -> ``NAMES``: the image (1 c g g), and the first layer's products."""

    def __init__(self, whole: ExportDecoder) -> None:
        super().__init__()
        self.whole, self.names = whole, NAMES
        self.eval()

    def forward(
        self, image_embeddings: Tensor, mask_input: Tensor | None = None, has_mask_input: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        image = image_embeddings + self.whole.dense(mask_input, has_mask_input)
        first, positioned = layers_of(self.whole)[0], image + cast(Tensor, self.whole.image_pe)
        to_image = first.to_image
        return image, to_image.key(positioned), to_image.value(image), first.from_image.query(positioned)


class SharedDecoder(nn.Module):
    """The maps of ``FirstProducts``, coordinates (1 n 2) and labels (1 n) of points -> scores (1 m), masks (1 m 4g 4g).

    ``flat``: norms and up-sampling in the form that is fast in ONNX Runtime, not the one that coremltools recognises.
    """

    def __init__(self, whole: ExportDecoder, flat: bool) -> None:
        super().__init__()
        self.whole, self.flat = whole, flat
        self.upscaling = Upscaling(whole) if flat else None
        self.eval()

    def forward(self, photo: list[Tensor], point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        image, keys, values, queries = photo
        whole, image_pe = self.whole, cast(Tensor, self.whole.image_pe)
        tokens, row, column = whole.tokens(point_coords, point_labels)
        token_pe = tokens
        for i, layer in enumerate(layers_of(whole)):
            to_image, from_image = layer.to_image, layer.from_image
            tokens = layer.among_tokens(tokens, token_pe, row)
            if i:
                positioned = image + image_pe
                keys, values = to_image.key(positioned), to_image.value(image)
                queries = from_image.query(positioned)
            seen = to_image.projected(to_image.query(tokens + token_pe), keys, values, None)
            tokens = layer.feed_forward(tokens, seen)
            k, v = from_image.key(tokens + token_pe), from_image.value(tokens)
            image = self._normed(layer.norm4, image + from_image.projected(queries, k, v, column, image_queries=True))
        tokens = whole.last_norm(tokens + whole.last(tokens + token_pe, image + image_pe, image, None))
        if self.upscaling is None:
            return whole.answer(tokens, image)
        pixels = cast(Tensor, self.upscaling.weight) @ image.reshape(image.shape[1], -1)
        masks = self.upscaling(whole.query(tokens), pixels)
        return whole._scores(masks, tokens[:, :, :, :1]), masks

    def _normed(self, norm: ChannelNorm, x: Tensor) -> Tensor:
        if not self.flat:
            return norm(x)
        d = x.reshape(x.shape[1], -1)
        d = d - d.mean(dim=0, keepdim=True)
        d = d * torch.rsqrt((d * d).mean(dim=0, keepdim=True) + norm.eps)
        return (d * norm.weight[:, None] + norm.bias[:, None]).reshape(x.shape)
