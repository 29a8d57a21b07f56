"""Inference checkpoints: saving and loading is bit-exact, and every error is one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from damage import damage, same

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model, save_model_file
from edgesam_jax.config import DecoderConfig, RepVitConfig, SamConfig, UsageError
from edgesam_jax.models.init import init_variables

CONFIG = SamConfig(
    encoder=RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 2, 2, 2)),
    decoder=DecoderConfig(heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)


@pytest.fixture(scope="module")
def model() -> Model:
    variables = jax.tree.map(np.asarray, init_variables(CONFIG, 0))
    return Model(CONFIG, variables, {"source": "a test", "score": "iou", "num_batches_tracked": {"a.b": 3}})


def test_folder_round_trip_is_bit_exact_and_replaces_an_earlier_one(model: Model, tmp_path: Path) -> None:
    save_model(tmp_path / "m", Model(CONFIG, jax.tree.map(np.zeros_like, model.variables)))
    save_model(tmp_path / "m", model)
    loaded = load_model(tmp_path / "m")
    assert loaded.config == CONFIG and loaded.metadata == model.metadata
    same(loaded.variables, model.variables)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing left beside it


def test_file_round_trip(model: Model, tmp_path: Path) -> None:
    exact, half = (
        save_model_file(tmp_path / "a.msgpack", model),
        save_model_file(tmp_path / "b.msgpack", model, np.float16),
    )
    same(load_model(exact).variables, model.variables)
    rounded = load_model(half)
    assert half.stat().st_size < 0.7 * exact.stat().st_size
    assert {x.dtype for x in jax.tree.leaves(rounded.variables)} == {np.dtype(np.float32)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), rounded.variables, model.variables
    )
    assert rounded.config == CONFIG and rounded.metadata == model.metadata


def test_save_refuses_a_folder_of_other_files(model: Model, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(UsageError, match="photos"):
        save_model(tmp_path / "photos", model)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"precious"


def make(kind: str, model: Model, path: Path) -> Path:
    """Return a broken or foreign checkpoint of each kind."""
    if kind == "missing":
        return path / "nothing"
    if kind == "empty folder":
        return path
    if kind == "text":
        (path / "notes.txt").write_text("hello")
        return path / "notes.txt"
    if kind == "not a msgpack":
        (path / "x.msgpack").write_bytes(b"\x00\x01 nonsense")
        return path / "x.msgpack"
    if kind == "flipped bit":
        damage(save_model_file(path / "x.msgpack", model))
        return path / "x.msgpack"
    if kind == "cut file":
        file = save_model_file(path / "x.msgpack", model)
        file.write_bytes(file.read_bytes()[:-100])
        return file
    folder = save_model(path / "m", model)
    if kind == "no config":
        (folder / "config.json").write_text("{")
    elif kind == "foreign config":
        (folder / "config.json").write_text("[1, 2]")
    elif kind == "no arrays":
        shutil.rmtree(folder / "variables" / "ocdbt.process_0")
    elif kind == "flipped bits in the arrays":
        for file in (folder / "variables").rglob("d/*"):
            damage(file)
    elif kind == "a field of the wrong type":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"embed_dim": 16', '"embed_dim": "wide"'))
    return folder


KINDS = (
    "missing", "empty folder", "text", "not a msgpack", "flipped bit", "cut file", "no config", "foreign config",
    "no arrays", "flipped bits in the arrays", "a field of the wrong type",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_one_line_that_names_the_path(kind: str, model: Model, tmp_path: Path) -> None:
    path = make(kind, model, tmp_path)
    with pytest.raises(UsageError) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_bit_inside_an_array_is_noticed(tmp_path: Path) -> None:
    """Arrays this large are stored in separate files, and only the checksum detects a change in them."""
    rng = np.random.default_rng(0)
    variables = {"params": {f"a{i}": rng.standard_normal((512, 256), np.float32) for i in range(4)}}
    folder = save_model(tmp_path / "m", Model(CONFIG, {**variables, "batch_stats": {}, "constants": {}}))
    load_model(folder)
    damage(max(folder.rglob("d/*"), key=lambda file: file.stat().st_size))
    with pytest.raises(UsageError, match="damaged"):
        load_model(folder)


def test_a_model_without_batch_norm_has_empty_statistics(tmp_path: Path) -> None:
    variables = {
        "params": {"a": np.ones(2, np.float32)},
        "batch_stats": {},
        "constants": {"g": np.ones((2, 4), np.float32)},
    }
    for path in (
        save_model(tmp_path / "m", Model(CONFIG, variables)),
        save_model_file(tmp_path / "m.msgpack", Model(CONFIG, variables)),
    ):
        same(load_model(path).variables, variables)
