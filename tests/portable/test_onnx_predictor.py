"""The predictor for ONNX files, with a stand-in for the files: what reaches the decoder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgesam_jax.portable import onnx_predictor
from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.onnx_predictor import OnnxPredictor

PHOTO = np.zeros((16, 32, 3), np.uint8)  # as large as the frame, so coordinates stay as they are


class Decoder:
    """Answers with logits that depend on the prompt alone, and keeps what it was asked."""

    def __init__(self, pads: bool) -> None:
        self.pads = pads
        self.asked: list[tuple[list, list, bool]] = []

    def decode_prompts(self, embedding, coords, labels, masks, used):
        for points, kinds, some in zip(coords, labels, used, strict=True):
            self.asked.append((points[some].tolist(), kinds[some].tolist(), masks is not None))
        values = (coords * used[..., None]).sum((1, 2)) + 7 * (labels * used).sum(1)
        logits = np.tile(values.astype(np.float32)[:, None, None, None], (1, 4, 8, 8))
        return logits, np.tile(np.arange(4, dtype=np.float32), (len(coords), 1))


def predictor(monkeypatch, pads=True):
    encoder = SimpleNamespace(proposes=False, run=lambda frame, filled: (np.zeros((1, 4, 2, 2), np.float32), None))
    model = SimpleNamespace(encoder=encoder, decoder=Decoder(pads), image_size=32, mask_size=8, num_masks=4)
    monkeypatch.setattr(onnx_predictor, "OnnxModel", lambda *arguments: model)
    found = OnnxPredictor("encoder.onnx", "decoder.onnx")
    found.set_image(PHOTO)
    return found


@pytest.mark.parametrize("pads", [True, False])
def test_unused_slots_are_left_out(monkeypatch, pads):
    ours = predictor(monkeypatch, pads)
    padding = [] if pads else [[0, 0]]
    kinds = [] if pads else [-1]
    points, labels = [[[1, 2]], [[3, 4], [5, 6], [7, 8]]], [[1], [0, -1, 1]]
    together = ours.predict_prompts(None, points, labels, num_masks=4)
    asked = ours.model.decoder.asked
    assert asked == [
        ([*padding, [1, 2]], [*kinds, 1], False),
        ([*padding, [3, 4], [7, 8]], [*kinds, 0, 1], False),
    ]
    for i in range(2):
        for found, expected in zip(together, ours.predict(points[i], labels[i], num_masks=4), strict=True):
            np.testing.assert_array_equal(found[i], expected)


def test_boxes_without_points_and_masks(monkeypatch):
    ours = predictor(monkeypatch)
    masks = np.zeros((2, 8, 8))
    ours.predict_prompts([[0, 0, 9, 9], [1, 1, 5, 5]], [[[1, 2]], []], [[1], []], masks)
    expected = [([[0, 0], [9, 9], [1, 2]], [2, 3, 1], True), ([[1, 1], [5, 5]], [2, 3], True)]
    assert ours.model.decoder.asked == expected


def test_the_checks_are_the_predictors(monkeypatch):
    ours = predictor(monkeypatch)
    with pytest.raises(UsageError, match=r"box 0,0,32\.0001,9: not within the photo, which is 32 x 16"):
        ours.predict(box=[0, 0, 32.0001, 9])
    with pytest.raises(UsageError, match="can't stand alone"):
        ours.predict(mask_input=np.zeros((8, 8)))
    handle = ours.set_image(PHOTO)
    ours.reset_image()
    masks, _, _ = ours.predict(box=[0, 0, 9, 9], image=handle, drop_islands=5)
    assert masks.shape == (1, 16, 32)
