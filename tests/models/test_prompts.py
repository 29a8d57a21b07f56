"""The prompt buffer, and the law by which new points are drawn."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from tiny import CONV, GRID, MASK

from edgesam_jax.learning import sampling
from edgesam_jax.models import prompts
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import decode
from edgesam_jax.types import Prompts

LAWS = ("uniform", "side", "interior")
P_VALUE = 1e-3  # with fixed seeds a test passes always or never


# ---------------------------------------------------------------------------------------------------- the buffer


def test_layout_of_boxes():
    boxes = np.array([[[1, 2, 3, 4], [5, 6, 7, 8]]], np.float32)
    buffer = prompts.from_boxes(boxes, slots=2)
    assert buffer.coords.shape == (1, 2, 4, 2) and buffer.coords.dtype == jnp.float32
    np.testing.assert_array_equal(buffer.coords[0, 1, :2], [[5, 6], [7, 8]])
    np.testing.assert_array_equal(buffer.labels[0], [[2, 3, -1, -1]] * 2)
    np.testing.assert_array_equal(buffer.valid[0], [[True, True, False, False]] * 2)


def test_layout_of_points():
    """SAM's padding token goes with prompts that have no box, whatever the number of points."""
    coords = np.array([[[[9, 8], [7, 6]]]], np.float32)
    buffer = prompts.from_points(coords, np.array([[[1, 0]]]), slots=3)
    np.testing.assert_array_equal(buffer.labels[0, 0], [-1, -1, 1, 0, -1])
    np.testing.assert_array_equal(buffer.valid[0, 0], [True, False, True, True, False])
    np.testing.assert_array_equal(buffer.coords[0, 0, 2:4], coords[0, 0])


def test_layout_of_both():
    box, point = np.array([[[1, 2, 3, 4]]], np.float32), np.array([[[[9, 8]]]], np.float32)
    buffer = prompts.from_boxes_and_points(box, point, np.array([[[0]]]))
    np.testing.assert_array_equal(buffer.labels[0, 0], [2, 3, 0])
    np.testing.assert_array_equal(buffer.coords[0, 0], [[1, 2], [3, 4], [9, 8]])
    assert buffer.valid.all()


def test_more_points_than_slots_is_refused():
    with pytest.raises(ValueError):
        prompts.from_points(np.zeros((1, 1, 3, 2)), np.ones((1, 1, 3), np.int32), slots=2)


def test_append_at_a_traced_slot():
    buffer = prompts.from_boxes(np.ones((2, 3, 4), np.float32), slots=3)
    coords, labels = np.arange(12.0).reshape(2, 3, 1, 2), np.arange(6).reshape(2, 3, 1) % 2
    valid = np.array([[True, False, True]] * 2)[..., None]
    after = jax.jit(prompts.append)(buffer, 3, coords, labels, valid)
    for name, given_value in (("coords", coords), ("labels", labels), ("valid", valid)):
        value = getattr(after, name)
        np.testing.assert_array_equal(value[:, :, 3:4], given_value)
        np.testing.assert_array_equal(np.delete(value, 3, 2), np.delete(getattr(buffer, name), 3, 2))
        assert value.dtype == getattr(buffer, name).dtype


def test_choose_takes_whole_prompts():
    a = prompts.from_boxes(np.full((1, 2, 4), 5, np.float32), slots=1)
    b = prompts.from_points(np.zeros((1, 2, 1, 2)), np.ones((1, 2, 1), np.int32))
    mixed = prompts.choose(np.array([[True, False]]), a, b)
    expected = jax.tree.map(lambda x, y: np.concatenate([x[:, :1], y[:, 1:]], 1), a, b)
    jax.tree.map(np.testing.assert_array_equal, mixed, expected)


@pytest.fixture(scope="module")
def run_decoder():
    """Prompts -> MaskPrediction of a random model on one random image embedding."""
    variables = init_variables(CONV, 3)
    embedding = np.random.default_rng(0).standard_normal((1, GRID, GRID, 16)).astype(np.float32)
    return jax.jit(functools.partial(decode, CONV, variables, embedding))


def close(a, b):
    np.testing.assert_allclose(a.logits, b.logits, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(a.iou, b.iou, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["box", "point", "both"])
def test_a_padded_buffer_equals_an_unpadded_one(run_decoder, kind):
    """Also when the unused slots hold rubbish."""
    rng = np.random.default_rng(1)
    boxes = np.array([[[4, 5, 20, 25], [1, 1, 9, 30]]], np.float32)
    coords, labels = rng.uniform(0, 32, (1, 2, 2, 2)).astype(np.float32), np.array([[[1, 0], [0, 1]]])
    make = {
        "box": lambda slots: prompts.from_boxes(boxes, slots),
        "point": lambda slots: prompts.from_points(coords, labels, 2 + slots),
        "both": lambda slots: prompts.from_boxes_and_points(boxes, coords, labels, 2 + slots),
    }[kind]
    short, long = make(0), make(3 + 2 * (kind == "box"))
    real = np.flatnonzero(short.valid[0, 0])
    short = jax.tree.map(lambda x: x[:, :, real], short)
    assert bool(short.valid.all()) and not bool(long.valid.all())
    expected = run_decoder(short)
    close(run_decoder(long), expected)
    rubbish = Prompts(
        jnp.where(long.valid[..., None], long.coords, 1e4),
        jnp.where(long.valid, long.labels, rng.integers(-1, 4, long.labels.shape)),
        long.valid,
    )
    close(run_decoder(rubbish), expected)
    seen = jax.tree.map(lambda x: x, rubbish).replace(valid=jnp.ones_like(rubbish.valid))
    assert np.abs(run_decoder(seen).logits - expected.logits).max() > 1e-2, "the token mask does nothing"


def test_the_order_of_slots_does_not_matter(run_decoder):
    rng = np.random.default_rng(2)
    buffer = prompts.from_boxes_and_points(
        np.array([[[4, 5, 20, 25]]], np.float32), rng.uniform(0, 32, (1, 1, 2, 2)), np.array([[[1, 0]]]), 5
    )
    order = np.array([3, 0, 4, 6, 2, 1, 5])
    close(run_decoder(jax.tree.map(lambda x: x[:, :, order], buffer)), run_decoder(buffer))


# ---------------------------------------------------------------------------------------------------- draw_pixels


def test_pixels_are_drawn_uniformly():
    area = np.random.default_rng(0).random((7, 9)) < 0.4
    keys = jax.random.split(jax.random.key(0), 20_000)
    index, there = jax.jit(jax.vmap(lambda k: sampling.draw_pixels(k, area)))(keys)
    counts = np.bincount(np.asarray(index)[:, 0], minlength=area.size)
    assert np.all(there) and counts[~area.ravel()].sum() == 0
    assert chisquare(counts[area.ravel()]).pvalue > P_VALUE


def test_pixels_are_drawn_without_replacement():
    """Every ordered triple of five pixels comes equally often; with replacement 48 % would hold a pixel twice."""
    area = np.zeros((4, 4), bool)
    area.ravel()[[1, 2, 7, 8, 15]] = True
    keys = jax.random.split(jax.random.key(1), 30_000)
    index, there = jax.jit(jax.vmap(lambda k: sampling.draw_pixels(k, area, 3)))(keys)
    triples, counts = np.unique(np.asarray(index), axis=0, return_counts=True)
    assert np.all(there) and len(triples) == 5 * 4 * 3
    assert all(len(set(t)) == 3 and area.ravel()[t].all() for t in triples)
    assert chisquare(counts).pvalue > P_VALUE


DRAW_FOUR = jax.jit(functools.partial(sampling.draw_pixels, count=4))


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_more_pixels_asked_for_than_there_are(pixels):
    area = np.zeros((3, 3), bool)
    area.ravel()[[4, 6][:pixels]] = True
    for seed in range(20):
        index, there = DRAW_FOUR(jax.random.key(seed), area)
        assert list(there) == [i < pixels for i in range(4)]
        assert sorted(np.asarray(index)[:pixels]) == [4, 6][:pixels]


# ---------------------------------------------------------------------------------------------------- the law

H = W = 12
DRAWS = 20_000


def uneven_case():
    """Student and teacher that miss 20 and exceed by 60 pixels, in a photo that ends two columns early."""
    student, teacher = np.zeros((2, H, W), bool)
    teacher[1:5, 1:8] = True  # 28 pixels, of which 8 are found
    student[3:5, 4:8] = True
    student[6:12, 1:12] = True  # 60 of these inside the photo
    valid = np.ones((H, W), bool)
    valid[:, -1:] = False
    return student, teacher, valid


@functools.cache
def draws(law, count=1):
    """Pixels (draws count 2) as (x, y), labels (draws count) and valid of many images that are all the uneven case."""
    student, teacher, valid = (np.broadcast_to(x, (DRAWS, *x.shape)) for x in uneven_case())
    keys = jax.random.split(jax.random.key(5), DRAWS)
    sample = jax.jit(functools.partial(sampling.sample_disagreement, cell=4.0, count=count, law=law))
    coords, labels, drawn = sample(keys, student[:, None], teacher[:, None], valid)
    pixels = (np.asarray(coords)[:, 0] + 0.5) / 4 - 0.5
    assert np.array_equal(pixels, np.round(pixels)), "not a pixel's centre"
    return pixels.astype(int), np.asarray(labels)[:, 0], np.asarray(drawn)[:, 0]


def test_the_uniform_law():
    """Every pixel of the union alike, so that a point is positive with probability |FN| / (|FN| + |FP|)."""
    student, teacher, valid = uneven_case()
    union = (student != teacher) & valid
    missed = union & teacher
    assert (union.sum(), missed.sum()) == (80, 20)
    pixels, labels, drawn = draws("uniform")
    x, y = pixels[:, 0].T
    assert drawn.all() and union[y, x].all()
    np.testing.assert_array_equal(labels[:, 0], teacher[y, x])
    assert chisquare(np.bincount(y * W + x, minlength=H * W)[union.ravel()]).pvalue > P_VALUE
    assert binomtest(int(labels.sum()), DRAWS, 20 / 80).pvalue > P_VALUE


def test_the_law_by_side():
    """A fair coin between missed and surplus, then every pixel of that side alike."""
    student, teacher, valid = uneven_case()
    pixels, labels, drawn = draws("side")
    x, y = pixels[:, 0].T
    assert drawn.all()
    np.testing.assert_array_equal(labels[:, 0], teacher[y, x])
    assert binomtest(int(labels.sum()), DRAWS, 0.5).pvalue > P_VALUE
    for side in (1, 0):
        area = (student != teacher) & valid & (teacher == side)
        chosen = labels[:, 0] == side
        counts = np.bincount(y[chosen] * W + x[chosen], minlength=H * W)
        assert counts[~area.ravel()].sum() == 0
        assert chisquare(counts[area.ravel()]).pvalue > P_VALUE


def test_by_side_with_one_side_empty():
    student, teacher, valid = uneven_case()
    keys = jax.random.split(jax.random.key(0), 50)
    sample = jax.jit(functools.partial(sampling.sample_disagreement, cell=4.0, law="side"))
    for s, t, label in ((student & False, teacher, 1), (student, teacher & False, 0)):
        many = [np.broadcast_to(m, (50, 1, H, W)) for m in (s, t)]
        _, labels, drawn = sample(keys, *many, np.broadcast_to(valid, (50, H, W)))
        assert np.all(drawn) and np.all(labels == label)


def test_the_law_of_the_interior():
    student, teacher, valid = uneven_case()
    union = (student != teacher) & valid
    inner = np.zeros_like(union)
    for y, x in np.argwhere(union):
        block = union[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        inner[y, x] = block.size == 9 and block.all()
    pixels, _, drawn = draws("interior")
    x, y = pixels[:, 0].T
    assert drawn.all() and 0 < inner.sum() < union.sum()
    counts = np.bincount(y * W + x, minlength=H * W)
    assert counts[~inner.ravel()].sum() == 0
    assert chisquare(counts[inner.ravel()]).pvalue > P_VALUE


def test_several_points_are_different_pixels():
    """With replacement, two of three points would coincide in one draw of 27."""
    pixels, _, drawn = draws("uniform", 3)
    flat = np.sort(pixels[..., 1] * W + pixels[..., 0], axis=1)
    assert drawn.all() and (np.diff(flat, axis=1) > 0).all()


SAMPLE = {
    (law, count): jax.jit(functools.partial(sampling.sample_disagreement, cell=4.0, count=count, law=law))
    for law, count in (("uniform", 1), ("uniform", 2), ("side", 2), ("interior", 1))
}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    which=st.sampled_from(sorted(SAMPLE)),
    density=st.floats(0, 1),
    flipped=st.floats(0, 0.5),
    size=st.tuples(st.integers(0, H), st.integers(0, W)),
)
def test_only_valid_disagreeing_pixels_are_drawn(seed, which, density, flipped, size):
    """Whatever the masks; nothing with fewer than ten differing pixels for each point."""
    law, count = which
    rng = np.random.default_rng(seed)
    teacher = rng.random((2, 3, H, W)) < density
    student = teacher ^ (rng.random(teacher.shape) < flipped)
    valid = np.zeros((2, H, W), bool)
    valid[:, : size[0], : size[1]] = True
    keys = jax.random.split(jax.random.key(seed), 2)
    coords, labels, drawn = map(np.asarray, SAMPLE[law, count](keys, student, teacher, valid))
    area = (student != teacher) & valid[:, None]
    expected = area.sum((-2, -1)) >= 10 * count
    if law == "side":  # the side that the coin names may have fewer pixels than points asked for
        assert not (drawn.any(-1) & ~expected).any()
    else:
        np.testing.assert_array_equal(drawn, np.broadcast_to(expected[..., None], drawn.shape))
    for i, p, k in np.argwhere(drawn):
        x, y = (coords[i, p, k] + 0.5) / 4 - 0.5
        assert x == int(x) and y == int(y)
        assert area[i, p, int(y), int(x)]
        assert labels[i, p, k] == teacher[i, p, int(y), int(x)]
    again = SAMPLE[law, count](keys, student, teacher, valid)
    np.testing.assert_array_equal(coords, again[0])


def test_min_disagreement_counts_valid_pixels_only():
    teacher = np.zeros((2, 1, H, W), bool)
    teacher[0, 0, 0, :9], teacher[1, 0, 0, :10] = True, True
    student, valid = np.zeros_like(teacher), np.ones((2, H, W), bool)
    keys = jax.random.split(jax.random.key(0), 2)
    sample = functools.partial(jax.jit(sampling.sample_disagreement), keys, student, teacher, cell=4.0)
    np.testing.assert_array_equal(sample(valid)[2][:, 0, 0], [False, True])
    valid[1, 0, 0] = False
    np.testing.assert_array_equal(sample(valid)[2][:, 0, 0], [False, False])
    np.testing.assert_array_equal(sample(valid, min_disagreement=9)[2][:, 0, 0], [True, True])


def test_coordinates_have_no_half_cell_bias():
    """Mask pixel p covers frame pixels 4p to 4p+3, whose centre is 4p + 1.5 (the published code took 4p)."""
    teacher = np.zeros((1, 1, MASK, MASK), bool)
    teacher[0, 0, 5, 2] = True
    coords, labels, drawn = sampling.sample_disagreement(
        jax.random.split(jax.random.key(0), 1), ~teacher & False, teacher, np.ones((1, MASK, MASK), bool),
        cell=4.0, min_disagreement=1,
    )  # fmt: skip
    np.testing.assert_array_equal(coords[0, 0, 0], [2 * 4 + 1.5, 5 * 4 + 1.5])
    assert labels.item() == 1 and drawn.item()


def test_keyed_and_independent_of_how_images_are_spread():
    rng = np.random.default_rng(0)
    student, teacher = rng.random((2, 4, 3, H, W)) < 0.5
    valid = np.ones((4, H, W), bool)
    sample = SAMPLE["uniform", 1]
    keys = jax.random.split(jax.random.key(0), 4)
    whole = sample(keys, student, teacher, valid)
    halves = [sample(keys[i : i + 2], *(x[i : i + 2] for x in (student, teacher, valid))) for i in (0, 2)]
    for a, b, c in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))
    other = sample(jax.random.split(jax.random.key(1), 4), student, teacher, valid)
    assert (np.asarray(other[0]) != np.asarray(whole[0])).any(-1).mean() > 0.8
    assert len(np.unique(np.asarray(whole[0]).reshape(-1, 2), axis=0)) > 8, "prompts share a draw"


@pytest.mark.parametrize("law", LAWS)
def test_no_host_callbacks(law):
    args = (jax.random.split(jax.random.key(0), 1), *np.zeros((2, 1, 1, H, W), bool), np.ones((1, H, W), bool))
    text = str(jax.make_jaxpr(functools.partial(sampling.sample_disagreement, cell=4.0, law=law))(*args))
    assert "cumsum" in text and "callback" not in text
