"""The accelerators' form of the mask decoder against the CPU's: values and gradients."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesam_jax.config import DecoderConfig, PlainVitConfig, RepVitConfig, SamConfig
from edgesam_jax.models.decoder.mask_decoder import by_cell, place_pixels
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.kernels import image_columns, platforms
from edgesam_jax.models.kernels.image_columns import Image, Parts, Upscaling
from edgesam_jax.models.sam import decode, dense_positions
from edgesam_jax.types import Prompts

C, S, R, EPSILON = 12, 20, 6, 1e-5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# ------------------------------------------------------------------------------------------- one operation at a time


def layer_norm(x, scale, bias, epsilon=EPSILON):
    x = x - x.mean(1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(1, keepdims=True) + epsilon) * scale[:, None] + bias[:, None]


def normed_image(total, scale, bias):
    """An image as ``spread_norm`` returns it, of which only the parts may be read."""
    mean = total.mean(1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(total - mean).mean(1, keepdims=True) + EPSILON)
    value = layer_norm(total, scale, bias)
    unread = value + jax.lax.stop_gradient(jnp.nan * value)
    return Image(unread, Parts(total, mean, inverse, scale, bias))


def for_each_prompt(x, prompts):
    return jnp.repeat(x, prompts // len(x), axis=0)


def plain_upscaling(x, first, first_bias, scale, bias, second, second_bias, query):
    total = jnp.einsum("cf,ncs->nfs", first, x).reshape(len(x), 4, len(scale), -1) + first_bias[:, None]
    spread = jax.lax.rsqrt((total * total).mean(2, keepdims=True) + EPSILON)
    hidden = jax.nn.gelu(total * spread * scale[:, None] + bias[:, None], approximate=False)
    up = jnp.einsum("df,nkds->nkfs", second, hidden).reshape(len(x), 4, 4, len(second_bias), -1)
    up = jax.nn.gelu(up + second_bias[:, None], approximate=False)
    logits = jnp.einsum("nme,nkles->nmkls", query, up).reshape(len(x), -1, 16, x.shape[-1])
    return logits, up.reshape(len(x), 16, len(second_bias), -1)


UPSCALING = [normal(7, C, 4 * 8), normal(8, 8), normal(9, 8), normal(10, 8), normal(11, 8, 4 * 5), normal(12, 5)]
UPSCALING[:2] = [x - x.reshape(*x.shape[:-1], -1, 8).mean(-1).repeat(8, -1).reshape(x.shape) for x in UPSCALING[:2]]
POSITIONS, SCALE, BIAS = normal(3, C, S), normal(4, C), normal(5, C)
# By name: the operation on an image and further arguments, and the same on image tokens written out.
OPERATIONS = {
    "scores": (
        lambda image, rows: image_columns.scores(image, POSITIONS, rows),
        lambda x, rows: jnp.einsum("nrc,ncs->nrs", rows, for_each_prompt(x, len(rows)) + POSITIONS),
        [normal(1, 4, R, C)],
    ),
    "mix": (
        lambda image, weights: image_columns.mix(weights, image),
        lambda x, weights: jnp.einsum("nrs,ncs->nrc", weights, for_each_prompt(x, len(weights))),
        [normal(1, 4, R, S)],
    ),
    "spread_norm": (
        lambda image, *rest: image_columns.spread_norm(*rest[:2], image, *rest[2:], EPSILON).value,
        lambda x, weights, rows, scale, bias: layer_norm(
            jnp.einsum("nrs,nrc->ncs", weights, rows) + for_each_prompt(x, len(rows)), scale, bias
        ),
        [normal(1, 4, R, S), normal(2, 4, R, C), SCALE, BIAS],
    ),
    "upscaled_masks": (
        lambda image, *rest: image_columns.upscaled_masks(image, Upscaling(*rest[:-1]), rest[-1], EPSILON),
        plain_upscaling,
        [*UPSCALING, normal(1, 4, 3, 5)],
    ),
}


def assert_close(a, b, tolerance=1e-5):
    """Within ``tolerance`` of the largest number of each array.

    A key's bias has no effect, and its gradient is rounding errors of 0.
    """
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        size = 10 if "['k_proj']['bias']" in jax.tree_util.keystr(path) else float(np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1e-2, size), err_msg=str(path))


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("images", [1, 2, 4, "normed"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_what_is_written_out(name, images, platform):
    """Of an image for all prompts, two images of two prompts each, an image per prompt, and one after a norm."""
    operation, plain, arguments = OPERATIONS[name]
    if name == "upscaled_masks" and images in (1, 2):
        pytest.skip("only after the last layer, where every prompt has its image")
    if images == "normed":
        total = normal(6, 4, C, S)
        arguments = [total, 1 + 0.2 * SCALE, BIAS, *arguments]
        ours = lambda t, s, b, *rest: operation(normed_image(t, s, b), *rest)  # noqa: E731
        theirs = lambda t, s, b, *rest: plain(layer_norm(t, s, b), *rest)  # noqa: E731
    else:
        arguments = [normal(6, images, C, S), *arguments]
        ours = lambda x, *rest: operation(Image(x), *rest)  # noqa: E731
        theirs = plain

    def both(f, *arguments):
        out, pullback = jax.vjp(f, *arguments)
        return out, pullback(jax.tree.map(lambda x: normal(x.ndim, *x.shape), out))

    with platforms.traced_for(platform):
        found = jax.jit(functools.partial(both, ours))(*arguments)
        alone = jax.jit(ours)(*arguments)
    assert_close(found, both(theirs, *arguments))
    assert_close(alone, theirs(*arguments))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_placing_moves_every_pixel_and_changes_none(dtype):
    grid = 5
    cells = normal(0, 2, 3, grid * grid, 2, 2, 2, 2, 1)
    cells = (cells > 0) if dtype == "bool" else cells.astype(dtype)
    expected = place_pixels(cells, grid)[..., 0]
    placed = image_columns.place(by_cell(cells)[..., 0], grid)
    assert placed.dtype == cells.dtype
    np.testing.assert_array_equal(placed, expected)
    np.testing.assert_array_equal(image_columns.arrange(placed, grid), by_cell(cells)[..., 0])


# ------------------------------------------------------------------------------------------------- the whole decoder

MODEL = SamConfig(
    encoder=RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
    decoder=DecoderConfig(heads=2, mlp_dim=32),
    image_size=80,
    embed_dim=16,
)
MODELS = {
    "sam": MODEL,
    "lora": dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, lora_rank=2)),
    "one layer": dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, depth=1)),
    "efficient_sam": dataclasses.replace(
        MODEL, encoder=PlainVitConfig(width=16, depth=1, heads=2), variant="efficient_sam"
    ),
}
IMAGES, PROMPTS = 2, 3


@functools.cache
def case(name):
    """A model's config and variables, with noise on every parameter, an embedding and prompts."""
    config = MODELS[name]
    variables = init_variables(config, 0)
    params = jax.tree.map(lambda x: x + 0.1 * normal(x.size, *x.shape), variables["params"])
    labels = jnp.tile(jnp.array([1, 0, -1], jnp.int32), (IMAGES, PROMPTS, 1))
    valid = jax.random.uniform(jax.random.key(1), labels.shape) < 0.7
    prompts = Prompts(64 * jax.random.uniform(jax.random.key(0), (*labels.shape, 2)), labels, valid)
    embedding = normal(2, IMAGES, config.grid, config.grid, config.embed_dim)
    return config, {"params": params, "constants": variables["constants"]}, embedding, prompts


@functools.cache
def outputs(name, platform, masks=False, targets=False, placed=True, chunk=0, num_masks=4):
    """The decoder's prediction, and the gradient of a function of it by parameters and embedding."""
    config, variables, embedding, prompts = case(name)
    side = config.mask_size
    fed_back = (normal(3, IMAGES, PROMPTS, side, side), jnp.arange(6).reshape(2, 3) % 3 > 0) if masks else ()

    def run(params, embedding):
        out = decode(
            config, {**variables, "params": params}, embedding, prompts, *fed_back,
            targets=targets, placed=placed, chunk=chunk, num_masks=num_masks,
        )  # fmt: skip
        value = jnp.sum(jnp.sin(out.logits)) + jnp.sum(out.iou**2)
        if targets:
            value += sum(jnp.sum(jnp.sin(3 * x)) for x in out.targets.values())
        return value, out

    with platforms.traced_for(platform):
        gradient, out = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(variables["params"], embedding)
    return out, {k: v for k, v in gradient[0].items() if k != "image_encoder"}, gradient[1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sam", {}),
        ("sam", {"masks": True}),
        ("sam", {"targets": True}),
        ("sam", {"chunk": 2, "num_masks": 3}),
        ("sam", {"placed": False, "targets": True}),
        ("one layer", {"num_masks": 1}),
        ("lora", {}),
        ("efficient_sam", {}),
        ("efficient_sam", {"placed": False, "targets": True}),
    ],
    ids=str,
)
def test_a_decoder_on_an_accelerator_gives_what_it_gives_on_a_cpu(name, options):
    expected = outputs(name, "cpu", **options)
    found = outputs(name, "tpu", **options)
    assert_close(found[0], expected[0])
    assert_close(found[1:], expected[1:])


def test_masks_by_cell_are_the_placed_ones():
    for platform in ("cpu", "tpu"):
        placed, cells = (outputs("sam", platform, targets=True, placed=p)[0] for p in (True, False))
        grid = MODEL.grid
        np.testing.assert_allclose(image_columns.place(cells.logits, grid), placed.logits, atol=1e-5)
        feat = jnp.moveaxis(cells.targets["feat"], -1, 2)
        feat = jnp.moveaxis(image_columns.place(feat, grid), 2, -1)
        np.testing.assert_allclose(feat, placed.targets["feat"], atol=1e-5)


def test_given_positions_are_those_that_the_decoder_computes():
    config, variables, embedding, prompts = case("sam")
    alone = decode(config, variables, embedding, prompts)
    given = decode(config, variables, embedding, prompts, positions=dense_positions(config, variables))
    np.testing.assert_array_equal(alone.logits, given.logits)


def test_bfloat16_stays_close_to_float32():
    config, variables, embedding, prompts = case("sam")
    narrow = dataclasses.replace(config, compute_dtype="bfloat16")
    with platforms.traced_for("tpu"):
        wide, out = (decode(c, variables, embedding, prompts).logits for c in (config, narrow))
    assert out.dtype == jnp.float32
    error = jnp.abs(out - wide).max() / jnp.abs(wide).max()
    assert 1e-6 < error < 0.05
