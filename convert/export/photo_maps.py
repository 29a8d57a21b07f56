"""The graph of the folded decoder that runs once per photo (``convert.export.folded``): an embedding to maps.

Tensors inside are (channels pixels), with g*g pixels. Products of weights are computed in float64.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from convert.export.decoder import Attend, ExportDecoder, Layer


def matrix(conv: nn.Conv2d) -> Tensor:
    """Return the weight of a 1x1 convolution as (out in) float64."""
    return conv.weight.detach()[:, :, 0, 0].double()


def vector(values: Tensor | None) -> Tensor:
    """Return a bias, or a norm's weight, as (out 1) float64."""
    assert values is not None
    return values.detach().double()[:, None]


def centred(x: Tensor) -> Tensor:
    """Subtract the mean of each column."""
    return x - x.mean(dim=0, keepdim=True)


def layers_of(whole: ExportDecoder) -> list[Layer]:
    """Return the two-way layers."""
    return [cast(Layer, layer) for layer in whole.layers]


def readers_of(whole: ExportDecoder) -> list[Attend]:
    """Return the attention of tokens to the image that follows each layer: the next layer's, or the last one."""
    return [*(layer.to_image for layer in layers_of(whole)[1:]), whole.last]


def upscaling_of(whole: ExportDecoder) -> tuple[Tensor, Tensor]:
    """Return weight (c c) and bias (c 1) of the first up-sampling as a product, both float64.

    Rows are the channels of the four new pixels in turn. Each pixel's channels are centred, for the norm that follows.
    """
    conv = cast(nn.ConvTranspose2d, whole.upscaling[0])
    weight = conv.weight.detach().double().permute(2, 3, 1, 0).flatten(0, 1)  # (4 c/4 c)
    return (weight - weight.mean(dim=1, keepdim=True)).flatten(0, 1), centred(vector(conv.bias)).repeat(4, 1)


def names(depth: int) -> list[str]:
    """Return the names of the maps, in order, for a decoder of ``depth`` layers."""
    found = [f"keys_{i}" for i in range(depth + 1)] + [f"values_{i}" for i in range(depth + 1)]
    found += [f"queries_{i}" for i in range(depth)] + [f"norms_{i}" for i in range(depth)]
    return [*found, *(f"product_{i}_{j}" for i in range(depth) for j in range(i + 1)), "pixels"]


class PhotoMaps(nn.Module):
    """An embedding (1 c g g) and an earlier mask -> the maps of ``names(depth)``, each (1 channels g g).

    - ``keys_0``, ``values_0``, ``queries_0``: what the attention of the first layer makes of the image;
    - ``keys_i``, ``values_i``, ``queries_i``: the same linear maps, without constants, of the photo's share in the
      image after i layers; keys and values of ``depth`` are the last attention's;
    - ``pixels``: those of the first up-sampling;
    - ``norms_i``: mean square of Y_i, the photo's share before the norm of layer i, then 2/c times its products with
      the constants that later layers' columns contain;
    - ``product_i_j``: 2/c times the products of Y_i with what layer j adds, per unit of its values.
    """

    def __init__(self, whole: ExportDecoder) -> None:
        super().__init__()
        self.whole = whole
        layers = layers_of(whole)
        kind = layers[0].norm1.weight.dtype
        position = cast(Tensor, whole.image_pe)[0].flatten(1).double()
        self.depth, self.names = len(layers), names(len(layers))
        self.first = ("keys_0", "values_0", "queries_0")
        self.of_layer: list[list[str]] = []

        def keep(name: str, value: Tensor) -> None:
            # Exporters take buffers' names for those of weights, which can't be those of outputs.
            self.register_buffer(f"of_{name}", value.to(kind), persistent=False)

        first = layers[0]
        for name, conv in zip(
            self.first, (first.to_image.key, first.to_image.value, first.from_image.query), strict=True
        ):
            keep(name, matrix(conv))
            keep(f"{name}_offset", vector(conv.bias) + (0 if name == "values_0" else matrix(conv) @ position))
        keep("added", vector(first.from_image.out.bias))
        additions: list[Tensor] = []  # of each layer so far, at this layer's norm: (c inner), per unit of its values
        constants: list[Tensor] = []
        for i, (layer, reader) in enumerate(zip(layers, readers_of(whole), strict=True)):
            out = layer.from_image.out
            if i:
                scale = vector(layers[i - 1].norm4.weight)
                additions, constants = ([centred(scale * x) for x in xs] for xs in (additions, constants))
                constants.append(constant_of(whole, i))
            additions.append(centred(matrix(out)))
            for j, x in enumerate(additions):
                keep(f"product_{i}_{j}", x.T * (2 / len(x)))
            if constants:
                keep(f"norms_{i}", torch.cat(constants, dim=1).T * (2 / len(constants[0])))
            scale = vector(layer.norm4.weight)
            keep(f"scale_{i}", scale)
            keep(f"keys_{i + 1}", matrix(reader.key) * scale.T)
            keep(f"values_{i + 1}", matrix(reader.value) * scale.T)
            found = [*(f"product_{i}_{j}" for j in range(i + 1)), f"keys_{i + 1}", f"values_{i + 1}"]
            if i + 1 < len(layers):
                keep(f"queries_{i + 1}", matrix(layers[i + 1].from_image.query) * scale.T)
                found.append(f"queries_{i + 1}")
            else:
                keep("pixels", upscaling_of(whole)[0] * scale.T)
                found.append("pixels")
            self.of_layer.append(found)
        self.eval()

    def forward(
        self, image_embeddings: Tensor, mask_input: Tensor | None = None, has_mask_input: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        grid = image_embeddings.shape[2:]
        image = image_embeddings + self.whole.dense(mask_input, has_mask_input)
        image = image.reshape(image.shape[1], -1)
        maps = {name: self._kept(name) @ image + self._kept(f"{name}_offset") for name in self.first}
        y = centred(image + self._kept("added"))
        for i, found in enumerate(self.of_layer):
            square = (y * y).mean(dim=0, keepdim=True)
            maps[f"norms_{i}"] = torch.cat([square, self._kept(f"norms_{i}") @ y]) if i else square
            maps |= {name: self._kept(name) @ y for name in found}
            y = centred(self._kept(f"scale_{i}") * y)
        return tuple(maps[name].reshape(1, -1, *grid) for name in self.names)

    def _kept(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, f"of_{name}"))


def constant_of(whole: ExportDecoder, i: int) -> Tensor:
    """Return the constant in each column that layer i > 0 adds, (c 1) float64, centred.

    It is the bias of the norm before and that of the attention. The weights of a head's columns sum to 1, so that a
    share per head gives the sum.
    """
    layer, before = layers_of(whole)[i], layers_of(whole)[i - 1]
    both = vector(before.norm4.bias) + vector(layer.from_image.out.bias)
    return centred(both) / layer.from_image.heads
