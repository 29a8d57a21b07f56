"""The ablations: what tables compare, what their seeds allow to say, and the command from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import deterministic_weights
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from paths import CONFIGS

from edgesam_jax.ablate import __main__ as ablate
from edgesam_jax.ablate import grid, report, score_quality
from edgesam_jax.ablate.arms import Recipe, arms
from edgesam_jax.ablate.grid import Outcome
from edgesam_jax.ablate.tables import BOX, Claim, Row, Table, choose, tables
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    OptimConfig,
    TrainConfig,
    UsageError,
    load_config,
    to_json,
)
from edgesam_jax.data.opening import open_source
from edgesam_jax.models.init import abstract_variables

SCALES = ("tiny", "small", "full")


def scale(name) -> Config:
    return load_config(CONFIGS / f"ablate_{name}.py")


# ------------------------------------------------------------------------------------------------------ tables and runs


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_has_the_runs_of_all_tables(name):
    config = scale(name)
    known = {arm.name for arm in config.study}
    found = tables([arm.name for arm in config.study])
    assert [t.letter for t in found] == ["5a", "5c", "5d", "5f", "5g", "5h", "5i", "6a", "6b", "6c"]
    for table in found:
        assert set(table.arms) <= known and len(table.arms) > 1
        assert {c.first for c in table.claims} | {c.second for c in table.claims} <= set(table.arms)
    assert len(next(t for t in found if t.letter == "5c").arms) == 6  # Table 5c's six rows
    assert set(grid.needed(config.study, sorted(known))) == set(config.study)


def test_the_small_scales_student_fits_its_teacher():
    student, teacher = scale("small").model, load_config(CONFIGS / "small_teacher.py").model
    for field in ("image_size", "grid", "mask_size", "embed_dim"):
        assert getattr(student, field) == getattr(teacher, field)
    own, theirs = (abstract_variables(c)["params"]["mask_decoder"] for c in (student, teacher))
    assert own.keys() == theirs.keys()


def test_tables_are_chosen_by_letter_or_name():
    found = tables(["encoder", "student_x", "data_1x", "data_1x_encoder"])
    assert [t.letter for t in choose(found, ["6a", "loops", "5c"])] == ["5c", "5g", "6a"]
    assert choose(found, ["all"]) == found
    with pytest.raises(UsageError, match=r"--table 5x: unknown table; choose from 5a \(techniques\), 5c"):
        choose(found, ["5g", "5x"])


def test_runs_come_after_what_they_start_from():
    config = scale("tiny")
    some = [arm.name for arm in grid.needed(config.study, ["data_3x", "joint", "channel"])]
    assert some == ["encoder", "loop1", "joint", "channel", "data_3x_encoder", "data_3x"]
    steps = grid.expected_steps(config, grid.needed(config.study, ["joint", "data_3x"]))
    assert steps == {"encoder": 1000, "loop1": 100, "joint": 1100, "data_3x_encoder": 180, "data_3x": 60}


def test_a_seed_changes_weights_and_data_but_not_what_is_scored():
    config = scale("tiny")
    first, second = grid.of_seed(config, 0), grid.of_seed(config, 1)
    assert first.train.seed != second.train.seed and first.data.seed != second.data.seed
    assert first.eval == second.eval == config.eval


# --------------------------------------------------------------------------------------------------------- what is said


def outcome(box):
    return Outcome(10, 1.0, {"held-out": {"box": [box / 100], "center": [0.5]}})


def said(paper, found):
    rows = Table("5z", "z", "", (Row("a"), Row("b")), (Claim("a", "b", BOX, paper),))
    outcomes = {"a": [outcome(50 + d) for d in found], "b": [outcome(50) for _ in found]}
    line = report.verdict(rows.claims[0], rows, {"a": "A", "b": "B"}, outcomes, "held-out")
    return line.split("**")[1]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6), st.none() | st.floats(-10, 10))
def test_a_verdict_needs_three_seeds_of_one_sign(found, paper):
    verdict = said(paper, found)
    found = [round(d, 9) for d in found]
    level = paper is not None and abs(paper) <= report.NEAR
    if len(found) < 3:
        assert verdict.startswith("inconclusive: fewer")
    elif level and abs(np.mean(found)) < 2 * report.NEAR - 1e-6:
        assert verdict.startswith("agrees: ")
    elif level and abs(np.mean(found)) < 2 * report.NEAR + 1e-6:
        pass  # at the limit
    elif min(found) < -1e-6 and max(found) > 1e-6:
        assert verdict == "inconclusive: the seeds differ in sign"
    elif min(np.abs(found)) > 1e-6:
        agree = not level and (found[0] > 0) == (paper is None or paper > 0)
        assert verdict == ("agrees" if agree else "disagrees")


def test_spread_is_shown_where_there_is_one():
    assert report.spread([70.0, 71.0, 75.0]) == "72.0 (70.0 to 75.0)"
    assert report.spread([70.0, 70.01]) == "70.0"


def test_scores_are_held_against_the_true_overlap():
    source = open_source(DataConfig(limit=12), 128, "heldout")
    scenes = [source.load(i) for i in range(12)]
    found = score_quality.correlations(load_model("tiny_teacher"), scenes)
    assert set(found) == {"iou", "stability"}
    assert 0.4 < found["iou"]["pearson"] < 1 and 0.4 < found["iou"]["spearman"] < 1  # its head was trained


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """Runs of two steps of tiny models, as JSON."""
    folder = tmp_path_factory.mktemp("ablate")
    teacher = save_model_file(folder / "teacher.msgpack", Model(tiny.CONV, deterministic_weights.variables(tiny.CONV)))
    recipe = Recipe(("train.steps=2",), ("train.steps=2",), ("train.steps=1",), {}, (1, 3), {})
    config = Config(
        name="ablate_test",
        model=tiny.CONV,
        teacher=str(teacher),
        data=DataConfig(batch_size=2, max_prompts=2),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(picture_every=0, devices=1),
        eval=EvalConfig(images=3, refine=1),
        study=arms(recipe),
    )
    path = folder / "config.json"
    path.write_text(to_json(config))
    return path


@pytest.mark.slow
def test_the_command_from_end_to_end(config_file, tmp_path, capsys):
    arguments = ["--config", str(config_file), "--workdir", str(tmp_path), "--seeds", "2"]
    parsed = ablate._parser().parse_args([*arguments, "--table", "5f"])
    asked = 0

    def stop() -> bool:  # in the middle of the second run
        nonlocal asked
        asked += 1
        return asked > 3

    assert ablate.run(parsed, stop) is None
    assert not (tmp_path / "tables").exists() and (tmp_path / "seed0" / "short" / "run.json").is_file()
    done = (tmp_path / "seed0" / "short" / "run.json").stat().st_mtime_ns
    assert ablate.main([*arguments, "--table", "5f"]) == 0
    shown = capsys.readouterr().out
    assert "Table 5f" in shown and "inconclusive: fewer than three seeds" in shown
    assert (tmp_path / "seed0" / "short" / "run.json").stat().st_mtime_ns == done  # not trained again
    rows = json.loads((tmp_path / "tables" / "5f.json").read_text())
    assert set(rows) == {"short", "channel", "correlation", "pixel_channel", "pixel_correlation"}
    assert all(len(seeds) == 2 and all(o["steps"] == 2 for o in seeds) for seeds in rows.values())
    assert rows["short"][0]["scores"] != rows["short"][1]["scores"]  # the seeds differ
    assert (tmp_path / "tables" / "5f.md").read_text().strip() in shown
    assert (tmp_path / "tables" / "5f.png").read_bytes().startswith(b"\x89PNG")
    # Again by its name, with one seed: nothing of what is there is done anew, and scores are those kept.
    one = ["--config", str(config_file), "--workdir", str(tmp_path), "--seeds", "1", "--table", "feature-losses"]
    assert ablate.main(one) == 0
    again = json.loads((tmp_path / "tables" / "5f.json").read_text())
    assert again["short"] == rows["short"][:1]


def test_faults(config_file, tmp_path, capsys):
    common = ["--config", str(config_file), "--workdir", str(tmp_path / "w"), "--table"]
    for flags, message in (
        (["9z"], "--table 9z: unknown table; choose from 5a (techniques)"),
        (["5c"], "--table 5c: this scale has no runs to compare in it"),
        (["5g", "--evaluate", "coco"], "--evaluate coco: write coco=DIR"),
        (["5g", "--evaluate", f"coco={tmp_path / 'no'}"], "no such folder"),
        (["5g", "--seeds", "0"], "--seeds"),
        (["5g", "--set", "train.stepz=1"], "train.stepz"),
        (["5g", "--set", "data.source=images"], "no held-out examples to score on: pass --evaluate"),
    ):
        assert ablate.main([*common, *flags]) == 2, flags
        assert message in capsys.readouterr().err
    assert ablate.main(["--table", "5g", "--config", str(tmp_path / "none.py")]) == 2
    assert not (tmp_path / "w").exists()


def test_the_reference_of_most_tables_is_stage_2_as_published():
    config = scale("full")
    published = load_config(CONFIGS / "edgesam_stage2.py")
    own = next(arm for arm in config.study if arm.name == "loop1")
    assert own.overrides == () and own.init_from == "encoder"
    assert dataclasses.replace(config, name="", study=(), eval=EvalConfig()).distill == published.distill
