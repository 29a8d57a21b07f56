"""Logs that survive an interruption, pictures that show what they say, tables that line up."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgesam_jax.learning.prompt_loop import Trace
from edgesam_jax.reporting import pictures, tables
from edgesam_jax.train import log as train_log
from edgesam_jax.types import Prompts


def test_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    log = train_log.MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "lo')  # torn by a crash
    again = train_log.MetricsLog(tmp_path, start=20)
    again.write(30, {"loss": -1.0})
    again.close()
    rows = train_log.read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 1.0), (20, 2.0), (30, -1.0)]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_tint_covers_the_mask_alone():
    image = np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[0, 1] = True  # rows 0-1, columns 2-3 of the photo
    changed = (pictures.tint(image, mask, pictures.RED) != image).any(-1)
    expected = np.zeros((8, 8), bool)
    expected[:2, 2:4] = True
    assert np.array_equal(changed, expected)


def test_points_and_boxes_are_drawn_where_they_are():
    image = np.zeros((64, 64, 3), np.uint8)
    coords = np.array([[5, 5], [40, 30], [20, 20], [50, 50], [10, 55]], np.float32)
    labels, valid = np.array([2, 3, 1, 0, 1]), np.array([True, True, True, True, False])
    picture = pictures.draw_prompt(image, coords, labels, valid)
    assert tuple(picture[20, 20]) == pictures.GREEN and tuple(picture[50, 50]) == pictures.RED
    assert tuple(picture[5, 30]) == pictures.YELLOW and tuple(picture[30, 10]) == pictures.YELLOW
    assert not picture[55, 10].any(), "a slot that is not valid is not drawn"


def test_loop_picture_has_a_row_per_valid_prompt():
    p, s = 3, 8
    student, target = np.zeros((p, s, s), bool), np.zeros((p, s, s), bool)
    target[:, :4], student[:, 2:6] = True, True
    prompts = Prompts(np.zeros((p, 2, 2), np.float32), np.ones((p, 2), int), np.zeros((p, 2), bool))
    trace = Trace(prompts, student, target, student != target)
    photo = np.full((40, 32, 3), 90, np.uint8)
    picture = pictures.loop_picture(photo, trace, np.array([True, False, True]), photo=(32, 32))
    assert picture.shape == (16 + 2 * 32 + pictures.GAP, 4 * 32 + 3 * pictures.GAP, 3)
    last = picture[16:, 3 * (32 + pictures.GAP) :]
    assert last[4, 16, 1] > last[4, 16, 0], "missing rows are green"
    assert last[20, 16, 0] > last[20, 16, 1], "extra rows are red"
    assert np.array_equal(last[12, 16], [90, 90, 90]), "agreement is left alone"


def test_table_lines_up_and_pictures_and_curves_are_files(tmp_path):
    table = tables.aligned_table(("row", "box"), [("A", "1.0"), ("longer", "100.0")]).splitlines()
    assert len({len(line) for line in table}) == 1 and table[2] == "| A      |   1.0 |"
    pictures.save_picture(tmp_path / "new" / "a.png", np.zeros((4, 6, 3), np.uint8))
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.size == (6, 4)
    log = train_log.MetricsLog(tmp_path)
    log.write(1, {"loss": 2.0})
    log.close()
    train_log.save_curves(tmp_path / "c.png", {"A": tmp_path / "metrics.jsonl"})
    with Image.open(tmp_path / "c.png") as chart:
        assert chart.width > 500
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_is_full_for_tensorboard_ends_the_run_and_never_hangs(tmp_path):
    log = train_log.MetricsLog(tmp_path)

    def full(event: object) -> None:
        raise OSError(28, "No space left on device")

    log._board._file.write_event = full
    with pytest.raises(OSError, match="No space left on device"):
        log.write(1, {"loss": 1.0})
    log.close()
