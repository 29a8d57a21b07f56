"""COCO AP equals pycocotools' to the last digit; LVIS AP and boundary AP equal their definitions."""

import contextlib
import copy
import io
import itertools
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgesam_jax.config import UsageError
from edgesam_jax.eval.scoring.average_precision import (
    COCO_NAMES,
    LVIS_NAMES,
    average_precision,
    boundary_average_precision,
)
from edgesam_jax.eval.scoring.boundary import boundary_iou
from edgesam_jax.eval.scoring.ground_truth import read_ground_truth
from edgesam_jax.eval.scoring.results import check_results, result

H, W = 120, 160
THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"AP": (0, 1e10), "APS": (0, 32**2), "APM": (32**2, 96**2), "APL": (96**2, 1e10)}


def filled(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


def blob(rng: np.random.Generator) -> np.ndarray:
    """A rectangle of random size, occasionally one pixel, with a hole or a missing corner."""
    y, x = rng.integers(0, H - 2), rng.integers(0, W - 2)
    h, w = rng.choice([1, 8, 30, 60, 115], 2)
    mask = filled(y, y + h, x, x + w)
    mask[y + h // 2 : y + h // 2 + rng.integers(0, 9), x + w // 3 : x + w // 2] = False
    return mask


def annotation(image_id: int, category_id: int, mask: np.ndarray, **more) -> dict:
    entry = {k: v for k, v in result(image_id, category_id, 0, mask).items() if k != "score"}
    return {**entry, "bbox": [0, 0, 5, 5], "area": int(mask.sum()), "iscrowd": 0, **more}


def data_set(annotations: list[dict], photos: int = 4, categories: int = 3, **more) -> dict:
    for number, entry in enumerate(annotations):
        entry.setdefault("id", number + 1)
    return {
        "images": [{"id": 10 + i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in range(photos)],
        "annotations": annotations,
        "categories": [{"id": 1 + i, "name": "abcdefgh"[i]} for i in range(categories)],
        **more,
    }


def write(tmp_path, content: dict):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def random_data(seed: int) -> tuple[dict, list[dict]]:
    """Annotations with crowds and a photo without any; results that are shifted, misclassified or duplicated."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id, _ in itertools.product((10, 11, 12), range(5)):  # 13 has none
        mask, category = blob(rng), int(rng.integers(1, 4))
        annotations.append(annotation(image_id, category, mask, iscrowd=int(rng.random() < 0.2)))
        for _ in range(rng.integers(0, 4)):
            moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
            results.append(result(image_id, category if rng.random() < 0.8 else 3, rng.random(), moved))
    results += [result(int(rng.integers(10, 14)), int(rng.integers(1, 4)), rng.random(), blob(rng)) for _ in range(6)]
    return data_set(annotations), results


def official(path, results: list[dict]) -> list[float | None]:
    """pycocotools' scores of the file, by its usual calls."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else value for value in evaluation.stats[:6].tolist()]


def overlaps(result: np.ndarray, truth: dict, kind: str) -> float:
    mask = coco_mask.decode(truth["segmentation"]).astype(bool)
    common = (result & mask).sum()
    if truth["iscrowd"]:
        return common / result.sum()
    iou = common / (result | mask).sum()
    return iou if kind == "segm" else min(iou, float(boundary_iou(result, mask)))


def matched(results, truth, threshold: float, area: tuple[float, float], kind: str, exhaustive: bool):
    """(score, hit) of each result that counts in one photo and category, and the number of annotations to find.

    The best result first, each takes the free annotation that it overlaps most, an ignored one only for want of others.
    """
    ignored = [bool(t["iscrowd"]) or not area[0] <= t["area"] <= area[1] for t in truth]
    taken, found = set(), []
    for entry in sorted(results, key=lambda r: -r["score"]):
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        ious = [overlaps(mask, t, kind) for t in truth]
        free = [i for i, t in enumerate(truth) if ious[i] >= threshold and (i not in taken or t["iscrowd"])]
        best = max(free, key=lambda i: (not ignored[i], ious[i]), default=None)
        if best is None:
            if exhaustive and area[0] <= mask.sum() <= area[1]:
                found.append((entry["score"], False))
            continue
        taken.add(best)
        if not ignored[best]:
            found.append((entry["score"], True))
    return found, ignored.count(False)


def by_definition(content: dict, results: list[dict], kind: str, style: str) -> dict[str, float | None]:
    """AP by its definition: precision at 101 recalls, averaged over IoUs and categories, without limits on results."""

    def mean(name: str, categories: list[dict], thresholds=THRESHOLDS) -> float | None:
        values = []
        for category, threshold in itertools.product(categories, thresholds):
            found, count = [], 0
            for image in content["images"]:
                own, truth = (
                    [e for e in entries if (e["image_id"], e["category_id"]) == (image["id"], category["id"])]
                    for entries in (results, content["annotations"])
                )
                exhaustive = True
                if style == "lvis":
                    own = own if truth or category["id"] in image["neg_category_ids"] else []
                    exhaustive = category["id"] not in image["not_exhaustive_category_ids"]
                area = AREAS.get(name, AREAS["AP"])
                more, there = matched(own, truth, threshold, area, kind, exhaustive)
                found, count = found + more, count + there
            if not count:
                continue
            hits = np.cumsum([hit for _, hit in sorted(found, key=lambda f: -f[0])])
            recall, precision = hits / count, hits / np.arange(1, len(hits) + 1)
            best = [precision[recall >= r - 1e-12].max(initial=0) for r in np.linspace(0, 1, 101)]
            values.append(np.mean(best))
        return float(np.mean(values)) if values else None

    every = content["categories"]
    scores = {name: mean(name, every) for name in AREAS}
    scores |= {"AP50": mean("AP", every, [0.5]), "AP75": mean("AP", every, [0.75])}
    if style == "lvis":
        scores |= {"AP" + f: mean("AP", [c for c in every if c["frequency"] == f]) for f in "rcf"}
    return scores


def as_lvis(content: dict, seed: int) -> dict:
    """Add LVIS's fields: some categories are annotated as absent, some as not annotated exhaustively."""
    rng = np.random.default_rng(seed)
    for category, frequency in zip(content["categories"], "rcf", strict=False):
        category["frequency"] = frequency
    for image in content["images"]:
        there = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [c for c in (1, 2, 3) if c not in there and rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [c for c in sorted(there) if rng.random() < 0.4]
    for entry in content["annotations"]:
        del entry["iscrowd"]
    return content


def truth_as_results(content: dict) -> list[dict]:
    entries = [a for a in content["annotations"] if not a.get("iscrowd")]
    return [{k: e[k] for k in ("image_id", "category_id", "segmentation")} | {"score": 0.9} for e in entries]


@pytest.mark.parametrize("seed", range(12))
def test_coco_is_pycocotools_to_the_last_digit(tmp_path, seed):
    content, results = random_data(seed)
    path = write(tmp_path, content)
    before = copy.deepcopy(results)
    found = average_precision(path, results, style="coco")
    assert list(found) == list(COCO_NAMES)
    assert list(found.values()) == official(path, results)
    assert results == before
    truth = read_ground_truth(path)
    assert average_precision(truth, results, style="coco") == found == average_precision(truth, results, style="coco")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("score", "kind"), [(average_precision, "segm"), (boundary_average_precision, "boundary")])
@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_all_are_their_definitions(tmp_path, seed, score, kind, style):
    content, results = random_data(seed)
    if style == "lvis":
        content = as_lvis(content, seed)
    path = write(tmp_path, content)
    for entry in content["annotations"]:
        entry.setdefault("iscrowd", 0)
    found = score(path, results, style=style)
    assert list(found) == list(LVIS_NAMES if style == "lvis" else COCO_NAMES)
    assert found == pytest.approx(by_definition(content, results, kind, style), abs=1e-12)
    order = np.random.default_rng(seed).permutation(len(results))
    assert score(path, [results[i] for i in order], style=style) == found


@pytest.mark.parametrize("score", [average_precision, boundary_average_precision])
@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_truth_scores_all_and_nothing_scores_nothing(tmp_path, capfd, score, style):
    content, _ = random_data(1)
    sizes = [(1, 1), (40, 40), (110, 110)]  # of each size one that is not a crowd
    content["annotations"] += [annotation(13, 1 + i, filled(0, h, 0, w), id=90 + i) for i, (h, w) in enumerate(sizes)]
    path = write(tmp_path, as_lvis(content, 0) if style == "lvis" else content)
    perfect = score(path, truth_as_results(content), style=style)
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0), abs=1e-12)
    assert score(path, [], style=style) == dict.fromkeys(perfect, 0.0)
    assert capfd.readouterr() == ("", "")  # the tools' own tables


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_sizes_and_frequencies_that_are_not_there_are_none(tmp_path, style):
    content = data_set([annotation(10, 2, filled(0, 40, 0, 40))])
    path = write(tmp_path, as_lvis(content, 0) if style == "lvis" else content)
    for score, given in itertools.product(
        (average_precision, boundary_average_precision), ([], [result(13, 1, 0.5, filled(0, 9, 0, 9))])
    ):
        found = score(path, given, style=style)
        assert {name for name, value in found.items() if value is None} == {"APS", "APL", "APr", "APf"} & set(found)
        assert all(value == 0 for value in found.values() if value is not None)
        for image_ids in ([11, 12], []):
            nothing = score(path, truth_as_results(content) + given, style=style, image_ids=image_ids)
            assert set(nothing.values()) == {None}


@pytest.mark.parametrize(("shift", "passed"), [(0, 10), (5, 9), (11, 7), (20, 4), (33, 1), (34, 0)])
def test_shifted_masks_pass_the_thresholds_that_arithmetic_says(tmp_path, shift, passed):
    """A square of 100 pixels moved by s: IoU (100-s)/(100+s), here 1, .905, .802, .667, .504 and .493."""
    path = write(tmp_path, data_set([annotation(10, 1, filled(5, 105, 10, 110))]))
    found = average_precision(path, [result(10, 1, 0.5, filled(5, 105, 10 + shift, 110 + shift))], style="coco")
    assert found["AP"] == pytest.approx(passed / 10) and found["AP50"] == pytest.approx(float(passed > 0))


def test_boundary_ap_is_stricter(tmp_path):
    """A square without its outermost pixels: mask IoU .96; boundary IoU, 4 px wide here, 1152 of 1920 pixels."""
    path = write(tmp_path, data_set([annotation(10, 1, filled(5, 105, 10, 110))]))
    results = [result(10, 1, 0.5, filled(6, 104, 11, 109))]
    assert average_precision(path, results, style="coco")["AP"] == pytest.approx(1)
    common, union = 98**2 - 92**2, 100**2 - 90**2
    assert 0.6 <= common / union < 0.65
    assert boundary_average_precision(path, results, style="coco")["AP"] == pytest.approx(0.3)
    assert boundary_average_precision(path, results, style="coco", ratio=0.3)["AP"] == pytest.approx(1)


def test_a_crowd_takes_any_number_and_is_not_missed(tmp_path):
    crowd = annotation(10, 1, filled(0, 60, 0, 160), iscrowd=1)
    path = write(tmp_path, data_set([crowd, annotation(10, 1, filled(70, 110, 0, 40))]))
    inside = [result(10, 1, 0.9 - i / 100, filled(0, 20, 20 * i, 20 * i + 20)) for i in range(5)]
    right = result(10, 1, 0.1, filled(70, 110, 0, 40))
    for score in (average_precision, boundary_average_precision):
        assert score(path, [*inside, right], style="coco")["AP"] == pytest.approx(1)
        assert score(path, inside, style="coco")["AP"] == 0


def test_size_is_that_of_the_mask_not_of_the_box(tmp_path):
    """A thin diagonal in a large box.  With both box and mask, pycocotools derives the size from the box."""
    thin = np.eye(H, W, dtype=bool)
    content = data_set([annotation(10, 1, filled(0, 30, 0, 30))])
    path = write(tmp_path, content)
    plain = [result(10, 1, 0.9, thin), *truth_as_results(content)]
    boxed = [{**entry, "bbox": [0, 0, H, H]} for entry in plain]
    for score in (average_precision, boundary_average_precision):
        found = score(path, boxed, style="coco")
        assert found == score(path, plain, style="coco") and found["APS"] == pytest.approx(0.5)
    assert official(path, boxed)[3] == pytest.approx(1)


@pytest.mark.parametrize("score", [average_precision, boundary_average_precision])
def test_lvis_counts_300_results_of_a_photo_over_all_categories(tmp_path, score):
    content = as_lvis(data_set([annotation(10, 1, filled(0, 40, 0, 40)), annotation(11, 1, filled(0, 40, 0, 40))]), 0)
    content["images"][0]["neg_category_ids"] = [2]
    path = write(tmp_path, content)
    better = [result(10, 2, 0.5 + i / 1000, filled(0, 9, 0, 9)) for i in range(300)]
    right = truth_as_results(content)
    right[0]["score"] = 0.2  # of the photo with 300 better ones of another category
    assert score(path, [*better[1:], *right], style="lvis")["AP"] == pytest.approx(1)
    cut = score(path, [*better, *right], style="lvis")
    assert cut["AP"] == pytest.approx(51 / 101)  # one of two: recalls 0 to .50
    assert cut["APr"] == cut["AP"] and cut["APc"] is None


def test_part_of_the_photos(tmp_path):
    content, results = random_data(5)
    whole = write(tmp_path, content)
    part = {**content, "images": content["images"][1:3]}
    part["annotations"] = [a for a in content["annotations"] if a["image_id"] in (11, 12)]
    (tmp_path / "part").mkdir()
    path = write(tmp_path / "part", part)
    own = [r for r in results if r["image_id"] in (11, 12)]
    for score in (average_precision, boundary_average_precision):
        expected = score(path, own, style="coco")
        assert score(whole, results, style="coco", image_ids=[12, 11]) == expected
        assert score(read_ground_truth(whole, [11, 12]), results, style="coco") == expected
        assert score(read_ground_truth(whole), results, style="coco", image_ids=[11, 12]) == expected
    with pytest.raises(UsageError, match=r"instances\.json: no image has the id 99"):
        average_precision(whole, results, style="coco", image_ids=[10, 99])


def test_custom_files_are_completed(tmp_path):
    """No info, area, iscrowd, ids or categories; and annotation ids from 0, which pycocotools treats as no match."""
    content, results = random_data(2)
    for number, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = 0
        entry["id"] = number
    results += truth_as_results(content)
    complete = write(tmp_path, {**content, "annotations": [{**a, "id": a["id"] + 1} for a in content["annotations"]]})
    expected = official(complete, results)
    assert official(write(tmp_path, content), results) != expected
    assert list(average_precision(write(tmp_path, content), results, style="coco").values()) == expected
    del content["categories"]
    for entry in content["annotations"]:
        del entry["area"], entry["iscrowd"], entry["id"]
        entry["category_id"] = float(entry["category_id"])
    assert list(average_precision(write(tmp_path, content), results, style="coco").values()) == expected


def test_polygons_and_listed_runs_count_as_for_pycocotools(tmp_path):
    square = [[10.5, 5.2, 90.1, 5.2, 90.1, 80.7, 10.5, 80.7], [100, 5, 120, 5, 120, 30]]
    listed = {"size": [H, W], "counts": [0, 60 * H, (W - 60) * H]}
    content = data_set([annotation(10, 1, filled(0, 9, 0, 9)), annotation(11, 2, filled(0, 9, 0, 9))])
    content["annotations"][0]["segmentation"], content["annotations"][1]["segmentation"] = square, listed
    path = write(tmp_path, content)
    results = [result(10, 1, 0.5, filled(5, 81, 10, 90)), result(11, 2, 0.4, filled(0, H, 0, 50))]
    assert list(average_precision(path, results, style="coco").values()) == official(path, results)
    own = truth_as_results(content)
    assert check_results(own, {10: (H, W), 11: (H, W)}, {1, 2}, "segmentation") == (own, [])
    assert average_precision(path, own, style="coco")["AP"] == pytest.approx(1)


def test_damaged_entries_are_skipped_and_named(tmp_path):
    content, results = random_data(3)
    expected = average_precision(write(tmp_path, content), results, style="coco")
    good = content["annotations"][0]
    content["annotations"] += [
        7,
        {},
        {**good, "image_id": 99},
        {**good, "image_id": [10]},
        {**good, "category_id": 77},
        {k: v for k, v in good.items() if k != "category_id"},
        {k: v for k, v in good.items() if k != "segmentation"},
        {k: v for k, v in good.items() if k != "bbox"},
        {**good, "bbox": "wide"},
        {**good, "id": "first"},
        {**good, "segmentation": []},
        {**good, "segmentation": [[1, 2, 3, 4]]},
        {**good, "segmentation": {"size": [H, W], "counts": [5]}},
        {**good, "segmentation": {"size": [9, 9], "counts": [81]}},
        {**good, "segmentation": {"size": [H, W], "counts": "~"}},
    ]
    content["images"] += [7, {"id": None}, {"id": 10, "height": 5, "width": 5}, {"id": 50, "height": 0, "width": 5}]
    content["images"] += [{"id": 51, "height": 10**12, "width": 10**12}, {"id": 52}]
    content["categories"] += [None, {"id": "x"}]
    truth = read_ground_truth(write(tmp_path, content))
    kinds = [kind for kind, _ in truth.skipped]
    assert {k: kinds.count(k) for k in kinds} == {
        "annotation damaged": 13,
        "annotation empty": 2,
        "image entry damaged": 6,
        "category entry damaged": 2,
    }
    assert all("instances.json: " in message and len(message) < 400 for _, message in truth.skipped)
    assert average_precision(truth, results, style="coco") == expected
    assert boundary_average_precision(truth, results, style="coco")["AP"] is not None


def test_a_mask_counts_whatever_its_box(tmp_path):
    """Some of COCO's boxes are empty: they can't be used as prompts, and count as missed, as in pycocotools."""
    content = data_set([annotation(10, 1, filled(0, 40, 0, 40)), annotation(10, 1, filled(0, 99, 60, 61))])
    content["annotations"][1]["bbox"] = [60, 0, 0, 99]
    path = write(tmp_path, content)
    results = truth_as_results(content)[:1]
    found = average_precision(path, results, style="coco")
    assert list(found.values()) == official(path, results) and found["AP"] == pytest.approx(51 / 101)


def test_results_for_other_photos_and_categories_do_not_count(tmp_path):
    content, results = random_data(4)
    path = write(tmp_path, content)
    others = [{**results[0], "image_id": i, "category_id": c} for i, c in ((99, 1), ("10", 1), (10, 9))]
    for score in (average_precision, boundary_average_precision):
        assert score(path, others + results, style="coco") == score(path, results, style="coco")
    sizes = {image["id"]: (H, W) for image in content["images"]}
    _, rows = check_results(others + results, sizes, {1, 2, 3}, "segmentation")
    assert [kind for kind, _ in rows] == ["photo unknown", "photo unknown", "category unknown"]


def test_what_can_not_be_evaluated_is_named(tmp_path):
    content, results = random_data(0)
    path = write(tmp_path, content)
    with pytest.raises(UsageError, match=r"instances\.json: category 1 has no frequency r, c or f"):
        average_precision(path, results, style="lvis")
    content = as_lvis(content, 0)
    for value in (None, 3, [[1]]):
        content["images"][1]["neg_category_ids"] = value
        with pytest.raises(UsageError, match=r"instances\.json: image 11 has no 'neg_category_ids' list of integers"):
            average_precision(write(tmp_path, content), results, style="lvis")
    for run in ([99999], "~", [10**30]):
        bad = [{**results[0], "segmentation": {"size": [H, W], "counts": run}}]
        with pytest.raises(UsageError, match=f"image {bad[0]['image_id']}.*damaged segmentation"):
            average_precision(path, bad, style="coco")
    content["images"][0]["id"] = "0001"
    for score in (average_precision, boundary_average_precision):
        with pytest.raises(UsageError, match=r"instances\.json: image id '0001' is a string"):
            score(write(tmp_path, content), results, style="coco")
    with pytest.raises(UsageError, match="'a' is a string"):
        average_precision(write(tmp_path, random_data(0)[0]), results, style="coco", image_ids=["a"])


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "no such file"), ("{", "not valid JSON"), ("[]", "not in COCO"), ("{}", "not in COCO")]
)
def test_other_files_are_named(tmp_path, text, reason):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.json: {reason}"):
        average_precision(path, [], style="coco")
