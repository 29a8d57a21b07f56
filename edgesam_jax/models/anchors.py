"""Anchors, their assignment to boxes, box codes and non-maximum suppression; all shapes are fixed.

Boxes are XYXY with continuous edges, in pixels of the model's frame.  An anchor is one of ``config.anchors`` boxes
around the centre of a cell of a level; they are numbered by level, row, column, and then ratio before scale.

Sources: EfficientDet (CVPR 2020); Faster R-CNN (NeurIPS 2015), section 3.1, for the codes; more_model_facts, section 4.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from edgesam_jax.config import ProposalConfig, SamConfig
from edgesam_jax.models.proposals import LEVELS

CLAMP = math.log(1000 / 16)  # of log ratios: a code grows its anchor to 62.5 times at most


def level_sizes(image_size: int, stride: int) -> list[int]:
    """Sides of the levels in cells, for a first level of that stride; a pooled level's is rounded up."""
    sides = [image_size // stride]
    while len(sides) < LEVELS:
        sides.append(-(-sides[-1] // 2))
    return sides


def make_anchors(image_size: int, stride: int, config: ProposalConfig) -> np.ndarray:
    """All anchors (n 4) float32: sizes ``scale`` stride 2^(k / octaves), h = size sqrt(r), w = size / sqrt(r)."""
    found = []
    for level, side in enumerate(level_sizes(image_size, stride)):
        step = stride * 2**level
        sizes = config.scale * step * 2 ** (np.arange(config.octaves) / config.octaves)
        root = np.sqrt(np.asarray(config.ratios))[:, None]
        height, width = (sizes * root).ravel(), (sizes / root).ravel()
        centre = (np.arange(side) + 0.5) * step
        y, x = (grid.reshape(-1, 1) for grid in np.meshgrid(centre, centre, indexing="ij"))
        corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)
        found.append(corners.reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)


def anchors_of(model: SamConfig) -> np.ndarray:
    """The anchors (n 4) float32 of a model with proposals: its first level is twice as fine as the embedding."""
    assert model.proposals is not None
    return make_anchors(model.image_size, model.encoder.stride // 2, model.proposals)


def overlaps(a: Array, b: Array) -> Array:
    """Intersection over union of boxes (n 4) with boxes (m 4) -> (n m); 0 where a union is empty."""
    low, high = jnp.maximum(a[:, None, :2], b[None, :, :2]), jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    areas = [jnp.prod(jnp.maximum(x[:, 2:] - x[:, :2], 0), axis=-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)


def assign(anchors: Array, boxes: Array, valid: Array, config: ProposalConfig) -> tuple[Array, Array]:
    """What each anchor (n 4) shall say of the boxes (p 4) that are ``valid`` (p).

    An anchor is positive from ``iou_positive`` on, negative below ``iou_negative``, and between them takes no part.  Of
    each box the best anchors, ties included, are positive however little they overlap it.

    Returns:
      kind (n) int32: 1 positive, 0 negative, -1 neither; the box (n) int32 that a positive anchor stands for.
    """
    wide = valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    iou = jnp.where(wide[None], overlaps(anchors, boxes), -1)
    best, match = iou.max(axis=1), iou.argmax(axis=1)
    kind = jnp.where(best >= config.iou_positive, 1, jnp.where(best < config.iou_negative, 0, -1))
    top = iou.max(axis=0)
    forced = (iou == top[None]) & (top > 0)[None]
    # Where several boxes force an anchor, the last of them has it.
    last = boxes.shape[0] - 1 - jnp.argmax(forced[:, ::-1], axis=1)
    is_forced = forced.any(axis=1)
    return jnp.where(is_forced, 1, kind), jnp.where(is_forced, last, match)


def encode(anchors: Array, boxes: Array) -> Array:
    """Codes (n 4) of boxes (n 4) for their anchors (n 4): offsets of the centre in anchor sizes, log ratios."""
    size, own = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    offset = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / (2 * size)
    return jnp.concatenate([offset, jnp.log(jnp.maximum(own, 1e-6) / size)], axis=-1)


def decode(anchors: Array, codes: Array, limit: Array) -> Array:
    """Boxes (n 4) from codes (n 4), clipped to (width, height) ``limit`` (2): the inverse of ``encode``."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + codes[..., :2] * size
    half = size * jnp.exp(jnp.clip(codes[..., 2:], -CLAMP, CLAMP)) / 2
    return jnp.clip(jnp.concatenate([centre - half, centre + half], axis=-1), 0, jnp.concatenate([limit, limit]))


def suppress(boxes: Array, scores: Array, iou: float) -> Array:
    """Greedy non-maximum suppression of boxes (n 4) whose ``scores`` (n) fall: which (n) bool are kept.

    A box is dropped if one that is kept before it overlaps it by more than ``iou``.  Scores of 0 are no boxes.
    """
    over = overlaps(boxes, boxes) > iou

    def step(i: Array, kept: Array) -> Array:
        covered = jnp.any(kept & over[i] & (jnp.arange(len(scores)) < i))
        return kept.at[i].set((scores[i] > 0) & ~covered)

    return lax.fori_loop(0, len(scores), step, jnp.zeros(scores.shape, bool))


def propose(logits: Array, codes: Array, anchors: Array, limit: Array, config: ProposalConfig) -> tuple[Array, Array]:
    """The best boxes of one photo: (kept 4) and their scores (kept), falling; unused places have a score of 0.

    The ``before_nms`` best anchors from ``min_score`` on are decoded, and of these ``kept`` stay after suppression.

    Args:
      logits, codes: of all anchors, (n) and (n 4).
      limit: (2) width and height of the photo in the frame.
    """
    scores, chosen = lax.top_k(jax.nn.sigmoid(logits), min(config.before_nms, logits.shape[0]))
    scores = jnp.where(scores >= config.min_score, scores, 0)
    boxes = decode(anchors[chosen], codes[chosen], limit)
    scores = jnp.where(jnp.all(boxes[:, 2:] > boxes[:, :2], axis=-1), scores, 0)
    if config.nms_iou < 1:
        scores = jnp.where(suppress(boxes, scores, config.nms_iou), scores, 0)
    scores, order = lax.top_k(scores, min(config.kept, scores.shape[0]))
    return boxes[order], scores
