"""The two-way attention: every order of the products gives what plain attention gives; prompts in chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesam_jax.config import DecoderConfig, RepVitConfig, SamConfig
from edgesam_jax.models.decoder.transformer import Attention
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import decode
from edgesam_jax.types import Prompts

HEADS, INNER, WIDTH = 4, 32, 12


def plain_attention(params, q, k, v, mask):
    """Project everything, then attend, in float64; p and q axes already equal."""

    def project(x, name):
        weights = {key: np.asarray(value, np.float64) for key, value in params[name].items()}
        y = x @ weights["kernel"] + weights["bias"]
        if "lora_A" in weights:
            y = y + x @ weights["lora_A"].T @ weights["lora_B"].T / len(weights["lora_A"])
        return y

    def split(x):
        return x.reshape(*x.shape[:-1], HEADS, -1)

    q, k, v = (split(project(np.asarray(x, np.float64), f"{n}_proj")) for x, n in ((q, "q"), (k, "k"), (v, "v")))
    scores = np.einsum("bpqhd,bpkhd->bphqk", q, k) / np.sqrt(INNER // HEADS)
    if mask is not None:
        scores = np.where(mask[:, :, None, None, :], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    out = np.einsum("bphqk,bpkhd->bpqhd", probs, v)
    return project(out.reshape(*out.shape[:-2], -1), "out_proj"), probs


# Direction, tokens of a prompt, prompts, image shared by them, told to project it: fewer than INNER / HEADS = 8 tokens
# an image move the projections to the tokens' side.
@pytest.mark.parametrize(
    ("direction", "tokens", "prompts", "shared", "project_image"),
    [
        ("token_to_token", 3, 2, False, False),
        ("token_to_image", 3, 2, False, False),  # moved
        ("token_to_image", 3, 2, True, False),  # moved, though shared
        ("token_to_image", 3, 2, True, True),
        ("token_to_image", 3, 5, True, False),
        ("token_to_image", 9, 2, False, False),
        ("image_to_token", 3, 2, False, False),  # moved
        ("image_to_token", 3, 2, True, False),  # moved, though shared
        ("image_to_token", 3, 2, True, True),  # only the output is moved
        ("image_to_token", 3, 5, True, False),
        ("image_to_token", 9, 2, False, False),
    ],
)
def test_attention_is_plain_attention(direction, tokens, prompts, shared, project_image):
    rng = np.random.default_rng(tokens + prompts)
    token = rng.normal(size=(2, prompts, tokens, WIDTH)).astype(np.float32)
    image, image_value = rng.normal(size=(2, 2, 1 if shared else prompts, 20, WIDTH)).astype(np.float32)
    mask = rng.uniform(size=(2, prompts, tokens)) < 0.7
    mask[..., 0] = True
    q, k, v, key_mask = {
        "token_to_image": (token, image, image_value, None),
        "image_to_token": (image, token, token[..., ::-1], mask),
        "token_to_token": (token, token, token[..., ::-1], mask),
    }[direction]
    attention = Attention(HEADS, INNER, lora_rank=2, project_image=project_image)
    params = jax.eval_shape(attention.init, jax.random.key(0), q, k, v, key_mask)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, jnp.float32), params)
    out, probs = jax.jit(attention.apply)({"params": params}, q, k, v, key_mask)

    q, k, v = (np.broadcast_to(x, (2, prompts, *x.shape[2:])) for x in (q, k, v))
    expected, expected_probs = plain_attention(params, q, k, v, key_mask)
    np.testing.assert_allclose(np.broadcast_to(probs, expected_probs.shape), expected_probs, atol=1e-5)
    np.testing.assert_allclose(np.broadcast_to(out, expected.shape), expected, atol=5e-5)


@pytest.fixture(scope="module")
def small():
    """A small model's variables, two embeddings and five prompts each, not all of whose slots are real."""
    config = SamConfig(
        encoder=RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
        decoder=DecoderConfig(heads=2, mlp_dim=32),
        image_size=64,
        embed_dim=16,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    labels = jnp.tile(jnp.array([1, 0, -1], jnp.int32), (2, 5, 1))
    valid = jax.random.uniform(keys[1], labels.shape) < 0.7
    prompts = Prompts(64 * jax.random.uniform(keys[0], (2, 5, 3, 2)), labels, valid)
    embedding = jax.random.normal(keys[2], (2, 4, 4, 16))
    variables = init_variables(config, 0)
    return config, {name: variables[name] for name in ("params", "constants")}, embedding, prompts


def test_chunks_of_prompts_equal_all_at_once_with_gradients(small):
    config, variables, embedding, prompts = small
    masks = (jax.random.normal(jax.random.key(4), (2, 5, 16, 16)), jnp.arange(10).reshape(2, 5) % 3 > 0)

    def loss(variables, embedding, chunk):
        out = decode(config, variables, embedding, prompts, *masks, chunk=chunk)
        return jnp.sum(jnp.sin(out.logits)) + jnp.sum(out.iou**2), out

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    (whole, whole_out), (pieces, pieces_out) = run(variables, embedding, 0), run(variables, embedding, 2)
    assert pieces_out.logits.shape == (2, 5, 4, 16, 16)
    for a, b in ((whole_out, pieces_out), (whole, pieces)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-4), a, b)


@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_any_chunk_of_prompts_gives_the_same_masks(small, chunk):
    config, variables, embedding, prompts = small
    run = jax.jit(lambda p, c: decode(config, variables, embedding, p, chunk=c).logits, static_argnums=1)
    np.testing.assert_allclose(run(prompts, chunk), run(prompts, 0), atol=1e-4)


def test_slots_that_are_not_valid_change_nothing(small):
    config, variables, embedding, prompts = small
    moved = dataclasses.replace(prompts, coords=jnp.where(prompts.valid[..., None], prompts.coords, 17.0))
    run = jax.jit(lambda p: decode(config, variables, embedding, p).logits)
    np.testing.assert_array_equal(run(prompts), run(moved))
    assert not np.array_equal(run(prompts), run(prompts.replace(valid=jnp.ones_like(prompts.valid))))
