"""Prompts on many photos: results equal those of one photo at a time, in order, with few compiled programs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from edgesam_jax.batching import Item, Result
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import PlainVitConfig, SamConfig, UsageError
from edgesam_jax.eval.job import count_compilations
from edgesam_jax.models.init import init_variables
from edgesam_jax.portable.prompts import PromptArrays
from edgesam_jax.predict import compiled, tiles
from edgesam_jax.predict.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(model: Model) -> Predictor:
    return Predictor(model)


def boxes_on(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    low = rng.uniform(0, 0.5, (count, 2)) * size[::-1]
    return np.concatenate([low, low + rng.uniform(0.1, 0.4, (count, 2)) * size[::-1]], 1)


def random_item(rng: np.random.Generator, side: int = 16, most_points: int = 3) -> Item:
    """A photo of any size with boxes, points, both or mask inputs."""
    size = int(rng.integers(20, 70)), int(rng.integers(20, 70))
    count = int(rng.integers(2, 5))
    kind = rng.integers(4)
    boxes = boxes_on(rng, size, count) if kind != 1 else None
    coords = labels = None
    if kind in (1, 2):
        numbers = rng.integers(1 if boxes is None else 0, most_points + 1, count).tolist()
        coords = [rng.uniform(0, 1, (n, 2)) * size[::-1] for n in numbers]
        labels = [rng.integers(0, 2, n) for n in numbers]
    masks = rng.normal(size=(count, side, side)) * 5 if kind == 3 else None
    return Item(rng.integers(0, 256, (*size, 3), np.uint8), boxes, coords, labels, masks, id=f"photo {rng.integers(9)}")


def alone(predictor: Predictor, item: Item, num_masks: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The masks, scores and logits of one item without batching."""
    predictor.set_image(np.asarray(item.image))
    return predictor.predict_prompts(item.boxes, item.point_coords, item.point_labels, item.mask_inputs, num_masks)


def check_equal(result: Result, expected: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    masks, scores, logits = expected
    assert result.error is None
    np.testing.assert_allclose(result.logits, logits, atol=1e-5)
    np.testing.assert_allclose(result.scores, scores, atol=1e-5)
    assert result.masks.shape == masks.shape and np.mean(result.masks != masks) < 1e-4
    np.testing.assert_array_equal(result.mask(len(masks) - 1, masks.shape[1] - 1), result.masks[-1, -1])


def test_results_equal_those_of_one_photo_at_a_time(predictor: Predictor) -> None:
    rng, num_masks = np.random.default_rng(3), 3
    items = [random_item(rng) for _ in range(12)]
    results = list(predictor.predict_many(iter(items), num_masks, batch_size=5))
    assert [(r.index, r.id) for r in results] == [(i, item.id) for i, item in enumerate(items)]
    for item, result in zip(items, results, strict=True):
        check_equal(result, alone(predictor, item, num_masks))


def test_200_random_items_compile_few_programs() -> None:
    model = Model(tiny.CONV, init_variables(tiny.CONV, 1), {})
    predictor, rng = Predictor(model), np.random.default_rng(5)
    items = [random_item(rng, tiny.MASK, most_points=16) for _ in range(200)]
    jax.clear_caches()
    tiles.decoder.cache_clear()
    compiled = count_compilations()
    results = list(predictor.predict_many(items))
    # The encoder; the decoder with 0, 1, 4 and 16 slots for points, and with 0 slots and mask inputs.
    assert 2 <= compiled() <= 6
    assert sum(len(r.scores) for r in results) == sum(
        len(item.boxes if item.boxes is not None else item.point_coords) for item in items
    )
    assert all(r.error is None for r in results)
    check_equal(results[57], alone(predictor, items[57]))


def test_more_prompts_than_a_tile_on_one_photo(predictor: Predictor, photo: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    many = Item(photo, boxes_on(rng, (48, 80), 2 * tiles.tile_size() + 3))
    few = Item(photo[:, ::-1].copy(), boxes_on(rng, (48, 80), 2))
    results = list(predictor.predict_many([few, many, few]))
    for item, result in zip((few, many, few), results, strict=True):
        check_equal(result, alone(predictor, item))


def test_chunks_of_an_accelerator_give_the_same_results(
    predictor: Predictor, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    items = [Item(photo[:, : 40 + i].copy(), boxes_on(rng, (48, 40), 1 + 3 * i)) for i in range(5)]
    expected = [alone(predictor, item) for item in items]
    monkeypatch.setattr(tiles, "decode_chunk", lambda: 4)
    tiles.decoder.cache_clear()
    try:
        for result, one in zip(predictor.predict_many(items, batch_size=3), expected, strict=True):
            check_equal(result, one)
    finally:
        tiles.decoder.cache_clear()


def test_rows_that_a_tile_does_not_use_are_not_decoded(model: Model) -> None:
    prompts = PromptArrays(np.float32([[5, 5, 40, 30], [9, 9, 20, 20]]), None, None, None)
    (tile,) = tiles.tiles([prompts], 2, model.config.mask_size)
    embeddings = np.random.default_rng(0).normal(size=(2, model.config.grid, model.config.grid, 16)).astype(np.float32)
    out = tiles.decoder(model.config, 1)(model.variables, embeddings, *tile.inputs)
    assert tile.photo.tolist() == [0, 0, *[2] * (tiles.tile_size() - 2)]
    assert np.abs(np.asarray(out.logits[:2])).min() > 0 and not np.asarray(out.logits[2:]).any()


@pytest.mark.parametrize(
    ("count", "slots"), [(0, 0), (1, 1), (2, 4), (4, 4), (5, 16), (16, 16), (17, 64), (64, 64), (65, 256)]
)
def test_slots_are_powers_of_four(count: int, slots: int) -> None:
    assert tiles.point_slots(count) == slots


def test_priors_give_clicks_the_same_boxes(model: Model, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores = np.float32([[10, 10, 40, 40], [12, 8, 44, 38]]), np.float32([0.9, 0.8])

    def proposer(config: SamConfig) -> Any:
        def encode(variables: Any, images: Any, sizes: Any) -> Any:
            embedding = compiled.encoder(config)(variables, images, sizes)
            return embedding, *(np.repeat(x[None], len(images), axis=0) for x in (boxes, scores))

        return encode

    monkeypatch.setattr(compiled, "proposer", proposer)
    monkeypatch.setattr(compiled, "check_priors", lambda config, flag: None)
    predictor = Predictor(model, "nearest")
    clicks = [[[20.0, 20.0]], [[60.0, 30.0], [5.0, 5.0]], [[79.0, 47.0]]]
    items = [
        Item(photo, point_coords=clicks, point_labels=[[1], [1, 0], [1]]),
        Item(photo[::-1].copy(), boxes=[[1, 2, 30, 40]]),
        Item(photo[:, ::-1].copy(), point_coords=[[[30.0, 24.0]]], point_labels=[[1]]),
    ]
    for item, result in zip(items, predictor.predict_many(items), strict=True):
        check_equal(result, alone(predictor, item))
    predictor.set_image(photo)
    assert np.isfinite(predictor.prior_boxes(np.array([[20.0, 20.0]]))).all()
    without = alone(Predictor(model), items[0])
    assert np.abs(without[2][0] - alone(predictor, items[0])[2][0]).max() > 1e-3


def test_regions_are_cleaned_as_in_predict_prompts(predictor: Predictor, photo: np.ndarray) -> None:
    item = Item(photo, [[5, 5, 70, 40]])
    predictor.set_image(photo)
    raw, cleaned = (
        predictor.predict_prompts(item.boxes, fill_holes=n, drop_islands=n)[0] for n in (0, 100)
    )  # fmt: skip
    assert (raw != cleaned).any()
    (result,) = predictor.predict_many([item], fill_holes=100, drop_islands=100)
    np.testing.assert_array_equal(result.masks, cleaned)


def test_an_item_that_cannot_be_used_costs_only_itself(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    good, cut = tmp_path / "good.png", tmp_path / "cut.jpg"
    Image.fromarray(photo).save(good)
    cut.write_bytes(b"\xff\xd8\xff\xe0 cut")
    box = [[10, 5, 60, 40]]
    items = [
        Item(tmp_path / "missing.jpg", box),
        Item(str(good), box, id=7),
        Item(cut, box),
        Item(photo, [[10, 5, 600, 40]]),
        Item(photo),
        Item(photo.astype(np.float32), box),
        Item(photo, box, mask_inputs=[np.zeros((3, 3))]),
        Item(good, box),
    ]
    results = list(predictor.predict_many(items))
    expected = alone(predictor, Item(photo, box))
    for number in (1, 7):
        check_equal(results[number], expected)
    assert results[1].id == 7 and np.array_equal(results[1].image, photo)
    texts = ["no such file", "", "damaged image", "not within the photo", "no prompt", "expected RGB", "mask_input", ""]
    for result, text in zip(results, texts, strict=True):
        if text:
            assert isinstance(result.error, UsageError) and text in str(result.error)
            assert result.masks.shape == (0, 0, 0, 0) and result.logits.size == result.scores.size == 0
            with pytest.raises(UsageError, match=rf"items\[{result.index}\]: has no masks"):
                result.mask(0)


def test_only_errors_and_no_items(predictor: Predictor, tmp_path: Path) -> None:
    assert list(predictor.predict_many([])) == []
    missing = [Item(tmp_path / f"{i}.png", [[0, 0, 1, 1]]) for i in range(600)]
    assert [r.index for r in predictor.predict_many(missing) if "no such file" in str(r.error)] == list(range(600))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_masks": 2}, "num_masks: must be 1, 3 or 4"),
        ({"batch_size": -1}, "batch_size: must be an integer of at least 1, got -1"),
        ({"batch_size": 1.5}, "batch_size: must be"),
        ({"fill_holes": -1}, "fill_holes"),
        ({"pixel_range": "9"}, "9"),
    ],
)
def test_options_out_of_range_are_refused_at_the_call(
    predictor: Predictor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.predict_many([], **options)


def test_something_else_than_an_item_is_refused(predictor: Predictor, photo: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"items\[1\]: expected an Item, got a value of type ndarray"):
        list(predictor.predict_many([Item(photo, [[1, 1, 9, 9]]), photo]))  # type: ignore[list-item]


def test_items_are_taken_as_needed_and_threads_end_with_the_generator(predictor: Predictor, photo: np.ndarray) -> None:
    taken = []

    def endless() -> Iterator[Item]:
        while True:
            taken.append(1)
            yield Item(photo, [[1, 1, 9, 9]])

    before = threading.active_count()
    results = predictor.predict_many(endless(), batch_size=2)
    for _ in range(5):
        assert next(results).error is None  # type: ignore[call-overload]
    assert len(taken) <= 5 + 3 * 2 + 2 + 2
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_masks_are_refused_by_a_model_that_takes_none(photo: np.ndarray) -> None:
    config = SamConfig(
        encoder=PlainVitConfig(width=16, depth=1, heads=2),
        decoder=dataclasses.replace(tiny.CONV.decoder, depth=1), image_size=64, embed_dim=16, variant="efficient_sam",
    )  # fmt: skip
    predictor = Predictor(Model(config, init_variables(config, 0), {}))
    (result,) = predictor.predict_many([Item(photo, [[1, 1, 9, 9]], mask_inputs=np.zeros((1, 16, 16)))])
    assert str(result.error) == "mask_input: EfficientSAM takes no masks; omit mask_input"
