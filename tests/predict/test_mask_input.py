"""--mask-input: a click refines an earlier result; every file that doesn't fit is one line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import UsageError
from edgesam_jax.predict.__main__ import main
from edgesam_jax.predict.mask_input import read_mask_input
from edgesam_jax.predict.predictor import Predictor


def test_a_click_refines_an_earlier_result(
    tmp_path: Path, model: Model, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    save_model_file(tmp_path / "model.msgpack", model)
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ["--checkpoint", str(tmp_path / "model.msgpack"), "--image", str(tmp_path / "photo.png"), "--save-logits"]
    assert main([*flags, "--box", "10,5,60,40", "--num-masks", "3", "--output", str(first)]) == 0
    refine = [*flags, "--mask-input", str(first / "logits.npz")]
    assert main([*refine, "--point", "20,20,1", "--output", str(second)]) == 0
    predictor = Predictor(model)
    predictor.set_image(photo)
    _, scores, logits = predictor.predict(box=[10, 5, 60, 40], num_masks=3)
    expected = predictor.predict([[20, 20]], [1], mask_input=logits[scores.argmax()])
    plain = predictor.predict([[20, 20]], [1])
    with np.load(second / "logits.npz") as saved:
        np.testing.assert_allclose(saved["low_res_logits"][0], expected[2], atol=1e-6)
        assert np.abs(saved["low_res_logits"][0] - plain[2]).max() > 1e-3
    capsys.readouterr()
    for more, message in (
        (["--box", "1,2,30,40", "--box", "1,2,50,40"], "has logits of 1 prompts, but 2 are given"),
        ([], "no prompt"),
    ):
        assert main([*refine, *more, "--output", str(tmp_path / "third")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    logits = np.zeros((2, 3, 16, 16), np.float32)

    def saved(name: str, **arrays: object) -> Path:
        np.savez(tmp_path / name, **arrays)  # type: ignore[arg-type]
        return tmp_path / name

    good = saved("good.npz", low_res_logits=logits, scores=np.ones((2, 3)))
    assert read_mask_input(good, 2, 16).shape == (2, 16, 16)
    bad = np.full_like(logits, np.nan)
    np.save(tmp_path / "array.npy", logits)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:300])
    (tmp_path / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("low_res_logits.npy", b"no array")
    pickled = saved("pickled.npz", low_res_logits=np.array([{}, {}], object))
    for path, message in (
        (tmp_path / "none.npz", "no such file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "array.npy", "has no array low_res_logits"),
        (tmp_path / "text.npz", "not a file of arrays"),
        (tmp_path / "cut.npz", "not a file of arrays"),
        (tmp_path / "empty.npz", "not a file of arrays"),
        (tmp_path / "zip.npz", "not a file of arrays|must be"),
        (pickled, "not a file of arrays"),
        (saved("masks.npz", masks=logits), "has no array low_res_logits"),
        (saved("flat.npz", low_res_logits=logits[0]), r"must be \(prompts masks side side\), got \(3, 16, 16\)"),
        (saved("whole.npz", low_res_logits=logits > 0), "must be"),
        (saved("large.npz", low_res_logits=np.zeros((2, 1, 32, 32), np.float32)), "of 32 x 32, but .* 16 x 16"),
        (saved("one.npz", low_res_logits=logits[:1]), "has logits of 1 prompts, but 2 are given"),
        (saved("nan.npz", low_res_logits=bad, scores=np.ones((2, 3))), "not finite"),
        (saved("unscored.npz", low_res_logits=logits), "3 masks per prompt, and no scores"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            read_mask_input(path, 2, 16)
        assert str(caught.value).startswith(f"--mask-input {path}: ") and "\n" not in str(caught.value)
