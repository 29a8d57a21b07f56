"""The page shows settings and results; the charts are drawn for the available data."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgesam_jax.eval.report import plots, report, summary


def make(seed=0, rounds=3, instances=120, system="edge_sam.pth", **changes):
    random = np.random.default_rng(seed)
    rows = [
        {
            "image_id": i // 4,
            "annotation_id": i,
            "category_id": 1 + i % 2,
            "area": float(np.exp(random.normal(8, 1.5))),
            "iou": random.uniform(0.3, 1, rounds).tolist(),
        }
        for i in range(instances)
    ]
    rows[0]["iou"] = [None] * rounds
    made = {
        "system": system,
        "dataset": "coco",
        "data_root": "photos",
        "prompt": "box",
        "checkpoint": f"weights/{system}",
        "protocol": "exact",
        "seed": 5,
        "refine": rounds - 1,
        "refine_point": "random",
        "num_masks": 1,
        "select": "first",
        "num_images": 30,
        "num_instances": instances,
        **summary.summarise(rows, {1: "cup", 2: "a|b"}),
        "noc": summary.clicks(rows, rounds),
        "skipped": {"counts": {"file missing": 2, "no annotations": 0}, "listed": []},
        "compilations": 4,
        "stage_seconds": {"read": 1.0, "decode": 3.0},
        "seconds": 8.0,
        "instances": rows,
    }
    return made | changes


def table(text, first):
    """The cells of the table whose header begins with ``first``, as a list of rows."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_the_page_shows_the_settings():
    text = report.markdown([make()])
    for line in (
        "# Evaluation: box prompts on coco",
        "- Scored: 30 photos, 120 instances",
        "- Skipped: file missing: 2",
        "- Prompt: the annotation's box",
        "- Refinement: 2 points added one at a time, each at a random wrong pixel (seed 5)",
        "- Masks per prompt: 1 (the first mask token)",
        "- Compiled programs: 4",
    ):
        assert line in text.splitlines()
    other = report.markdown(
        [make(num_masks=4, select="oracle", box_noise=0.1, refine_point="largest", protocol="published")]
    )
    assert "4, of which the one closest to the annotation is scored (an upper bound" in other
    assert (
        "--box-noise 0.1" in other
        and "each at the centre of the largest error region" in other
        and "published (the" in other
    )


def test_the_results_are_the_reports_in_percent():
    made = make(boundary_iou=[0.5, 0.6, 0.7])
    head, row = table(report.markdown([made]), "system")
    cells = dict(zip(head, row, strict=True))
    assert [cells[h] for h in ("box", "+1", "+2")] == [f"{100 * v:.1f}" for v in made["miou"]]
    assert (cells["B box"], cells["B +2"]) == ("50.0", "70.0")
    assert cells["small"] == f"{100 * made['miou_by_size']['small']['miou'][-1]:.1f}"
    assert cells["NoC90"] == f"{made['noc']['90']:.2f} ({100 * made['noc']['failed']['90']:.0f} %)"
    assert ("by photo" in cells) and "AP" not in cells


def test_several_systems_share_one_table_and_say_where_they_differ():
    reports = [make(), make(1, rounds=5, system="sam.pth"), make(2, system="sam.pth", num_instances=7)]
    text = report.markdown(reports)
    head, *rows = table(text, "system")
    assert [row[0] for row in rows] == ["edge_sam.pth", "sam.pth", "sam.pth (3)"]
    assert head[1:6] == ["box", "+1", "+2", "+3", "+4"]
    assert rows[0][4] == rows[0][5] == "-" and rows[1][5] == f"{100 * reports[1]['miou'][4]:.1f}"
    assert "- Scored: edge_sam.pth: 30 photos, 120 instances; sam.pth:" in text
    assert [row[0] for row in table(text, "category")[1:]] == ["a/b", "cup"]


def test_columns_of_other_prompts_and_rounds_stand_in_order():
    reports = [make(rounds=20), make(1, rounds=4, prompt="center", boundary_iou=[0.1, 0.2, 0.3, 0.4])]
    head = table(report.markdown(reports), "system")[0]
    assert head[1:][:8] == ["box", "center", "+1", "+2", "+3", "+4", "+9", "+19"] and head[9:11] == ["B center", "B +1"]


def test_long_refinement_shows_some_rounds():
    head = table(report.markdown([make(rounds=20)]), "system")[0]
    assert head[1:8] == ["box", "+1", "+2", "+4", "+9", "+19", "small"]


def test_the_paper_is_compared_where_data_and_prompt_match():
    made = make(miou=[0.8, 0.5, None])
    text = report.markdown([made])
    head, *rows = table(text, "paper")
    assert head == ["paper", "box", "+1", "+2", "edge_sam.pth - paper"]
    assert rows[-1] == ["EdgeSAM (Table 2)", "76.7", "78.1", "79.0", "+3.3 / -28.1 / -"]
    assert "Not comparable: 30 photos here, 5,000 photos of COCO val 2017 in the paper." in text
    for changes in ({"prompt": "point"}, {"dataset": "folder"}):
        assert "Comparison with the paper" not in report.markdown([make(**changes)])


def test_detections_have_ap_and_nothing_else_is_needed():
    ap = {"AP": 0.4, "AP50": 0.6, "AP75": 0.45, "APS": None, "APM": 0.5, "APL": 0.6}
    made = {"dataset": "coco", "prompt": "detections", "checkpoint": "m/x.pth", "num_images": 5000, "ap": ap}
    text = report.markdown([made | {"boundary_ap": {"AP": 0.25}}])
    head, row = table(text, "system")
    cells = dict(zip(head, row, strict=True))
    assert cells == {
        "system": "x.pth", "AP": "40.0", "AP50": "60.0", "AP75": "45.0", "APS": "-", "APM": "50.0", "APL": "60.0",
        "B AP": "25.0",
    }  # fmt: skip
    rows = {row[0]: row for row in table(text, "paper")}
    assert rows["EdgeSAM, ViTDet-H (Table 4)"][-1] == "-2.2 / - / +2.4 / +6.1 / -"
    assert rows["EdgeSAM, Detic (Table 4)"][-1] == "+4.8 / - / - / - / +2.5"
    assert "depends on the detector" in text and "Refinement" not in text


def test_categories_are_the_most_frequent_ones():
    groups = {f"c{i:03d}": {"count": i, "miou": [0.5, None]} for i in range(100)}
    text = report.markdown([make(rounds=2, miou_by_category=groups)])
    rows = table(text, "category")
    assert len(rows) == 81 and rows[1] == ["c099", "99", "50.0", "-"] and rows[-1][0] == "c020"
    assert "19 rarer categories are not shown" in text, "the empty category is not counted as hidden"


def test_time_is_shown_by_stage():
    head, row = table(report.markdown([make()]).split("## Time")[1], "system")
    assert head == ["system", "read", "decode", "elapsed", "instances/s"]
    assert row == ["edge_sam.pth", "1.0 (25 %)", "3.0 (75 %)", "8.0", "15.0"]


def test_no_report_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="no reports"):
        report.markdown([])


def sizes(paths):
    found = {}
    for path in paths:
        with Image.open(path) as chart:
            found[path.name] = chart.size
    return found


def test_charts_are_files_of_one_size(tmp_path):
    names = ["_a $x^2$ {", "模型", "x" * 100, "d", "e"]  # no formula, no missing letter and no length stops a chart
    reports = [make(i, system=name, boundary_iou=[0.4, 0.5, 0.6]) for i, name in enumerate(names)]
    written = plots.plots(reports, tmp_path / "new" / "r")
    assert sizes(written) == {f"r_{kind}.png": (960, 600) for kind in ("size", "clicks", "histogram")}
    assert sorted(written) == sorted((tmp_path / "new").iterdir()), "nothing half written is left"


def test_charts_are_drawn_only_for_what_there_is(tmp_path):
    few = make(rounds=1, instances=2)
    assert {p.name for p in plots.plots([few], tmp_path / "a")} == {"a_size.png", "a_histogram.png"}
    for row in few["instances"]:
        del row["area"]
    assert {p.name for p in plots.plots([few], tmp_path / "b")} == {"b_histogram.png"}
    assert plots.plots([{"dataset": "coco", "prompt": "detections", "ap": {"AP": 0.4}}], tmp_path / "c") == []
