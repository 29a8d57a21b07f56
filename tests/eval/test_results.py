"""Results files: common files are read, and entries that can't be used are counted by kind and named."""

import contextlib
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from whole_masks import decode_mask

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import BadExample
from edgesam_jax.eval.scoring.results import check_results, compressed, read_results, result, top_per_image

H, W = 20, 30
SIZES = {7: (H, W), 8: (5, 6), "seven": (H, W)}
MASK = np.zeros((H, W), bool)
MASK[3:9, 4:20] = True
BOX = {"image_id": 7, "category_id": 3, "score": 0.5, "bbox": [4.0, 3.0, 16.0, 6.0]}
RLE = coco_mask.encode(np.asfortranarray(MASK, np.uint8))
CODE = {"size": [H, W], "counts": RLE["counts"].decode()}
LISTED = {"size": [H, W], "counts": [4 * H + 3, *[6, 14] * 15, 6, H - 9 + (W - 20) * H]}
POLYGONS = [[4, 3, 20, 3, 20, 9, 4, 9]]


def box(**change) -> dict:
    return {**BOX, **change}


def masked(segmentation) -> dict:
    return {"image_id": 7, "category_id": 3, "score": 0.5, "segmentation": segmentation}


def test_files_are_read_as_people_have_them(tmp_path):
    path = tmp_path / "coco_instances_results.json"
    entries = [BOX, masked(CODE), box(image_id="seven", extra=None)]
    for text in (json.dumps(entries), "\ufeff" + json.dumps(entries, indent=2)):
        path.write_text(text, encoding="utf-8")
        assert read_results(path, "--detections") == entries
    path.write_text("[]")
    assert read_results(path, "--detections") == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", None, "no such file"),
        ("a.json", b"[{", "not valid JSON"),
        ("a.json", b"\xff\xfe\xfd", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("instances_predictions.pth", b"\x80\x02", "not valid JSON.*coco_instances_results.json"),
        ("a.json", b'{"images": [], "annotations": []}', "a data set's annotations"),
        ("a.json", b'{"boxes": []}', "not COCO results"),
        ("a.json", b"[1, 2]", "not COCO results"),
        ("a.json", b"7", "not COCO results"),
    ],
)
def test_other_files_are_named(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"--detections .*{name}: .*{reason}") as caught:
        read_results(path, "--detections")
    assert "\n" not in str(caught.value)


def test_good_entries_are_kept_as_they_are():
    boxes = [BOX, box(image_id="seven"), box(bbox=[-3, -3, 100, 100], score=0), box(segmentation="whatever")]
    kept, rows = check_results(boxes, SIZES, {3}, "bbox")
    assert kept == boxes and rows == [] and kept[0] is boxes[0]
    shapes = [masked(s) for s in (CODE, {"size": [H, W], "counts": RLE["counts"]}, LISTED, POLYGONS, [[0, 0, 1, 1]])]
    assert check_results(shapes, SIZES, {3}, "segmentation") == (shapes, [])
    assert check_results([box(category_id=None)], SIZES, None, "bbox")[1] == []
    kept, rows = check_results([box(image_id=7.0, category_id=3.0)], SIZES, {3}, "bbox")
    assert rows == [] and [type(kept[0][k]) for k in ("image_id", "category_id")] == [int, int]


LONG = 1 << 62


@pytest.mark.parametrize(
    ("entry", "need", "kind"),
    [
        (7, "bbox", "result damaged"),
        (None, "bbox", "result damaged"),
        ({}, "bbox", "result damaged"),
        (box(image_id=None), "bbox", "result damaged"),
        (box(image_id=[7]), "bbox", "result damaged"),
        (box(image_id=True), "bbox", "result damaged"),
        (box(category_id="cat"), "bbox", "result damaged"),
        (box(image_id=9), "bbox", "photo unknown"),
        (box(image_id="7"), "bbox", "photo unknown"),
        (box(category_id=4), "bbox", "category unknown"),
        ({k: v for k, v in BOX.items() if k != "score"}, "bbox", "score missing"),
        (box(score=float("nan")), "bbox", "score missing"),
        (box(score=float("inf")), "bbox", "score missing"),
        (box(score=10**400), "bbox", "score missing"),
        (box(score="0.5"), "bbox", "score missing"),
        (box(score=True), "bbox", "score missing"),
        (masked(CODE), "bbox", "box damaged"),
        (box(bbox=[1, 2, 3]), "bbox", "box damaged"),
        (box(bbox=[1, 2, 3, float("nan")]), "bbox", "box damaged"),
        (box(bbox=[1, 2, 3, 10**400]), "bbox", "box damaged"),
        (box(bbox=["1", 2, 3, 4]), "bbox", "box damaged"),
        (box(bbox={}), "bbox", "box damaged"),
        (box(bbox=[1, 2, 0, 4]), "bbox", "box without area"),
        (box(bbox=[1, 2, 3, -4]), "bbox", "box without area"),
        (box(bbox=[30, 2, 3, 4]), "bbox", "box outside the photo"),
        (box(bbox=[3, 20, 3, 4]), "bbox", "box outside the photo"),
        (box(bbox=[-3, 2, 3, 4]), "bbox", "box outside the photo"),
        (box(bbox=[3, -9, 3, 4]), "bbox", "box outside the photo"),
        (BOX, "segmentation", "mask missing"),
        (masked(None), "segmentation", "mask missing"),
        (masked([]), "segmentation", "mask missing"),
        (masked("text"), "segmentation", "mask missing"),
        (masked({**CODE, "size": [W, H]}), "segmentation", "mask of another size"),
        (masked({"counts": CODE["counts"]}), "segmentation", "mask of another size"),
        (masked({"size": [H, W]}), "segmentation", "mask damaged"),
        (masked({"size": [H, W], "counts": None}), "segmentation", "mask damaged"),
        (masked({"size": [H, W], "counts": "~~~"}), "segmentation", "mask damaged"),
        (masked({"size": [H, W], "counts": CODE["counts"][:-1]}), "segmentation", "mask damaged"),
        (masked({"size": [H, W], "counts": [H * W + 1]}), "segmentation", "mask damaged"),
        (masked({"size": [H, W], "counts": [2 * H * W, -H * W]}), "segmentation", "mask damaged"),
        # These add up to the photo's pixels past the end of int64.
        (masked({"size": [H, W], "counts": [LONG, LONG, LONG, LONG + H * W]}), "segmentation", "mask damaged"),
        (masked({"size": [H, W], "counts": [10**30]}), "segmentation", "mask damaged"),
        (masked([["a"] * 6]), "segmentation", "mask damaged"),
        (masked([[1e9, 0, 5, 5, 3, 3]]), "segmentation", "mask damaged"),
        (masked([[0, 0, 100, 70] * 30_000]), "segmentation", "mask damaged"),  # there and back again
        (masked([7]), "segmentation", "mask damaged"),
    ],
)
def test_unusable_entries_are_named(entry, need, kind):
    good = box(segmentation=CODE)
    kept, rows = check_results([good, entry, good], SIZES, {3}, need)
    assert len(kept) == 2 and [row[0] for row in rows] == [kind]
    assert rows[0][1].startswith("results[1]: ") and "\n" not in rows[0][1] and len(rows[0][1]) < 300


def test_faults_are_counted_by_kind():
    entries = [BOX, box(image_id=1), box(image_id=2), box(category_id=9), box(score=None)]
    kept, rows = check_results(entries, SIZES, {3}, "bbox")
    assert len(kept) + len(rows) == len(entries)
    assert Counter(kind for kind, _ in rows) == {"photo unknown": 2, "category unknown": 1, "score missing": 1}


def test_no_run_length_code_takes_memory():
    """Runs longer than the photo are refused before memory for them is allocated."""
    tracemalloc.start()
    for counts in ([(1 << 63) - 1, 1, (1 << 63) - 10**9, 10**9 + H * W], [0, 10**12], "o" * 6 + "0" + "o" * 5 + "0"):
        with pytest.raises(BadExample):
            compressed({"size": [H, W], "counts": counts}, H, W, "mask")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [CODE, {**CODE, "counts": RLE["counts"]}, LISTED, POLYGONS])
def test_all_forms_compress_to_the_same(shape):
    assert compressed(shape, H, W, "") == CODE
    json.dumps(compressed(shape, H, W, ""))


def test_polygons_without_an_inside_compress_to_nothing():
    code = compressed([[0, 0, 9, 9]], H, W, "")
    assert not decode_mask(code, H, W, "").any() and coco_mask.area(code) == 0


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=20) | st.lists(st.integers(), max_size=5))
def test_no_code_is_a_traceback(counts):
    with contextlib.suppress(BadExample):
        code = compressed({"size": [H, W], "counts": counts}, H, W, "mask")
        assert coco_mask.decode(code).shape == (H, W)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_result_holds_the_mask(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    entry = json.loads(json.dumps(result(5, 2, np.float32(0.25), mask)))
    assert {k: v for k, v in entry.items() if k != "segmentation"} == {"image_id": 5, "category_id": 2, "score": 0.25}
    assert (decode_mask(entry["segmentation"], height, width, "") == mask).all()
    assert check_results([entry], {5: (height, width)}, {2}, "segmentation") == ([entry], [])


def test_top_is_taken_over_all_categories_of_a_photo():
    scores = [(7, 0.1), (8, 0.9), (7, 0.5), (7, 0.5), (7, 0.5), (8, 0.95), (7, 0.2)]
    entries = [{"image_id": i, "category_id": n, "score": s} for n, (i, s) in enumerate(scores)]
    assert [e["category_id"] for e in top_per_image(entries, 2)] == [1, 2, 3, 5]
    assert [e["category_id"] for e in top_per_image(entries, 1)] == [2, 5]
    assert top_per_image(entries, 300) == entries and top_per_image([], 300) == []
