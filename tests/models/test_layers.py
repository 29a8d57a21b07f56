"""Layers against direct formulas, XLA's own convolutions and autodiff of the plain forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from edgesam_jax.models import layers
from edgesam_jax.models.kernels import fused, image_tokens, ops, platforms


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(np.abs(b).max())))


# ------------------------------------------------------------------------------------------------------------ resize


def test_bicubic_taps_are_the_published_ones():
    """The x2 matrix holds the published taps at the published offsets, and repeats the border."""
    n = 7
    want = np.zeros((2 * n, n))
    taps = (-0.03515625, 0.26171875, 0.87890625, -0.10546875)
    for i in range(n):
        for offset, tap in zip((-2, -1, 0, 1), taps, strict=True):
            want[2 * i, np.clip(i + offset, 0, n - 1)] += tap
            want[2 * i + 1, np.clip(i - offset, 0, n - 1)] += tap
    np.testing.assert_allclose(layers.resize_matrix(n, 2 * n, "bicubic"), want, atol=1e-7)


@pytest.mark.parametrize("size", [(4, 8), (5, 3), (6, 17)])
def test_bilinear_matrix_interpolates_between_pixel_centres(size):
    n, out = size
    centres = np.clip((np.arange(out) + 0.5) * n / out - 0.5, 0, n - 1)
    x = normal(0, n)
    np.testing.assert_allclose(
        layers.resize_matrix(n, out, "bilinear") @ x, np.interp(centres, np.arange(n), x), atol=1e-6
    )


def test_resize_is_separable_and_refuses_other_methods():
    x = normal(0, 1, 4, 5, 2)
    rows, columns = layers.resize_matrix(4, 8, "bicubic"), layers.resize_matrix(5, 10, "bicubic")
    got = layers.resize(jnp.asarray(x), (8, 10), "bicubic")
    np.testing.assert_allclose(got, np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x), atol=1e-5)
    with pytest.raises(ValueError, match="nearest"):
        layers.resize_matrix(4, 8, "nearest")


# ------------------------------------------------------------------------------------------------------ convolutions


def plain_conv(x, kernel, stride, groups):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def value_and_gradients(f, x, kernel):
    def weighed(x, kernel):
        y = f(x, kernel)
        return jnp.sum(y * normal(9, *y.shape)), y

    (_, y), grads = jax.jit(jax.value_and_grad(weighed, (0, 1), has_aux=True))(x, kernel)
    return y, grads


shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))


@settings(max_examples=12, deadline=None)
@given(shapes, st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_depthwise_conv_and_its_backward(shape, k, stride):
    x, kernel = normal(0, *shape), normal(1, k, k, 1, shape[-1])
    got = value_and_gradients(lambda a, b: ops.depthwise_conv(a, b, stride), x, kernel)
    assert_close(got, value_and_gradients(lambda a, b: plain_conv(a, b, stride, shape[-1]), x, kernel))


@settings(max_examples=8, deadline=None)
@given(shapes, st.sampled_from([3, 5]), st.integers(1, 3))
def test_conv_and_its_backward(shape, k, stride):
    x, kernel = normal(0, *shape), normal(1, k, k, shape[-1], 4)
    got = value_and_gradients(lambda a, b: ops.conv(a, b, stride), x, kernel)
    assert_close(got, value_and_gradients(lambda a, b: plain_conv(a, b, stride, 1), x, kernel))


def test_pointwise_and_its_backward():
    x, kernel = normal(0, 2, 3, 5, 4), normal(1, 4, 6)
    got = value_and_gradients(ops.pointwise, x, kernel)
    assert_close(got, value_and_gradients(lambda a, b: plain_conv(a, b[None, None], 1, 1), x, kernel))


def test_forms_for_other_platforms_agree(monkeypatch):
    """What a GPU or TPU would run gives the same numbers."""
    x, kernel, dense = normal(0, 2, 7, 6, 3), normal(1, 3, 3, 1, 3), normal(2, 3, 3, 3, 4)

    def run():
        return [
            value_and_gradients(lambda a, b, f=f, s=s: f(a, b, s), x, w)
            for f, w in ((ops.depthwise_conv, kernel), (ops.conv, dense))
            for s in (1, 2)
        ]

    here = run()
    monkeypatch.setattr(platforms, "on_cpu", lambda: jax.default_backend() != "cpu")
    jax.clear_caches()
    assert_close(run(), here)
    monkeypatch.undo()
    jax.clear_caches()


def test_bfloat16_stays_bfloat16():
    x, kernel = jnp.asarray(normal(0, 1, 6, 6, 4), jnp.bfloat16), jnp.asarray(normal(1, 3, 3, 1, 4), jnp.bfloat16)
    y, (dx, dk) = value_and_gradients(lambda a, b: ops.gelu(ops.depthwise_conv(a, b)), x, kernel)
    assert y.dtype == dx.dtype == dk.dtype == jnp.bfloat16
    wide = value_and_gradients(
        lambda a, b: jax.nn.gelu(plain_conv(a, b, 1, 4), approximate=False),
        x.astype(jnp.float32),
        kernel.astype(jnp.float32),
    )
    assert_close(jax.tree.map(lambda a: a.astype(jnp.float32), (y, (dx, dk))), wide, 0.05)


# -------------------------------------------------------------------------------------------- GELU and batch norm


def test_gelu_and_its_slope():
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    exact = jax.vmap(jax.value_and_grad(lambda v: jax.nn.gelu(v, approximate=False)))(x)
    assert_close(jax.vmap(jax.value_and_grad(ops.gelu))(x), exact, 1e-6)
    assert_close(jax.jit(ops.gelu)(x), exact[0], 1e-6)


def test_batch_norm_trains_as_flax_but_keeps_the_unbiased_variance():
    ours, flax = layers.BatchNorm(), nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    x = 3 * normal(0, 4, 5, 6, 3) + 2
    variables = {
        "params": {"scale": normal(1, 3), "bias": normal(2, 3)},
        "batch_stats": {"mean": normal(3, 3), "var": 1 + normal(4, 3) ** 2},
    }
    weights = normal(5, *x.shape)

    def run(apply):
        def loss(params, x):
            y, updated = apply({**variables, "params": params}, x)
            return jnp.sum(y * weights), (y, updated["batch_stats"])

        (_, (y, stats)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return y, grads, stats

    y, grads, stats = run(lambda v, x: ours.apply(v, x, True, mutable=["batch_stats"]))
    want_y, want_grads, want_stats = run(lambda v, x: flax.apply(v, x, mutable=["batch_stats"]))
    assert_close((y, grads), (want_y, want_grads), 2e-5)
    assert_close(stats["mean"], want_stats["mean"])
    n = 4 * 5 * 6
    unbiased = 0.9 * variables["batch_stats"]["var"] + 0.1 * x.reshape(-1, 3).var(axis=0, ddof=1)
    np.testing.assert_allclose(stats["var"], unbiased, rtol=1e-5)
    assert not np.allclose(stats["var"], want_stats["var"], rtol=0.01 / n)  # flax keeps the biased one


def test_batch_norm_evaluates_with_the_running_statistics():
    ours, flax = layers.BatchNorm(), nn.BatchNorm(use_running_average=True, epsilon=1e-5)
    x = normal(0, 2, 3, 3, 4)
    variables = {
        "params": {"scale": normal(1, 4), "bias": normal(2, 4)},
        "batch_stats": {"mean": normal(3, 4), "var": 1 + normal(4, 4) ** 2},
    }
    assert_close(ours.apply(variables, x), flax.apply(variables, x))
    fresh = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_array_equal(fresh["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(fresh["batch_stats"]["var"], 1)


def test_batch_norm_over_devices_is_that_of_the_global_batch():
    """A named axis of vmap stands for the devices."""
    x, scale, bias = 2 * normal(0, 6, 4, 4, 3) + 1, normal(1, 3), normal(2, 3)
    weights = normal(3, *x.shape)

    def loss(x, scale, bias, weights, axis_name):
        y, mean, var = ops.batch_norm(x, scale, bias, 1e-5, axis_name)
        return jnp.sum(y * weights), (y, mean, var)

    def split(a):
        return a.reshape(2, 3, *a.shape[1:])

    run = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, (y, mean, var)), grads = run(x, scale, bias, weights, None)
    across = jax.vmap(lambda a, w: run(a, scale, bias, w, "devices"), axis_name="devices")
    (_, (ys, means, variances)), parts = across(split(x), split(weights))
    assert_close(ys.reshape(y.shape), y)
    assert_close((means[0], means[1], variances[0]), (mean, mean, var))
    # The cotangent of each device's input is that of the mean over devices, as after a pmean of gradients.
    assert_close(parts[0].reshape(x.shape), grads[0], 2e-5)
    assert_close((parts[1].sum(0), parts[2].sum(0)), grads[1:], 2e-5)


def test_squeeze_excite_and_mlp_shapes_and_names():
    x = normal(0, 1, 4, 4, 48)
    gate = layers.SqueezeExcite()
    variables = gate.init(jax.random.key(0), x)
    assert variables["params"]["fc1"]["kernel"].shape == (1, 1, 48, 16)
    assert gate.apply(variables, x).shape == x.shape
    mlp = layers.MLP(8, 3)
    assert set(mlp.init(jax.random.key(0), x)["params"]) == {"layers_0", "layers_1", "layers_2"}


def test_layer_norm_is_exact_far_from_zero():
    x = normal(0, 2, 3, 64) + 300
    norm = layers.LayerNorm()
    got = norm.apply(norm.init(jax.random.key(0), x), x)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, atol=1e-4)


# -------------------------------------------------------------------------------------------- the decoder's operations


def rows_by_autodiff(x):
    return jax.nn.softmax(x, axis=-2)


def layer_norm_by_autodiff(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6) * scale + bias


def scale_gelu_by_autodiff(x, scale, bias):
    normed = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return jax.nn.gelu(normed * scale + bias, approximate=False)


IMAGE, WEIGHTS, ROWS = (2, 3, 11, 5), (2, 3, 4, 11), (2, 3, 4, 5)
OPERATIONS = {
    "softmax": (lambda x: image_tokens.softmax(x, -1), jax.nn.softmax, [(2, 3, 4)]),
    "softmax of rows": (lambda x: image_tokens.softmax(x, -2), rows_by_autodiff, [(2, 4, 7)]),
    "layer_norm": (lambda *a: ops.layer_norm(*a, 1e-6), layer_norm_by_autodiff, [(2, 3, 8), (8,), (8,)]),
    "scale_gelu": (lambda *a: fused.scale_gelu(*a, 1e-6), scale_gelu_by_autodiff, [(2, 3, 8), (8,), (8,)]),
    "image_scores": (image_tokens.image_scores, lambda x, r: jnp.einsum("bpsc,bprc->bprs", x, r), [IMAGE, ROWS]),
    "image_mix": (image_tokens.image_mix, lambda w, x: jnp.einsum("bprs,bpsc->bprc", w, x), [WEIGHTS, IMAGE]),
    "image_spread": (image_tokens.image_spread, lambda w, r: jnp.einsum("bprs,bprc->bpsc", w, r), [WEIGHTS, ROWS]),
    "share": (lambda x: image_tokens.share(x, 3), lambda x: jnp.repeat(x, 3, axis=1), [(2, 1, 6, 4)]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_written_out_gradients_are_those_of_autodiff(name):
    written, plain, shapes = OPERATIONS[name]
    arguments = [normal(i, *shape) for i, shape in enumerate(shapes)]
    everything = tuple(range(len(shapes)))

    def run(f):
        def weighed(*a):
            y = f(*a)
            return jnp.sum(y * normal(9, *y.shape)), y

        return jax.value_and_grad(weighed, everything, has_aux=True)(*arguments)

    assert_close(run(written), run(plain))


@pytest.mark.parametrize("axis", [-1, -2])
def test_softmax_stands_far_values(axis):
    x = np.array([[1e4, -1e9], [1e4, 3.0], [-1e9, 3.0]], np.float32)
    np.testing.assert_allclose(image_tokens.softmax(x, axis), jax.nn.softmax(x, axis=axis), atol=1e-7)
