"""Losses per element; callers reduce over masks, prompts and images explicitly.

All arithmetic is float32.  Masks are logits.  The published code takes the cross entropy of clamped probabilities
instead, whose gradient vanishes beyond a logit of 17 (docs/published_code.md, B31).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def valid_weights(valid_size: Array, cells: int, image_size: int) -> Array:
    """Fraction of each cell of a (cells cells) grid that lies in the photo: (b 2) rows and columns -> (b cells cells).

    The value is torch's bilinear down-sampling (no antialias) of the valid rectangle: 1 inside, 1/2 where an edge of
    the photo runs through, 1/4 at its corner, 0 outside (docs/published_code.md, "Losses").
    """
    stride = image_size / cells
    centre = (jnp.arange(cells) + 0.5) * stride - 0.5
    low, fraction = jnp.floor(centre), centre - jnp.floor(centre)
    size = valid_size[..., None].astype(jnp.float32)  # (b 2 1)
    weight = (1 - fraction) * (low < size) + fraction * (low + 1 < size)
    return weight[:, 0, :, None] * weight[:, 1, None, :]


def feature_error(student: Array, teacher: Array, valid: Array) -> Array:
    """Squared feature error (b g g c) -> (b): mean over channels and over the cells of ``valid`` (b g g) bool.

    EdgeSAM equation 1.  The published code averages a wrongly broadcast (b b) array when sizes differ (B35).
    """
    error = jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)).mean(axis=-1)
    return jnp.sum(error * valid, axis=(1, 2)) / jnp.maximum(valid.sum(axis=(1, 2)), 1)


def cross_entropy(logits: Array, target: Array) -> Array:
    """Binary cross entropy per element; ``target`` is in [0, 1].

    A sum of terms that are not negative: ``softplus(x) - x t``, the shorter form, is 0 for a confident positive.
    """
    logits, target = jnp.asarray(logits, jnp.float32), jnp.asarray(target, jnp.float32)
    above = logits > 0
    wrong = jnp.where(above, (1 - target) * logits, -target * logits)
    # Both choices take the same branch at 0, so the gradient there is the sum of theirs, 1/2 - target.
    return wrong + jnp.log1p(jnp.exp(jnp.where(above, -logits, logits)))


def focal(logits: Array, positive: Array, alpha: float, gamma: float) -> Array:
    """Focal loss per element: cross entropy times the probability of the wrong class to the power ``gamma``.

    ``positive`` is bool; positives have weight ``alpha``, negatives 1 - alpha (Lin et al., ICCV 2017, equation 5).
    """
    logits = logits.astype(jnp.float32)
    signed = jnp.where(positive, -logits, logits)
    small = jnp.exp(jnp.where(signed > 0, -signed, signed))
    wrong = jnp.where(signed > 0, 1, small) / (1 + small)  # the sigmoid; its own gradient, w (1 - w), cancels near 1
    return jnp.where(positive, alpha, 1 - alpha) * wrong**gamma * cross_entropy(logits, positive)


def huber(error: Array, beta: float) -> Array:
    """Huber loss per element: half the square below ``beta``, then linear with slope ``beta``."""
    size = jnp.abs(error.astype(jnp.float32))
    return jnp.where(size < beta, 0.5 * size**2, beta * size - 0.5 * beta**2)


def channel_divergence(student: Array, teacher: Array, valid: Array, temperature: float) -> Array:
    """Channel-wise distillation (b g g c) -> (b): mean over channels of T^2 KL(teacher || student).

    Compares each channel's softmax over the cells of ``valid`` (b g g) bool at temperature T: the location of the
    activation counts, its strength doesn't (Shu et al., ICCV 2021, equation 5).
    """
    s, t = (
        jax.nn.log_softmax(jnp.where(valid[..., None], x.astype(jnp.float32) / temperature, -1e9), axis=(1, 2))
        for x in (student, teacher)
    )
    divergence = jnp.sum(jnp.exp(t) * jnp.where(valid[..., None], t - s, 0), axis=(1, 2))
    return temperature**2 * divergence.mean(axis=-1)


def correlation_error(student: Array, teacher: Array, valid: Array) -> Array:
    """Structured (pair-wise) distillation (b g g c), (b g g d) -> (b): squared error of cosines between cells.

    Mean over all pairs of cells of ``valid`` (b g g) bool (Liu et al., CVPR 2019, equation 1).  The n^2 cosines are
    never formed: the sum of products of two Gram matrices, S S^T and T T^T, is the squared norm of S^T T.
    """
    count = jnp.maximum(valid.sum(axis=(1, 2)), 1)
    s, t = (
        (_unit(x.astype(jnp.float32)) * valid[..., None]).reshape(x.shape[0], -1, x.shape[-1])
        for x in (student, teacher)
    )

    def together(x: Array, y: Array) -> Array:
        return jnp.square(jnp.einsum("bsc,bsd->bcd", x, y, precision="highest")).sum(axis=(1, 2))

    return (together(s, s) - 2 * together(s, t) + together(t, t)) / count**2


def attention_error(student: Array, teacher: Array, queries: Array, keys: Array) -> Array:
    """Squared error of attention maps (b p heads q k) -> (b p): mean over heads and valid pairs.

    A pair is valid if its query in ``queries`` (b p q) and its key in ``keys`` (b p k), both bool, are.  p may be 1 for
    a side that is the same for all prompts.
    """
    pairs = queries[:, :, :, None] & keys[:, :, None, :]
    error = jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)).mean(axis=2)
    return jnp.sum(error * pairs, axis=(-2, -1)) / jnp.maximum(pairs.sum(axis=(-2, -1)), 1)


def upscaled_error(student: Array, teacher: Array, weight: Array) -> Array:
    """Squared error of the decoder's upscaled embeddings (b p h w c) -> (b p): mean over channels and valid pixels."""
    weight = weight[:, None]
    error = jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)).mean(axis=-1)
    return jnp.sum(error * weight, axis=(-2, -1)) / jnp.maximum(weight.sum(axis=(-2, -1)), 1e-6)


def query_error(student: Array, teacher: Array) -> Array:
    """Squared error of the hypernetworks' outputs (b p m c), each scaled to L1 norm 1 -> (b p m): mean over channels.

    The published code takes the norm over the masks instead (B18), which couples the masks.
    """
    s, t = (x / jnp.maximum(jnp.abs(x).sum(-1, keepdims=True), 1e-6) for x in (student, teacher))
    return jnp.square(s.astype(jnp.float32) - t.astype(jnp.float32)).mean(axis=-1)


def binary_cross_entropy(logits: Array, target: Array, weight: Array) -> Array:
    """Binary cross entropy, averaged over pixels: (b p m h w) -> (b p m).

    Args:
      logits, target: (b p m h w); targets are in [0, 1].
      weight: (b h w) of the pixels.
    """
    weight = weight[:, None, None]
    loss = cross_entropy(logits, target)
    return jnp.sum(loss * weight, axis=(-2, -1)) / jnp.maximum(weight.sum(axis=(-2, -1)), 1e-6)


def dice(logits: Array, target: Array, weight: Array) -> Array:
    """1 - Dice coefficient with smoothing 1: (b p m h w), weight (b h w) -> (b p m)."""
    weight = weight[:, None, None]
    p, t = jax.nn.sigmoid(logits) * weight, target * weight
    both, either = (p * t).sum(axis=(-2, -1)), (p + t).sum(axis=(-2, -1))
    return 1 - (2 * both + 1) / (either + 1)


def measured_iou(a: Array, b: Array, valid: Array) -> Array:
    """IoU of bool masks (b p m h w) over ``valid`` (b h w) -> (b p m); 0 where both are empty."""
    valid = valid[:, None, None]
    both = jnp.sum(a & b & valid, axis=(-2, -1))
    either = jnp.sum((a | b) & valid, axis=(-2, -1))
    return both / jnp.maximum(either, 1)


def grouping(embedding: Array, masks: Array, prompt_valid: Array, scale: float = 8.0) -> Array:
    """Auxiliary loss for training from scratch: the cells of one object look alike, others don't -> (b p).

    The mean feature of a mask (b p s s), as a query, must find that mask among the cells of the embedding (b g g c).
    Not from the paper: without this term, small models get stuck in a minimum that draws an ellipse from the box.
    """
    b, g, _, c = embedding.shape
    p, s = masks.shape[1], masks.shape[-1]
    cover = masks.reshape(b, p, g, s // g, g, s // g).mean(axis=(3, 5)).reshape(b, p, g * g)
    x = _unit(embedding.reshape(b, g * g, c).astype(jnp.float32))
    query = _unit(jnp.einsum("bps,bsc->bpc", cover, x))
    logits = scale * (jnp.einsum("bpc,bsc->bps", query, x) - 0.5)
    loss = cross_entropy(logits, cover)
    # Inside and outside have equal weight, or the background would outweigh small objects.
    inside = (loss * cover).sum(-1) / jnp.maximum(cover.sum(-1), 1e-6)
    outside = (loss * (1 - cover)).sum(-1) / jnp.maximum((1 - cover).sum(-1), 1e-6)
    return (inside + outside) * prompt_valid


def _unit(x: Array) -> Array:
    """Scale to unit length; the gradient stays finite at 0, the value of empty prompts."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
