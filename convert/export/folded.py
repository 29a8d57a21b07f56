"""The decoder for few tokens, in two graphs: maps of the photo, and a decoder that never makes an image of its own.

For a prompt of t tokens, attention from the image to the tokens adds, at each pixel, a weighted sum of t vectors per
head: a matrix of heads*t columns times the weights of the pixel. The norm that follows scales the pixel. So after any
layer the image is

    x = s * (w * Y) + F p + b

with Y (c pixels), the photo's share, which depends on no prompt; s (1 pixels), the product of the norms' scales; w and
b, the last norm's weight and bias; F (c columns), made of the tokens; and p (columns pixels), the attention to the
tokens times the scales of later norms. The decoder reads x only through linear maps W, and W (w * Y) is computed once
per photo (``convert.export.photo_maps``). A prompt then costs products with layers*heads*t columns in place of products
with c channels: less if t is small.

A norm's scale needs the mean square of z = s Y + F' p, the centred sum before the norm, over the channels:

    s^2 mean(Y^2) + s p . (2 F'^T Y / c) + p . (F'^T F' / c) p

F'^T Y is linear in the photo, too. All this is exact up to rounding.

Tensors are (channels pixels), or (heads channels pixels) with g*g pixels; tokens are (1 c 1 t) as in
``convert.export.decoder``. Products of weights are computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from convert.export.decoder import Attend, ExportDecoder
from convert.export.photo_maps import (
    centred,
    constant_of,
    layers_of,
    matrix,
    names,
    readers_of,
    vector,
)  # fmt: skip
from convert.export.upscaling import Upscaling


@dataclass(frozen=True)
class Image:
    """The image in the form ``scale * map + columns weights + constant``, without map and constant.

    Attributes:
      scale: (1 pixels).
      columns: (c columns).
      weights: (columns pixels).
      values: of each layer's attention so far, (heads d t).
    """

    scale: Tensor
    columns: Tensor
    weights: Tensor
    values: tuple[Tensor, ...]


def heads_of(x: Tensor, heads: int) -> Tensor:
    """Split (1 c ...) or (c ...) into (heads c/heads pixels or tokens)."""
    return x.reshape(heads, -1, x.shape[-1])


class Linear(nn.Module):
    """A linear map of the image: weight (out c) and constant (out 1) or (out pixels)."""

    def __init__(self, weight: Tensor, constant: Tensor, kind: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(kind), persistent=False)
        self.register_buffer("constant", constant.to(kind), persistent=False)

    def of_columns(self, image: Image) -> Tensor:
        """Return the map of the columns, (out columns)."""
        return cast(Tensor, self.weight) @ image.columns

    def scores(self, q: Tensor, photo: Tensor, image: Image) -> Tensor:
        """Return products of q (heads d t) with the mapped image, (heads t pixels); ``photo`` is its photo's share."""
        heads, rows = len(q), q.transpose(1, 2)
        folded = (rows @ heads_of(self.of_columns(image), heads)).flatten(0, 1) @ image.weights
        own = rows @ heads_of(photo, heads) * image.scale
        return own + folded.reshape(own.shape) + rows @ heads_of(cast(Tensor, self.constant), heads)

    def mixed(self, weights: Tensor, photo: Tensor, image: Image) -> Tensor:
        """Return sums of the mapped image with weights (heads t pixels) that sum to 1: (heads d t)."""
        heads = len(weights)
        own = heads_of(photo, heads) @ (weights * image.scale).transpose(1, 2)
        shared = image.weights @ weights.flatten(0, 1).T  # (columns heads*t)
        shared = shared.reshape(image.columns.shape[1], heads, -1).transpose(0, 1)
        folded = heads_of(self.of_columns(image), heads) @ shared
        return own + folded + heads_of(cast(Tensor, self.constant), heads)


class Reader(nn.Module):
    """Attention of tokens to the image after a layer with the norm ``before``."""

    def __init__(self, attend: Attend, before: nn.Module, position: Tensor, kind: torch.dtype) -> None:
        super().__init__()
        self.heads, self.query, self.out = attend.heads, attend.query, attend.out
        bias = vector(cast(Tensor, before.bias))
        self.key = linear(attend.key, bias + position, kind)
        self.value = linear(attend.value, bias, kind)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, image: Image) -> Tensor:
        """Return (1 c 1 t) for tokens with their positions."""
        weights = self.key.scores(heads_of(self.query(tokens), self.heads), keys, image).softmax(dim=-1)
        return self.out(self.value.mixed(weights, values, image).reshape(1, -1, 1, tokens.shape[3]))


class FirstReader(nn.Module):
    """Attention of tokens to the image before any layer, which depends on no prompt."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.heads, self.query, self.out = attend.heads, attend.query, attend.out

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return (1 c 1 t) for tokens with their positions."""
        q, k, v = (heads_of(x, self.heads) for x in (self.query(tokens), keys, values))
        mixed = v @ (q.transpose(1, 2) @ k).softmax(dim=-1).transpose(1, 2)
        return self.out(mixed.reshape(1, -1, 1, tokens.shape[3]))


def linear(conv: nn.Conv2d, constant: Tensor, kind: torch.dtype) -> Linear:
    """Return a 1x1 convolution as a map of an image that contains a ``constant``, (c 1) or (c pixels)."""
    return Linear(matrix(conv), matrix(conv) @ constant + vector(conv.bias), kind)


class Writer(nn.Module):
    """Attention of the image to the tokens in layer i, and the norm that follows."""

    def __init__(self, whole: ExportDecoder, i: int, position: Tensor, kind: torch.dtype) -> None:
        super().__init__()
        layer = layers_of(whole)[i]
        attend, self.norm = layer.from_image, layer.norm4
        self.heads, self.key, self.value = attend.heads, attend.key, attend.value
        before = vector(layers_of(whole)[i - 1].norm4.bias) if i else position
        self.query = linear(attend.query, before + position, kind) if i else None
        out = centred(matrix(attend.out))  # (c inner)
        self.register_buffer("out", out.reshape(len(out), self.heads, -1).transpose(0, 1).to(kind), persistent=False)
        constant = constant_of(whole, i) if i else 0 * out[:, :1]
        self.register_buffer("constant", constant.to(kind), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        positioned: Tensor,
        column: Tensor,
        queries: Tensor,
        norms: Tensor,
        products: list[Tensor],
        image: Image | None,
    ) -> Image:
        """Add to the image.

        Args:
          tokens, positioned: (1 c 1 t), without and with their positions.
          column: biases of the tokens as keys, (1 t 1).
          queries, norms, products: maps of this layer.
          image: None in the first layer.
        """
        k, v = (heads_of(x, self.heads) for x in (self.key(positioned), self.value(tokens)))
        if image is None:
            scores = k.transpose(1, 2) @ heads_of(queries, self.heads)
        else:
            scores = cast(Linear, self.query).scores(k, queries, image)
        weights = softmax_over_tokens(scores + column).flatten(0, 1)  # (heads*t pixels)
        columns = (cast(Tensor, self.out) @ v).transpose(0, 1).flatten(1)  # (c heads*t)
        values = (v,)
        if image is not None:
            values = (*image.values, v)
            columns = torch.cat([centred(image.columns), columns + cast(Tensor, self.constant)], dim=1)
            weights = torch.cat([image.weights, weights])
        return self._normed(columns, weights, values, norms, products, image)

    def _normed(
        self, columns: Tensor, weights: Tensor, values: tuple[Tensor, ...], norms: Tensor, products: list[Tensor],
        before: Image | None,
    ) -> Image:  # fmt: skip
        parts = []
        for j, (v, product) in enumerate(zip(values, products, strict=True)):
            part = (v.transpose(1, 2) @ heads_of(product, self.heads)).flatten(0, 1)
            parts.append(part + norms[j : j + 1] if j else part)
        crossed = torch.cat(parts) if len(parts) > 1 else parts[0]  # 2/c F^T Y
        square, c = norms[:1], len(columns)
        if before is not None:
            crossed, square = crossed * before.scale, square * before.scale * before.scale
        within = (columns.T @ columns / c) @ weights
        square = square + (weights * (crossed + within)).sum(dim=0, keepdim=True)
        scale = torch.rsqrt(square.clamp(min=0) + self.norm.eps)
        return Image(
            scale if before is None else scale * before.scale,
            columns * self.norm.weight[:, None],
            weights * scale,
            values,
        )


def softmax_over_tokens(scores: Tensor) -> Tensor:
    """Return the softmax of (heads t pixels) over t, in parts: ONNX Runtime transposes for any axis but the last."""
    raised = (scores - scores.amax(dim=1, keepdim=True)).exp()
    return raised / raised.sum(dim=1, keepdim=True)


class FoldedDecoder(nn.Module):
    """The maps of ``PhotoMaps``, coordinates (1 n 2) and labels (1 n) of points -> scores (1 m), masks (1 m 4g 4g)."""

    def __init__(self, whole: ExportDecoder) -> None:
        super().__init__()
        self.whole = whole
        layers = layers_of(whole)
        kind, position = layers[0].norm1.weight.dtype, cast(Tensor, whole.image_pe)[0].flatten(1).double()
        self.names = names(len(layers))
        self.first = FirstReader(layers[0].to_image)
        self.readers = nn.ModuleList(
            Reader(attend, layer.norm4, position, kind) for attend, layer in zip(readers_of(whole), layers, strict=True)
        )
        self.writers = nn.ModuleList(Writer(whole, i, position, kind) for i in range(len(layers)))
        self.upscaling = Upscaling(whole, vector(layers[-1].norm4.bias))
        self.eval()

    def forward(self, photo: Sequence[Tensor], point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        # A reshape: an index would copy.
        whole, maps = self.whole, {n: x.reshape(x.shape[1], -1) for n, x in zip(self.names, photo, strict=True)}
        tokens, row, column = whole.tokens(point_coords, point_labels)
        token_pe = tokens
        image: Image | None = None
        for i, layer in enumerate(layers_of(whole)):
            tokens = layer.among_tokens(tokens, token_pe, row)
            tokens = layer.feed_forward(tokens, self._read(i, tokens + token_pe, maps, image))
            products = [maps[f"product_{i}_{j}"] for j in range(i + 1)]
            image = self.writers[i](
                tokens, tokens + token_pe, column, maps[f"queries_{i}"], maps[f"norms_{i}"], products, image
            )
        assert image is not None
        tokens = whole.last_norm(tokens + self._read(len(self.writers), tokens + token_pe, maps, image))
        query = whole.query(tokens)
        columns = cast(Tensor, self.upscaling.weight) @ image.columns
        masks = self.upscaling(query, maps["pixels"] * image.scale + columns @ image.weights)
        return whole._scores(masks, tokens[:, :, :, :1]), masks

    def _read(self, i: int, tokens: Tensor, maps: dict[str, Tensor], image: Image | None) -> Tensor:
        keys, values = maps[f"keys_{i}"], maps[f"values_{i}"]
        if image is None:
            return self.first(tokens, keys, values)
        return self.readers[i - 1](tokens, keys, values, image)
