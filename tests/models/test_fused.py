"""The written-out halves of a RepViT block against the same arithmetic left to JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesam_jax.config import RepVitConfig
from edgesam_jax.models.encoders import repvit
from edgesam_jax.models.kernels import fused
from edgesam_jax.models.layers import Mode

EPSILON = 0.1  # large, so that the 1x1 convolution's gradient, which only it lets through, is far above rounding
RNG = np.random.default_rng(0)


def draw(*shape, around=0.0):
    return jnp.asarray(around + RNG.standard_normal(shape), jnp.float32)


def norm(y, scale_and_bias):
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    scale, bias = scale_and_bias
    return (y - mean) / jnp.sqrt(var + EPSILON) * scale + bias, (mean, var)


def plain_unit(x, kernel, point, first, second):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=x.shape[-1]
    )
    a, moments = norm(y, first)
    b, point_moments = norm(x * point, second)
    return a + b + x, moments, point_moments


def plain_mixer(x, scale_and_bias, kernel):
    y, moments = norm(x, scale_and_bias)
    return jax.nn.gelu(y, approximate=False) @ kernel, moments


C = 6
UNIT = (draw(2, 5, 4, C, around=1.0), draw(3, 3, 1, C), draw(C, around=1.0), (draw(C), draw(C)), (draw(C), draw(C)))
MIXER = (draw(2, 5, 4, C, around=1.0), (draw(C, around=1.0), draw(C)), draw(C, 3))
CASES = {
    "depthwise unit": (fused.depthwise_unit, plain_unit, UNIT),
    "norm, GELU, 1x1": (fused.norm_gelu_pointwise, plain_mixer, MIXER),
}


@pytest.mark.parametrize("case", CASES)
def test_values_moments_and_every_gradient(case):
    f, plain, arguments = CASES[case]
    weight = draw(*plain(*arguments)[0].shape)

    def results(g):
        def loss(*a):
            out = g(*a)
            return (out[0] * weight).sum(), out

        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arguments))), has_aux=True))(*arguments)

    got, want = results(lambda *a: f(*a, EPSILON, None)), results(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, want)
    smallest = min(float(jnp.abs(g).max()) for g in jax.tree.leaves(want[1]))
    assert smallest > 0.05, "a gradient that is nearly zero shows nothing"


@pytest.mark.parametrize("case", CASES)
def test_over_devices_it_is_the_global_batch(case):
    """Statistics are shared, and the mean of the devices' gradients is the gradient of the mean loss."""
    f, plain, (x, *others) = CASES[case]
    weight = draw(*plain(x, *others)[0].shape)

    def device(x, weight):
        gradients = jax.grad(lambda x, others: (f(x, *others, EPSILON, "d")[0] * weight).sum(), argnums=(0, 1))
        return gradients(x, others), f(x, *others, EPSILON, "d")[1:]

    (dx, shares), moments = jax.vmap(device, axis_name="d")(x[:, None], weight[:, None])
    want_dx, want = jax.grad(lambda x, others: (plain(x, *others)[0] * weight).sum(), argnums=(0, 1))(x, others)
    np.testing.assert_allclose(dx[:, 0], want_dx, rtol=2e-4, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=5e-4, atol=5e-4), shares, want)
    for got, expected in zip(jax.tree.leaves(moments), jax.tree.leaves(plain(x, *others)[1:]), strict=True):
        np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got[0], got[1])


def test_a_block_in_training_is_its_modules_one_after_the_other(monkeypatch):
    block = repvit.Block(8, 0, squeeze_excite=True)
    x = draw(2, 6, 7, 8)
    variables = jax.tree.map(lambda v: v + 0.3 * jnp.abs(draw(*v.shape)), block.init(jax.random.key(0), x, True))

    def train():
        return jax.jit(lambda v: block.apply(v, x, True, mutable=["batch_stats"]))(variables)

    fast = train()
    for module in (repvit.DepthwiseUnit, repvit.ChannelMixer):
        monkeypatch.setattr(module, "_train", None)  # its own path is not to be taken now
        monkeypatch.setattr(module, "is_initializing", lambda self: True)
    slow = train()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fast, slow)


@pytest.mark.slow
def test_blocks_computed_again_give_the_same_bits_in_less_memory():
    x = draw(2, 64, 64, 3)
    small = RepVitConfig(widths=(16, 16, 16, 16), depths=(4, 1, 1, 1))
    results, memory = [], []
    variables = repvit.RepVit(small, 8).init(jax.random.key(0), x)
    for remat in (False, True):
        encoder = repvit.RepVit(dataclasses.replace(small, remat=remat), 8)

        def loss(params, encoder=encoder):
            y, updated = encoder.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(y**2 * jnp.arange(8.0)), updated["batch_stats"]

        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"]).compile()
        results.append(step(variables["params"]))
        memory.append(step.memory_analysis().temp_size_in_bytes)
        names = jax.eval_shape(encoder.init, jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, names) == jax.tree.map(jnp.shape, variables)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert memory[1] < 0.6 * memory[0]


def test_a_block_trains_in_bfloat16_as_in_float32_but_for_rounding():
    x = draw(2, 6, 7, 8)
    block, half = (
        repvit.Block(8, 0, squeeze_excite=True, mode=Mode(dtype=dtype)) for dtype in (jnp.float32, jnp.bfloat16)
    )
    variables = jax.tree.map(lambda v: v + 0.3 * jnp.abs(draw(*v.shape)), block.init(jax.random.key(0), x, True))

    def gradients(block):
        def loss(params):
            y, updated = block.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(y.astype(jnp.float32))), updated

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    wide, narrow = gradients(block), gradients(half)
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wide[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.03 * size), narrow[0], wide[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.03, atol=0.03), narrow[1], wide[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}
