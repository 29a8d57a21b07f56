"""The modules written for export, compared with the torch twin and the JAX model, without an exporter."""

from __future__ import annotations

import dataclasses
import functools

import deterministic_weights
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from convert.export import common, gate  # noqa: E402
from convert.export.decoder import ExportDecoder  # noqa: E402
from convert.export.encoder import LETTERBOX, ExportEncoder  # noqa: E402
from convert.torch_twin.loading import load_twin  # noqa: E402
from edgesam_jax.checkpoints.model import Model  # noqa: E402
from edgesam_jax.config import DecoderConfig, VitConfig  # noqa: E402
from edgesam_jax.models.sam import TINY  # noqa: E402
from edgesam_jax.portable.onnx_model import UNUSED, normalised  # noqa: E402
from edgesam_jax.portable.postprocess import stability_score  # noqa: E402

REPVIT = dataclasses.replace(tiny.REPVIT, decoder=DecoderConfig(depth=2, heads=2, mlp_dim=16))
LORA = dataclasses.replace(REPVIT, decoder=dataclasses.replace(REPVIT.decoder, lora_rank=2))
NO_FUSE = dataclasses.replace(REPVIT, encoder=dataclasses.replace(REPVIT.encoder, fuse=False))
BILINEAR = dataclasses.replace(REPVIT, encoder=dataclasses.replace(REPVIT.encoder, upsample="bilinear"))
SMALL_VIT = VitConfig(width=16, depth=2, heads=2, window_size=3, global_blocks=(1,), patch_size=4)
VIT = dataclasses.replace(REPVIT, encoder=SMALL_VIT, image_size=32)
SIDE = REPVIT.image_size


def model_of(config) -> Model:
    return Model(config, deterministic_weights.variables(config))


@pytest.fixture(scope="module")
def sam():
    return load_twin(model_of(REPVIT))


@pytest.fixture(scope="module")
def decoder(sam):
    return ExportDecoder(sam, "stability", True)


@pytest.fixture(scope="module")
def embedding():
    values = np.random.default_rng(0).normal(size=(1, REPVIT.embed_dim, REPVIT.grid, REPVIT.grid))
    return torch.from_numpy(values.astype(np.float32))


def decode(decoder, embedding, coords, labels, mask=None):
    """Return logits and scores; the mask input is always passed, used or not."""
    side = 4 * embedding.shape[-1]
    mask_input = embedding.new_zeros(1, 1, side, side) if mask is None else mask
    with torch.no_grad():
        scores, masks = decoder(embedding, coords, labels, mask_input, embedding.new_tensor([mask is not None]))
    return masks, scores


@pytest.mark.parametrize("config", [REPVIT, NO_FUSE, BILINEAR, VIT, tiny.CONV], ids=lambda c: c.encoder.kind)
def test_the_encoder_is_the_twin(config):
    model = model_of(config)
    image = torch.from_numpy(deterministic_weights.image(config.image_size).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        want = load_twin(model).encode_image(image)
        found = ExportEncoder(config, model.variables)(image)
    np.testing.assert_allclose(found, want, atol=2e-5)


def test_bilinear_would_be_another_network():
    """The published exporters up-sample bilinearly: the difference is far beyond the gate's tolerance."""
    image = torch.from_numpy(deterministic_weights.image(SIDE).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        a, b = (ExportEncoder(c, model_of(c).variables)(image) for c in (REPVIT, BILINEAR))
    assert gate.relative_error(b.numpy(), a.numpy()) > 3 * gate.TOLERANCES["float16"].embedding


def test_padding_and_normalisation_inside_are_those_outside():
    model = model_of(REPVIT)
    rng = np.random.default_rng(1)
    rows, columns = 20, SIDE
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    frame[:rows] = rng.integers(0, 256, (rows, columns, 3))
    frame[3, 3] = (124, 116, 104)  # the letterbox colour inside the photo, too
    picture = np.full_like(frame, LETTERBOX)
    picture[:rows] = frame[:rows]
    with torch.no_grad():
        want = ExportEncoder(REPVIT, model.variables)(torch.from_numpy(normalised(frame, (rows, columns)).copy()))
        photo = torch.from_numpy(frame[:rows, :columns].transpose(2, 0, 1)[None].copy())
        np.testing.assert_allclose(ExportEncoder(REPVIT, model.variables, "photo")(photo), want, atol=1e-5)
        image = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))
        found = ExportEncoder(REPVIT, model.variables, "image")(image)
    # The pixel of the letterbox colour became the mean colour, an error of up to half a level.
    assert gate.relative_error(found.numpy(), want.numpy()) < 1e-3


def test_images_padded_with_the_mean_alone_would_not_do():
    """The padding is exact only because pixels near the mean colour become 0."""
    model = model_of(REPVIT)
    encoder = ExportEncoder(REPVIT, model.variables, "image")
    picture = torch.tensor(LETTERBOX, dtype=torch.float32)[None, :, None, None].expand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        zeros = ExportEncoder(REPVIT, model.variables)(torch.zeros(1, 3, SIDE, SIDE))
        np.testing.assert_array_equal(encoder(picture), zeros)
        assert not np.array_equal(encoder(picture + 1), zeros)


@functools.cache
def precise():
    """The twin, the decoder and an embedding in float64."""
    sam = load_twin(model_of(REPVIT)).double()
    values = np.random.default_rng(0).normal(size=(1, REPVIT.embed_dim, REPVIT.grid, REPVIT.grid))
    return sam, ExportDecoder(sam, "stability", True).double(), torch.from_numpy(values)


points = st.tuples(st.floats(0, SIDE), st.floats(0, SIDE), st.sampled_from([0, 1]))


@settings(max_examples=25, deadline=None)
@given(
    some=st.lists(points, min_size=0, max_size=5),
    box=st.booleans(),
    order=st.randoms(use_true_random=False),
    slots=st.integers(8, 12),
    masked=st.booleans(),
)
def test_slots_are_what_the_twin_decodes(some, box, order, slots, masked):
    """Any prompt, in any order and number of slots, gives the twin's result without slots, including SAM's padding.

    In float64: the twin multiplies in another order, and rounding in float32 depends on the machine.
    """
    sam, decoder, embedding = precise()
    if not some and not box:
        box = True
    corners = [(3.0, 4.0, 2), (20.5, 28.25, 3)] if box else []
    entries = [*some, *corners]
    filler = [(order.uniform(-50, 50), order.uniform(-50, 50), order.choice([UNUSED, -7, 9]))] * (slots - len(entries))
    entries += filler
    order.shuffle(entries)
    table = torch.tensor(entries, dtype=torch.float64)
    mask = torch.linspace(-4, 4, 16 * REPVIT.grid**2).double().reshape(1, 1, 4 * REPVIT.grid, -1) if masked else None
    found, scores = decode(decoder, embedding, table[None, :, :2], table[None, :, 2], mask)
    coords = torch.tensor([[x, y] for x, y, _ in some], dtype=torch.float64)[None] if some else None
    labels = torch.tensor([label for *_, label in some])[None] if some else None
    boxes = torch.tensor([[3.0, 4.0, 20.5, 28.25]], dtype=torch.float64) if box else None
    with torch.no_grad():
        want, _ = sam.decode(embedding, coords, labels, boxes, mask)
    np.testing.assert_allclose(found, want, atol=1e-6 * float(want.abs().max()))
    np.testing.assert_allclose(scores, stability_score(found.numpy()), atol=1e-5)


def test_an_explicit_padding_point_takes_the_place_of_the_one_inside(decoder, embedding):
    one = torch.tensor([[[9.0, 11.0]]]), torch.ones(1, 1)
    both = torch.tensor([[[9.0, 11.0], [0.0, 0.0]]]), torch.tensor([[1.0, -1.0]])
    np.testing.assert_allclose(*(decode(decoder, embedding, *p)[0] for p in (one, both)), atol=1e-5)


def test_padding_is_not_neutral(decoder, embedding, sam):
    """A decoder without the padding differs, as in the published exports (docs/published_code.md, B7)."""
    coords, labels = torch.tensor([[[9.0, 11.0]]]), torch.ones(1, 1)
    with torch.no_grad():
        without = sam.decode_tokens(embedding, coords, labels)[0].numpy()
    padded = decode(decoder, embedding, coords, labels)[0].numpy()
    assert gate.relative_error(without, padded) > 10 * gate.TOLERANCES["float16"].logits


def test_low_rank_updates_are_merged(embedding):
    model = model_of(LORA)
    lora = load_twin(model)
    coords, labels = torch.tensor([[[9.0, 11.0], [20.0, 5.0]]]), torch.tensor([[1, 0]])
    with torch.no_grad():
        want, iou = lora.decode(embedding, coords, labels)
        lora.mask_decoder.transformer.layers[0].self_attn.q_proj.lora_B.mul_(0)
        without, _ = lora.decode(embedding, coords, labels)
    decoder = ExportDecoder(load_twin(model), "iou", False)
    with torch.no_grad():
        scores, found = decoder(embedding, coords, labels.float())
    np.testing.assert_allclose(found, want, atol=2e-5 * float(want.abs().max()))
    np.testing.assert_allclose(scores, iou, atol=1e-5)
    assert (without - want).abs().max() > 1e-3


@pytest.mark.parametrize(("value", "expected"), [(-5.0, 0.0), (5.0, 1.0), (0.0, 0.0)])
def test_scores_of_uniform_masks_are_numbers(decoder, value, expected):
    """Without a pixel above -1 the score would be 0/0; NaN in the published code (docs/published_code.md, B5)."""
    masks = torch.full((1, 4, 256, 256), value)
    assert decoder._scores(masks, masks).tolist() == [[expected] * 4]


def test_other_frames_keep_the_grid_of_the_encoder():
    model = common.resized(model_of(TINY), 64)
    assert model.config.grid == 8
    with torch.no_grad():
        assert ExportEncoder(model.config, model.variables)(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 8, 8)


def test_weights_of_the_decoder_keep_their_names():
    """They become names in exported files, by which tools that quantise or edit a graph address them."""
    decoder = ExportDecoder(load_twin(model_of(REPVIT)), "iou", True)
    names = {name for name, _ in [*decoder.named_parameters(), *decoder.named_buffers()]}
    assert {"own", "always", "slots.kinds", "slots.kind.weight", "layers.0.own.out.weight"} <= names
