"""Mask pictures: which names are found, what their values mean, and what is said where that had to be assumed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.readers.mask_files import Picture, is_smoothed
from edgesam_jax.data.schema import BadExample

H, W = 90, 120


def folder(root, picture, name="masks/a.png", photo="a.png", **options):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(root / photo)
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(root / name, **options)
    return ImagesSource(root)


def disc(background=0, value=255, scale=1):
    """A disc of radius 30, drawn at a larger scale and reduced, which smooths its edge."""
    large = Image.new("L", (scale * W, scale * H), background)
    box = [scale * v for v in (30, 15, 90, 75)]
    ImageDraw.Draw(large).ellipse([box[0], box[1], box[2] - 1, box[3] - 1], fill=value)
    return large.resize((W, H), Image.Resampling.BOX)


def instances(count=12, step=1):
    """Rectangles side by side and on top of each other, with a value each."""
    values = np.zeros((H, W), np.uint8)
    for k in range(count):
        y, x = 20 * (k // 4), 28 * (k % 4)
        values[y + 2 : y + 21, x + 3 : x + 31] = 1 + k * step
    return values


@pytest.mark.parametrize("name", ["a.PNG", "a.tif", "a.TIFF", "a.bmp", "a.Bmp", "a.gif", "a/1.PNG", "a/1.tif"])
def test_masks_are_found_by_any_name(tmp_path, name):
    example = folder(tmp_path, disc(), f"masks/{name}", photo="a.JPG").load(0)
    assert len(example) == 1 and (example.masks[0] == (np.asarray(disc()) > 0)).all() and not example.skipped


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("place", ["masks/{}.png", "masks/{}/1.png", "{}.json"])
def test_names_in_either_unicode_form_belong_together(tmp_path, forms, place):
    import unicodedata

    on_disk, of_mask = (unicodedata.normalize(form, "Käfer é") for form in forms)
    file = tmp_path / place.format(of_mask)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        Image.fromarray(instances()).save(tmp_path / f"{on_disk}.png")
        file.write_text('{"shapes": [{"label": "a", "points": [[1, 1], [30, 1], [30, 30]]}]}', encoding="utf-8-sig")
        source = ImagesSource(tmp_path)
    else:
        source = folder(tmp_path, disc(), place.format(of_mask), photo=f"{on_disk}.png")
    assert source.annotated and len(source.load(0)) == 1 and not source.skipped_entries.rows


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("name", ["masks/a.png", "masks/a/1.png"])
def test_a_smoothed_black_and_white_mask_is_one_object_and_says_so(tmp_path, scale, mode, name):
    picture = disc(scale=scale).convert(mode)
    assert len(np.unique(np.asarray(disc(scale=scale)))) > 2
    example = folder(tmp_path, picture, name).load(0)
    exact = np.asarray(disc(scale=64)) >= 128
    assert len(example) == 1 and (example.masks[0] != exact).sum() <= 60 < exact.sum()
    assert [kind for kind, _ in example.skipped] == ["mask assumed"]
    assert "grey values from smoothed edges; read as one object, cut at 128" in example.skipped[0][1]


def test_a_blurred_mask_and_a_jpeg_are_cut_too(tmp_path):
    from PIL import ImageFilter

    for number, (name, picture) in enumerate(
        {"a.png": disc().filter(ImageFilter.GaussianBlur(4)), "a.jpg": disc()}.items()
    ):
        example = folder(tmp_path / str(number), picture, f"masks/{name}").load(0)
        assert len(example) == 1 and abs(example.masks.sum() / (np.asarray(disc()) > 0).sum() - 1) < 0.03
        assert example.skipped[0][0] == "mask assumed"


def test_smoothed_edges_between_several_values_are_refused(tmp_path):
    large = Image.fromarray(instances(step=20)).resize((3 * W, 3 * H), Image.Resampling.NEAREST).rotate(10)
    for number, picture in enumerate((large.resize((W, H), Image.Resampling.BOX), Image.merge("RGB", [large] * 2 + [
        large.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]).resize((W, H), Image.Resampling.BOX))):  # fmt: skip
        with pytest.raises(BadExample, match=r"a\.png: \d+ values, most of them along edges") as caught:
            folder(tmp_path / str(number), picture).load(0)
        assert caught.value.kind == "annotations damaged"


@pytest.mark.parametrize("step", [1, 3, 20])
def test_values_that_fill_areas_are_instances(tmp_path, step):
    example = folder(tmp_path, instances(step=step)).load(0)
    assert len(example) == 12 and not example.skipped
    assert example.annotation_ids.tolist() == list(range(1, 1 + 12 * step, step))


def test_many_small_touching_and_thin_instances_are_plausible():
    rng = np.random.default_rng(0)
    cells = np.kron(rng.permutation(15 * 20).reshape(15, 20) + 1, np.ones((3, 3), int))
    lines = np.zeros((60, 60), int)
    lines[5::9] = np.arange(1, 8)[:, None]
    two = np.zeros((30, 30), int)
    two[4:20, 4:20], two[10:15, 10:15] = 1, 2
    for values in (cells, lines, two):
        assert not is_smoothed(Picture(values.astype(np.int32), values.astype(np.int32), grey=True))


def test_a_ramp_is_no_set_of_instances():
    ramp = np.broadcast_to(np.repeat(np.arange(100), 4), (30, 400)).astype(np.int32)
    assert is_smoothed(Picture(ramp, ramp, grey=True))


def test_an_inverted_mask_says_that_its_border_is_taken_for_an_object(tmp_path):
    example = folder(tmp_path, disc(background=255, value=0)).load(0)
    assert len(example) == 1 and [kind for kind, _ in example.skipped] == ["mask assumed"]
    assert "value 255 covers the photo's whole border" in example.skipped[0][1]


def test_palette_files_are_read_by_index_and_pascal_voc_outlines_are_no_object(tmp_path):
    values = instances()
    values[40:43] = 255
    picture = Image.fromarray(values, mode="P")
    colours = np.random.default_rng(0).integers(0, 255, (256, 3), np.uint8)
    colours[255] = (224, 224, 192)
    picture.putpalette(colours.tobytes())
    example = folder(tmp_path, picture).load(0)
    assert example.annotation_ids.tolist() == list(range(1, 13))
    assert [kind for kind, _ in example.skipped] == ["mask assumed"] and "PASCAL VOC" in example.skipped[0][1]


def test_transparent_pixels_are_background(tmp_path):
    alpha = disc()
    example = folder(tmp_path, Image.merge("RGBA", [Image.new("L", (W, H), 255)] * 3 + [alpha])).load(0)
    assert len(example) == 1 and (example.masks[0] == (np.asarray(alpha) > 0)).all()


def test_what_has_no_meaning_is_refused(tmp_path):
    pages = [disc(), disc(value=9)]
    for number, (picture, options, reason) in enumerate(
        [
            (np.zeros((H, W), np.float32), {}, "floating-point values"),
            (pages[0], {"save_all": True, "append_images": pages[1:]}, "it has 2 pages"),
            (np.zeros((H, W), np.uint8), {}, "no usable annotation: annotation empty 1"),
        ]
    ):
        with pytest.raises(UsageError, match=reason):
            folder(tmp_path / str(number), picture, "masks/a.tif", **options).load(0)


def test_masks_of_no_photo_are_counted(tmp_path):
    folder(tmp_path, disc())
    for name in ("b.png", "c.tif", "a/1.png"):
        (tmp_path / "masks" / name).parent.mkdir(exist_ok=True)
        disc().save(tmp_path / "masks" / name)
    rows = ImagesSource(tmp_path).skipped_entries.rows
    assert [kind for kind, _ in rows] == ["mask not used"] * 2
    assert "masks/a: 1 of no photo" in rows[0][1]
    assert "masks: 2 of no photo" in rows[1][1] and "b.png, c.tif" in rows[1][1]


def test_an_empty_file_of_a_folder_is_counted(tmp_path):
    folder(tmp_path, disc(), "masks/a/1.png")
    Image.new("L", (W, H)).save(tmp_path / "masks/a/2.png")
    example = ImagesSource(tmp_path).load(0)
    assert example.annotation_ids.tolist() == [0] and [kind for kind, _ in example.skipped] == ["annotation empty"]
