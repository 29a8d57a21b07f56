"""The region proposal network of EdgeSAM's granularity priors: a BiFPN and one shared head, on a frozen encoder.

Levels P3 to P7 (strides 8 to 128 at 1024 px).  Three come from the last three stages of the encoder, two from pooling.
Each round of the BiFPN passes features down the levels and up again; maps that meet are averaged with learned, positive
weights.

'SAME' pooling ignores the padding, as in TensorFlow (MMDetection pads with zeros, which raises negative values at the
borders to 0).

Sources: EdgeSAM, section 3.2; EfficientDet (CVPR 2020), section 3; docs/published_code.md, "Other models".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import ProposalConfig
from edgesam_jax.models.layers import BatchNorm, Conv, Dtype, Mode

LEVELS = 5
EPSILON, KEEP = 1e-3, 0.99  # of the batch norms
FUSION_EPSILON = 1e-4


class SeparableConv(nn.Module):
    """Depthwise 3x3 without bias, then 1x1 with bias."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(x.shape[-1], 3, depthwise=True, dtype=self.dtype, name="depthwise_conv")(x)
        return Conv(self.features, use_bias=True, dtype=self.dtype, name="pointwise_conv")(x)


class Lateral(nn.Module):
    """Change the map of an encoder to the width of the pyramid: 1x1 convolution with bias, batch norm."""

    features: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.features, use_bias=True, dtype=self.mode.dtype, name="conv")(x)
        return _norm(self.mode, "bn")(x, train)


class Node(nn.Module):
    """Average maps of one size with learned, positive weights; swish, separable convolution, batch norm."""

    features: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, maps: list[Array], train: bool) -> Array:
        weights = jax.nn.relu(self.param("fusion_weights", nn.initializers.ones, (len(maps),)))
        weights = (weights / (weights.sum() + FUSION_EPSILON)).astype(self.mode.dtype)
        x = sum((w * x for w, x in zip(weights, maps, strict=True)), jnp.zeros((), self.mode.dtype))
        x = SeparableConv(self.features, self.mode.dtype, name="conv")(jax.nn.swish(x))
        return _norm(self.mode, "bn")(x, train)


def _norm(mode: Mode, name: str) -> BatchNorm:
    return BatchNorm(mode=mode, epsilon=EPSILON, keep=KEEP, name=name)


def _up(x: Array, like: Array) -> Array:
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : like.shape[1], : like.shape[2]]


def _down(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), "SAME")


class Pyramid(nn.Module):
    """Three maps of an encoder, each half the size of the one before -> five maps of width ``config.channels``."""

    config: ProposalConfig
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, maps: list[Array], train: bool) -> list[Array]:
        cfg = self.config

        def lateral(x: Array, name: str) -> Array:
            return Lateral(cfg.channels, self.mode, name=name)(x, train)

        def node(maps: list[Array], name: str) -> Array:
            return Node(cfg.channels, self.mode, name=name)(maps, train)

        levels = [lateral(x, f"p{i}_lateral") for i, x in enumerate(maps, 3)]
        levels.append(_down(lateral(maps[-1], "p6_lateral")))
        levels.append(_down(levels[-1]))
        # On the way up, the first round takes P4 and P5 from the encoder again, through separate convolutions.
        inputs = [levels[0], *(lateral(x, f"p{i}_lateral_again") for i, x in enumerate(maps[1:], 4)), *levels[3:]]
        for number in range(cfg.repeats):
            down = [levels[-1]]
            for i in range(LEVELS - 2, -1, -1):
                down.insert(0, node([levels[i], _up(down[0], levels[i])], f"round{number}_p{i + 3}_down"))
            up = [down[0]]
            for i in range(1, LEVELS):
                middle = [down[i]] if i < LEVELS - 1 else []
                up.append(node([inputs[i], *middle, _down(up[-1])], f"round{number}_p{i + 3}_up"))
            levels = inputs = up
        return levels


class Head(nn.Module):
    """Score logits (b n) and box codes (b n 4) of all anchors, level by level, (y, x, anchor) within a level.

    All levels share the convolutions; each level has its own batch norms.
    """

    config: ProposalConfig
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, levels: list[Array], train: bool) -> tuple[Array, Array]:
        cfg = self.config
        results = []
        for task, outputs in (("class", 1), ("box", 4)):
            convs = [
                SeparableConv(cfg.channels, self.mode.dtype, name=f"{task}_conv_{i}") for i in range(cfg.head_convs)
            ]
            last = SeparableConv(cfg.anchors * outputs, self.mode.dtype, name=f"{task}_out")
            by_level = []
            for level, x in enumerate(levels):
                for i, conv in enumerate(convs):
                    x = jax.nn.swish(_norm(self.mode, f"{task}_bn_{level}_{i}")(conv(x), train))
                by_level.append(last(x).reshape(x.shape[0], -1, outputs).astype(jnp.float32))
            results.append(jnp.concatenate(by_level, axis=1))
        return results[0][..., 0], results[1]


class Proposals(nn.Module):
    """Pyramid and head: three maps of an encoder (b h w c) -> score logits (b n) and box codes (b n 4)."""

    config: ProposalConfig
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, maps: list[Array], train: bool = False) -> tuple[Array, Array]:
        maps = [x.astype(self.mode.dtype) for x in maps]
        levels = Pyramid(self.config, self.mode, name="fpn")(maps, train)
        return Head(self.config, self.mode, name="rpn_head")(levels, train)
