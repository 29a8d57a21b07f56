"""Systems: our models predict as the predictor does, ONNX pairs as our models do; files of masks follow a rule."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_pair import export_pair
from pycocotools import mask as coco_mask

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import DecoderConfig, SamConfig, UsageError, VitConfig
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.eval.scoring import device, protocol
from edgesam_jax.eval.scoring.device import PROMPTS, Bits
from edgesam_jax.eval.scoring.photos import from_example
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.systems import JaxSystem, OnnxSystem, PredictionsSystem, input_size
from edgesam_jax.models.init import init_variables
from edgesam_jax.portable.frame import into_frame, target_size
from edgesam_jax.portable.postprocess import stability_score, upscale_logits
from edgesam_jax.predict import compiled
from edgesam_jax.predict.predictor import Predictor

CONFIG = SamConfig(
    encoder=VitConfig(width=16, depth=1, heads=2, global_blocks=(0,)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)


def photo(n: int = 3, size: tuple[int, int] = (48, 80), seed: int = 0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        mask[y : y + rng.integers(4, 12), x : x + rng.integers(4, 12)] = True
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    points = np.array([np.argwhere(m)[0][::-1] for m in masks], np.float32).reshape(n, 2)
    return from_example(Example(image, masks, boxes_of(masks), points, seed, np.arange(n), np.zeros(n, np.int8)))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_variables(CONFIG, 3), {"score": "iou"})


def start(system, one, prompt="box", refine=0):
    return protocol.start(one, input_size(one, system), Settings(prompt, refine))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(1, 150), st.data())
def test_bits_are_the_mask(seed, height, width, data):
    rng = np.random.default_rng(seed)
    mask, other = rng.random((2, height, width)) < 0.4
    bits = Bits(device.pack(mask), (height, width))
    assert bits.area == mask.sum() and (bits.mask == mask).all()
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    rows, columns = data.draw(st.integers(0, height - top)), data.draw(st.integers(0, width - left))
    assert (bits.inside(top, left, rows, columns) == mask[top : top + rows, left : left + columns]).all()
    np.testing.assert_equal(bits.overlap(Bits(device.pack(other), (height, width))), float(mask_iou(mask, other)))


@pytest.mark.parametrize("size", [(48, 80), (131, 64), (5, 200)])
def test_masks_leave_the_device_at_the_photos_size(size):
    logits = np.zeros((PROMPTS, 2, 64, 64), np.float32)
    logits[:3] = np.random.default_rng(0).standard_normal((3, 2, 64, 64))
    one = photo(0, size)
    filled = target_size(*one.size, 64)
    rows, columns = (device.resize_matrix(64, 64, new, old) for new, old in zip(filled, size, strict=True))
    bits = np.asarray(device.upscale(logits, rows, columns, 3))
    assert bits.dtype == np.uint8 and not bits[3:].any()
    full = upscale_logits(logits[:3], 64, filled, size)
    for i in range(3):
        for k in range(2):
            wrong = Bits(bits[i, k], size).mask != (full[i, k] > 0)
            assert np.abs(full[i, k][wrong]).max(initial=0) < 1e-5
            assert Bits(bits[i, k], size).area == Bits(bits[i, k], size).mask.sum()  # nothing beyond the photo


@pytest.mark.parametrize("prompt", ["box", "point"])
@pytest.mark.parametrize(
    ("num_masks", "select"), [(1, "first"), (3, "score"), (4, "stability"), (3, "area"), (4, "oracle")]
)
def test_a_model_answers_as_the_predictor_does(model, prompt, num_masks, select):
    one, system = photo(), JaxSystem("m", model, num_masks, select)
    answer = system.masks(system.start(one), one, start(system, one, prompt))
    assert answer.low.shape == (3, num_masks if select == "oracle" else 1, 16, 16)
    predictor = Predictor(model)
    predictor.set_image(one.image)
    for i in range(3):
        ask = {"box": one.boxes[i]} if prompt == "box" else {"point_coords": [one.points[i]], "point_labels": [1]}
        masks, scores, logits = predictor.predict(**ask, num_masks=num_masks)
        if select != "oracle":
            rate = {
                "first": scores, "score": scores, "stability": stability_score(logits),
                "area": (logits > 0).sum((1, 2)),
            }[select]  # fmt: skip
            masks = masks[[int(np.argmax(rate))]]
        assert len(answer.full[i]) == len(masks)
        for bits, mask in zip(answer.full[i], masks, strict=True):
            assert (bits.mask != mask).mean() < 2e-3


def test_photos_are_encoded_as_they_are_resized(model):
    one, system = photo(1, (48, 81)), JaxSystem("m", model)
    for resize, dtype in (("pillow", np.uint8), ("torch", np.float32)):
        framed, filled = into_frame(one.image, 64, resize=resize)
        assert framed.dtype == dtype
        variables = compiled.for_inference(CONFIG, model.variables)
        expected = compiled.encoder(CONFIG)(variables, framed[None], np.array([filled], np.int32))[0]
        np.testing.assert_array_equal(system.start(one, resize).embedding, expected)
    rounded, exact = (np.asarray(system.start(one, resize).embedding) for resize in ("pillow", "torch"))
    assert 0 < np.abs(rounded - exact).max() < 0.2 * np.abs(exact).max()


def test_more_prompts_than_one_call_takes(model):
    one, system = photo(2 * PROMPTS + 3), JaxSystem("m", model)
    state, slots = system.start(one), start(system, one)
    answer = system.masks(state, one, slots)
    assert len(answer.full) == len(answer.low) == 2 * PROMPTS + 3
    for i in (0, PROMPTS, 2 * PROMPTS + 2):
        alone = system.masks(
            state, one, protocol.Slots(slots.coords[i : i + 1], slots.labels[i : i + 1], slots.valid[i : i + 1])
        )
        assert (alone.low[0] == answer.low[i]).all() and (alone.full[0][0].mask == answer.full[i][0].mask).all()


def test_a_zero_token_attends_and_an_empty_slot_does_not(model):
    one, system = photo(1), JaxSystem("m", model, 4, "oracle")
    state, slots = system.start(one), start(system, one, "point", refine=1)
    plain = system.masks(state, one, slots).low
    protocol.skip_point(slots, 0, 2, "exact")
    assert (system.masks(state, one, slots).low == plain).all()
    protocol.skip_point(slots, 0, 2, "published")
    decode = device.decoder(CONFIG, 1, "first")
    padded = [
        np.concatenate([x, np.zeros((PROMPTS - 1, *x.shape[1:]), x.dtype)])
        for x in (slots.coords, slots.labels, slots.valid)
    ]
    where, embedding, _ = state
    with_token, _ = decode(system._variables[where], embedding, *padded, 1)
    padded[2] = padded[2].copy()  # the first call may still be reading the other one
    padded[2][0, 2] = False
    without, _ = decode(system._variables[where], embedding, *padded, 1)
    assert np.abs(np.asarray(with_token - without)[0]).max() > 1e-4


# ------------------------------------------------------------------------------------------------------------- onnx


@pytest.fixture(scope="module")
def pair(tmp_path_factory, model) -> tuple[Path, Path]:
    return export_pair(model, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize(
    ("num_masks", "select", "prompt"), [(1, "first", "box"), (3, "score", "point"), (4, "oracle", "point")]
)
def test_an_onnx_pair_answers_as_the_model_does(model, pair, num_masks, select, prompt):
    one = photo(3)
    ours, theirs = JaxSystem("m", model, num_masks, select), OnnxSystem(*pair, num_masks, select)
    assert (theirs.image_size, theirs.mask_size, theirs.name) == (64, 16, "m")
    slots = start(ours, one, prompt, refine=1)
    slots.put(1, 2, 20.0, 10.0, 0)
    a, b = (s.masks(s.start(one), one, slots) for s in (ours, theirs))
    assert (a.low != b.low).mean() < 1e-3
    for mine, its in zip(a.full, b.full, strict=True):
        assert len(mine) == len(its) and all((m.mask != i.mask).mean() < 2e-3 for m, i in zip(mine, its, strict=True))


def test_an_onnx_pair_takes_photos_that_are_not_rounded(model, pair):
    one = photo(1, (48, 81))
    ours, theirs = JaxSystem("m", model), OnnxSystem(*pair)
    assert ours.takes_float and theirs.takes_float
    embeddings = [np.asarray(theirs.start(one, resize)[0]) for resize in ("pillow", "torch")]
    np.testing.assert_allclose(embeddings[1][0].transpose(1, 2, 0), ours.start(one, "torch").embedding, atol=1e-4)
    assert (embeddings[0] != embeddings[1]).any()


def test_other_onnx_files_are_refused(tmp_path, pair):
    encoder, decoder = pair
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for files, message in (
        ((tmp_path / "none.onnx", decoder), "none.onnx: no such file"),
        ((broken, decoder), "broken.onnx: not an ONNX model"),
        ((decoder, decoder), "the encoder must have one input"),
        ((encoder, encoder), "are not those of a published export"),
    ):
        with pytest.raises(UsageError, match=message):
            OnnxSystem(*files)


# ------------------------------------------------------------------------------------------------- files of masks


def entry(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"image_id": 0, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}, "score": 0.5}


def test_prompts_choose_among_the_masks_of_a_file():
    one = photo(2)
    near, other, inner = np.zeros((3, 48, 80), bool)
    near[2:20, 2:30], other[25:45, 40:70], inner[5:10, 5:10] = True, True, True
    system = PredictionsSystem("f", "d", [entry(m) for m in (near, other, inner)], {0: (48, 80)})
    state = system.start(one)
    slots = protocol.Slots(np.zeros((4, 3, 2), np.float32), np.full((4, 3), -1, np.int32), np.zeros((4, 3), bool))
    scale = np.array(target_size(*one.size, 1024)[::-1]) / (80, 48)
    for i, points in enumerate(
        (
            [((3, 1), 2), ((31, 21), 3)],  # a box around the first
            [((7, 7), 1)],  # a click that two masks lie under
            [((7, 7), 1), ((6, 6), 0)],  # and one that takes both away
            [((75, 3), 1)],  # a click on nothing
        )
    ):
        for slot, (place, label) in enumerate(points):
            slots.put(i, slot, *(np.array(place) * scale), label)
    answer = system.masks(state, one, slots)
    masks = [found[0].mask for found in answer.full]
    assert (masks[0] == near).all() and (masks[1] == (near | inner)).all()
    assert not masks[2].any() and not masks[3].any()
    assert answer.low.shape == (4, 1, 256, 256) and answer.low[0].any() and not answer.low[3].any()


def test_the_box_of_an_annotation_chooses_the_mask_that_answers_it():
    one = photo(2)
    near, other = np.zeros((2, 48, 80), bool)
    near[2:20, 2:30], other[25:45, 40:70] = True, True
    entries = [entry(near), {**entry(other), "annotation_id": int(one.ids[1])}, {**entry(near), "annotation_id": "x"}]
    system = PredictionsSystem("f", "d", entries, {0: (48, 80)})
    slots = protocol.Slots(np.zeros((3, 3, 2), np.float32), np.full((3, 3), -1, np.int32), np.zeros((3, 3), bool))
    scale = np.array(target_size(*one.size, 1024)[::-1]) / (80, 48)
    for i in range(3):  # around the first mask
        slots.put(i, 0, *(np.array((3, 1)) * scale), 2)
        slots.put(i, 1, *(np.array((31, 21)) * scale), 3)
    slots.put(2, 2, *(np.array((7, 7)) * scale), 1)
    one = dataclasses.replace(one, ids=np.array([one.ids[0], one.ids[1], one.ids[1]]), masks=[one.masks[0]] * 3)
    masks = [found[0].mask for found in system.masks(system.start(one), one, slots).full]
    assert (masks[0] == near).all() and (masks[1] == other).all()
    assert (masks[2] == near).all()  # with a click, the file's masks are chosen among as for any prompt
