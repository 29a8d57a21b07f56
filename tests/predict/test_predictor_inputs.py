"""What can be handed to the predictor: ragged prompts, array-likes and anything else; threads; small regions."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.portable import regions
from edgesam_jax.predict import compiled
from edgesam_jax.predict.predictor import Predictor

POINTS = [[[20, 30], [50, 10], [7, 7]], [[60, 40]], [[30, 20], [31, 21]]]
LABELS = [[1, 0, 1], [1], [1, 1]]


def assert_equal_to_each(predictor: Predictor, together: tuple, prompts: list[dict]) -> None:
    for i, prompt in enumerate(prompts):
        for found, expected in zip(together, predictor.predict(**prompt, num_masks=4), strict=True):
            np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_prompts_may_have_different_numbers_of_points(ready: Predictor) -> None:
    each = [{"point_coords": p, "point_labels": n} for p, n in zip(POINTS, LABELS, strict=True)]
    together = ready.predict_prompts(None, POINTS, LABELS, num_masks=4)
    assert_equal_to_each(ready, together, each)
    padded = np.full((3, 4, 2), np.nan)
    labels = np.full((3, 4), -1)
    for row, kinds, points, known in zip(padded, labels, POINTS, LABELS, strict=True):
        row[1 : 1 + len(points)], kinds[1 : 1 + len(points)] = points, known  # the first slot is unused, too
    for form in (
        (padded, labels),
        (np.array([*map(np.array, POINTS), None], object)[:3], [*map(np.array, LABELS)]),
        (tuple(map(tuple, POINTS)), [[bool(v) for v in some] for some in LABELS]),
    ):
        for found, expected in zip(ready.predict_prompts(None, *form, num_masks=4), together, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_with_boxes_some_prompts_may_have_no_points(ready: Predictor) -> None:
    boxes = [[10, 5, 60, 40], [1, 2, 30, 40], [5, 5, 75, 45]]
    points, labels = [POINTS[0], [], POINTS[1]], [LABELS[0], [], LABELS[1]]
    each = [
        {"box": box, **({"point_coords": p, "point_labels": n} if p else {})}
        for box, p, n in zip(boxes, points, labels, strict=True)
    ]
    assert_equal_to_each(ready, ready.predict_prompts(boxes, points, labels, num_masks=4), each)
    logits = ready.predict_prompts(boxes, num_masks=1)[2]
    guided = ready.predict_prompts(boxes, points, labels, logits, num_masks=4)
    each = [{**prompt, "mask_input": logits[i]} for i, prompt in enumerate(each)]
    assert_equal_to_each(ready, guided, each)


def test_with_points_some_prompts_may_have_no_box(ready: Predictor) -> None:
    boxes, points, labels = [[10, 5, 60, 40], None, None], [[], POINTS[1], POINTS[0][:1]], [[], LABELS[1], [1]]
    each = [
        {"box": boxes[0]},
        {"point_coords": POINTS[1], "point_labels": LABELS[1]},
        {"point_coords": POINTS[0][:1], "point_labels": [1]},
    ]
    assert_equal_to_each(ready, ready.predict_prompts(boxes, points, labels, num_masks=4), each)
    none = ready.predict_prompts([None, None], POINTS[:2], LABELS[:2])
    np.testing.assert_array_equal(none[2], ready.predict_prompts(None, POINTS[:2], LABELS[:2])[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2, 30, 40], None], [[], []], [[], []]), r"boxes\[1\]: a prompt without a box and without"),
        (([[1, 2, 30, 40], None], [[[1, 2]], []], [[1], []]), r"point_coords\[1\]: a prompt without a point"),
        (([[1, 2, 30, 40], None],), r"boxes\[1\]: expected four numbers x0, y0, x1, y1, got None"),
        (([None],), "box: expected four numbers x0, y0, x1, y1, got None"),
        ((None, [[[1, 2]], []], [[1], []]), r"point_coords\[1\]: a prompt without a point"),
        ((None, [[[1, 2]], [[3, 4]]], [[1]]), "point_coords of 2 and point_labels of 1 prompts"),
        ((None, [[[1, 2]], None], [[1], [1]]), r"point_coords\[1\]: expected x, y of each point .n 2., got None"),
        ((None, [[[1, 2]], [[81, 4]]], [[1], [1]]), "point 81,4,1: not on the photo"),
        (([[1, 2, 3, 4], [1, 2, 3]],), r"boxes\[1\]: expected four numbers x0, y0, x1, y1, got an array of shape .3,."),
        (([1, 2, 30, 40],), r"boxes\[0\]: expected four numbers"),
        (([],), "boxes: empty"),
        (
            ({1: 2},),
            "boxes: expected a list with four numbers x0, y0, x1, y1 for each prompt, got a value of type dict",
        ),
        (([[1, 2, 30, 40]], POINTS, LABELS), "1 boxes but 3 sets of points"),
        (([[1, 2, 30, 40]], None, None, np.zeros((2, 16, 16))), "2 masks for 1 prompts"),
    ],
)
def test_bad_lists_of_prompts_are_one_clear_line(ready: Predictor, arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ready.predict_prompts(*arguments)
    assert "\n" not in str(caught.value)


def test_numbers_of_points_share_few_compilations(ready: Predictor, model: Model) -> None:
    def predict(count: int) -> None:
        ready.predict(np.full((count, 2), 20), np.ones(count))

    decode = compiled.decoder(model.config)
    for count in (1, 2, 4, 8):
        predict(count)
    before = decode._cache_size()  # type: ignore[attr-defined]
    for count in (3, 5, 6, 7, 8):
        predict(count)
    assert decode._cache_size() == before  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------- what other libraries hand over


class ArrayLike:
    """Has ``__array__`` and nothing else, like the tensors and tables of other libraries."""

    def __init__(self, values: object) -> None:
        self.values = values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        if self.values is None:
            raise RuntimeError("this tensor is on another device\nand says so on two lines")
        return np.asarray(self.values, dtype)


def test_array_likes_work_and_their_errors_are_one_line(ready: Predictor, model: Model, photo: np.ndarray) -> None:
    expected = ready.predict([[20, 30]], [1], [10, 5, 60, 40])
    found = ready.predict(ArrayLike([[20, 30]]), ArrayLike([1]), ArrayLike([[10, 5, 60, 40]]))
    np.testing.assert_array_equal(found[2], expected[2])
    again = ready.predict_prompts(ArrayLike([[10, 5, 60, 40]]), ArrayLike([[[20, 30]]]), [ArrayLike([1])])
    np.testing.assert_array_equal(again[2][0], expected[2])
    assert Predictor(model).set_image(ArrayLike(photo)).photo == ready.embedding.photo
    for argument in ("box", "mask_input"):
        message = rf"{argument}: expected .*, got a value of type ArrayLike \(this tensor is on another device\)"
        with pytest.raises(UsageError, match=message) as caught:
            ready.predict(**{"box": [10, 5, 60, 40], argument: ArrayLike(None)})
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"image: expected RGB .*, got a value of type ArrayLike"):
        ready.set_image(ArrayLike(None))


def test_a_masked_array_without_masked_entries_is_an_array(ready: Predictor) -> None:
    box = np.ma.array([10, 5, 60, 40])
    np.testing.assert_array_equal(ready.predict(box=box)[2], ready.predict(box=[10, 5, 60, 40])[2])


# ------------------------------------------------------------------------------------------------------ anything at all

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-100, 100), st.integers(), st.floats(), st.complex_numbers(),
    st.text(max_size=3), st.binary(max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sets(st.integers(), max_size=3), st.builds(object), st.builds(ArrayLike, st.none()),
    st.sampled_from([np.ma.masked, float, 10**400]),
)  # fmt: skip
COORDINATE = st.one_of(st.integers(0, 48), st.floats(0, 48), PLAIN)
NESTED = st.recursive(
    COORDINATE, lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner)), max_leaves=12
)
SHAPES = st.sampled_from([(4,), (1, 4), (2, 4), (1, 1, 2), (1, 2), (2, 2), (0,), (), (3, 0, 2)])
ANYTHING = st.one_of(
    PLAIN,
    NESTED,
    arrays.arrays(np.float64, SHAPES, elements=st.floats(-1, 50)),
    arrays.arrays(np.int16, SHAPES, elements=st.integers(-1, 48)),
    st.sampled_from([np.zeros((16, 16)), np.zeros((1, 16, 16)), np.zeros((4, 16, 16)), np.zeros((48, 80))]),
    st.sampled_from(["U2", "S2", "M8[s]", "c8", "V3", "O"]).map(lambda kind: np.zeros((2, 2), kind)),
    st.sampled_from([[[1, 2]], [1], [[10, 5, 60, 40]], [10, 5, 60, 40], [[[1, 2]], [[3, 4], [5, 6]]], [[1], [0, 1]]]),
)
MAYBE = st.one_of(st.none(), ANYTHING)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.tuples(MAYBE, MAYBE, MAYBE, MAYBE), several=st.booleans(), rest=st.tuples(ANYTHING, ANYTHING))
def test_whatever_is_handed_over_works_or_is_a_usage_error(
    ready: Predictor, monkeypatch: pytest.MonkeyPatch, values: tuple, several: bool, rest: tuple
) -> None:
    def decode(embedding: object, *prompts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Stands in for the decoder, which would be compiled for every number of prompts."""
        count = next(len(x) for x in prompts[:2] if x is not None)
        shapes = ((count, 4), (count, -1, 2), (count, -1), (count, 16, 16))
        for array, shape in zip(prompts, shapes, strict=True):
            assert array is None or (np.isfinite(array).all() and array.reshape(shape).shape == array.shape)
        return np.zeros((count, 4, 16, 16), np.float32), np.zeros((count, 4), np.float32)

    monkeypatch.setattr(ready, "_decode", decode)
    options = {} if several else {"num_masks": rest[0], "fill_holes": rest[1]}
    predict = ready.predict_prompts if several else ready.predict
    for chosen in ({}, options):
        try:
            masks, scores, logits = predict(*values, **chosen)
        except UsageError as error:
            assert str(error).isprintable() and len(str(error)) < 500
        else:
            assert masks.shape[:-2] == scores.shape == logits.shape[:-2] and masks.shape[-2:] == (48, 80)


# --------------------------------------------------------------------------------------------- threads, and clean masks


def test_threads_share_a_predictor(model: Model) -> None:
    """Each thread sets and prompts its own photos; embeddings in hand, none gets another's masks."""
    predictor, alone = Predictor(model), Predictor(model)
    photos = np.random.default_rng(5).integers(0, 256, (8, 48, 80, 3), np.uint8)
    expected = []
    for some in photos:
        alone.set_image(some)
        expected.append(alone.predict(box=[10, 5, 60, 40])[2])
    together = threading.Barrier(2)

    def work(indices: range) -> list[np.ndarray]:
        found = []
        for i in indices:
            handle = predictor.set_image(photos[i])
            together.wait(60)  # both photos are set before either is prompted
            found.append(predictor.predict(box=[10, 5, 60, 40], image=handle)[2])
            together.wait(60)
        return found

    with ThreadPoolExecutor(2) as pool:
        results = [*pool.map(work, (range(4), range(4, 8)))]
    np.testing.assert_array_equal(np.concatenate(results), np.stack(expected))
    assert len({r.tobytes() for result in results for r in result}) == 8
    other = Predictor(Model(model.config, model.variables))
    with pytest.raises(UsageError, match="image: computed by another model"):
        other.predict(box=[10, 5, 60, 40], image=predictor.embedding)


def test_holes_and_islands_change_the_masks_alone(ready: Predictor) -> None:
    plain = ready.predict(box=[10, 5, 60, 40], num_masks=4)
    found = ready.predict(box=[10, 5, 60, 40], num_masks=4, fill_holes=40, drop_islands=60)
    np.testing.assert_array_equal(found[0], regions.clean(plain[0], 40, 60))
    assert (found[0] != plain[0]).any()
    for a, b in zip(found[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(a, b)
