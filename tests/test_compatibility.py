"""What earlier commits wrote is still read: a run, its model, prepared data and a store, made at commit c4707b1.

``tests/golden/written_at_c4707b1.tar.xz`` holds four generated scenes prepared, a teacher of 8 channels, the store of
its embeddings, and a run of four steps on them: its model, its log, and the checkpoint of step 2.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import GOLDEN

from edgesam_jax import embed, load_model, prepare
from edgesam_jax.predict.predictor import Predictor
from edgesam_jax.train import __main__ as train


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(GOLDEN / "written_at_c4707b1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # the config names its data by relative paths
    return tmp_path


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_left_alone_and_its_model_predicts(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (saved / "run").rglob("*") if p.is_file() and p.name != "config.json"}
    assert train.main(["--config", "run/config.json", "--workdir", "run"]) == 0
    assert "4 steps" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    model = load_model("run")  # the checkpoint of step 2
    assert model.metadata["score"] == "stability"
    assert jax.tree.structure(model.variables) == jax.tree.structure(load_model("run/model").variables)
    predictor = Predictor(load_model("run/model"))
    predictor.set_image(np.full((20, 32, 3), 90, np.uint8))
    assert predictor.predict(box=[4, 4, 20, 16])[0].shape == (1, 20, 32)


def test_a_stopped_run_is_resumed_to_the_same_numbers(saved: Path) -> None:
    log = rows(saved / "run")
    shutil.rmtree("run/model")
    (saved / "run/run.json").unlink()
    assert train.main(["--config", "run/config.json", "--workdir", "run"]) == 0
    again = rows(saved / "run")
    assert [row["step"] for row in again] == [1, 2, 3, 4] and again[:2] == log[:2]
    for row, old in zip(again[2:], log[2:], strict=True):  # another compiler or processor may round otherwise
        for name in ("loss", "bce", "dice", "grad_norm", "learning_rate", "agreement", "round_1/loss"):
            assert row[name] == pytest.approx(old[name], rel=2e-3), name
    new, old = load_model("run/model"), json.loads((saved / "run/model/config.json").read_text())
    assert old["format"] == "edgesam_jax/1" and new.config == load_model("teacher.msgpack").config


def test_prepared_data_and_store_are_whole(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--output", "prepared", "--verify"]) == 0
    stored = (saved / "store/embeddings-00000-of-00001.safetensors").stat().st_mtime_ns
    command = ["--teacher", "teacher.msgpack", "--source", "prepared", "--root", "prepared", "--output", "store"]
    assert embed.main(command) == 0
    assert (saved / "store/embeddings-00000-of-00001.safetensors").stat().st_mtime_ns == stored, "embedded again"
    assert "0 photos embedded" in capsys.readouterr().out
