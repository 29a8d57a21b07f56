"""RepViT image encoder with EdgeSAM's two-level fusion neck (EdgeSAM section 3.1; RepViT, CVPR 2024)."""

from __future__ import annotations

import functools
import itertools
import operator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax import Array

from edgesam_jax.config import RepVitConfig
from edgesam_jax.models.encoders.neck import embed
from edgesam_jax.models.encoders.stem import stem
from edgesam_jax.models.kernels import bands, fused, ops, strips
from edgesam_jax.models.kernels.ops import stored
from edgesam_jax.models.kernels.strips import Cut
from edgesam_jax.models.layers import NORM_EPSILON, Conv, ConvBN, Mode, SqueezeExcite, conv_bn, gelu, record

REPVIT_M1 = RepVitConfig()
REPVIT_M2 = RepVitConfig(widths=(64, 128, 256, 512), depths=(3, 4, 14, 3))
REPVIT_M3 = RepVitConfig(widths=(64, 128, 256, 512), depths=(5, 6, 20, 3))


class BlockSpec(NamedTuple):
    """The shape of one block; ``stride`` 0 is a residual unit, 1 or 2 the entry block of a stage."""

    width: int
    stride: int
    squeeze_excite: bool
    stage: int


def block_table(config: RepVitConfig) -> list[BlockSpec]:
    """One ``BlockSpec`` per block, in order.

    Squeeze-excite alternates: on in the first residual unit of a stage, always off in the last.  Without fusion the
    last stage keeps the resolution of the stage before.
    """
    table = []
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        plain = depth
        if stage > 0:
            stride = 1 if stage == len(config.widths) - 1 and not config.fuse else 2
            table.append(BlockSpec(width, stride, False, stage))
            plain -= 1
        table += [BlockSpec(width, 0, i % 2 == 0 and i < plain - 1, stage) for i in range(plain)]
    return table


class DepthwiseUnit(nn.Module):
    """RepVGG-style depthwise unit: 3x3 + 1x1 + identity; a single biased 3x3 convolution when folded.

    Also returns the mean (b 1 1 c) of each image's result, where it costs less than its own pass over the result.
    """

    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array | None]:
        q, dtype = self.mode.cut.strips, self.mode.dtype
        c = x.shape[-1] // q
        if self.mode.folded and q > 1 and not self.is_initializing():
            conv: Any = self.get_variable("params", "conv")
            kernel, bias = conv["kernel"].astype(dtype), ops.tiled(conv["bias"].astype(dtype), q)
            return strips.biased(x.astype(dtype), kernel, bias, 1, self.mode.cut)
        return self._sum(x, c, train), None

    def _sum(self, x: Array, c: int, train: bool) -> Array:
        if self.mode.folded:
            shape = (c, 3, 1, True, True)
            return Conv(*shape, dtype=self.mode.dtype, cut=self.mode.cut, name="conv")(x)
        if train and not self.is_initializing():
            return self._train(x.astype(self.mode.dtype))
        conv = ConvBN(c, 3, depthwise=True, mode=self.mode, name="conv")
        point = ConvBN(c, 1, depthwise=True, mode=self.mode, name="conv1")
        return conv(x, train) + point(x, train) + x

    def _train(self, x: Array) -> Array:
        """The same with the batch's statistics, written out in ``fused.py``."""
        (kernel, norm), (point, point_norm) = (conv_bn(self, name) for name in ("conv", "conv1"))
        y, moments, point_moments = fused.depthwise_unit(
            x, kernel, point[0, 0, 0], norm, point_norm, NORM_EPSILON, self.mode.axis_name, self.mode.cut
        )
        record(self, "conv", moments, x)
        record(self, "conv1", point_moments, x)
        return y


class ChannelMixer(nn.Module):
    """Residual MLP of 1x1 convolutions with hidden width 2c.  The scale of the second norm starts at 0."""

    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c = x.shape[-1] // self.mode.cut.strips
        if train and not self.mode.folded and not self.is_initializing():
            return self._train(x.astype(self.mode.dtype))
        hidden = gelu(ConvBN(2 * c, mode=self.mode, name="m_0")(x, train))
        return ops.apart(stored(x + ConvBN(c, zero_init=True, mode=self.mode, name="m_2")(hidden, train)))

    def _train(self, x: Array) -> Array:
        """The same with the batch's statistics, written out in ``fused.py``."""
        (wide, norm), (narrow, last_norm) = (conv_bn(self, name) for name in ("m_0", "m_2"))
        axis_name, q = self.mode.axis_name, self.mode.cut.strips
        inner = stored(ops.pointwise(x, strips.widen(wide[0, 0], q)))
        y, moments = fused.norm_gelu_pointwise(inner, norm, narrow[0, 0], NORM_EPSILON, axis_name, q)
        out, mean, var = ops.batch_norm(stored(y), *last_norm, NORM_EPSILON, axis_name, q)
        record(self, "m_0", moments, inner)
        record(self, "m_2", (mean, var), out)
        return stored(x + out)


class Block(nn.Module):
    """Token mixer, then channel mixer.  ``stride`` 0 is a residual unit, 1 or 2 the entry block of a stage."""

    width: int
    stride: int
    squeeze_excite: bool
    mode: Mode = Mode()
    strips_before: int = 1  # of the input of an entry block; those of the output are ``mode.cut.strips``

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.stride:
            before = replace(self.mode, cut=self.mode.cut._replace(strips=self.strips_before))
            c = x.shape[-1] // self.strips_before
            x = ConvBN(c, 3, self.stride, depthwise=True, mode=before, name="token_mixer_0")(x, train)
            x = strips.regroup(x, self.strips_before, self.mode.cut.strips)
            x = ConvBN(self.width, mode=self.mode, name="token_mixer_2")(x, train)
        else:
            x, mean = DepthwiseUnit(mode=self.mode, name="token_mixer_0")(x, train)
            x = stored(x)
            if self.squeeze_excite:
                x = SqueezeExcite(dtype=self.mode.dtype, cut=self.mode.cut, name="token_mixer_1")(x, mean)
        # Unstored, XLA recomputes the sums of all earlier blocks of the residual stream for every shift of this block.
        return ChannelMixer(mode=self.mode, name="channel_mixer")(stored(x), train)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(block: Block, params: Any, statistics: Any, x: Array) -> tuple[Array, Any]:
    """A block in training: its output and new statistics.  The backward pass recomputes all but the block's input.

    Replaces ``jax.checkpoint``, whose barrier XLA drops on a CPU: see ``ops.after``.
    """
    return _apply(block, params, statistics, x)


def _apply(block: Block, params: Any, statistics: Any, x: Array) -> tuple[Array, Any]:
    y, updated = block.apply({"params": params, "batch_stats": statistics}, x, True, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def _recomputed_forward(block: Block, *inputs: Any) -> tuple[tuple[Array, Any], Any]:
    return _apply(block, *inputs), inputs


def _recomputed_backward(block: Block, inputs: Any, cotangents: tuple[Array, Any]) -> tuple[Any, None, Array]:
    params, statistics, x = inputs
    g = cotangents[0]  # no gradient flows through the statistics
    _, pullback, _ = jax.vjp(lambda p, x: _apply(block, p, statistics, x), params, ops.after(x, g), has_aux=True)
    dparams, dx = pullback(g)
    # Without an order XLA computes the dx of all blocks first, and keeps the inputs of all kernel gradients until then.
    return dparams, None, ops.after(dx, *jax.tree.leaves(dparams))


recomputed.defvjp(_recomputed_forward, _recomputed_backward)


class RepVit(nn.Module):
    """Image encoder: (b h w 3) normalised float -> (b h/s w/s embed_dim), s = ``config.stride``.

    ``pyramid`` also returns the maps of the last three stages, each half the size of the one before if
    ``config.fuse``.
    """

    config: RepVitConfig
    embed_dim: int = 256
    mode: Mode = Mode()

    def _strides(self) -> list[int]:
        """Of the map after each block, relative to the stem's."""
        return list(itertools.accumulate((max(1, block.stride) for block in block_table(self.config)), operator.mul))

    @nn.compact
    def __call__(self, x: Array, train: bool = False, pyramid: bool = False) -> Array | tuple[Array, list[Array]]:
        cfg = self.config
        names = ("features_0_0", "features_0_2")
        x, q = stem(self, names, (cfg.widths[0] // 2, cfg.widths[0]), cfg.stem_strides, x, train)
        n = bands.number(len(x), [x.shape[1] // step for step in self._strides()])
        x = bands.cut(x, n)
        stages: dict[int, Array] = {}
        recompute = cfg.remat and train and not self.is_initializing()
        for i, (width, stride, squeeze_excite, stage) in enumerate(block_table(cfg)):
            name, before = f"features_{i + 1}", q
            if stride:
                q = min(q, strips.number(width, q * x.shape[2] // stride))
            mode = replace(self.mode, cut=Cut(q, n))
            if recompute:
                block = Block(width, stride, squeeze_excite, mode, before, parent=None)
                params: Any = self.get_variable("params", name)
                statistics: Any = self.get_variable("batch_stats", name)
                x, statistics = recomputed(block, params, statistics, x)
                self.put_variable("batch_stats", name, statistics)
            else:
                x = Block(width, stride, squeeze_excite, mode, before, name=name)(x, train)
            stages[stage] = bands.join(strips.regroup(x, q, 1), n)
        x = stages[len(cfg.widths) - 1]
        embedding = embed(stages[2] if cfg.fuse else None, x, self.embed_dim, cfg.upsample, self.mode.dtype)
        return (embedding, [stages[1], stages[2], x]) if pyramid else embedding
