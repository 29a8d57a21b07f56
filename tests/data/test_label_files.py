"""Your own annotations (labelme, instance PNGs), and generated prompts for photos without annotations."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgesam_jax.config import DataConfig
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.readers.unlabelled import grid, superpixels
from edgesam_jax.data.schema import BadExample, boxes_of

HEIGHT, WIDTH = 30, 40


def photo(path, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)


def shape(points, kind="polygon", label="thing", group=None, **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}, **more}


def labelme(shapes, **more):
    head = {"version": "5.4.1", "flags": {}, "imagePath": "a.jpg", "imageData": None}
    return json.dumps(head | {"imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes} | more)


def load(tmp_path, text):
    photo(tmp_path / "a.jpg")
    (tmp_path / "a.json").write_text(text)
    return ImagesSource(tmp_path).load(0)


def test_labelme_shapes_become_masks(tmp_path):
    crop = np.zeros((4, 6), np.uint8)
    crop[1:3, 2:5] = 255
    file = io.BytesIO()
    Image.fromarray(crop).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    example = load(
        tmp_path,
        labelme(
            [
                shape([[5, 6], [15, 6], [15, 16], [5, 16]]),
                shape([[20, 20], [30, 25]], "rectangle"),
                shape([[20, 10], [26, 10]], "circle"),
                shape([[33, 2], [38, 5]], "mask", mask=png),
                shape([[1, 1]], "point"),
                shape([[1, 1], [9, 9]], "line"),
                shape([[1, 1], [9, 9]], "polygon"),
            ]
        ),
    )
    assert example.image_id == "a" and len(example) == 4
    areas = example.masks.sum((1, 2))
    assert areas[0] == pytest.approx(100, abs=12) and areas[1] == pytest.approx(50, abs=9)
    assert areas[2] == pytest.approx(np.pi * 36, rel=0.1) and areas[3] == 6
    assert example.masks[3, 3:5, 35:38].all()
    assert [kind for kind, _ in example.skipped] == ["shape without area", "shape without area", "annotation empty"]
    assert "a.json: shapes[4]: a shape of type 'point', which encloses no area" in example.skipped[0][1]
    assert np.abs(example.boxes[1] - [20, 20, 30, 25]).max() <= 1
    assert np.array_equal(example.boxes, boxes_of(example.masks))


def test_shapes_of_one_group_are_one_instance(tmp_path):
    left, right = [[2, 2], [8, 2], [8, 8]], [[20, 2], [28, 2], [28, 8]]
    example = load(
        tmp_path,
        labelme([shape(left, group=1), shape(right, group=1), shape(left, label="other", group=1), shape(right)]),
    )
    assert len(example) == 3
    assert (example.masks[0] == example.masks[1] | example.masks[2]).all()


def test_rectangles_of_two_and_four_corners_are_the_same_and_rotated_ones_are_polygons(tmp_path):
    corners, turned = [[5, 6], [15, 6], [15, 16], [5, 16]], [[20, 10], [30, 15], [25, 25], [15, 20]]
    example = load(
        tmp_path,
        labelme(
            [
                shape([corners[0], corners[2]], "rectangle"),
                shape(corners, "rectangle"),
                shape([corners[3], corners[1]], "rectangle"),
                *(shape(turned, kind, direction=0.4) for kind in ("rotation", "oriented_rectangle", "polygon")),
                shape(turned, None),
            ]
        ),
    )
    assert len(example) == 7 and not example.skipped
    assert (example.masks[:3] == example.masks[0]).all() and (example.masks[3:] == example.masks[3]).all()
    assert example.masks[0].sum() == 100 and example.masks[3].sum() == pytest.approx(125, abs=15)


def test_each_shape_that_is_not_used_has_a_row(tmp_path):
    good, outside = [[1, 1], [9, 1], [9, 9]], [[41, 1], [49, 1], [49, 9]]
    unused = [
        (shape([[1, 1]], "point"), "shape without area"),
        (shape([[1, 1], [9, 9]], "line"), "shape without area"),
        (shape([[1, 1], [9, 9], [9, 1]], "linestrip"), "shape without area"),
        (shape(good, "cuboid"), "shape without area"),
        (shape([[1, 1], [9, 9], [9, 1]], "rectangle"), "annotation damaged"),
        (shape([[1, 1]], "circle"), "annotation damaged"),
        (shape([[1, 1], [9, "x"], [9, 9]]), "annotation damaged"),
        (shape([[1, 1], [9, float("nan")], [9, 9]]), "annotation damaged"),
        (shape([[1, 1], [1e6, 1], [9, 9]]), "annotation damaged"),
        (shape(None), "annotation damaged"),
        (shape(good, label=["list"], group=1), "annotation damaged"),
        (shape([[1, 1], [3, 3]], "mask", mask=7), "annotation damaged"),
        (7, "annotation damaged"),
        (shape([[1, 1], [9, 9]]), "annotation empty"),
        (shape(outside), "annotation empty"),
        (shape([[1.1, 1.1], [1.2, 1.1], [1.2, 1.2]]), "annotation empty"),
    ]
    example = load(tmp_path, labelme([shape(good), *(entry for entry, _ in unused)]))
    assert len(example) == 1
    assert sorted(kind for kind, _ in example.skipped) == sorted(kind for _, kind in unused)
    assert all("a.json: " in message and "\n" not in message for _, message in example.skipped)


def test_a_group_with_a_damaged_shape_is_left_out_as_a_whole(tmp_path):
    good = [[1, 1], [9, 1], [9, 9]]
    example = load(
        tmp_path,
        labelme(
            [
                shape(good, group=1),
                shape([["x"]], group=1),
                shape(good),
                shape([[1, 1]], "point", group=2),
                shape(good, group=2),
            ]
        ),
    )
    assert len(example) == 2
    assert [kind for kind, _ in example.skipped] == ["annotation damaged", "shape without area", "annotation damaged"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"shapes": [{"label": "a"}]}',
        labelme([shape([[1, 2], ["x", 3], [4, 5]])]),
        labelme([shape([[1, 2], [3], [4, 5]])]),
        labelme([shape([[1, 1], [3, 3]], "mask", mask="not base64 of a PNG")]),
        labelme([shape([], "rectangle")]),
        labelme(7),
    ],
)
def test_damaged_labelme_files_are_bad_examples(tmp_path, text):
    with pytest.raises(BadExample, match=r"a\.json") as caught:
        load(tmp_path, text)
    assert caught.value.kind == "annotations damaged"


def test_labelme_of_another_size_is_a_bad_example(tmp_path):
    with pytest.raises(BadExample) as caught:
        load(tmp_path, labelme([shape([[1, 1], [9, 1], [9, 9]])], imageWidth=50))
    assert caught.value.kind == "photo of another size"


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("layout", ["beside", "parallel"])
def test_the_values_of_a_png_tell_instances_apart(tmp_path, mode, layout):
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[2:9, 3:11], values[10:20, 20:35] = 7, 2
    if mode == "RGB":
        picture = Image.fromarray(np.stack([values, values // 2, 0 * values], -1))
    elif mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 256)
    else:
        picture = Image.fromarray(values, mode=mode)
        if mode == "P":
            picture.putpalette(list(range(256)) * 3)
    photos, masks = (
        (tmp_path, tmp_path / "masks") if layout == "beside" else (tmp_path / "images/v", tmp_path / "masks/v")
    )
    photo(photos / "a.jpg")
    masks.mkdir(parents=True, exist_ok=True)
    picture.save(masks / "a.png")
    source = ImagesSource(tmp_path)
    assert len(source) == 1 and source.true_masks
    example = source.load(0)
    assert (example.masks == np.stack([values == 2, values == 7])).all()
    assert example.boxes.tolist() == [[20, 10, 35, 20], [3, 2, 11, 9]]


def test_a_folder_of_masks_is_one_photo(tmp_path):
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    (tmp_path / "masks/a").mkdir(parents=True)
    for k in range(3):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[k * 5 : k * 5 + 8, 10:20] = 255 * (k != 1)
        Image.fromarray(mask).save(tmp_path / f"masks/a/{k}.png")
    source = ImagesSource(tmp_path)
    assert len(source) == 1 and len(source.skipped_entries.rows) == 1
    assert source.load(0).annotation_ids.tolist() == [0, 2]  # one is empty
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "masks/a/3.png")
    with pytest.raises(BadExample, match=r"a\.jpg: it has 40x30 pixels but .*3\.png says 3x3"):
        source.load(0)
    (tmp_path / "masks/a/3.png").write_bytes(b"torn")
    with pytest.raises(BadExample, match=r"3\.png"):
        source.load(0)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_a_grid_covers_the_photo_twice(height, width):
    masks = grid(height, width)
    assert masks.shape[1:] == (height, width) and masks.any((1, 2)).all()
    assert (masks.sum(0) == 2).all()


def test_superpixels_follow_edges_and_cover_the_photo_twice():
    image = np.full((120, 200, 3), 30, np.uint8)
    image[30:90, 60:140] = (220, 180, 40)
    masks = superpixels(image)
    assert (masks.sum(0) == 2).all() and 20 < len(masks) < 120
    inside = masks[:, 30:90, 60:140].sum((1, 2)) / masks.sum((1, 2))
    assert ((inside < 0.2) | (inside > 0.8)).mean() > 0.9


@pytest.mark.parametrize("how", ["grid", "superpixels"])
def test_photos_without_annotations_get_prompts(tmp_path, how):
    photo(tmp_path / "a.jpg", 90, 120)
    data = DataConfig(source="images", root=str(tmp_path))
    assert not open_source(data, 64).annotated
    source = open_source(DataConfig(source="images", root=str(tmp_path), unlabelled=how), 64)
    assert source.annotated and not source.true_masks and len(source) == 1
    first, second = source.load(0), source.load(0, lambda areas, hw: np.flatnonzero(areas)[:3])
    assert (first.points[:3] == second.points).all() and len(second) == 3
    assert all(mask[int(y), int(x)] for mask, (x, y) in zip(first.masks, first.points, strict=True))
    assert np.array_equal(first.boxes, boxes_of(first.masks))


def test_annotated_photos_keep_their_annotations(tmp_path):
    photo(tmp_path / "a.jpg")
    (tmp_path / "a.json").write_text(labelme([shape([[1, 1], [9, 1], [9, 9]])]))
    source = open_source(DataConfig(source="images", root=str(tmp_path), unlabelled="grid"), 64)
    assert source.true_masks and len(source.load(0)) == 1
