"""The ViT image encoder: windows, relative positions, chunked attention, rematerialisation, published names."""

import ast
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN

from edgesam_jax.config import VitConfig
from edgesam_jax.models.encoders import vit

KEYS = GOLDEN / "sam_vit_b.txt"
TINY = VitConfig(width=24, depth=2, heads=2, global_blocks=(1,), window_size=3, patch_size=4)


@pytest.fixture(scope="module")
def tiny():
    """A model, its variables with every parameter at random, and images.  The grid (5) is no multiple of the window."""
    model = vit.Vit(TINY, image_size=20, embed_dim=16)
    x = jax.random.normal(jax.random.key(1), (2, 20, 20, 3))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    shift = jax.jit(lambda leaf, key: leaf + 0.3 * jax.random.normal(key, leaf.shape))
    leaves = [shift(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
    return model, {"params": jax.tree.unflatten(tree, leaves)}, x


def relative_rms(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


@settings(deadline=None, max_examples=25)
@given(b=st.integers(1, 2), h=st.integers(1, 9), w=st.integers(1, 9), window=st.integers(1, 10))
def test_windows_come_back_and_padding_is_zero(b, h, w, window):
    x = np.arange(1, 1 + b * h * w * 2, dtype=np.float32).reshape(b, h, w, 2)
    windows = np.asarray(vit.window_partition(x, window))
    count = b * -(-h // window) * -(-w // window)
    assert windows.shape == (count, window, window, 2)
    np.testing.assert_array_equal(vit.window_merge(jnp.asarray(windows), (h, w)), x)
    # Nothing but zeros is added, and the first window is the top left corner.
    assert np.count_nonzero(windows) == x.size
    np.testing.assert_array_equal(windows[0, : min(h, window), : min(w, window)], x[0, :window, :window])


def naive_attention(q, k, v, row_table, column_table):
    """One loop per index, in float64."""
    n, rows, columns, d = q.shape
    out = np.zeros(q.shape)
    for i in np.ndindex(n, rows, columns):
        query = q[i]
        logits = np.zeros((rows, columns))
        for y, x in np.ndindex(rows, columns):
            logits[y, x] = query @ k[i[0], y, x] / np.sqrt(d)
            logits[y, x] += query @ row_table[i[1] - y + rows - 1] + query @ column_table[i[2] - x + columns - 1]
        weights = np.exp(logits - logits.max())
        out[i] = np.tensordot(weights / weights.sum(), v[i[0]], 2)
    return out


def attention_inputs(n, rows, columns, d, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, n, rows, columns, d))
    return [q, k, v, rng.normal(size=(2 * rows - 1, d)), rng.normal(size=(2 * columns - 1, d))]


@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 99))
def test_attention_is_the_naive_one(rows, columns, seed):
    arrays = attention_inputs(2, rows, columns, 5, seed)
    attend = jax.jit(vit.attend, static_argnums=5)
    got = attend(*[jnp.asarray(x, jnp.float32) for x in arrays], 1 << 20)
    np.testing.assert_allclose(got, naive_attention(*arrays), atol=2e-5)


@pytest.mark.parametrize("logits_bytes", [4 * 64 * 64 * 3, 4 * 64 * 64, 4 * 64 * 24, 4 * 64, 1])
def test_chunked_attention_and_its_gradient_equal_the_whole(logits_bytes):
    arrays = [jnp.asarray(x, jnp.float32) for x in attention_inputs(6, 8, 8, 4)]

    def loss(limit, *arrays):
        out = vit.attend(*arrays, limit)
        return jnp.sum(jnp.sin(out)), out

    everything = (1, 2, 3, 4, 5)
    gradient = jax.jit(jax.grad(loss, argnums=everything, has_aux=True), static_argnums=0)
    whole, out = gradient(1 << 30, *arrays)
    chunked, out_chunked = gradient(logits_bytes, *arrays)
    np.testing.assert_allclose(out_chunked, out, atol=1e-6)
    for a, b in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("logits_bytes", [1 << 30, 4 * 25 * 5])
def test_gradient_agrees_with_finite_differences(tiny, logits_bytes):
    model, variables, x = tiny
    model = dataclasses.replace(model, logits_bytes=logits_bytes)
    loss = jax.jit(lambda params: jnp.mean(model.apply({"params": params}, x[:1]) * weight))
    weight = jax.random.normal(jax.random.key(3), (1, 5, 5, 16))
    params = variables["params"]
    gradient = jax.jit(jax.grad(loss))(params)
    direction = jax.tree.map(lambda g: g / (1e-12 + jnp.linalg.norm(g)), gradient)  # unit step in every parameter
    expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))
    step = 2e-3
    ahead = loss(jax.tree.map(lambda p, d: p + step * d, params, direction))
    behind = loss(jax.tree.map(lambda p, d: p - step * d, params, direction))
    assert (ahead - behind) / (2 * step) == pytest.approx(float(expected), rel=2e-2)
    assert all(float(jnp.linalg.norm(g)) > 0 for g in jax.tree.leaves(gradient))


def test_remat_gives_identical_names_values_and_gradients(tiny):
    model, variables, x = tiny
    again = dataclasses.replace(model, config=dataclasses.replace(TINY, remat=True))
    shapes = jax.eval_shape(again.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables["params"])
    results = [
        jax.jit(jax.value_and_grad(lambda v, m=m: jnp.sum(m.apply(v, x) ** 2)))(variables) for m in (model, again)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), *results)


def test_remat_does_recompute(tiny):
    model, variables, x = tiny
    again = dataclasses.replace(model, config=dataclasses.replace(TINY, remat=True))
    text = [str(jax.make_jaxpr(jax.grad(lambda v, m=m: jnp.sum(m.apply(v, x))))(variables)) for m in (model, again)]
    assert text[1].count("dot_general") > text[0].count("dot_general")


def test_bfloat16_is_close_and_keeps_float32_parameters(tiny):
    model, variables, x = tiny
    low = dataclasses.replace(model, dtype=jnp.bfloat16)
    out = jax.jit(low.apply)(variables, x)
    assert out.dtype == jnp.bfloat16
    assert 1e-4 < relative_rms(out.astype(jnp.float32), jax.jit(model.apply)(variables, x)) < 0.04
    shapes = jax.eval_shape(low.init, jax.random.key(0), x)["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_logits_of_global_attention_never_exist_as_a_whole():
    """At 1024x1024 the logits of eight heads are 537 MB in each block; the whole pass must need far less."""
    config = VitConfig(width=64, depth=2, heads=8, global_blocks=(0, 1), mlp_ratio=1)
    model = vit.Vit(config, image_size=1024, embed_dim=8, logits_bytes=8 << 20)
    x = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(model.apply(variables, x))

    for function, share in ((loss, 0.25), (jax.grad(loss), 0.5)):
        used = jax.jit(function).lower(variables, x).compile().memory_analysis().temp_size_in_bytes
        assert used < share * 8 * 4 * 4096**2


def test_wrong_image_size_is_refused(tiny):
    model, variables, _ = tiny
    with pytest.raises(ValueError, match="image_size 20"):
        model.apply(variables, jnp.zeros((1, 24, 24, 3)))


def test_names_and_shapes_are_the_published_ones():
    published = {}
    for line in KEYS.read_text().splitlines():
        if not line.startswith("image_encoder."):
            continue
        name, shape, _ = re.fullmatch(r"image_encoder\.(\S+) (\[.*\]) (\S+)", line).groups()
        shape = tuple(ast.literal_eval(shape))
        path = re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")
        if path.endswith("/weight"):
            leaf = {1: "scale", 2: "kernel", 4: "kernel"}[len(shape)]
            path = path.removesuffix("weight") + leaf
            shape = (*shape[2:], *shape[1::-1]) if len(shape) > 1 else shape
        published[path] = shape
    shapes = jax.eval_shape(vit.Vit(VitConfig()).init, jax.random.key(0), jnp.zeros((1, 1024, 1024, 3)))["params"]
    paths = jax.tree_util.tree_flatten_with_path(shapes)[0]
    assert {"/".join(k.key for k in path): leaf.shape for path, leaf in paths} == published
    assert sum(leaf.size for _, leaf in paths) == 89_670_912
