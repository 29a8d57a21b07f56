"""The layouts in which training systems save weights: read where they have one meaning, else refused with a remedy."""

from __future__ import annotations

import argparse
import collections
import pickle
import re
import shlex
from pathlib import Path

import deterministic_weights
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesam_jax.checkpoints.load import load_weights
from edgesam_jax.checkpoints.published.guess import published_shapes
from edgesam_jax.checkpoints.published.pickles import outline
from edgesam_jax.checkpoints.published.read import load_published
from edgesam_jax.checkpoints.published.unwrap import ANYWHERE, LEADING, clean_names
from edgesam_jax.checkpoints.suffixes import PICKLED, PUBLISHED
from edgesam_jax.config import UsageError
from edgesam_jax.models.sam import MODELS

torch = pytest.importorskip("torch")

TINY = "tiny_student"


@pytest.fixture(scope="module")
def arrays():
    return deterministic_weights.published(MODELS[TINY])


@pytest.fixture(scope="module")
def tiny(arrays):
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def save(path, content, **how):
    torch.save(content, path, **how)
    return path


def assert_tiny(path, tiny):
    """The file is the tiny student, with these values."""
    model = load_weights(path)
    assert model.config == MODELS[TINY]
    kernel = model.variables["params"]["image_encoder"]["neck_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], np.asarray(tiny["image_encoder.neck.0.weight"])[:, :, 0, 0].T)


def error_of(path):
    with pytest.raises(UsageError) as caught:
        load_weights(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def run_the_fix(text):
    """Run the command that a message suggests; return the file that it names."""
    command, new = re.search(r"(python -c .*), and use (\S+)$", text).groups()
    _, _, code = shlex.split(command)
    exec(code, {})
    return Path(new)


# ----------------------------------------------------------------------------------------------------- read directly


PREFIXES = (
    "model.", "sam.", "module.", "_orig_mod.", "module.model.", "_orig_mod.module.", "model.sam.", "model._orig_mod.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_all_entries(tiny, tmp_path, prefix):
    assert_tiny(save(tmp_path / "x.pth", {prefix + name: value for name, value in tiny.items()}), tiny)


@pytest.mark.parametrize("segment", ["module", "_orig_mod"])
def test_segments_inside_a_name(tiny, tmp_path, segment):
    part = "image_encoder."
    moved = {name.replace(part, f"{part}{segment}.", 1): value for name, value in tiny.items()}
    assert_tiny(save(tmp_path / "x.pth", moved), tiny)


@pytest.mark.parametrize(
    "keys",
    [(k,) for k in ("model", "state_dict", "model_state_dict", "ema", "net", "params")]
    + [("model", "state_dict"), ("ema", "module")],
    ids=".".join,
)
def test_wrappers(tiny, tmp_path, keys):
    content = tiny
    for key in reversed(keys):
        content = {key: content, "epoch": 3, "optimizer": {"lr": 0.1, "state": [torch.zeros(2)]}}
    assert_tiny(save(tmp_path / "x.pth", content), tiny)


@pytest.mark.parametrize("suffix", PICKLED)
def test_every_suffix_of_the_message_is_read(tiny, tmp_path, suffix):
    content = {"state_dict": {f"model.{name}": value for name, value in tiny.items()}, "global_step": 5}
    assert_tiny(save(tmp_path / f"last{suffix}", content), tiny)


def test_npz(arrays, tmp_path):
    np.savez(tmp_path / "x.npz", **{f"module.{name}": value for name, value in arrays.items()})
    assert_tiny(tmp_path / "x.npz", arrays)


def test_numpy_arrays_and_harmless_objects_in_a_file_of_torch(arrays, tmp_path):
    content = collections.OrderedDict(arrays)
    assert_tiny(save(tmp_path / "a.pth", content), arrays)
    training = {"model": dict(arrays), "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1), "epoch": 2}
    assert_tiny(save(tmp_path / "b.pth", training), arrays)


def test_files_of_torchs_old_format(tiny, tmp_path):
    assert_tiny(save(tmp_path / "x.pth", {"model": tiny}, _use_new_zipfile_serialization=False), tiny)


def test_no_model_has_the_segments_that_are_removed():
    for name, config in MODELS.items():
        for entry in published_shapes(config):
            segments = entry.split(".")
            assert not set(segments) & set(ANYWHERE) and segments[0] not in LEADING, (name, entry)


# -------------------------------------------------------------------------------------- refused, with a command to run


class Model(torch.nn.Module):
    """Stands for a model whose class only its own code has."""

    def __init__(self, state):
        super().__init__()
        self.kept = state

    def state_dict(self):
        return self.kept


class Settings(dict):
    """Stands for the config node that training systems pickle."""


@pytest.mark.parametrize("old_format", [False, True])
def test_a_whole_model_says_how_to_save_its_weights(tiny, tmp_path, old_format):
    path = save(tmp_path / "it's.pth", Model(tiny), _use_new_zipfile_serialization=not old_format)
    text = error_of(path)
    assert "contains a whole model" in text and "Model)" in text and "would execute code" in text
    assert_tiny(run_the_fix(text), tiny)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda w: {"model": w, "config": Settings(a=1)}, 'c["model"]'),
        (lambda w: {"config": Settings(a=1), "ema": {"module": w}}, 'c["ema"]["module"]'),
        (lambda w: {"epoch": 1, "model": Model(w)}, 'c["model"].state_dict()'),
        (lambda w: {**w, "config": Settings(a=1)}, 'hasattr(v, "shape")'),
    ],
    ids=["config", "nested", "model in a dict", "flat"],
)
def test_a_file_that_would_run_code_gets_the_command_for_what_it_contains(tiny, tmp_path, content, says):
    text = error_of(save(tmp_path / "ckpt.ckpt", content(tiny)))
    assert "would execute code" in text and says in text
    assert_tiny(run_the_fix(text), tiny)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plain_pickle_gets_a_command_that_writes_npz(arrays, tmp_path, wrapped):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "author": "x"} if wrapped else arrays))
    text = error_of(path)
    assert "a plain pickle" in text and "numpy.savez" in text
    new = run_the_fix(text)
    assert new.suffix == ".npz"
    assert_tiny(new, arrays)


def test_several_sets_of_weights_are_not_guessed(tiny, tmp_path):
    averaged = {name: value + 1 for name, value in tiny.items()}
    text = error_of(save(tmp_path / "x.pth", {"model": averaged, "ema": tiny}))
    assert "several sets of weights (model, ema)" in text
    assert_tiny(run_the_fix(text.replace('c["model"]', 'c["ema"]')), tiny)


def test_unknown_keys_and_mixed_entries_get_a_command(tiny, tmp_path):
    text = error_of(save(tmp_path / "a.pth", {"student": tiny, "epoch": 3}))
    assert "these entries are not tensors: student, epoch" in text
    assert_tiny(run_the_fix(text), tiny)
    text = error_of(save(tmp_path / "b.pth", {**tiny, "epoch": 3}))
    assert "these entries are not tensors: epoch;" in text
    assert_tiny(run_the_fix(text), tiny)


def test_two_models_in_one_file_are_refused(tiny, tmp_path):
    doubled = {**tiny, **{f"model.{name}": value for name, value in tiny.items()}}
    assert "the same entry of two models" in error_of(save(tmp_path / "x.pth", doubled))
    teacher = {f"teacher.{name}": value for name, value in tiny.items()}
    assert "their names start with teacher." in error_of(save(tmp_path / "y.pth", teacher))


@pytest.mark.filterwarnings("ignore")  # torch's, about its sparse and quantised tensors
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: torch.empty(3, 3, device="meta"), "without values, on torch's meta device"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantised"),
    ],
    ids=["meta", "sparse", "csr", "quantised"],
)
def test_entries_that_are_not_dense_numbers_are_one_line(tiny, tmp_path, value, says):
    text = error_of(save(tmp_path / "x.pth", {**tiny, "image_encoder.neck.0.weight": value()}))
    assert f"1 entries are not dense arrays of numbers: image_encoder.neck.0.weight ({says})" in text


def test_npz_files_that_are_none(tmp_path):
    np.savez(tmp_path / "objects.npz", weights=np.array({"a": 1}, object))
    assert "contains pickled objects" in error_of(tmp_path / "objects.npz")
    (tmp_path / "text.npz").write_text("hello")
    assert "damaged, or not an .npz file" in error_of(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "not a known model" in error_of(tmp_path / "other.npz")


def test_paths_that_no_system_has(tmp_path):
    for path in (tmp_path / ("x" * 5000 + ".pth"), tmp_path / "a\0b.pth", "x" * 5000):
        with pytest.raises(UsageError, match=r"cannot be looked up") as caught:
            load_weights(path)
        assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_folder_names_the_file_in_it(tiny, tmp_path):
    save(tmp_path / "edge.pth", tiny)
    with pytest.raises(UsageError, match=r"pass the file itself: .*edge\.pth"):
        load_weights(tmp_path)


# ----------------------------------------------------------------------------------------------------------- mutations


@pytest.fixture(scope="module")
def originals(arrays, tiny, tmp_path_factory):
    """Files in every format, by suffix, small enough to damage many times."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("originals")
    few = {name: tiny[name] for name in list(tiny)[:6]}
    save(folder / "a.pth", {"model": few, "epoch": 1})
    save(folder / "b.ckpt", {"model": few}, _use_new_zipfile_serialization=False)
    save(folder / "c.pt", {"model": few, "config": Settings(a=1)})
    np.savez(folder / "d.npz", **{name: arrays[name] for name in few})
    save_file(few, folder / "e.safetensors")
    (folder / "f.pkl").write_bytes(pickle.dumps({name: arrays[name] for name in few}))
    assert {path.suffix for path in folder.iterdir()} <= set(PUBLISHED)
    return sorted(folder.iterdir())


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_one_line(originals, tmp_path, data):
    original = data.draw(st.sampled_from(originals))
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "byte", "cut", "insert", "zero"]))
        if how == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[at : at + 16] = bytes(16)
        if not content:
            break
    path = tmp_path / original.name
    path.write_bytes(content)
    outline(path)  # never raises
    with pytest.raises(UsageError) as caught:  # too few entries for a model even where the damage changed nothing
        load_published(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.integers()))
def test_names_are_kept_or_refused(entries):
    try:
        cleaned = clean_names(entries, "file")
    except UsageError:
        return
    assert sorted(cleaned.values()) == sorted(entries.values()) and len(cleaned) == len(entries)
