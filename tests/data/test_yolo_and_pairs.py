"""YOLO's text files, and photos with a mask of their own name beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers import yolo
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.schema import BadExample

H, W = 40, 60
SQUARE = "3 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photo(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)


@pytest.mark.parametrize("text_folder", ["images/train", "labels/train"])
def test_outlines_become_masks(tmp_path, text_folder):
    save(tmp_path / "images/train/a.jpg", photo())
    text = tmp_path / text_folder / "a.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(f"{SQUARE}\n\n0 0.1 0.1 0.2 0.2\n")
    source = ImagesSource(tmp_path)
    record = source.record(0)
    example = source.load(0)
    expected = np.zeros((H, W), bool)
    expected[10:30, 15:30] = True
    assert source.annotated and (example.masks[0] == expected).all() and example.boxes[0].tolist() == [15, 10, 30, 30]
    assert record.annotations[0]["category_id"] == 3
    assert [kind for kind, _ in example.skipped] == [yolo.BOX] and "line 3" in example.skipped[0][1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("cat 0 0 1 0 1 1", "not a class and numbers"),
        ("0 0 0 1 0 1", "5 coordinates"),
        ("0 10 10 20 10 20 20", "fractions"),
        ("0 nan 0 1 0 1 1", "fractions"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, reason):
    save(tmp_path / "a.jpg", photo())
    (tmp_path / "a.txt").write_text(f"{SQUARE}\n{line}\n")
    example = ImagesSource(tmp_path).load(0)
    [(_, message)] = example.skipped
    assert len(example) == 1 and "a.txt, line 2: " in message and reason in message


def test_a_file_without_objects_has_a_reason(tmp_path):
    save(tmp_path / "a.jpg", photo())
    for content, words in ((b"", "no object"), (b"\xff\xfe\x00", "not a text file")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(BadExample, match=words):
            ImagesSource(tmp_path).load(0)


@given(st.binary(max_size=60))
def test_any_text_is_read_or_refused(content):
    import io

    file = io.BytesIO()
    Image.fromarray(photo()).save(file, "PNG")
    try:
        yolo.yolo_record(file.getvalue(), "a.png", content, "a.txt")
    except BadExample as error:
        assert "a.txt" in str(error)


def test_a_png_beside_a_jpeg_is_its_mask(tmp_path):
    mask = np.zeros((H, W), np.uint8)
    mask[5:10, 5:20], mask[20:30, 5:20] = 1, 2
    for name in "ab":
        save(tmp_path / f"{name}.jpg", photo())
        save(tmp_path / f"{name}.png", mask)
    save(tmp_path / "more/c.png", photo())  # a folder of photos stays one
    source = ImagesSource(tmp_path)
    assert source.names() == ["a.jpg", "b.jpg"] and len(source.load(0)) == 2
    assert (source.load(1).masks[1] == (mask == 2)).all()


def test_png_files_that_are_not_all_paired_are_photos(tmp_path):
    save(tmp_path / "a.jpg", photo())
    save(tmp_path / "a.png", photo(1))
    save(tmp_path / "b.png", photo(2))
    assert ImagesSource(tmp_path).names() == ["a.jpg", "a.png", "b.png"]


def test_a_folder_of_masks_alone_has_no_photos(tmp_path):
    save(tmp_path / "masks/a.png", np.zeros((H, W), np.uint8))
    with pytest.raises(UsageError, match="no photos in it"):
        ImagesSource(tmp_path)
