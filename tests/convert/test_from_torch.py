"""Published files in and out: exact round trips, and one clear line for everything that can be wrong with a file."""

from __future__ import annotations

import dataclasses
import hashlib

import deterministic_weights
import numpy as np
import pytest
from published_keys import read_keys

from convert import from_torch, to_torch
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.read import load_published
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.config import UsageError
from edgesam_jax.models.sam import MODELS

torch = pytest.importorskip("torch")

TINY = "tiny_student"


@pytest.fixture(scope="module")
def tiny():
    return {name: torch.from_numpy(value) for name, value in deterministic_weights.published(MODELS[TINY]).items()}


def save(path, content):
    torch.save(content, path)
    return path


def digest(state):
    state = {name: np.asarray(value) for name, value in state.items()}
    text = [f"{n} {v.shape} {v.dtype} {hashlib.sha256(v.tobytes()).hexdigest()}" for n, v in state.items()]
    return sorted(text)


def full_list(name):
    shapes = {key: shape for key, (shape, _) in read_keys(name).items()}
    return {key: torch.from_numpy(value) for key, value in deterministic_weights.entries(shapes).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edge_sam", "sam_vit_b"])
def test_a_published_file_comes_back_bit_for_bit(name, tmp_path, capsys):
    state = full_list(name)
    source = save(tmp_path / "source.pth", state)
    assert from_torch.main([str(source), "--output", str(tmp_path / "checkpoint")]) == 0
    shown = capsys.readouterr().out
    assert f"{len(state)} entries of {name}" in shown
    assert ("non-commercial" if name == "edge_sam" else "Apache-2.0") in shown
    model = load_model(tmp_path / "checkpoint")
    assert model.config == MODELS[name]
    assert model.metadata["score"] == ("stability" if name == "edge_sam" else "iou")
    assert model.metadata["source"] == "source.pth"
    assert to_torch.main([str(tmp_path / "checkpoint"), "--output", str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(state)  # in the published order
    assert all(back[key].dtype == state[key].dtype for key in state)
    assert digest(back) == digest(state)


def test_safetensors_of_others(tiny, tmp_path):
    from safetensors.torch import save_file

    save_file(tiny, tmp_path / "a.safetensors")
    assert load_published(tmp_path / "a.safetensors").metadata["model"] == TINY


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_files_are_read_as_float32(tiny, tmp_path, dtype, suffix):
    from safetensors.torch import save_file

    half = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in tiny.items()}
    path = tmp_path / f"half{suffix}"
    torch.save(half, path) if suffix == ".pth" else save_file(half, path)
    kernel = names.flatten(load_published(path).variables)["params/image_encoder/neck_0/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[0, 0], half["image_encoder.neck.0.weight"].float().numpy()[:, :, 0, 0].T)


@pytest.mark.parametrize("name", [*MODELS, "no_fuse", "lora"], ids=lambda name: name)
def test_the_model_is_guessed_from_names_and_shapes(name):
    """ViT-L and ViT-H too: shapes are enough."""
    from convert.torch_twin.model import twin_of
    from edgesam_jax.checkpoints.published.guess import guess

    config = MODELS.get(name, MODELS["edge_sam_m2"])
    if name == "no_fuse":
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, fuse=False))
    if name == "lora":
        config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora_rank=16))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in twin_of(config).state_dict().items()}
    assert guess(shapes, "file") == (name if name in MODELS else "edge_sam_m2", config)


@pytest.mark.parametrize("wrap", ["model", "state_dict", "ddp", "buffers"])
def test_wrappers(tiny, tmp_path, wrap):
    content = {
        "model": {"model": tiny, "optimizer": {"lr": 0.1}, "epoch": 3, "config": {"a": [1]}},
        "state_dict": {"state_dict": tiny},
        "ddp": {f"module.{name}": value for name, value in tiny.items()},
        "buffers": {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1), **tiny},
    }[wrap]
    model = load_published(save(tmp_path / "x.pth", content))
    assert digest(to_torch.state_dict(model)) == digest(tiny)


def test_stage_1_checkpoint_takes_its_decoder_from_sam(tiny, tmp_path, capsys):
    prefix = "image_encoder."
    bare = {name.removeprefix(prefix): value for name, value in tiny.items() if name.startswith(prefix)}
    source = save(tmp_path / "ckpt_epoch_9.pth", {"model": bare, "epoch": 9})
    donor = {name: value + 1 for name, value in tiny.items() if not name.startswith(prefix)}
    donor["image_encoder.pos_embed"] = torch.zeros(1, 64, 64, 768)  # a SAM file: another encoder
    donor_file = save(tmp_path / "sam.pth", donor)

    assert from_torch.main([str(source), "--output", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert "ckpt_epoch_9.pth" in error and "--decoder-from FILE" in error and "Traceback" not in error
    assert not (tmp_path / "c").exists()

    arguments = [str(source), "--output", str(tmp_path / "c"), "--decoder-from", str(donor_file)]
    assert from_torch.main(arguments) == 0
    model = load_model(tmp_path / "c")
    back = to_torch.state_dict(model)
    assert (back["image_encoder.neck.0.weight"] == tiny["image_encoder.neck.0.weight"].numpy()).all()
    assert (back["mask_decoder.iou_token.weight"] == tiny["mask_decoder.iou_token.weight"].numpy() + 1).all()
    assert model.metadata["source"] == "ckpt_epoch_9.pth, prompt encoder and mask decoder from sam.pth"
    with pytest.raises(UsageError, match="is a complete model and needs none"):
        load_published(donor_file, TINY, source)
    with pytest.raises(UsageError, match="contains no prompt encoder"):
        load_published(source, None, source)


def test_strict_both_ways(tiny, tmp_path):
    wrong = dict(tiny)
    del wrong["image_encoder.features.2.channel_mixer.m.0.c.weight"]
    del wrong["mask_decoder.mask_tokens.weight"]
    wrong["rpn_head.conv.weight"] = torch.zeros(3)
    wrong["image_encoder.neck.1.bias"] = torch.zeros(5)
    with pytest.raises(UsageError) as caught:
        load_published(save(tmp_path / "x.pth", wrong))
    text = str(caught.value)
    assert "\n" not in text
    assert "x.pth: 2 missing, 1 left over, 1 misshapen" in text
    for name in {*tiny, *wrong}:
        if name not in tiny or name not in wrong or tiny[name].shape != wrong[name].shape:
            assert name in text


def test_a_file_that_lost_its_last_block_is_no_smaller_model(tmp_path):
    state = {k: v for k, v in full_list("edge_sam").items() if not k.startswith("image_encoder.features.26.")}
    with pytest.raises(UsageError, match=r"missing: image_encoder\.features\.26\.token_mixer\.0\.conv\.c\.weight"):
        load_published(save(tmp_path / "x.pth", state))


class Config:
    """Stands for the node that the published training pickles into its checkpoints."""


def test_code_is_never_executed(tiny, tmp_path, capsys):
    path = save(tmp_path / "ckpt_epoch_4.pth", {"model": tiny, "config": Config()})
    assert from_torch.main([str(path), "--output", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "ckpt_epoch_4.pth" in error and "would execute code" in error and 'c["model"]' in error
    assert not (tmp_path / "c").exists()


def spoil(path, how):
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "start":
        path.write_bytes(b"\x00" * 100 + data[100:])
    elif how == "text":
        path.write_text("<html>404 not found</html>")
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["cut", "start", "text", "empty"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tiny, tmp_path, capsys, how, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    torch.save(tiny, path) if suffix == ".pth" else save_file(tiny, path)
    spoil(path, how)
    assert from_torch.main([str(path), "--output", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith(f"error: {path}: ")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "contains no weights"),
        ([1, 2], "contains a list"),
        ({"epoch": 3, "lr": 0.1}, "these entries are not tensors: epoch, lr"),
        ({"fc.weight": torch.zeros(2, 2)}, "not a known model: none of its 1 entries"),
        ({"image_encoder.trunk.x.weight": torch.zeros(2, 2)}, "SAM 2"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        load_published(save(tmp_path / "x.pth", content))


def test_wrong_arguments(tiny, tmp_path, capsys):
    path = save(tmp_path / "x.pth", tiny)
    (tmp_path / "x.onnx").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    out = str(tmp_path / "c")
    for arguments, message in [
        ([str(tmp_path / "none.pth"), "--output", out], "none.pth: no such file"),
        ([str(tmp_path), "--output", out], "is a folder"),
        ([str(tmp_path / "x.onnx"), "--output", out], "x.onnx: not a .pth, .pt, .ckpt,"),
        ([str(path), "--output", out, "--model", "edge"], "--model edge: not a known model; choose one of edge_sam"),
        ([str(path), "--output", out, "--model", "edge_sam"], "misshapen"),
        ([str(path), "--output", str(tmp_path / "full")], "already contains other files"),
        ([str(path), "--output", str(path / "below")], "x.pth"),
    ]:
        assert from_torch.main(arguments) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and message in error
    checkpoint = save_model(tmp_path / "ok", load_published(path))
    for arguments, message in [
        ([str(tmp_path / "none"), "--output", str(tmp_path / "y.pth")], "no such file"),
        ([str(checkpoint), "--output", str(tmp_path / "y.onnx")], "must end in .pth, .pt or .safetensors"),
        ([str(checkpoint), "--output", str(path / "y.pth")], "--output"),
    ]:
        assert to_torch.main(arguments) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and message in error
    assert not (tmp_path / "y.pth").exists()


def test_load_model_takes_a_published_file(tiny, tmp_path):
    assert load_model(save(tmp_path / "x.pth", tiny)).config == MODELS[TINY]
