"""The forms of the student's encoder that only a TPU runs, traced on the CPU, against the CPU's."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesam_jax.config import RepVitConfig, TinyVitConfig
from edgesam_jax.models.encoders.repvit import Block, RepVit
from edgesam_jax.models.encoders.tiny_vit import TinyVit
from edgesam_jax.models.fold import _fold_tree
from edgesam_jax.models.kernels import bands, fused, ops, platforms, stem, strips
from edgesam_jax.models.kernels.strips import Cut
from edgesam_jax.models.layers import Mode


def draw(*shape, around=0.0, seed=0):
    return jnp.asarray(around + np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(got, want, tolerance=1e-5):
    def compare(path, a, b):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, got, want)


def on_tpu(f, *arguments):
    """``f`` in the TPU's form, jitted."""
    with platforms.traced_for("tpu"):
        return jax.jit(lambda *a: f(*a)).lower(*arguments).compile()(*arguments)


def apart(x, cut: Cut):
    return bands.cut(strips.regroup(x, 1, cut.strips), cut.bands)


def together(y, cut: Cut):
    return strips.regroup(bands.join(y, cut.bands), cut.strips, 1)


CUTS = [Cut(), Cut(2), Cut(4), Cut(1, 4), Cut(2, 2)]


def value_and_gradients(f, *arguments):
    y, pull = jax.vjp(f, *arguments)
    weight = jax.tree.map(lambda a: draw(*a.shape, seed=9), y)
    return y, pull(weight)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


# ------------------------------------------------------------------------------------------------------------ strips


def test_only_narrow_maps_on_a_tpu_are_cut():
    assert strips.number(48, 256) == 1
    with platforms.traced_for("tpu"):
        assert [strips.number(c, 256) for c in (48, 64, 96, 128, 192, 384)] == [8, 2, 4, 1, 1, 1]
        assert [strips.number(48, columns) for columns in (32, 24, 8, 7)] == [8, 2, 2, 1]


@pytest.mark.parametrize(("old", "new"), [(1, 4), (4, 1), (4, 2), (2, 4), (2, 2)])
def test_regrouped_strips_are_the_same_map(old, new):
    x = np.asarray(draw(2, 3, 16, 5))

    def cut(q):
        return np.concatenate(np.split(x, q, axis=2), axis=-1)

    np.testing.assert_array_equal(strips.regroup(jnp.asarray(cut(old)), old, new), cut(new))


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_a_depthwise_convolution_of_a_cut_map_is_that_of_the_map(k, stride, cut):
    x, kernel = draw(2, 7 if cut.bands == 1 else 16, 16, 3), draw(k, k, 1, 3, seed=1)

    def of_parts(x, kernel):
        return together(strips.depthwise_conv(apart(x, cut), kernel, None, stride, cut), cut)

    got = on_tpu(functools.partial(value_and_gradients, of_parts), x, kernel)
    assert_close(got, value_and_gradients(lambda x, k: ops.depthwise_conv(x, k, stride), x, kernel))


@pytest.mark.parametrize("cut", CUTS)
def test_bias_and_mean_of_a_convolution_of_a_cut_map(cut):
    x, kernel, bias = draw(2, 8, 16, 3), draw(3, 3, 1, 3, seed=1), draw(3, seed=2)

    def of_parts(x):
        y, mean = strips.biased(apart(x, cut), kernel, ops.tiled(bias, cut.strips), 1, cut)
        return together(y, cut), bands.photo_mean(mean, cut.bands)

    want = ops.depthwise_conv(x, kernel) + bias
    mean = jnp.repeat(want.mean((1, 2), keepdims=True), cut.bands, axis=0)
    assert_close(on_tpu(of_parts, x), (want, mean))


def test_few_photos_on_a_tpu_are_cut_into_bands():
    heights = [256, 128, 64, 32]
    assert bands.number(1, heights) == 1
    with platforms.traced_for("tpu"):
        assert [bands.number(photos, heights) for photos in (1, 2, 3, 4, 6, 7, 8, 9)] == [8, 4, 8, 2, 4, 8, 1, 1]
        assert [bands.number(2, [16, 8, low]) for low in (4, 2, 3)] == [4, 1, 1]
    x = draw(2, 8, 3, 5)
    np.testing.assert_array_equal(bands.join(bands.cut(x, 4), 4), x)
    rows = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    want = jnp.stack([rows[:, 4 * i : 4 * i + 6] for i in range(2)], 1).reshape(4, 6, 3, 5)
    np.testing.assert_array_equal(bands.extend(bands.cut(x, 2), 1, 2), want)


def test_a_product_of_strips_is_that_of_the_map():
    x, kernel = draw(2, 3, 8, 3), draw(3, 5, seed=1)

    def of_strips(x, kernel):
        return strips.regroup(ops.pointwise(strips.regroup(x, 1, 4), strips.widen(kernel, 4)), 4, 1)

    got = on_tpu(functools.partial(value_and_gradients, of_strips), x, kernel)
    assert_close(got, value_and_gradients(ops.pointwise, x, kernel))
    np.testing.assert_array_equal(strips.narrow(strips.widen(kernel, 4), 4), 4 * kernel)


@pytest.mark.parametrize("size", [(5, 7), (1, 2), (6, 9)])
@pytest.mark.parametrize(("k", "stride"), [(3, 1), (3, 2), (5, 2), (5, 3), (1, 2)])
def test_gradients_of_a_depthwise_convolution_as_convolutions(size, k, stride):
    x, kernel = draw(2, *size, 3), draw(k, k, 1, 3, seed=1)
    run = functools.partial(value_and_gradients, lambda x, kernel: ops.depthwise_conv(x, kernel, stride))
    assert_close(on_tpu(run, x, kernel), run(x, kernel))


# ------------------------------------------------------------------------------------------- the halves of a block


C = 6
UNIT = (draw(3, 3, 1, C), draw(C, around=1.0), (draw(C, seed=1), draw(C)), (draw(C, seed=2), draw(C)))
MIXER = ((draw(C, around=1.0), draw(C)), draw(C, 3))


@pytest.mark.parametrize("cut", [Cut(), Cut(4), Cut(1, 4), Cut(2, 2)])
@pytest.mark.parametrize("axis", [None, "devices"])
def test_a_block_of_a_cut_map_is_that_of_the_map_also_over_devices(cut, axis):
    x = draw(2, 1, 8, 16, C, around=1.0)

    def unit(x, cut):
        y, *moments = fused.depthwise_unit(apart(x, cut), *UNIT, 0.1, axis, cut)
        return together(y, cut), moments

    def mixer(x, cut):
        y, moments = fused.norm_gelu_pointwise(apart(x, cut), *MIXER, 0.1, axis, cut.strips)
        y, *last = ops.batch_norm(y, draw(3), draw(3), 0.1, axis, cut.strips)
        return together(y, cut), moments, last

    for half in (unit, mixer):

        def run(x, cut, half=half):
            y, pull, moments = jax.vjp(lambda x: (half(x, cut)[0], half(x, cut)[1:]), x, has_aux=True)
            return y, moments, pull(jnp.cos(y))

        def over_devices(x, cut, run=run):
            return jax.vmap(lambda x: run(x, cut), axis_name=axis)(x) if axis else run(x[:, 0], cut)

        got = on_tpu(functools.partial(over_devices, cut=cut), x)
        assert_close(got, over_devices(x, Cut()))


@pytest.mark.parametrize("cut", [Cut(4), Cut(2, 4)])
def test_gradients_of_every_parameter_of_a_block_of_a_cut_map(cut):
    x = draw(2, 8, 16, 8)
    blocks = {c: Block(8, 0, True, Mode(cut=c), c.strips) for c in (Cut(), cut)}
    start = blocks[Cut()].init(jax.random.key(0), x, True)
    variables = jax.tree.map(lambda v: v + 0.3 * jnp.abs(draw(*v.shape)), start)

    def run(cut, params, x):
        def apply(params, x):
            y, updated = blocks[cut].apply(variables | {"params": params}, apart(x, cut), True, mutable=["batch_stats"])
            return together(y, cut), updated

        y, pull, updated = jax.vjp(apply, params, x, has_aux=True)
        return y, updated, pull(jnp.sin(3 * y))

    got = on_tpu(functools.partial(run, cut), variables["params"], x)
    assert_close(got, run(Cut(), variables["params"], x), 2e-5)


# -------------------------------------------------------------------------------------------------------------- stem


@pytest.mark.parametrize("size", [(8, 32), (12, 64), (4, 128), (4, 768)])  # the last: pieces of a strip
def test_the_stem_of_cells_is_two_strided_convolutions(size):
    x, first, second, norm = draw(2, *size, 3), draw(3, 3, 3, 4, seed=1), draw(3, 3, 4, 48, seed=2), (draw(4), draw(4))
    with platforms.traced_for("tpu"):
        cut = stem.number(x.shape, 48)
    assert cut == min(8, size[1] // 16)

    def of_cells(x, first, second, norm):
        inner = stem.first_conv(stem.cells(x, cut), first, cut)
        y, moments = stem.norm_gelu_conv(inner, norm, second, 0.1, None, cut)
        return strips.regroup(y, cut, 1), *moments

    def plain(x, first, second, norm):
        y, *moments = ops.batch_norm(ops.conv(x, first, 2), *norm, 0.1, None)
        return ops.conv(ops.gelu(y), second, 2), *moments

    got, want = (f(functools.partial(value_and_gradients, g), x, first, second, norm) for f, g in (
        (on_tpu, of_cells), (lambda run, *a: run(*a), plain)
    ))  # fmt: skip
    assert_close(got[0], want[0])
    assert_close(got[1][1:], want[1][1:], 2e-5)  # photos need no gradient, and moments have none


def test_the_stem_of_cells_takes_only_what_it_can():
    with platforms.traced_for("tpu"):
        for shape, cut in (
            ((1, 1024, 1024, 3), 8),
            ((1, 128, 126, 3), 0),
            ((1, 130, 128, 3), 0),
            ((1, 128, 128, 6), 0),
        ):
            assert stem.number(shape, 48) == cut, shape
    assert stem.number((1, 1024, 1024, 3), 48) == 0


# ----------------------------------------------------------------------------------------------------------- encoder


TINY_VIT = TinyVitConfig(
    widths=(64, 16, 16, 24), depths=(2, 1, 1, 1), heads=(1, 2, 2, 3), windows=(7, 7, 4, 7), fuse=True
)


def encoder_and_variables(kind="repvit", **changes):
    config = RepVitConfig(widths=(48, 96, 64, 128), depths=(2, 2, 2, 2), **changes)
    encoder, x = RepVit(config, 8), draw(2, 128, 64, 3)  # on a TPU two photos are four bands each
    encoder = TinyVit(TINY_VIT, 8) if kind == "tiny_vit" else encoder
    variables = encoder.init(jax.random.key(0), x)
    moved = jax.tree.map(lambda v: v + 0.2 * jnp.abs(draw(*v.shape)) * (v.ndim == 1), variables)
    return encoder, moved, x


@pytest.mark.parametrize(
    "changes", [{}, {"stem_strides": (2, 1), "fuse": False}, {"remat": True}, {"kind": "tiny_vit"}], ids=str
)
def test_the_encoder_trains_on_a_tpu_as_on_a_cpu(changes):
    encoder, variables, x = encoder_and_variables(**changes)

    def step(params, x):
        def apply(params):
            return encoder.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(apply, params, has_aux=True)
        return y, updated, pull(jnp.sin(3 * y))

    # Norms cancel a few gradients; sums over the pixels leave rounding errors in both forms.
    assert_close(on_tpu(step, variables["params"], x), jax.jit(step)(variables["params"], x), 3e-5)


@pytest.mark.parametrize("kind", ["repvit", "tiny_vit"])
def test_the_encoder_predicts_on_a_tpu_as_on_a_cpu(kind):
    encoder, variables, x = encoder_and_variables(kind)
    want = encoder.apply(variables, x, pyramid=True)
    assert_close(on_tpu(lambda v, x: encoder.apply(v, x, pyramid=True), variables, x), want)
    folded = {"params": _fold_tree(variables["params"], variables["batch_stats"])}
    small = dataclasses.replace(encoder, mode=Mode(folded=True))
    assert_close(on_tpu(lambda v, x: small.apply(v, x, pyramid=True), folded, x), want, 2e-5)


def test_bfloat16_stays_bfloat16_on_a_tpu():
    encoder, variables, x = encoder_and_variables()
    half = dataclasses.replace(encoder, mode=Mode(dtype=jnp.bfloat16))
    y, updated = on_tpu(lambda v, x: half.apply(v, x, True, mutable=["batch_stats"]), variables, x)
    want, statistics = jax.jit(lambda v, x: encoder.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.06 * float(jnp.abs(want).max()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05), updated, statistics)


def test_a_tpu_gets_convolutions_only():
    """Matrix products and shifted sums would make XLA copy the maps into other layouts."""
    encoder, variables, x = encoder_and_variables()

    def loss(params):
        y, _ = encoder.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(y)

    with platforms.traced_for("tpu"):
        text = jax.jit(lambda p: jax.grad(loss)(p)).lower(variables["params"]).as_text()
    assert text.count("stablehlo.convolution") > 60
    assert "stablehlo.while" not in text
