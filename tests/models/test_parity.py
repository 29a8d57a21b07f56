"""JAX against our torch model with the same random weights, layer by layer up to the whole (float32, unit scale)."""

from __future__ import annotations

import dataclasses
import functools

import deterministic_weights as dw
import flax
import jax
import jax.numpy as jnp
import make_golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.checkpoints.published import names
from edgesam_jax.config import SamConfig, VitConfig
from edgesam_jax.models import layers
from edgesam_jax.models.decoder import mask_decoder, prompt_encoder, transformer
from edgesam_jax.models.encoders import neck, repvit, vit
from edgesam_jax.models.sam import MODELS, Sam
from edgesam_jax.types import NOT_A_POINT, Prompts

torch = pytest.importorskip("torch")
from convert.torch_twin import encoders as te  # noqa: E402
from convert.torch_twin import layers as tl  # noqa: E402
from convert.torch_twin import model as tm  # noqa: E402

SMALL: SamConfig = make_golden.CONFIGS["repvit"]
VIT = VitConfig(width=48, depth=2, heads=4, global_blocks=(1,), window_size=4, patch_size=8)
RNG = np.random.default_rng(0)


def fill(module, scope="layer"):
    """Give a torch module deterministic weights; returns it and the same as variables."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    values = {name: dw.entry(f"{scope}.{name}", shape) for name, shape in shapes.items()}
    module.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    return module.eval(), names.to_tree(values)[0]


def to_torch(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2) if np.ndim(x) == 4 else torch.from_numpy(np.array(x))


def to_numpy(x):
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def data(*shape):
    return RNG.standard_normal(shape, np.float32)


def close(ours, theirs, atol=1e-4):
    theirs = to_numpy(theirs)
    assert ours.shape == theirs.shape
    assert 0.1 < theirs.std() < 10, "not unit-scale data"
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


# ------------------------------------------------------------------------------------------------------ layers

PAIRS = {
    # name: (ours, theirs, shape of the input, NHWC)
    "conv_bn": (layers.ConvBN(12, 3, 2), lambda: tl.ConvBN(8, 12, 3, 2), (2, 10, 9, 8)),
    "depthwise_bn": (layers.ConvBN(8, 3, 1, True), lambda: tl.ConvBN(8, 8, 3, 1, 8), (2, 7, 9, 8)),
    "depthwise_bn_stride_2": (layers.ConvBN(8, 3, 2, True), lambda: tl.ConvBN(8, 8, 3, 2, 8), (2, 10, 9, 8)),
    "squeeze_excite": (layers.SqueezeExcite(), lambda: te.SqueezeExcite(48), (2, 5, 6, 48)),
    "channel_norm": (layers.LayerNorm(), lambda: tl.ChannelNorm(16), (2, 5, 6, 16)),
    "mlp_head": (layers.MLP(16, 5), lambda: tm.Mlp(16, 5), (3, 16)),
    "feed_forward": (transformer.FeedForward(40), lambda: te.VitMlp(16, 40, torch.nn.ReLU()), (3, 7, 16)),
    "vit_mlp": (vit.Mlp(40, 16, jnp.float32), lambda: te.VitMlp(16, 40, torch.nn.GELU()), (3, 7, 16)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_layer(name):
    ours, make, shape = PAIRS[name]
    theirs, variables = fill(make())
    x = data(*shape)
    close(ours.apply(variables, x), theirs(to_torch(x)))


TRAINED = {
    "depthwise_unit": (repvit.DepthwiseUnit(), lambda: te.DepthwiseUnit(8), (2, 6, 5, 8)),
    "channel_mixer": (repvit.ChannelMixer(), lambda: te.ChannelMixer(8), (2, 6, 5, 8)),
    "plain_block": (repvit.Block(24, 0, True), lambda: te.RepVitBlock(24, 24, 1, False, True), (2, 6, 6, 24)),
    "entry_block": (repvit.Block(12, 2, False), lambda: te.RepVitBlock(8, 12, 2, True, False), (2, 6, 6, 8)),
    "entry_block_stride_1": (repvit.Block(12, 1, False), lambda: te.RepVitBlock(8, 12, 1, True, False), (2, 6, 6, 8)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_repvit_part(name):
    ours, make, shape = TRAINED[name]
    theirs, variables = fill(make())
    x = data(*shape)
    y, *_ = jax.tree.leaves(ours.apply(variables, x, False))  # a depthwise unit may also return means
    close(y, theirs(to_torch(x)))


@pytest.mark.parametrize("name", ["plain_block", "entry_block"])
def test_repvit_part_in_training(name):
    """Batch statistics in the forward pass, and the gradients of everything."""
    ours, make, shape = TRAINED[name]
    theirs, variables = fill(make())
    x, params = data(*shape), variables["params"]

    def loss(params, x):
        y, _ = ours.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y) * weight), y

    image = to_torch(x).clone().requires_grad_()
    y = theirs.train()(image)
    weight = data(*to_numpy(y).shape)
    (torch.sin(y) * to_torch(weight)).sum().backward()
    (_, found), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    close(found, y)
    by_name = names.to_published({"params": gradients[0]})
    for key, parameter in theirs.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        np.testing.assert_allclose(by_name[key], parameter.grad.numpy(), atol=1e-4 * scale, err_msg=key)
    np.testing.assert_allclose(gradients[1], to_numpy(image.grad), atol=1e-4 * float(image.grad.abs().max()))


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(6, 6), (3, 5)])
def test_upsample(method, size):
    theirs, variables = fill(tl.UpsampleConv(8, 12, method))
    x = data(2, *size, 8)
    ours = neck.Upsample(12, method).apply(variables, x, (2 * size[0], 2 * size[1]))
    close(ours, theirs(to_torch(x)), 1e-5)


@pytest.mark.parametrize(("size", "to"), [((16, 12), (64, 48)), ((9, 7), (5, 11)), ((40, 40), (13, 13))])
def test_bilinear_resize_of_masks(size, to):
    """Logits to photo size and back; torch does not antialias here, even when it shrinks."""
    x = data(1, *size, 2)
    theirs = torch.nn.functional.interpolate(to_torch(x), to, mode="bilinear", align_corners=False)
    close(layers.resize(x, to, "bilinear"), theirs, 1e-5)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("logits_bytes", [1 << 20, 2048])
def test_vit_block(window, logits_bytes):
    """Windowed (6 is no multiple of 4: padding) and global; in one block, or cut into several."""
    theirs, variables = fill(te.VitBlock(VIT, 6, window))
    ours = vit.Block(VIT, 6, window, jnp.float32, logits_bytes)
    x = data(2, 6, 6, 48)
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours.apply(variables, x), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_attention(rank, shared):
    """With and without LoRA; keys of the image shared by all prompts, or one set for each; masked keys."""
    theirs, variables = fill(tm.Attention(32, 16, 4, rank))
    ours = transformer.Attention(4, 16, rank)
    q, k, v = data(1, 3, 5, 32), data(1, 1 if shared else 3, 9, 32), data(1, 1 if shared else 3, 9, 32)
    mask = RNG.random((1, 3, 9)) < 0.6
    mask[..., 0] = True
    out, probabilities = ours.apply(variables, q, k, v, mask)
    wide = [np.broadcast_to(x[0], (3, *x.shape[2:])) for x in (q, k, v)]
    expected = theirs(*(torch.from_numpy(np.array(x)) for x in wide), torch.from_numpy(mask[0]))
    np.testing.assert_allclose(out[0], expected[0].detach(), atol=1e-4)
    np.testing.assert_allclose(probabilities[0], expected[1].detach(), atol=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 3])
def test_two_way_transformer(lora_rank):
    config = dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, lora_rank=lora_rank))
    d, c = config.decoder, config.embed_dim
    theirs, variables = fill(tm.TwoWayTransformer(config), "mask_decoder.transformer")
    ours = transformer.TwoWayTransformer(config.decoder)
    tokens, image, positions = data(1, 3, 7, c), data(1, 1, 16, c), data(16, c)
    mask = np.array([[[True] * 7, [True] * 5 + [False] * 2, [True] * 6 + [False]]])
    found = jax.jit(ours.apply)(variables, tokens, image, positions, mask)
    expected = theirs(*map(torch.from_numpy, (tokens[0], np.repeat(image[0], 3, 0), positions[None], mask[0])))
    real = mask[0]
    np.testing.assert_allclose(found[0][0][real], expected[0].detach().numpy()[real], atol=1e-4)
    np.testing.assert_allclose(found[1][0], expected[1].detach(), atol=1e-4)
    assert set(found[2]) == set(expected[2])
    for name, attention in expected[2].items():
        attention = attention.detach().numpy()
        queries = attention.shape[2]
        rows = np.broadcast_to(real[:, None], (3, d.heads, 7)) if queries == 7 else np.ones((3, d.heads, queries), bool)
        np.testing.assert_allclose(np.asarray(found[2][name][0])[rows], attention[rows], atol=1e-4, err_msg=name)


def test_prompt_encoder():
    theirs, variables = fill(tm.PromptEncoder(SMALL), "prompt_encoder")
    ours = prompt_encoder.PromptEncoder(SMALL.embed_dim, SMALL.grid, SMALL.image_size, SMALL.mask_in_chans)
    coords = (RNG.random((1, 5, 5, 2)) * 64).astype(np.float32)
    labels = np.array([[[-1, 0, 1, 2, 3]] * 5])
    prompts = Prompts(coords, labels, labels > -2)
    sparse = ours.apply(variables, prompts, method="sparse")
    expected = theirs.tokens(torch.from_numpy(coords[0]), torch.from_numpy(labels[0]))
    np.testing.assert_allclose(sparse[0], expected.detach(), atol=1e-4)
    close(ours.apply(variables, method="dense_positions"), theirs.dense_position().permute(1, 2, 0))

    masks = 4 * data(1, 3, SMALL.mask_size, SMALL.mask_size)
    given = np.array([[True, False, True]])
    dense = ours.apply(variables, masks, given, method="dense")[0]
    expected = to_numpy(theirs.dense(torch.from_numpy(masks[0])[:, None])).copy()
    expected[1] = theirs.no_mask_embed.weight.detach()
    np.testing.assert_allclose(dense, expected, atol=1e-4)


def test_distillation_targets():
    """Every named target of the mask decoder, and the order of masks for 1, 3 and 4."""
    theirs, variables = fill(tm.MaskDecoder(SMALL), "mask_decoder")
    c, g = SMALL.embed_dim, SMALL.grid
    embedding, positions, sparse = data(1, g, g, c), data(g, g, c), data(1, 2, 3, c)
    ours = mask_decoder.MaskDecoder(SMALL.decoder, c, g)
    dense, valid = data(1, 2, g, g, c), np.ones((1, 2, 3), bool)
    image = torch.from_numpy(embedding + dense[0]).permute(0, 3, 1, 2)
    logits, iou, targets = theirs(
        image, torch.from_numpy(positions).permute(2, 0, 1), torch.from_numpy(sparse[0]), None
    )

    @functools.partial(jax.jit, static_argnums=0)
    def apply(num_masks):
        return ours.apply(variables, embedding, positions, sparse, valid, dense, num_masks, targets=True)

    for count, kept in ((4, slice(0, 4)), (3, slice(1, 4)), (1, slice(0, 1))):
        found = apply(count)
        np.testing.assert_allclose(found.logits[0], logits[:, kept].detach(), atol=1e-4)
        np.testing.assert_allclose(found.iou[0], iou[:, kept].detach(), atol=1e-4)
        np.testing.assert_allclose(found.targets["query"][0], targets["query"][:, kept].detach(), atol=1e-4)
    assert set(found.targets) == set(targets)
    np.testing.assert_allclose(found.targets["feat"][0], to_numpy(targets["feat"]), atol=1e-4)
    for name in set(targets) - {"query", "feat"}:
        np.testing.assert_allclose(found.targets[name][0], targets[name].detach(), atol=1e-4, err_msg=name)


# ------------------------------------------------------------------------------------------------------ whole


def torch_sam(config):
    model = tm.TorchSam(config).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in dw.published(config).items()})
    return model


@functools.cache
def small():
    """(torch model, embedding, jitted decode of one padded prompt with an optional mask)."""
    model, variables = torch_sam(SMALL), dw.variables(SMALL)
    embedding = dw.uniform("embedding", (1, SMALL.grid, SMALL.grid, SMALL.embed_dim)).astype(np.float32) * 1.7
    return model, embedding, jax.jit(functools.partial(Sam(SMALL).apply, variables, embedding, method="decode_masks"))


SLOTS = 5
coordinate = st.floats(0, SMALL.image_size - 1, width=32)
point = st.tuples(coordinate, coordinate, st.sampled_from([0, 1]))
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


@settings(max_examples=40, deadline=None)
@given(st.lists(point, max_size=3), st.none() | box, st.none() | st.integers(0, 9), st.randoms(use_true_random=False))
def test_any_prompt(points, corners, mask_seed, random):
    """SAM's own convention in torch (no padding but its one token) against the padded, shuffled buffer."""
    if not points and corners is None:
        return
    model, embedding, decode = small()
    given = {}
    if points:
        given["points"] = torch.tensor([[p[:2] for p in points]])
        given["labels"] = torch.tensor([[p[2] for p in points]])
    if corners is not None:
        given["boxes"] = torch.tensor([corners])
    slots = [(*p, True) for p in points]
    slots += [(0, 0, NOT_A_POINT, True)] if corners is None else [(*corners[:2], 2, True), (*corners[2:], 3, True)]
    slots += [(50.0, 50.0, 1, False)] * (SLOTS - len(slots))
    random.shuffle(slots)
    x, y, labels, valid = (np.array(column) for column in zip(*slots, strict=True))
    prompts = Prompts(np.stack([x, y], -1).astype(np.float32)[None, None], labels[None, None], valid[None, None])
    shape = (1, 1, SMALL.mask_size, SMALL.mask_size)
    mask = np.random.default_rng(mask_seed).normal(size=shape, scale=3).astype(np.float32)
    if mask_seed is not None:
        given["mask_input"] = torch.from_numpy(mask)
    with torch.inference_mode():
        logits, iou = model.decode(to_torch(embedding), **given)
    found = decode(prompts, mask, np.array([[mask_seed is not None]]))
    assert np.abs(found.logits[0] - logits.numpy()).max() < 1e-3 * logits.numpy().std()
    np.testing.assert_allclose(found.iou[0], iou, atol=1e-4)


def test_the_tiny_teacher():
    """Its encoder is ours, not a published one; it goes over the same bridge."""
    config = dataclasses.replace(MODELS["tiny_teacher"], image_size=64)
    image = dw.image(64)
    embedding = jax.jit(functools.partial(Sam(config).apply, method="encode_image"))(dw.variables(config), image)
    with torch.inference_mode():
        close(np.asarray(embedding), torch_sam(config).encode_image(to_torch(image)))


def whole(name, size=1024):
    """A photo-like input through both, with two prompts: two points, and a box with a point."""
    config = dataclasses.replace(MODELS[name], image_size=size)
    image = dw.image(size)
    image[:, size * 2 // 3 :] = 0  # the padding of a 3:2 photo
    points = torch.tensor([[[250.0, 300.0], [700.0, 420.0]]]) * (size / 1024)
    labels = torch.tensor([[1, 0]])
    boxes = torch.tensor([[180.0, 90.5, 640.0, 512.0]]) * (size / 1024)
    model = torch_sam(config)
    with torch.inference_mode():
        expected = model.encode_image(to_torch(image))
        pairs = [
            model.decode(expected, points, labels),
            model.decode(expected, points[:, :1], labels[:, :1], boxes),
        ]
    logits, iou = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    coords = np.concatenate([points[0], [[0, 0]], boxes.reshape(2, 2), points[0, :1]]).reshape(1, 2, 3, 2)
    prompts = Prompts(coords.astype(np.float32), np.array([[[1, 0, -1], [2, 3, 1]]]), np.ones((1, 2, 3), bool))

    variables, sam = dw.variables(config), Sam(config)
    del model
    embedding = jax.jit(lambda v, x: sam.apply(v, x, method="encode_image"))(variables, image)
    found = jax.jit(lambda v, e: sam.apply(v, e, prompts, method="decode_masks"))(variables, embedding)
    close(np.asarray(embedding), expected)
    assert np.abs(found.logits[0] - logits).max() < 1e-3 * logits.std()
    assert np.mean((found.logits[0] > 0) == (logits > 0)) >= 0.9999
    np.testing.assert_allclose(found.iou[0], iou, atol=1e-3)


@pytest.mark.slow
# ViT-B and MobileSAM at half the side: windows are padded there too, and a quarter of the time is enough.
@pytest.mark.parametrize(("name", "size"), [("edge_sam", 1024), ("sam_vit_b", 512), ("mobile_sam", 512)])
def test_full_size(name, size):
    whole(name, size)


def test_flax_sees_no_other_collections():
    """What conversion writes is all that the model reads: an unknown collection would be dropped silently."""
    variables = dw.variables(SMALL)
    assert set(variables) == {"params", "batch_stats", "constants"}
    leaves = flax.traverse_util.flatten_dict(variables)
    assert all(leaf.dtype == np.float32 for leaf in leaves.values())
