"""Anchors, their assignment to boxes, box codes and non-maximum suppression; all shapes are fixed.

Boxes are XYXY with continuous edges, in pixels of the model's frame.  Each cell of a level has ``config.anchors``
anchors around its centre; anchors are numbered by level, row, column, ratio and scale, in this order.

Sources: EfficientDet (CVPR 2020); Faster R-CNN (NeurIPS 2015), section 3.1, for the codes; docs/published_code.md,
"Other models".
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from edgesam_jax.config import ProposalConfig, SamConfig
from edgesam_jax.models.proposals import LEVELS

CLAMP = math.log(1000 / 16)  # limit of log ratios: a code scales its anchor by 62.5 at most


def level_sizes(image_size: int, stride: int) -> list[int]:
    """Sides of the levels in cells, from a first level of the given stride; the sides of pooled levels round up."""
    sides = [image_size // stride]
    while len(sides) < LEVELS:
        sides.append(-(-sides[-1] // 2))
    return sides


def make_anchors(image_size: int, stride: int, config: ProposalConfig) -> np.ndarray:
    """All anchors (n 4) float32: size ``scale`` * stride * 2^(k / octaves), h = size * sqrt(r), w = size / sqrt(r)."""
    by_level = []
    for level, side in enumerate(level_sizes(image_size, stride)):
        step = stride * 2**level
        sizes = config.scale * step * 2 ** (np.arange(config.octaves) / config.octaves)
        root = np.sqrt(np.asarray(config.ratios))[:, None]
        height, width = (sizes * root).ravel(), (sizes / root).ravel()
        centre = (np.arange(side) + 0.5) * step
        y, x = (grid.reshape(-1, 1) for grid in np.meshgrid(centre, centre, indexing="ij"))
        corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)
        by_level.append(corners.reshape(-1, 4))
    return np.concatenate(by_level).astype(np.float32)


def anchors_of(model: SamConfig) -> np.ndarray:
    """The anchors (n 4) float32 of a model with proposals; the first level has half the stride of the embedding."""
    assert model.proposals is not None
    return make_anchors(model.image_size, model.encoder.stride // 2, model.proposals)


def overlaps(a: Array, b: Array) -> Array:
    """Intersection over union of boxes (n 4) with boxes (m 4), as (n m); 0 where the union is empty."""
    low, high = jnp.maximum(a[:, None, :2], b[None, :, :2]), jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    areas = [jnp.prod(jnp.maximum(x[:, 2:] - x[:, :2], 0), axis=-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)


def assign(anchors: Array, boxes: Array, valid: Array, config: ProposalConfig) -> tuple[Array, Array]:
    """Assign anchors (n 4) to the boxes (p 4) that are ``valid`` (p).

    An anchor is positive if its best IoU is at least ``iou_positive``, negative if it is below ``iou_negative``, and
    ignored in between.  The best anchors of each box, ties included, are positive at any IoU above 0.

    Returns:
      kind (n) int32: 1 positive, 0 negative, -1 ignored; and the index (n) int32 of a positive anchor's box.
    """
    wide = valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    iou = jnp.where(wide[None], overlaps(anchors, boxes), -1)
    best, match = iou.max(axis=1), iou.argmax(axis=1)
    kind = jnp.where(best >= config.iou_positive, 1, jnp.where(best < config.iou_negative, 0, -1))
    top = iou.max(axis=0)
    forced = (iou == top[None]) & (top > 0)[None]
    # An anchor forced by several boxes goes to the last of them.
    last = boxes.shape[0] - 1 - jnp.argmax(forced[:, ::-1], axis=1)
    is_forced = forced.any(axis=1)
    return jnp.where(is_forced, 1, kind), jnp.where(is_forced, last, match)


def encode(anchors: Array, boxes: Array) -> Array:
    """Codes (n 4) of boxes (n 4) relative to their anchors (n 4): centre offsets in anchor sizes, log size ratios."""
    size, box_size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    offset = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / (2 * size)
    return jnp.concatenate([offset, jnp.log(jnp.maximum(box_size, 1e-6) / size)], axis=-1)


def decode(anchors: Array, codes: Array, limit: Array) -> Array:
    """Boxes (n 4) from codes (n 4), clipped to ``limit`` (2), a width and a height: the inverse of ``encode``."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + codes[..., :2] * size
    half = size * jnp.exp(jnp.clip(codes[..., 2:], -CLAMP, CLAMP)) / 2
    return jnp.clip(jnp.concatenate([centre - half, centre + half], axis=-1), 0, jnp.concatenate([limit, limit]))


def suppress(boxes: Array, scores: Array, iou: float) -> Array:
    """Greedy non-maximum suppression of boxes (n 4) in falling order of ``scores`` (n).

    Returns:
      (n) bool, True for the boxes kept.  A box is dropped if its score is 0, or if its IoU with an earlier box that is
      kept exceeds ``iou``.
    """
    over = overlaps(boxes, boxes) > iou

    def step(i: Array, kept: Array) -> Array:
        covered = jnp.any(kept & over[i] & (jnp.arange(len(scores)) < i))
        return kept.at[i].set((scores[i] > 0) & ~covered)

    return lax.fori_loop(0, len(scores), step, jnp.zeros(scores.shape, bool))


def propose(logits: Array, codes: Array, anchors: Array, limit: Array, config: ProposalConfig) -> tuple[Array, Array]:
    """Find the best boxes of one photo.

    Decodes the ``before_nms`` best anchors with a score of at least ``min_score``, and returns the ``kept`` best boxes
    after suppression.

    Args:
      logits, codes: of all anchors, (n) and (n 4).
      anchors: (n 4).
      limit: (2) width and height of the photo in the frame.

    Returns:
      Boxes (kept 4) and their scores (kept) in falling order; unused places have a score of 0.
    """
    scores, best = lax.top_k(jax.nn.sigmoid(logits), min(config.before_nms, logits.shape[0]))
    scores = jnp.where(scores >= config.min_score, scores, 0)
    boxes = decode(anchors[best], codes[best], limit)
    scores = jnp.where(jnp.all(boxes[:, 2:] > boxes[:, :2], axis=-1), scores, 0)
    if config.nms_iou < 1:
        scores = jnp.where(suppress(boxes, scores, config.nms_iou), scores, 0)
    scores, order = lax.top_k(scores, min(config.kept, scores.shape[0]))
    return boxes[order], scores
