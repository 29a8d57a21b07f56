"""The paired bootstrap over photos: correct intervals, reproducible results, and clear error messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError
from edgesam_jax.eval import compare as module
from edgesam_jax.eval.compare import NOT_SIGNIFICANT, SIGNIFICANT, bootstrap_means, compare


def report(iou, images, **changes):
    """A report with IoUs (n rounds) of instances on these photos (n)."""
    rows = [
        {
            "image_id": image if isinstance(image, str) else int(image),
            "annotation_id": i,
            "iou": [None if np.isnan(v) else float(v) for v in row],
        }
        for i, (row, image) in enumerate(zip(np.asarray(iou), images, strict=True))
    ]
    made = {"system": "s", "dataset": "coco", "prompt": "box", "protocol": "exact", "refine": len(rows[0]["iou"]) - 1}
    return made | {"instances": rows} | changes


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def clustered(random, photos=60, effect=0.0, within=0.05, between=0.05):
    """Differences (n) of instances on photos (n), with a shared random effect per photo."""
    counts = random.integers(1, 12, photos)
    images = np.repeat(np.arange(photos), counts)
    return effect + random.normal(0, between, photos)[images] + random.normal(0, within, len(images)), images


def by_photo(difference, images):
    groups = images.max() + 1
    return np.bincount(images, difference, groups)[:, None], np.bincount(images, minlength=groups)[:, None]


def test_equal_to_a_slow_bootstrap_of_the_same_draws():
    random = np.random.default_rng(0)
    sums, counts = random.normal(size=(7, 2)), random.integers(1, 5, (7, 2))
    draws = np.random.default_rng(3).integers(7, size=(50, 7))
    slow = [[sums[d, c].sum() / counts[d, c].sum() for c in range(2)] for d in draws]
    np.testing.assert_allclose(bootstrap_means(sums, counts, 50, 3), slow, rtol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    sums, counts = random.normal(size=(30, 3)), random.integers(1, 5, (30, 3))
    whole = bootstrap_means(sums, counts, 100, 0)
    monkeypatch.setattr(module, "CELLS", 7 * 30)
    assert np.array_equal(bootstrap_means(sums, counts, 100, 0), whole)


def test_interval_is_that_of_normal_theory_and_wider_than_without_photos(tmp_path):
    difference, images = clustered(np.random.default_rng(1), photos=300)
    a = np.full((len(images), 1), 0.5)
    first = write(tmp_path / "a.json", report(a, images))
    second = write(tmp_path / "b.json", report(a + difference[:, None], images))
    (column,) = compare(first, second).columns
    sums, counts = by_photo(difference, images)
    mean = difference.mean()
    error = np.sqrt(np.sum((sums - mean * counts) ** 2)) / counts.sum()  # of a ratio of sums, photos drawn
    assert column.difference == pytest.approx(mean, abs=1e-12)
    assert column.low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert column.high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    naive = difference.std() / np.sqrt(len(difference))
    assert column.high - column.low > 1.5 * 2 * 1.96 * naive, "instances of one photo go together"


def test_intervals_cover_as_often_as_they_say():
    random, hits = np.random.default_rng(2), 0
    for trial in range(400):
        means = bootstrap_means(*by_photo(*clustered(random, effect=0.01)), 400, trial)[:, 0]
        low, high = np.quantile(means, (0.025, 0.975))
        hits += low <= 0.01 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_a_clear_difference_is_real_and_identical_files_are_not_apart(tmp_path):
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(40), 3)
    iou = random.uniform(0.2, 0.8, (120, 2))
    a = write(tmp_path / "a.json", report(iou, images))
    b = write(tmp_path / "b.json", report(iou + np.array([0.1, 0.0]), images))
    same = compare(a, a)
    assert [(c.prompt, c.difference, c.low, c.high, c.p, c.verdict) for c in same.columns] == [
        ("box", 0.0, 0.0, 0.0, 1.0, NOT_SIGNIFICANT), ("+1", 0.0, 0.0, 0.0, 1.0, NOT_SIGNIFICANT)
    ]  # fmt: skip
    first, second = compare(a, b).columns
    assert first.verdict == SIGNIFICANT and first.p == pytest.approx(2 / 10001) and second.verdict == NOT_SIGNIFICANT
    assert first.difference == pytest.approx(0.1) and first.b - first.a == pytest.approx(0.1)
    reverse = compare(b, a).columns[0]
    assert reverse.difference == pytest.approx(-first.difference) and reverse.verdict == SIGNIFICANT


def test_neither_order_nor_chance_changes_the_result(tmp_path):
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(30), 3)
    one, two = (report(random.uniform(0, 1, (90, 1)), images) for _ in range(2))
    for made in (one, two):
        for row in made["instances"]:
            row["boundary_iou"] = [row["iou"][0] / 2]
    a, b = write(tmp_path / "a.json", one), write(tmp_path / "b.json", two)
    before = compare(a, b, samples=500)
    assert [c.measure for c in before.columns] == ["iou", "boundary_iou"]
    assert before.columns[1].difference == pytest.approx(before.columns[0].difference / 2)
    one["instances"] = [one["instances"][i] for i in random.permutation(90)]
    write(a, one)
    assert compare(a, b, samples=500) == before
    assert compare(a, b, samples=500, seed=1).columns[0].low != before.columns[0].low


def test_unpaired_and_null_instances_are_counted_and_named(tmp_path):
    images = [f"p{i // 2}" for i in range(40)]
    iou = np.full((40, 1), 0.5)
    one, two = report(iou, images), report(iou, images)
    one["instances"][4]["iou"] = [None]
    del one["instances"][7], two["instances"][:6]
    result = compare(write(tmp_path / "a.json", one), write(tmp_path / "b.json", two), samples=10)
    assert result.unpaired_b == [["p3", 7]] and len(result.unpaired_a) == 6
    assert result.columns[0].instances == 33 and result.columns[0].photos == 17
    text = result.text()
    assert "Only in A, not compared: 6 instances (photo/annotation p0/0, p0/1, p1/2, p1/3, p2/4 and 1 more)." in text
    assert "Only in B, not compared: 1 instances (photo/annotation p3/7)." in text
    two["instances"][3]["iou"] = [None]
    result = compare(tmp_path / "a.json", write(tmp_path / "b.json", two), samples=10)
    assert result.columns[0].instances == 32 and "1 pairs were skipped because an IoU is null" in result.text()


def test_equal_ids_pair_in_their_order(tmp_path):
    made = report(np.arange(24)[:, None] / 24, np.repeat(np.arange(12), 2))
    for row in made["instances"]:
        row["annotation_id"] = 0
    path = write(tmp_path / "a.json", made)
    result = compare(path, path, samples=10)
    assert result.columns[0].instances == 24 and result.columns[0].difference == 0 and not result.unpaired_a


def test_few_photos_prove_nothing(tmp_path):
    a = write(tmp_path / "a.json", report(np.full((9, 1), 0.5), range(9)))
    b = write(tmp_path / "b.json", report(np.full((9, 1), 0.6), range(9)))
    result = compare(a, b)
    assert result.columns[0].verdict == NOT_SIGNIFICANT and "fewer than 10 photos" in result.text()


def test_reports_of_other_data_are_refused_unless_forced(tmp_path):
    iou, images = np.full((12, 2), 0.5), range(12)
    a = write(tmp_path / "a.json", report(iou, images, seed=0))
    for key, value in (("dataset", "lvis"), ("prompt", "center"), ("protocol", "published"), ("refine", 1)):
        changed = report(iou[:, :1], images) | {"refine": 0} if key == "refine" else report(iou, images, **{key: value})
        b = write(tmp_path / "b.json", changed)
        with pytest.raises(UsageError, match=rf"a\.json, .*b\.json: {key} differs .*--force"):
            compare(a, b)
        result = compare(a, b, samples=10, force=True)
        assert f"Note: {key} differs" in result.text() and key not in result.settings
        assert len(result.columns) == (1 if key == "refine" else 2)
        assert result.columns[0].prompt == ("first" if key == "prompt" else "box")
    b = write(tmp_path / "b.json", report(iou, images, seed=1))
    assert "Note: seed differs: A 0, B 1" in compare(a, b, samples=10).text()


def test_one_of_several_systems_is_chosen(tmp_path):
    iou, images = np.full((12, 1), 0.5), range(12)
    many = {"systems": [report(iou, images, system=name) for name in ("x", "y:z", "x")]}
    path = write(tmp_path / "m:any.json", many)
    with pytest.raises(UsageError, match=r"has 3 systems; pass .*:NAME to choose one of x, y:z, x \(3\)"):
        compare(path, path)
    result = compare(f"{path}:y:z", f"{path}:3", samples=10)
    assert (result.system_a, result.system_b, result.file_a) == ("y:z", "x (3)", str(path))
    for wrong in ("w", "4", "0"):
        with pytest.raises(UsageError, match=f"no system '{wrong}' in"):
            compare(f"{path}:{wrong}", path)


def without(report, key):
    return {k: v for k, v in report.items() if k != key}


GOOD = report(np.full((3, 2), 0.5), range(3))
WRONG_IOUS = (7, -3, True, 1e308, float("inf"), float("-inf"), float("nan"), 1.0000001, "0.5", [0.5])
ROW = {"image_id": 1, "annotation_id": 2, "iou": [0.5, 0.6]}


@pytest.mark.parametrize(
    "content",
    [
        "not json {",
        "[]",
        "3",
        "[" * 100_000,
        "7" * 5000,
        '{"systems": []}',
        '{"systems": [3]}',
        "{}",
        *map(
            json.dumps,
            [
                without(GOOD, "instances"),
                without(GOOD, "prompt"),
                GOOD | {"instances": []},
                GOOD | {"instances": [3]},
                GOOD | {"instances": [without(ROW, "iou")]},
                GOOD | {"instances": [ROW | {"iou": []}]},
                GOOD | {"instances": [ROW | {"iou": ["a", "b"]}]},
                GOOD | {"instances": [ROW, ROW | {"iou": [0.5]}]},
                GOOD | {"instances": [ROW | {"image_id": None}]},
                GOOD | {"instances": [ROW | {"boundary_iou": [0.1]}]},
                GOOD | {"prompt": ["box"]},
                GOOD | {"dataset": None},
                GOOD | {"refine": "1"},
                GOOD | {"refine": 7},
                GOOD | {"instances": {"0": ROW}},
                GOOD | {"instances": [ROW | {"annotation_id": True}]},
                *(GOOD | {"instances": [ROW | {"iou": [0.5, value]}]} for value in WRONG_IOUS),
                *(GOOD | {"instances": [ROW | {"boundary_iou": [value, 0.5]}]} for value in WRONG_IOUS),
            ],
        ),
    ],
)
def test_what_is_no_report_is_one_clear_line(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"bad\.json: not (a report|valid JSON)") as error:
        compare(path, path)
    assert "\n" not in str(error.value)


def test_a_wrong_value_is_named_with_its_place(tmp_path):
    for value, text in ((float("nan"), "nan"), (7, "7"), (True, "True"), (float("-inf"), "-inf")):
        wrong = write(tmp_path / "w.json", GOOD | {"instances": [ROW, ROW | {"iou": [0.5, value]}]})
        with pytest.raises(UsageError, match=rf"\(instances\[1\]\.iou\[1\]: must be .* or null; got {text}\)"):
            compare(wrong, wrong)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_report_is_compared_or_one_line(tmp_path, data):
    """Any value in the place of any other."""
    content = report(np.full((12, 2), 0.5), range(12), seed=0, num_masks=1, select="first", data_root="DIR")
    node, path = content, []
    while isinstance(node, dict | list) and node and (not path or data.draw(st.booleans())):
        path.append((node, data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))))
        node = node[path[-1][1]]
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    )
    path[-1][0][path[-1][1]] = data.draw(anything)
    changed, whole = write(tmp_path / "a.json", content), write(tmp_path / "b.json", GOOD)
    for pair in ((changed, changed), (changed, whole)):
        try:
            result = compare(*pair, samples=5, force=True)
        except UsageError as error:
            assert "\n" not in str(error)
            continue
        assert all(0 <= column.a <= 1 and 0 <= column.b <= 1 for column in result.columns)
        result.text()


def test_missing_files_other_instances_and_binary_files(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json: no such file"):
        compare(tmp_path / "none.json", tmp_path / "none.json")
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match=r"picture\.png: not valid JSON"):
        compare(tmp_path / "picture.png", tmp_path / "picture.png")
    a, b = write(tmp_path / "a.json", GOOD), write(tmp_path / "b.json", report(np.ones((2, 2)), [8, 9]))
    with pytest.raises(UsageError, match="no instances in common; score both on the same photos"):
        compare(a, b)
    null = write(tmp_path / "n.json", report(np.full((3, 2), np.nan), range(3)))
    with pytest.raises(UsageError, match="every pair of instances has a null IoU"):
        compare(null, null)


def test_the_command_prints_and_writes(tmp_path):
    parser = Parser()
    module.add_arguments(parser)
    path = str(write(tmp_path / "a.json", report(np.full((12, 2), 0.5), range(12))))
    out = tmp_path / "new" / "c.json"
    text = module.run(parser.parse_args([path, path, "--samples", "50", "--seed", "4", "--output", str(out)]))
    assert "Both: dataset coco, prompt box, refine 1, protocol exact" in text
    assert "50 resamples of entire photos" in text
    written = json.loads(out.read_text())
    assert written["samples"] == 50 and written["seed"] == 4 and written["columns"][1]["prompt"] == "+1"
    assert list(out.parent.iterdir()) == [out]
    for flags, message in (
        (["--samples", "0"], "--samples"),
        (["--seed", "-1"], "--seed -1"),
        (["--output", str(tmp_path)], "is a folder"),
        (["--output", f"{path}/x.json"], "cannot write"),
    ):
        with pytest.raises(UsageError, match=message):
            module.run(parser.parse_args([path, path, *flags]))
