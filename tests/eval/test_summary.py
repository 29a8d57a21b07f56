"""Aggregates of instances equal plain arithmetic and don't depend on the order."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.eval.report import published_numbers, summary


def instance(image, annotation, iou, area=2000.0, category=None, **more):
    row = {"image_id": image, "annotation_id": annotation, "area": area, "iou": iou, **more}
    return row | ({} if category is None else {"category_id": category})


ROWS = [
    instance(1, 10, [0.5, 0.7], area=1023, category=3),
    instance(1, 11, [0.9, 0.9], area=1024, category=3),
    instance(2, 12, [0.1, 0.2], area=9215, category=7),
    instance(2, 13, [None, None], area=0, category=7),
    instance("x", 14, [0.6, 0.4], area=9216),
]


def test_means_are_plain_arithmetic():
    found = summary.summarise(ROWS, {3: "cup"})
    assert found["miou"] == pytest.approx([(0.5 + 0.9 + 0.1 + 0.6) / 4, (0.7 + 0.9 + 0.2 + 0.4) / 4], abs=1e-15)
    assert found["miou_over_photos"] == pytest.approx([(0.7 + 0.1 + 0.6) / 3, (0.8 + 0.2 + 0.4) / 3], abs=1e-15)
    assert found["miou_by_size"]["small"] == {"count": 2, "miou": [0.5, 0.7]}, "an empty annotation counts, no mean"
    assert found["miou_by_size"]["medium"] == {"count": 2, "miou": [0.5, 0.55]}
    assert found["miou_by_size"]["large"] == {"count": 1, "miou": [0.6, 0.4]}
    assert found["miou_by_category"] == {
        "category 7": {"count": 2, "miou": [0.1, 0.2]},
        "cup": {"count": 2, "miou": [0.7, 0.8]},
    }
    assert "boundary_iou" not in found


def test_what_is_not_there_is_absent_or_none():
    rows = [instance(1, 1, [None], boundary_iou=[None]), instance(2, 2, [None], boundary_iou=[0.25])]
    found = summary.summarise(rows, {})
    assert found["miou"] == [None] and found["boundary_iou"] == [0.25] and found["miou_over_photos"] == [None]
    assert found["miou_by_size"] == {"medium": {"count": 2, "miou": [None]}} and "miou_by_category" not in found
    assert summary.summarise([], {}) == {"miou": [], "miou_by_size": {}, "miou_over_photos": []}
    with pytest.raises(ValueError, match="argument"):
        summary.summarise([instance(1, 1, [0.5]), instance(1, 2, [0.5, 0.6])], {})


def test_two_categories_of_one_name_are_one_group():
    rows = [instance(1, 1, [0.2], category=1), instance(1, 2, [0.4], category=2)]
    assert summary.summarise(rows, {1: "cat", 2: "cat"})["miou_by_category"]["cat"]["count"] == 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.floats(0, 1), st.none() | st.floats(0, 1), st.floats(0, 1e5), st.integers(0, 3)
        ),
        min_size=1,
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_no_result_depends_on_the_order(values, shuffler: random.Random):
    rows = [instance(image, i, [a, b], area, category) for i, (image, a, b, area, category) in enumerate(values)]
    before = summary.summarise(rows, {0: "zero"}), summary.clicks(rows, 2)
    shuffler.shuffle(rows)
    assert (summary.summarise(rows, {0: "zero"}), summary.clicks(rows, 2)) == before
    first = before[0]["miou"][0]
    assert math.isclose(first, float(np.mean([v[1] for v in values])), rel_tol=1e-12, abs_tol=1e-15)


def test_clicks_count_the_first_prompt_and_cap_what_never_arrives():
    rows = [instance(1, i, iou) for i, iou in enumerate([[0.8, 0.7, 0.95], [0.1, 0.86, 0.2], [0.1, 0.2, 0.3]])]
    rows.append(instance(1, 9, [None, None, None]))
    found = summary.clicks(rows, 3)
    assert found["80"] == pytest.approx((1 + 2 + 3) / 3) and found["failed"]["80"] == pytest.approx(1 / 3)
    assert found["85"] == pytest.approx((3 + 2 + 3) / 3)
    assert found["90"] == 3.0 and found["failed"]["90"] == pytest.approx(2 / 3) and found["max_clicks"] == 3
    assert summary.clicks(rows, 1)["80"] == 1.0 and summary.clicks(rows, 1)["failed"]["80"] == pytest.approx(2 / 3)
    assert summary.clicks(rows[-1:], 2) == {
        **dict.fromkeys(("80", "85", "90")),
        "max_clicks": 2,
        "failed": dict.fromkeys(("80", "85", "90")),
    }
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="max_clicks"):
            summary.clicks(rows, wrong)


def test_the_papers_rows_are_found_by_data_and_prompt():
    boxes = published_numbers.matching_rows({"dataset": "coco", "prompt": "box"})
    assert [row.model for row in boxes] == ["SAM", "MobileSAM", "EfficientSAM-Ti", "EdgeSAM"]
    assert boxes[-1].miou == (76.7, 78.1, 79.0) and boxes[-1].source == "Table 2"
    found = published_numbers.matching_rows({"dataset": "coco", "prompt": "detections"})
    assert {row.detector for row in found} == {"ViTDet-H", "Detic"} and found[0].source == "Table 4"
    for dataset, prompt in (("coco", "point"), ("folder", "box"), ("lvis", "detections")):
        assert not published_numbers.matching_rows({"dataset": dataset, "prompt": prompt})
        assert not published_numbers.warnings({"dataset": dataset, "prompt": prompt})
    for row in published_numbers.OVERLAPS:  # every set has the three main systems with three rounds each
        assert len(row.miou) == 3 or row.model == "EdgeSAM-RPN"
    assert len(published_numbers.OVERLAPS) == 23


def test_warnings_say_what_is_not_the_papers():
    report = {"dataset": "coco", "prompt": "box", "num_images": 5000, "protocol": "published", "refine": 2}
    assert [w[:20] for w in published_numbers.warnings(report)] == ["The number of photos"]
    bare = report | {"num_images": 4952, "skipped": {"counts": {"no annotations": 48}}}
    assert published_numbers.warnings(bare) == published_numbers.warnings(report), (
        "photos without annotations have nothing to score"
    )
    assert published_numbers.warnings(report | {"num_images": 126})[0].startswith(
        "Not comparable: 126 photos here, 5,000 photos"
    )
    changes = {"protocol": "exact", "num_masks": 3, "select": "oracle", "box_noise": 0.1, "refine_point": "largest"}
    assert len(published_numbers.warnings(report | changes)) == 5
    assert any("58.7" in w for w in published_numbers.warnings(report | {"prompt": "detections"}))
    assert "same photos and masks" in published_numbers.warnings(report | {"dataset": "sa1b", "num_images": 1000})[0]
