"""LiteRT exports: verified and described. Tests that need the converter, a separate extra, are skipped without it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from convert import to_litert
from convert.export import common


def test_a_missing_extra_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    assert to_litert.main(["tiny_teacher", "--output", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "pip install 'edgesam-jax[litert]'" in text and text.count("\n") == 1


def test_files_equal_the_model_and_have_a_contract(tmp_path, capsys):
    pytest.importorskip("litert_torch")
    out = tmp_path / "out"
    assert to_litert.main(["tiny_teacher", "--output", str(out), "--slots", "5"]) == 0
    content = json.loads((out / "tiny_teacher_litert.json").read_text())
    assert content["verified"]["passed"] and content["slots"] == 5 and set(content["files"]) == {
        "tiny_teacher_encoder.tflite", "tiny_teacher_decoder.tflite",
    }  # fmt: skip
    encoder = to_litert.LitertEncoder(out / "tiny_teacher_encoder.tflite")
    assert encoder.outputs(np.zeros((128, 128, 3), np.uint8), (128, 128))[0].shape == (1, 64, 16, 16)
    assert to_litert.main(["tiny_teacher", "--output", str(out), "--slots", "dynamic"]) == 2
    assert "--slots dynamic" in capsys.readouterr().err
