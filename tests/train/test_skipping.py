"""A run on a data set with photos that can't be used."""

from __future__ import annotations

import dataclasses
import json

import pytest
from small_data import coco_folder
from tiny import CONV

from edgesam_jax.config import Config, DataConfig, DistillConfig, TrainConfig, UsageError
from edgesam_jax.train import inputs
from edgesam_jax.train.run import fit
from edgesam_jax.train.timing import TIMES
from edgesam_jax.train.watchers import skipped


@pytest.fixture
def config(tmp_path):
    root = coco_folder(tmp_path / "coco", 6)
    (root / "002.png").write_bytes(b"")
    (root / "005.jpg").unlink()
    (root / "005.jpg").symlink_to(tmp_path / "nowhere")
    content = json.loads((root / "instances.json").read_text())
    content["annotations"][3]["bbox"] = "none"
    content["annotations"][6]["segmentation"] = [[70, 9, 90, 9, 90, 30]]  # beside photo 3
    (root / "instances.json").write_text(json.dumps(content))
    return Config(
        model=CONV,
        data=DataConfig(source="coco", root=str(root), batch_size=3, max_prompts=2),
        distill=DistillConfig(targets="ground_truth", rounds=0, start="box"),
        train=TrainConfig(steps=4, log_every=1, picture_every=0, checkpoint_every=2, devices=1),
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_skipped_is_listed_once_also_by_a_resumed_run(tmp_path, config, capsys):
    fit(config, tmp_path / "whole")
    listed = rows(tmp_path / "whole/skipped.jsonl")
    opening, due = listed[:2], [row for row in listed[2:] if row["kind"] != "annotation empty"]
    unused = [row for row in listed if row["kind"] == "annotation empty"]
    assert len(unused) == 1 and "image 3, annotation 30: its mask has no pixel" in unused[0]["message"]
    assert [(row["step"], row["kind"]) for row in opening] == [(0, "annotation damaged"), (0, "file missing")]
    assert due and {row["kind"] for row in due} == {"photo damaged"}
    assert all("002.png" in row["message"] for row in due) and {row["step"] for row in due} <= set(range(4))
    output = capsys.readouterr().err.splitlines()
    assert output[0].startswith("start: ")  # before anything else
    notes = [line for line in output if line.startswith("note: ")]
    assert notes[0].startswith("note: 2 entries of the data set are skipped (annotation damaged 1, file missing 1)")
    assert notes[1].startswith(f"note: {len(due)} photos were skipped (photo damaged {len(due)})")
    assert notes[2].startswith("note: 1 annotations were not used (annotation empty 1)")
    assert rows(tmp_path / "whole/metrics.jsonl")[-1]["skipped"] == len(due)

    steps = iter(range(99))
    fit(config, tmp_path / "parts", quiet=True, stop=lambda: next(steps) >= 3)  # asked once before the first step
    with (tmp_path / "parts/skipped.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "seen before the crash", "message": "002.png"}\n{"step": 3, "ki')
    fit(config, tmp_path / "parts", quiet=True)
    logs = [[{k: v for k, v in row.items() if k not in TIMES} for row in rows(tmp_path / name / "metrics.jsonl")]
            for name in ("whole", "parts")]  # fmt: skip
    assert logs[0] == logs[1]
    assert rows(tmp_path / "parts/skipped.jsonl") == [
        {**row, "message": row["message"].replace("whole", "parts")} for row in listed
    ]


def test_too_many_bad_photos_stop_the_run(tmp_path, config, monkeypatch):
    monkeypatch.setattr(skipped, "ENOUGH_TO_JUDGE", 6)
    with pytest.raises(UsageError, match=r"more than data\.max_bad_share=0\.05: see .*skipped\.jsonl"):
        fit(dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_share=0.05)), tmp_path / "a")
    monkeypatch.setattr(inputs, "ENOUGH_TO_JUDGE", 6)
    with pytest.raises(UsageError, match=r"coco: 1 of its 6 photos have damaged entries, more than"):
        fit(dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_share=0.1)), tmp_path / "c")
    generous = dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_share=0.6))
    assert fit(generous, tmp_path / "b", quiet=True).finished
