"""The choice of cases, and that the picture shows the object, its prompt and the errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgesam_jax.eval.report import contact_sheet
from edgesam_jax.eval.report.contact_sheet import GAP, TILE_HEIGHT, TILE_WIDTH, TITLE, Case, choose_cases


def rows(ious, images=None, areas=None):
    return [
        {"image_id": i if images is None else images[i], "annotation_id": i, "iou": [0.5, iou]}
        | ({} if areas is None else {"area": areas[i]})
        for i, iou in enumerate(ious)
    ]


def test_worst_are_the_lowest_of_different_photos_and_no_specks():
    instances = rows([0.3, 0.1, 0.2, None, 0.0, 0.9], images=[1, 2, 2, 3, 4, 5], areas=[100, 500, 500, 500, 99, 500])
    assert choose_cases(instances, worst=3, typical=0) == ([1, 0, 5], [])
    assert choose_cases(instances, worst=1, typical=0) == ([1], [])


def test_typical_are_spread_over_the_middle():
    instances = rows(np.random.default_rng(0).permutation(101) / 100)
    worst, typical = choose_cases(instances, worst=4, typical=3)
    assert [instances[i]["iou"][-1] for i in worst] == [0.0, 0.01, 0.02, 0.03]
    assert [instances[i]["iou"][-1] for i in typical] == [0.25, 0.5, 0.75]
    assert len(choose_cases(instances, typical=1)[1]) == 1


def test_few_or_equal_instances():
    assert choose_cases([]) == ([], [])
    assert choose_cases(rows([None, None])) == ([], [])
    worst, typical = choose_cases(rows([0.4, 0.5, 0.6]), worst=1, typical=8)
    assert worst == [0] and typical == [1, 2], "none twice, none of the worst"
    equal = rows([1.0] * 50, images=[0] * 50)
    first, again, other = (choose_cases(equal, worst=1, typical=4, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again and first != other and len(set(first)) == 4


def square(h, w, top, left, side):
    mask = np.zeros((h, w), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def panels(path, row):
    """The four panels of a row of the sheet."""
    with Image.open(path) as picture:
        whole = np.asarray(picture.convert("RGB"))
    top = TITLE + GAP + row * (TITLE + TILE_HEIGHT + GAP) + TITLE
    return [whole[top : top + TILE_HEIGHT, GAP + k * (TILE_WIDTH + GAP) :][:, :TILE_WIDTH] for k in range(4)]


def near(panel, colour, within=45):
    return np.abs(panel.astype(int) - colour).max(-1) <= within


def test_the_panels_show_prompt_masks_and_errors(tmp_path):
    photo = np.full((300, 400, 3), 128, np.uint8)
    truth, prediction = square(300, 400, 100, 100, 60), square(300, 400, 100, 130, 60)
    coords = np.array([[100, 100], [160, 160], [110, 110], [5, 5]], float)
    case = Case(photo, truth, prediction, coords, np.array([2, 3, 0, -1]), "one  case")
    contact_sheet.sheet([case, case], tmp_path / "s.png")
    for row in range(2):
        prompt, true, predicted, errors = panels(tmp_path / "s.png", row)
        assert near(prompt, contact_sheet.BOX).any() and near(prompt, contact_sheet.OUTSIDE).any()
        assert not near(prompt, contact_sheet.INSIDE).any(), "the padding slot is not drawn"
        missed, surplus = near(errors, contact_sheet.MISSED), near(errors, contact_sheet.SURPLUS)
        assert missed.sum() == pytest.approx(surplus.sum(), rel=0.1), "the object is moved by half its width"
        assert np.nonzero(missed)[1].max() < np.nonzero(surplus)[1].min(), "missed on the left, surplus on the right"
        blue = [np.nonzero(panel[..., 2] > panel[..., 0] + 30)[1].mean() for panel in (true, predicted)]
        scale = TILE_HEIGHT / (np.ptp(np.nonzero(missed)[0]) + 1) * 60 / TILE_HEIGHT  # photo pixels per panel pixel
        assert (blue[1] - blue[0]) * scale == pytest.approx(30, abs=2)


def test_a_prediction_of_everything_does_not_hide_the_object(tmp_path):
    truth = square(1000, 1000, 480, 480, 40)
    case = Case(np.zeros((1000, 1000, 3), np.uint8), truth, ~truth, np.array([[2.0, 998.0]]), np.array([1]), "all")
    (top, bottom), (left, right) = contact_sheet._window(case)
    assert top <= 440 and bottom >= 560 and bottom - top < 250 and right - left < 320
    assert (right - left) / (bottom - top) == pytest.approx(TILE_WIDTH / TILE_HEIGHT, rel=0.02)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (40, 40)])
@pytest.mark.parametrize("kind", ["empty", "full", "truth only"])
def test_any_size_and_empty_masks(tmp_path, size, kind):
    truth = np.full(size, kind != "empty")
    prediction = np.full(size, kind == "full")
    case = Case(np.zeros((*size, 3), np.uint8), truth, prediction, np.zeros((0, 2)), np.zeros(0, int), "t" * 500)
    contact_sheet.sheet([case], tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (4 * (TILE_WIDTH + GAP) + GAP, 2 * TITLE + TILE_HEIGHT + 2 * GAP)


def test_wrong_shapes_are_named():
    photo, mask = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match="x: photo and masks must have the same size"):
        Case(photo, mask, mask[:3], np.zeros((0, 2)), np.zeros(0), "x")
    with pytest.raises(ValueError, match="x: 1 points but 2 labels"):
        Case(photo, mask, mask, np.zeros((1, 2)), np.zeros(2), "x")
