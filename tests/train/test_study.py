"""A study of tiny arms: order, equal time, skipping what is done, and the table."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny import CONV

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import ArmConfig, Config, DataConfig, DistillConfig, EvalConfig, TrainConfig, UsageError, derive
from edgesam_jax.eval import heldout
from edgesam_jax.learning.checks import check_arms
from edgesam_jax.models.init import init_variables
from edgesam_jax.train import mask_sheet, study, study_report

ENCODER_ONLY = ("distill.mode=encoder_only",)
CONFIG = Config(
    name="small",
    model=CONV,
    data=DataConfig(batch_size=2, max_prompts=2),
    distill=DistillConfig(rounds=1),
    train=TrainConfig(steps=3, log_every=1, picture_every=0, checkpoint_every=100, devices=1),
    eval=EvalConfig(images=3, batch_size=3, refine=1),
    study=(
        ArmConfig("A", "A encoder-only", overrides=ENCODER_ONLY),
        ArmConfig("D", "D loop", init_from="A", overrides=("train.steps=2",)),
        ArmConfig("B", "B long", overrides=ENCODER_ONLY, time_from=("A", "D")),
    ),
)


def test_equal_time_counts_steps_at_the_rate_of_the_first_arm():
    earlier = {"A": derive.Length(100, 20.0), "D": derive.Length(50, 31.0)}
    own = derive.arm_config(CONFIG, CONFIG.study[2], earlier)
    assert own.train.steps == 255  # 51 s at 5 steps a second
    assert (own.study, own.name, own.distill.mode, own.train.init_from) == ((), "small-B", "encoder_only", "")
    stage_2 = derive.arm_config(CONFIG, CONFIG.study[1], earlier)
    assert (stage_2.train.init_from, stage_2.train.steps, stage_2.distill) == ("../A/model", 2, CONFIG.distill)


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ((ArmConfig("D", init_from="A"), ArmConfig("A")), "arm 'D' needs arm 'A'"),
        ((ArmConfig("B", time_from=("A",)),), "arm 'B' needs arm 'A'"),
        ((ArmConfig("A"), ArmConfig("A")), "arm name 'A' must be unique"),
        ((ArmConfig("../A"),), "arm name '../A' must be a valid identifier"),
        ((ArmConfig("A", overrides=("train.stepz=1",)),), "no field 'stepz'"),
    ],
)
def test_a_study_that_cannot_run_is_refused_at_once(arms, says):
    with pytest.raises(UsageError, match=says):
        check_arms(dataclasses.replace(CONFIG, study=arms, teacher="tiny_teacher"))


def test_table_has_a_column_per_prompt_and_dashes_where_nothing_was_measured():
    rows = [
        study_report.Row("", "filled box", {"box": [0.5]}),
        study_report.Row("D", "D", {"box": [0.25, 1.0], "center": [0.0, 0.125], "box_teacher": [0.9, 0.8]}, 10, 3.6),
    ]
    lines = study_report.table(CONFIG, rows, 3, 17).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["", "steps", "seconds", "box", "+1", "centre", "+1", "T box", "T +1", "T centre", "T +1"]
    assert cells[2] == ["filled box", "-", "-", "50.0", "-", "-", "-", "-", "-", "-", "-"]
    assert cells[3] == ["D", "10", "4", "25.0", "100.0", "0.0", "12.5", "90.0", "80.0", "-", "-"]
    assert "17 masks in 3 held-out scenes" in lines[-1]


def test_heldout_examples_do_not_depend_on_the_training_seed():
    other = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, seed=9))
    a, b = heldout.heldout_examples(CONFIG), heldout.heldout_examples(other)
    assert len(a) == 3 and all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))
    baselines = heldout.trivial_baselines(a)
    assert 0.3 < baselines["filled box"] < 0.95 and 0.3 < baselines["inscribed ellipse"] < 0.95


def test_weights_to_start_from_take_the_place_of_an_arm():
    arms = (dataclasses.replace(CONFIG.study[0], start=True), CONFIG.study[1])
    config = dataclasses.replace(CONFIG, study=arms)
    assert derive.started(config) == config
    given = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from="tiny_student"))
    [arm] = derive.started(given).study
    assert arm.name == "D" and derive.arm_config(given, arm, {}).train.init_from == "tiny_student"


def test_the_words_say_level_better_and_worse():
    rows = [
        study_report.Row("B", "B  more", {"box": [0.70], "center": [0.50], "box_teacher": [0.8]}, 9, 30.0),
        study_report.Row("D", "D  loop", {"box": [0.72], "center": [0.48], "box_teacher": [0.804]}, 9, 31.0),
    ]
    lines = study_report.in_words(rows, "D", "B").splitlines()
    assert lines[0] == "D (loop, 31 s) against B (more, 30 s):"
    assert lines[1].endswith("from a box 72.0 % (B 70.0: better by 2.0), from one click 48.0 % (B 50.0: WORSE by 2.0).")
    assert lines[2].endswith("with the teacher's masks: from a box 80.4 % (B 80.0: level).") and len(lines) == 3


def test_the_sheet_ranges_from_gains_to_losses_and_says_how_many():
    examples = heldout.heldout_examples(CONFIG)
    models = {name: Model(CONV, init_variables(CONV, seed)) for name, seed in (("B", 1), ("D", 2))}
    plain, compared = mask_sheet.draw(examples, models), mask_sheet.draw(examples, models, ("D", "B"))
    assert plain.shape[1] == compared.shape[1] == 4 * (mask_sheet.PANEL + 4) - 4 and plain.dtype == np.uint8
    legend = mask_sheet._legend([3.0, 0.5, -2.0, -4.0], ("D", "B"))
    assert "of 4 objects, D is more than 1 better on 1 and worse on 2" in legend


@pytest.mark.slow
def test_arms_run_in_order_and_what_is_done_is_not_done_again(tmp_path, capsys):
    teacher = tmp_path / "teacher.msgpack"
    save_model_file(teacher, Model(CONV, init_variables(CONV, 5), {"source": "test", "score": "stability"}))
    config = dataclasses.replace(CONFIG, teacher=str(teacher))
    work = tmp_path / "study"
    asked = []

    def stop_in_the_second_arm() -> bool:
        asked.append(1)
        return (work / "D" / "config.json").exists()

    assert study.run(config, work, stop=stop_in_the_second_arm) is None and asked
    first = (work / "A" / "run.json").read_text()
    text = study.run(config, work)
    assert text is not None and (work / "A" / "run.json").read_text() == first, "arm A ran twice"
    rows = json.loads((work / "table.json").read_text())
    assert [row["title"] for row in rows] == [
        "filled box", "inscribed ellipse", "teacher", "A encoder-only", "B long", "D loop"
    ]  # fmt: skip
    arm_a, arm_b = rows[3], rows[4]
    assert arm_a["steps"] == 3 and arm_b["steps"] >= 3
    assert all(len(row["scores"][kind]) == 2 for row in rows[3:] for kind in ("box", "center", "box_teacher"))
    assert "box_teacher" not in rows[2]["scores"]
    # A starts with the teacher's decoder and never trains it.
    assert "T centre" in text and (work / "table.md").read_text().strip() == text.split("\n\nPictures")[0]
    with Image.open(work / "masks.png") as sheet, Image.open(work / "curves.png") as chart:
        assert sheet.width > 6 * mask_sheet.PANEL and chart.width > 500
    assert json.loads((work / "D" / "config.json").read_text())["train"]["init_from"] == "../A/model"
    capsys.readouterr()
    assert study.run(config, work) == text
    assert "compiling" not in capsys.readouterr().err
