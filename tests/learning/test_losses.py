"""The losses against their formulas, written directly in numpy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.learning import losses

B, P, M, S = 2, 3, 4, 8


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.fixture(scope="module")
def case():
    """Logits, hard targets (b p m s s) and valid weights (b s s) of photos of different sizes."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (B, P, M, S, S)).astype(np.float32)
    target = (rng.random(logits.shape) < 0.4).astype(np.float32)
    weight = np.asarray(losses.valid_weights(np.array([[32, 32], [22, 26]]), S, 32))
    assert set(np.unique(weight)) == {0, 0.25, 0.5, 1}
    return logits, target, weight


# ---------------------------------------------------------------------------------------------------- valid cells


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 1024), columns=st.integers(1, 1024))
def test_valid_weights_at_the_published_sizes(rows, columns):
    """Mask row r weighs 1 iff the photo has 4r+3 rows, 1/2 iff 4r+2; an embedding row counts from 16r+9 on."""
    size = np.array([[rows, columns]])
    r = np.arange(256)
    row, column = ((np.array(n) >= 4 * r + 3) + 0.5 * (n == 4 * r + 2) for n in (rows, columns))
    np.testing.assert_array_equal(losses.valid_weights(size, 256, 1024)[0], row[:, None] * column)
    g = np.arange(64)
    cells = (rows >= 16 * g + 9)[:, None] & (columns >= 16 * g + 9)
    np.testing.assert_array_equal(losses.valid_weights(size, 64, 1024)[0] > 0.5, cells)


@pytest.mark.parametrize(("rows", "columns"), [(17, 31), (22, 26), (32, 10)])
def test_valid_weights_are_torchs_bilinear_resize(rows, columns):
    torch = pytest.importorskip("torch")
    frame = torch.zeros(1, 1, 32, 32)
    frame[:, :, :rows, :columns] = 1
    for cells in (4, 16):
        resized = torch.nn.functional.interpolate(frame, (cells, cells), mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(
            losses.valid_weights(np.array([[rows, columns]]), cells, 32)[0], resized.numpy(), atol=1e-6
        )


# ---------------------------------------------------------------------------------------------------- stage 1


def test_feature_error_is_the_mean_over_images():
    """Defect B35 of the published code: sums and counts broadcast to (b b) and are averaged over both axes."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 1, (2, 2, 4, 4, 3)).astype(np.float32)
    teacher[1] += 1  # so that the images differ
    valid = np.zeros((2, 4, 4), bool)
    valid[0, :4, :4], valid[1, :2, :3] = True, True
    each = [((student[i] - teacher[i]) ** 2)[valid[i]].mean() for i in range(2)]
    found = losses.feature_error(student, teacher, valid)
    np.testing.assert_allclose(found, each, rtol=1e-6)
    sums = ((student - teacher) ** 2).mean(-1)
    sums = (sums * valid).sum((1, 2))
    defect = (sums[None, :] / valid.sum((1, 2))[:, None]).mean()
    assert abs(defect - found.mean()) > 0.1


def test_feature_error_ignores_padding_and_compares_half_precision_in_float32():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 300, (2, 1, 4, 4, 3)).astype(np.float16)
    valid = np.zeros((1, 4, 4), bool)
    valid[0, :2] = True
    found = losses.feature_error(student, teacher, valid)
    expected = ((student[:, :2].astype(np.float64) - teacher[:, :2]) ** 2).mean()
    assert expected > np.finfo(np.float16).max  # would overflow
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    teacher[0, 2:] = np.inf
    student[0, 2:] = 0
    assert losses.feature_error(student, teacher, np.zeros((1, 4, 4), bool)).shape == (1,)


def test_feature_error_without_a_valid_cell_is_finite():
    x = jnp.ones((1, 2, 2, 3))
    value, grad = jax.value_and_grad(lambda s: losses.feature_error(s, 0 * x, jnp.zeros((1, 2, 2), bool)).sum())(x)
    assert value == 0 and np.all(np.asarray(grad) == 0)


# ---------------------------------------------------------------------------------------------------- its variants


@pytest.fixture(scope="module")
def embeddings():
    """Two embeddings (b g g c), the second of other values on the padding, and which cells are photo."""
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(0, 2, (2, 2, 4, 4, 6)).astype(np.float32)
    valid = np.array([np.ones((4, 4), bool), np.pad(np.ones((3, 2), bool), ((0, 1), (0, 2)))])
    return student, teacher, valid


def test_channel_divergence_is_the_kl_of_softmaxes_over_valid_cells(embeddings):
    student, teacher, valid = embeddings
    expected = []
    for s, t, v in zip(*embeddings, strict=True):
        p, q = (np.exp(x[v].astype(np.float64) / 3) for x in (t, s))  # (cells c)
        p, q = p / p.sum(0), q / q.sum(0)
        expected.append(9 * (p * np.log(p / q)).sum(0).mean())
    np.testing.assert_allclose(losses.channel_divergence(student, teacher, valid, 3.0), expected, rtol=1e-5)


def test_correlation_error_is_that_of_all_pairs_of_valid_cells(embeddings):
    student, teacher, valid = embeddings
    expected = []
    for s, t, v in zip(*embeddings, strict=True):
        s, t = (x[v].astype(np.float64) for x in (s, t))
        s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
        expected.append(((s @ s.T - t @ t.T) ** 2).mean())
    np.testing.assert_allclose(losses.correlation_error(student, teacher, valid), expected, rtol=1e-4)
    # It sees neither the length of features nor a rotation of them, and takes another width.
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0][:6].astype(np.float32)
    same = losses.correlation_error(3 * teacher @ rotation, teacher, valid)
    np.testing.assert_allclose(same, 0, atol=1e-5)


@pytest.mark.parametrize("name", ["channel", "correlation"])
def test_variants_ignore_padding_in_value_and_gradient(embeddings, name):
    student, teacher, valid = embeddings
    loss = {
        "channel": lambda s, t: losses.channel_divergence(s, t, valid, 4.0).sum(),
        "correlation": lambda s, t: losses.correlation_error(s, t, valid).sum(),
    }[name]
    value, gradient = jax.value_and_grad(loss)(student, teacher)
    assert not np.any(np.asarray(gradient)[~valid]) and np.all(np.any(gradient, axis=-1)[valid])
    other = np.where(valid[..., None], student, 50).astype(np.float32)
    np.testing.assert_allclose(loss(other, teacher), value, rtol=1e-6)
    assert loss(teacher, teacher) == pytest.approx(0, abs=1e-5)


def test_variants_without_a_valid_cell_are_finite():
    x, none = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2), bool)
    for loss in (lambda s: losses.channel_divergence(s, 0 * x, none, 4.0).sum(),
                 lambda s: losses.correlation_error(s, x, none).sum()):  # fmt: skip
        value, gradient = jax.value_and_grad(loss)(x)
        assert value == 0 and np.isfinite(gradient).all()


# ---------------------------------------------------------------------------------------------------- stage 2


def test_binary_cross_entropy(case):
    """Equal to the published form on clamped probabilities where that is exact, weighted mean over pixels."""
    logits, target, weight = case
    p, w = sigmoid(logits), weight[:, None, None].astype(np.float64)
    each = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    expected = (each * w).sum((-2, -1)) / w.sum((-2, -1))
    assert np.abs(logits).max() < 17
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, target, weight), expected, rtol=2e-5)


def test_binary_cross_entropy_of_soft_targets(case):
    logits, _, weight = case
    target = sigmoid(logits[:, ::-1])
    p, w = sigmoid(logits), weight[:, None, None].astype(np.float64)
    expected = (-(target * np.log(p) + (1 - target) * np.log1p(-p)) * w).sum((-2, -1)) / w.sum((-2, -1))
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, target, weight), expected, rtol=2e-5)


@pytest.mark.parametrize("logit", [-200.0, -30.0, -17.5, 0.0, 17.5, 30.0, 200.0])
def test_a_wrong_pixel_keeps_its_gradient(logit):
    """Defect B31: on float32 probabilities the gradient is zero from a logit of 17 on, and shrinks below -28."""
    target = float(logit <= 0)

    def loss(x):
        pixel = x.reshape(1, 1, 1, 1, 1)
        return losses.binary_cross_entropy(pixel, jnp.full_like(pixel, target), jnp.ones((1, 1, 1)))[0, 0, 0]

    value, grad = jax.value_and_grad(loss)(jnp.float32(logit))
    assert grad == pytest.approx(sigmoid(logit) - target, abs=1e-6) and abs(grad) >= 0.5
    assert value == pytest.approx(max(abs(logit), np.log(2)), rel=1e-6)


LOGITS = np.concatenate([np.linspace(-80, 80, 2561), [-1e-4, -1e-30, 1e-30, 1e-4, -87, 87]])


def entropy(x, t):
    """Binary cross entropy and its gradient in float64, without cancellation."""
    x = np.asarray(x, np.float64)
    value = t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    return value, (1 - t) * sigmoid(x) - t * sigmoid(-x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.25, 0.999])
def test_binary_cross_entropy_is_exact_at_every_logit(dtype, target):
    """``softplus(x) - x`` is 0.8 % off at a logit of 10, and 0 from 16 on."""
    x = jnp.asarray(LOGITS, dtype)

    def each(x):
        pixels = x[:, None, None, None, None]
        return losses.binary_cross_entropy(pixels, jnp.full_like(pixels, target), jnp.ones((len(x), 1, 1)))[:, 0, 0]

    given = float(jnp.asarray(target, dtype))
    value, gradient = entropy(np.asarray(x, np.float64), given)
    found, slope = jax.jit(lambda x: (each(x), jax.grad(lambda y: each(y).sum())(x)))(x)
    assert found.dtype == jnp.float32 and slope.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), value, rtol=1e-6)
    # The gradient of a soft target changes its sign, where only an absolute error has a meaning.
    exact = {"rtol": 1e-6, "atol": 0 if target in (0, 1) else 1e-7}
    rounded = {"rtol": 2**-8, "atol": 0 if target in (0, 1) else 1e-7}  # the gradient by bfloat16 is a bfloat16
    np.testing.assert_allclose(np.asarray(slope, np.float64), gradient, **exact if dtype == "float32" else rounded)
    assert float(jax.grad(lambda y: each(y).sum())(jnp.zeros(1, dtype))[0]) == pytest.approx(0.5 - given, rel=1e-6)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_focal_loss_is_exact_at_every_logit(positive, gamma):
    x = np.float32(LOGITS) if positive else -np.float32(LOGITS)
    x = x[x > -28].astype(np.float64)  # below, the loss leaves float32's range
    signed, x = x, -x if positive else x
    wrong, cross = sigmoid(signed), np.logaddexp(0, signed)
    alpha = 0.25 if positive else 0.75
    value = alpha * wrong**gamma * cross
    gradient = alpha * wrong**gamma * (gamma * sigmoid(-signed) * cross + wrong) * (-1 if positive else 1)
    found, slope = jax.vmap(jax.value_and_grad(lambda y: losses.focal(y, jnp.asarray(positive), 0.25, gamma)))(
        jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(np.asarray(found, np.float64), value, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(slope, np.float64), gradient, rtol=1e-6)


def test_dice(case):
    logits, target, weight = case
    w = weight[:, None, None].astype(np.float64)
    p, t = sigmoid(logits) * w, target * w
    expected = 1 - (2 * (p * t).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)
    np.testing.assert_allclose(losses.dice(logits, target, weight), expected, rtol=1e-5, atol=1e-6)
    perfect = np.where(target > 0, 50.0, -50.0).astype(np.float32)
    whole = np.ones_like(weight)
    np.testing.assert_allclose(losses.dice(perfect, target, whole), 0, atol=1e-6)
    assert losses.dice(-perfect, target, whole).min() > 0.9


def test_padding_has_no_part_in_mask_losses(case):
    logits, target, weight = case
    outside = np.broadcast_to((weight == 0)[:, None, None], logits.shape)
    changed, flipped = np.where(outside, -logits, logits), np.where(outside, 1 - target, target)
    for loss in (losses.binary_cross_entropy, losses.dice):
        np.testing.assert_array_equal(loss(logits, target, weight), loss(changed, flipped, weight))
    inside = weight == 1
    masks = (logits > 0, target > 0), (changed > 0, flipped > 0)
    a, b = (losses.measured_iou(*pair, inside) for pair in masks)
    np.testing.assert_array_equal(a, b)


def test_measured_iou(case):
    logits, target, weight = case
    a, b, inside = logits > 0, target > 0, (weight == 1)[:, None, None]
    expected = (a & b & inside).sum((-2, -1)) / ((a | b) & inside).sum((-2, -1))
    np.testing.assert_allclose(losses.measured_iou(a, b, weight == 1), expected, rtol=1e-6)
    assert np.all(losses.measured_iou(a & False, b & False, weight == 1) == 0)


def test_a_photo_without_valid_pixels_gives_finite_losses(case):
    logits, target, weight = case
    for loss in (losses.binary_cross_entropy, losses.dice):
        value, grad = jax.value_and_grad(lambda x, loss=loss: loss(x, target, 0 * weight).sum())(logits)
        assert np.isfinite(value) and np.all(np.asarray(grad) == 0)


# ---------------------------------------------------------------------------------------------------- grouping


@pytest.fixture(scope="module")
def grouped():
    """Masks whose cells have features of their own, the last prompt empty and not valid."""
    rng = np.random.default_rng(0)
    masks = np.zeros((1, 3, 16, 16), bool)
    masks[0, 0, :8, :8], masks[0, 1, 6:, 10:] = True, True
    return rng.normal(0, 1, (1, 4, 4, 6)).astype(np.float32), masks, np.array([[True, True, False]])


def test_grouping_formula(grouped):
    embedding, masks, valid = grouped
    x = embedding.reshape(16, 6).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for p in range(2):
        cover = masks[0, p].reshape(4, 4, 4, 4).mean((1, 3)).ravel()
        query = cover @ x
        probability = sigmoid(8 * (x @ (query / np.linalg.norm(query)) - 0.5))
        each = -(cover * np.log(probability) + (1 - cover) * np.log1p(-probability))
        expected = (each * cover).sum() / cover.sum() + (each * (1 - cover)).sum() / (1 - cover).sum()
        assert losses.grouping(embedding, masks, valid)[0, p] == pytest.approx(expected, rel=1e-4)


def test_grouping_prefers_objects_that_look_alike(grouped):
    embedding, masks, valid = grouped
    alike = np.zeros_like(embedding)
    alike[..., 0] = 1
    alike[0, :2, :2] = [0, 1, 0, 0, 0, 0]
    alike[0, 2:, 2:] = [0, 0, 1, 0, 0, 0]
    assert losses.grouping(alike, masks, valid).sum() < 0.5 * losses.grouping(embedding, masks, valid).sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouping_has_a_finite_gradient_for_empty_prompts(grouped, dtype):
    embedding, masks, valid = grouped
    embedding = jnp.asarray(embedding, dtype).at[0, 0, 0].set(0)  # a cell without any feature, too
    for flags in (valid, np.ones_like(valid)):
        value, grad = jax.value_and_grad(lambda e, f=flags: losses.grouping(e, masks, f).sum())(embedding)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.all(np.isfinite(np.asarray(grad, np.float32))) and np.any(np.asarray(grad, np.float32))
    assert losses.grouping(embedding, masks, valid)[0, 2] == 0
