"""Anchors, assignment, codes and suppression against plain loops."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.config import ProposalConfig
from edgesam_jax.learning import losses
from edgesam_jax.models import anchors
from edgesam_jax.portable.priors import merge

CONFIG = ProposalConfig(iou_positive=0.5, iou_negative=0.4, before_nms=40, kept=10)
MANY = settings(max_examples=60, deadline=None)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def some_boxes(rng, n, size=64):
    """Boxes on whole and half pixels, so that overlaps are often equal; some without area."""
    corners = rng.integers(0, 2 * size, (n, 2, 2)) / 2
    boxes = np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)
    return boxes


def test_numbers_and_order_of_anchors():
    made = anchors.make_anchors(128, 8, ProposalConfig())
    assert anchors.level_sizes(1024, 8) == [128, 64, 32, 16, 8]
    assert len(anchors.make_anchors(1024, 8, ProposalConfig())) == 196_416  # EfficientDet's number at 1024 px
    assert anchors.level_sizes(40, 8) == [5, 3, 2, 1, 1]
    index = 0
    for level, side in enumerate([16, 8, 4, 2, 1]):
        stride = 8 * 2**level
        for y in range(side):
            for x in range(side):
                for ratio in (1.0, 0.5, 2.0):
                    for scale in range(3):
                        size = 4 * stride * 2 ** (scale / 3)
                        w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                        cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                        want = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                        np.testing.assert_allclose(made[index], want, rtol=1e-4, atol=1e-3)
                        index += 1
    assert index == len(made)


def plain_assignment(boxes_of_anchors, boxes, valid, config):
    kind, match = [], []
    real = [p for p in range(len(boxes)) if valid[p] and np.all(boxes[p, 2:] > boxes[p, :2])]
    table = {(a, p): np.float32(iou(boxes_of_anchors[a], boxes[p])) for a in range(len(boxes_of_anchors)) for p in real}
    for a in range(len(boxes_of_anchors)):
        best, which = -1.0, 0
        for p in real:
            if table[a, p] > best:
                best, which = table[a, p], p
        kind.append(1 if best >= config.iou_positive else 0 if best < config.iou_negative else -1)
        match.append(which)
    for p in real:
        top = max(table[a, p] for a in range(len(boxes_of_anchors)))
        for a in range(len(boxes_of_anchors)):
            if top > 0 and table[a, p] == top:
                kind[a], match[a] = 1, p
    return np.array(kind), np.array(match)


@MANY
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_assignment_is_the_plain_one(seed, count):
    rng = np.random.default_rng(seed)
    grid = some_boxes(rng, 40)
    boxes, valid = some_boxes(rng, count), rng.random(count) < 0.7
    table = np.asarray(anchors.overlaps(grid, boxes))
    want = [[iou(a, b) for b in boxes] for a in grid]
    np.testing.assert_allclose(table, want, atol=1e-6)
    kind, match = jax.jit(anchors.assign, static_argnums=3)(grid, boxes, valid, CONFIG)
    plain = plain_assignment(grid.astype(np.float64), boxes.astype(np.float64), valid, CONFIG)
    np.testing.assert_array_equal(kind, plain[0])
    np.testing.assert_array_equal(np.asarray(match)[plain[0] == 1], plain[1][plain[0] == 1])


def test_without_boxes_everything_is_negative():
    grid = anchors.make_anchors(64, 8, CONFIG)
    for boxes, valid in (
        (np.zeros((3, 4), np.float32), np.ones(3, bool)),
        (np.array([[1, 1, 9, 9]] * 3, np.float32), np.zeros(3, bool)),
        (np.array([[5, 5, 5, 9], [500, 500, 600, 600], [9, 9, 3, 3]], np.float32), np.ones(3, bool)),
    ):
        kind, _ = anchors.assign(grid, boxes, valid, CONFIG)
        assert (np.asarray(kind) == 0).all()


@MANY
@given(st.integers(0, 2**32 - 1))
def test_codes_come_back(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (20, 2))
    own = np.concatenate([low, low + rng.uniform(1, 40, (20, 2))], -1).astype(np.float32)
    grid = np.concatenate([low, low + rng.uniform(1, 60, (20, 2))], -1).astype(np.float32)
    codes = anchors.encode(grid, own)
    centre = (own[:, :2] + own[:, 2:] - grid[:, :2] - grid[:, 2:]) / 2 / (grid[:, 2:] - grid[:, :2])
    np.testing.assert_allclose(codes[:, :2], centre, atol=1e-4)
    np.testing.assert_allclose(codes[:, 2], np.log((own[:, 2] - own[:, 0]) / (grid[:, 2] - grid[:, 0])), atol=1e-4)
    np.testing.assert_allclose(anchors.decode(grid, codes, jnp.array([1000.0, 1000.0])), own, atol=1e-2)


def test_codes_are_clamped_and_boxes_clipped():
    anchor = np.array([[10, 10, 20, 20]], np.float32)
    wild = anchors.decode(anchor, jnp.array([[0.0, 0.0, 50.0, 50.0]]), jnp.array([2000.0, 100.0]))
    np.testing.assert_allclose(wild, [[0, 0, 15 + 5 * 62.5, 100]], rtol=1e-5)


def plain_suppression(boxes, scores, limit):
    kept = []
    for i in range(len(boxes)):
        kept.append(scores[i] > 0 and not any(kept[j] and iou(boxes[i], boxes[j]) > limit for j in range(i)))
    return kept


@MANY
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_is_the_plain_one(seed, limit):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, 12, 16)
    scores = np.sort(rng.random(12).astype(np.float32))[::-1] * (rng.random(12) < 0.8)
    found = jax.jit(anchors.suppress, static_argnums=2)(boxes, scores, limit)
    np.testing.assert_array_equal(found, plain_suppression(boxes.astype(np.float64), scores, limit))


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_proposals_are_the_best_that_stay(limit):
    rng = np.random.default_rng(3)
    config = dataclasses.replace(CONFIG, nms_iou=limit, min_score=0.5)
    grid = anchors.make_anchors(64, 16, config)
    logits = rng.normal(size=len(grid)).astype(np.float32)
    codes = (0.3 * rng.normal(size=(len(grid), 4))).astype(np.float32)
    size = np.array([60.0, 40.0], np.float32)
    boxes, scores = anchors.propose(logits, codes, jnp.asarray(grid), jnp.asarray(size), config)
    order = np.argsort(-logits, kind="stable")[: config.before_nms]
    all_boxes = np.asarray(anchors.decode(grid[order], codes[order], jnp.asarray(size)), np.float64)
    probability = 1 / (1 + np.exp(-logits[order]))
    usable = probability * (probability >= 0.5) * np.all(all_boxes[:, 2:] > all_boxes[:, :2], axis=1)
    kept = np.array(plain_suppression(all_boxes, usable, limit)) & (usable > 0)
    count = min(kept.sum(), config.kept)
    assert boxes.shape == (config.kept, 4) and (np.asarray(scores) > 0).sum() == count > 3
    np.testing.assert_allclose(scores[:count], usable[kept][:count], rtol=1e-5)
    np.testing.assert_allclose(boxes[:count], all_boxes[kept][:count], atol=1e-4)
    assert (np.asarray(boxes) <= np.tile(size, 2)).all() and (np.asarray(boxes) >= 0).all()


@MANY
@given(st.floats(-30, 30), st.booleans(), st.floats(0, 3))
def test_focal_loss(logit, positive, gamma):
    p = 1 / (1 + math.exp(-logit))
    q, alpha = (p, 0.25) if positive else (1 - p, 0.75)
    if q > 1e-6 and 1 - q > 1e-6:
        want = -alpha * (1 - q) ** gamma * math.log(q)
        assert float(losses.focal(np.float32(logit), positive, 0.25, gamma)) == pytest.approx(want, rel=1e-3, abs=1e-6)
    assert np.isfinite(jax.grad(lambda x: losses.focal(x, positive, 0.25, 1.5))(logit))


def test_huber_loss():
    for error, want in ((0.05, 0.00125), (-0.05, 0.00125), (0.1, 0.005), (1.0, 0.095), (-2.0, 0.195)):
        assert float(losses.huber(jnp.float32(error), 0.1)) == pytest.approx(want, rel=1e-5)


# ------------------------------------------------------------------------------------------------------ merging


def test_the_papers_rule_averages_the_nearest_by_their_scores():
    boxes = np.array([[0, 0, 10, 10], [2, 2, 12, 12], [50, 50, 90, 90], [4, 4, 8, 8]], np.float32)
    scores = np.array([0.5, 0.25, 0.9, 0.0], np.float32)  # the last is none
    found = merge(np.array([[6, 6], [70, 70]]), boxes, scores, "nearest", 2)
    np.testing.assert_allclose(found[0], (boxes[0] * 0.5 + boxes[1] * 0.25) / 0.75)
    np.testing.assert_allclose(found[1], (boxes[2] * 0.9 + boxes[1] * 0.25) / 1.15)


def test_the_published_rule_takes_the_best_of_the_nearest_that_contain_the_click():
    boxes = np.array([[0, 0, 40, 40], [5, 5, 15, 15], [9, 9, 30, 30], [60, 60, 70, 70]], np.float32)
    scores = np.array([0.9, 0.3, 0.4, 0.99], np.float32)
    found = merge(np.array([[10, 10], [5, 10], [99, 99]]), boxes, scores, "published", 2)
    np.testing.assert_array_equal(found[0], boxes[2])  # box 0 is farther than the two nearest
    np.testing.assert_array_equal(found[1], boxes[0])  # on the edge of box 1 is not in it
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize("rule", ["nearest", "published"])
def test_without_proposals_there_is_no_box(rule):
    none = merge(np.array([[1, 2], [3, 4]]), np.zeros((5, 4)), np.zeros(5), rule)
    assert none.shape == (2, 4) and np.isnan(none).all()
