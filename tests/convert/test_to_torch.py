"""Files with the published names, written and read without torch."""

from __future__ import annotations

import dataclasses
import sys

import deterministic_weights
import numpy as np
import pytest

from convert import from_torch, to_torch
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.published import names, read
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.config import DecoderConfig, UsageError
from edgesam_jax.models.sam import MODELS


@pytest.fixture
def no_torch(monkeypatch):
    for name in list(sys.modules):
        if name == "torch" or name.startswith(("torch.", "convert.torch_twin.model")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture(scope="module")
def model():
    """A model with sizes of no known model, LoRA, and batch counts."""
    decoder = DecoderConfig(heads=2, mlp_dim=32, lora_rank=4)
    config = dataclasses.replace(MODELS["tiny_student"], image_size=64, decoder=decoder)
    variables, counts = names.to_tree(deterministic_weights.published(config))
    return Model(config, variables, {"source": "here", "score": "iou", "num_batches_tracked": counts})


def test_round_trip(no_torch, model, tmp_path, capsys):
    """A .safetensors file of this project records its model: any size converts without --model."""
    checkpoint, file = str(save_model(tmp_path / "a", model)), str(tmp_path / "b.safetensors")
    assert to_torch.main([checkpoint, "--output", file]) == 0
    assert from_torch.main([file, "--output", str(tmp_path / "c")]) == 0
    again = load_model(tmp_path / "c")
    assert again.config == model.config
    assert again.metadata == {**model.metadata, "source": "b.safetensors"}
    first, second = to_torch.state_dict(model), to_torch.state_dict(again)
    assert set(first) == set(second)
    for name, value in first.items():
        assert (value.dtype, value.tobytes()) == (second[name].dtype, second[name].tobytes()), name
    assert "your own" in capsys.readouterr().out


def test_a_damaged_header_is_one_line(model, tmp_path):
    from safetensors.numpy import save_file

    save_file(to_torch.state_dict(model), tmp_path / "x.safetensors", {read.HEADER: "{"})
    with pytest.raises(UsageError, match=r"x\.safetensors: damaged .* pass --model NAME"):
        read.load_published(tmp_path / "x.safetensors")


def test_pth_without_torch_names_the_package(no_torch, model, tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UsageError, match="needs PyTorch: pip install"):
        to_torch.save_published(path, model)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="needs PyTorch: pip install"):
        read.load_published(path)


def test_variables_of_another_model_are_refused(model, tmp_path):
    wrong = dataclasses.replace(model, config=MODELS["edge_sam"])
    with pytest.raises(UsageError, match="missing"):
        to_torch.save_published(tmp_path / "x.safetensors", wrong)
    assert list(tmp_path.iterdir()) == []


def test_batch_norms_of_our_own_models_start_to_count_at_zero(model):
    state = to_torch.state_dict(dataclasses.replace(model, metadata={}))
    counts = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert counts and all(value.dtype == np.int64 and value.shape == () and value == 0 for value in counts)
