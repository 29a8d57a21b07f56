"""A run on photos of which some can't be used."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_prepare import coco_folder
from tiny import REPVIT

from edgesam_jax import trainer
from edgesam_jax.config import Config, DataConfig, DistillConfig, TrainConfig, UsageError
from edgesam_jax.trainer import fit


@pytest.fixture
def config(tmp_path):
    root = coco_folder(tmp_path / "coco", 6)
    (root / "002.png").write_bytes(b"")
    (root / "005.jpg").unlink()
    (root / "005.jpg").symlink_to(tmp_path / "nowhere")
    return Config(
        model=REPVIT,
        data=DataConfig(source="coco", root=str(root), batch_size=3, max_prompts=2),
        distill=DistillConfig(targets="ground_truth", rounds=0, start="box"),
        train=TrainConfig(steps=4, log_every=1, picture_every=0, checkpoint_every=2, devices=1),
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_skipped_is_listed_once_also_by_a_resumed_run(tmp_path, config, capsys):
    fit(config, tmp_path / "whole", quiet=True)
    listed = rows(tmp_path / "whole/skipped.jsonl")
    assert listed and {row["kind"] for row in listed} == {"photo damaged"}
    assert all("002.png" in row["message"] for row in listed) and {row["step"] for row in listed} <= set(range(4))
    note = capsys.readouterr().err.splitlines()[-1]
    assert note.startswith(f"note: {len(listed)} photos were skipped (photo damaged {len(listed)})")
    assert rows(tmp_path / "whole/metrics.jsonl")[-1]["skipped"] == len(listed)

    steps = iter(range(99))
    fit(config, tmp_path / "parts", quiet=True, stop=lambda: next(steps) >= 3)  # asked once before the first step
    with (tmp_path / "parts/skipped.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "seen before the crash", "message": "002.png"}\n{"step": 3, "ki')
    fit(config, tmp_path / "parts", quiet=True)
    assert rows(tmp_path / "parts/skipped.jsonl") == [
        {**row, "message": row["message"].replace("whole", "parts")} for row in listed
    ]


def test_too_many_bad_photos_stop_the_run(tmp_path, config, monkeypatch):
    monkeypatch.setattr(trainer, "ENOUGH_TO_JUDGE", 6)
    with pytest.raises(UsageError, match=r"more than data\.max_bad_share=0\.05: see .*skipped\.jsonl"):
        fit(dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_share=0.05)), tmp_path / "a")
    generous = dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_share=0.6))
    assert fit(generous, tmp_path / "b", quiet=True).finished
