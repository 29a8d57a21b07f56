"""Valid files with one to three values replaced by others of any type and range.

Whatever the values are, reading gives no other error than ``UsageError``, and every annotation is used or has a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.schema import BadExample
from edgesam_jax.eval.scoring.average_precision import average_precision
from edgesam_jax.eval.scoring.ground_truth import read_ground_truth
from edgesam_jax.eval.scoring.photos import Photo, load
from edgesam_jax.eval.scoring.results import check_results, read_results

H, W = 30, 40
RLE = {"size": [H, W], "counts": coco_mask.encode(np.asfortranarray(np.eye(H, W, dtype=np.uint8)))["counts"].decode()}
POLYGONS = [[3, 4, 30, 5, 20, 25]]
LISTED = {"size": [H, W], "counts": [0, 5 * H, H * (W - 5)]}


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 70), st.sampled_from([10**9, -(10**9), 10**19, 10**400, 1 << 53]),
    st.floats(), st.sampled_from(["", "1", "x", "a\nb\x1b[0m", "b'X]4'", "\ud800", "ä" * 200, "../x", "..\\x", "0.5"]),
    st.sampled_from([[], [[]], {}, [1, 2], [1, 2, 3, 4], [[1, 2]], [[1, 2], [3, 4], [5, 6]], [POLYGONS], {"a": 1}]),
    st.sampled_from([POLYGONS, POLYGONS[0], RLE, LISTED, {**RLE, "size": [W, H]}, {"counts": "X"}, [["1"] * 6]]),
    st.integers(1, 300).map(nested),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of the values in a structure, down to the sixth level."""
    if len(path) == 6:
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def damaged(draw: Any, whole: Any, within: tuple[str, ...] = ()) -> Any:
    """A copy of a structure with some values, below one of the keys in ``within``, replaced or removed."""
    content = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        candidates = [p for p in places(content) if not within or (p[0] in within and len(p) > 1)]
        if not candidates:
            break
        *outer, last = draw(st.sampled_from(candidates))
        parent = content
        for key in outer:
            parent = parent[key]
        if draw(st.booleans()) and isinstance(parent, dict):
            del parent[last]
        else:
            parent[last] = json.loads(json.dumps(draw(VALUES)))
    return content


def annotation(number: int, image_id: int, shape: Any) -> dict[str, Any]:
    return {
        "id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 300, "bbox": [3, 4, 27, 21],
        "segmentation": shape, "point_coords": [[15.5, 10]],
    }  # fmt: skip


SHAPES = (POLYGONS, RLE, LISTED)
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in (1, 2)],
    "annotations": [annotation(10 * i + k, i, shape) for i in (1, 2) for k, shape in enumerate(SHAPES)],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
}
SA1B = {
    "image": {"image_id": 1, "height": H, "width": W, "file_name": "1.png"},
    "annotations": [annotation(k, 1, shape) for k, shape in enumerate(SHAPES)],
}
LABELME = {
    "version": "5", "flags": {}, "imagePath": "1.png", "imageData": None, "imageHeight": H, "imageWidth": W,
    "shapes": [
        {"label": "a", "points": points, "shape_type": kind, "group_id": group}
        for kind, points, group in (
            ("polygon", [[1, 1], [9, 1], [9, 9]], None), ("rectangle", [[1, 1], [9, 9]], 1),
            ("circle", [[9, 9], [12, 9]], 1),
            ("rectangle", [[1, 1], [9, 1], [9, 9], [1, 9]], None), ("point", [[1, 1]], None),
        )
    ],
}  # fmt: skip
RESULTS = [
    {"image_id": i, "category_id": 1, "score": 0.5, "bbox": [3, 4, 20, 20], "segmentation": shape}
    for i, shape in zip((1, 2, 2), SHAPES, strict=True)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for name in ("1.png", "2.png"):
        Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(root / name)
    return root


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(damaged(COCO, ("images", "annotations", "categories")))
def test_coco(folder: Path, content: Any) -> None:
    file = save(folder / "coco.jsn", content)
    try:
        source = CocoSource(folder, file)
    except UsageError as error:
        assert "\n" not in str(error) and "coco.jsn" in str(error)
        return
    rows = [message for kind, message in source.skipped_entries.rows]
    found = {number for number in range(len(content["annotations"])) for m in rows if f"annotations[{number}]" in m}
    listed, used, lost = sum(len(source.annotations(i)) for i in range(len(source))), 0, 0
    for index in range(len(source)):
        try:
            photo = load(source, index)
        except BadExample as error:
            assert "\n" not in str(error)
            lost += len(source.annotations(index))
            continue
        assert all(mask for mask in photo.masks) and len(photo.masks) + len(photo.skipped) == len(
            source.annotations(index)
        )
        used += len(photo.masks)
        lost += len(photo.skipped)
    assert used + lost == listed
    # Those of photos that are not read are covered by the photo's row; several of unknown images share a row.
    shared = sum(int(m.split(" and ")[1].split(" more")[0]) for m in rows if "] and " in m and " more: no image" in m)
    of_photos = sum("images[" in message for message in rows)
    assert len(content["annotations"]) <= listed + len(found) + shared + 3 * of_photos


@many
@given(damaged(COCO, ("annotations", "images")))
def test_ground_truth(folder: Path, content: Any) -> None:
    file = save(folder / "coco.jsn", content)
    try:
        truth = read_ground_truth(file)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    rows = [kind for kind, _ in truth.skipped if kind.startswith("annotation")]
    assert len(truth.annotations) + len(rows) == len(content["annotations"])
    average_precision(truth, [], style="coco")


@many
@given(damaged(SA1B, ("annotations",)))
def test_sa1b(folder: Path, content: Any) -> None:
    photo = check_folder(folder, content)
    if photo is not None:
        assert len(photo.masks) + len(photo.skipped) == len(content["annotations"])


@many
@given(damaged(LABELME, ("shapes",)))
def test_labelme(folder: Path, content: Any) -> None:
    shapes = zip(content["shapes"], LABELME["shapes"], strict=True)
    same = ("label", "group_id")  # other groups are other instances
    grouped = all(isinstance(a, dict) and [a.get(k) for k in same] == [b[k] for k in same] for a, b in shapes)
    photo = check_folder(folder, content)
    if photo is not None and grouped:
        # Two shapes are one instance, which has a row too if one of them is damaged.
        assert 4 <= len(photo.masks) + len(photo.skipped) <= 6


def check_folder(folder: Path, content: Any) -> Photo | None:
    save(folder / "1.json", content)
    try:
        photo = load(ImagesSource(folder), 0)
    except BadExample as error:
        assert "1.json" in str(error) and "\n" not in str(error)
        return None
    finally:
        (folder / "1.json").unlink()
    assert all(mask for mask in photo.masks)
    assert all("\n" not in message and "1.json" in message for _, message in photo.skipped)
    return photo


@many
@given(damaged(SA1B) | damaged(LABELME) | VALUES)
def test_any_json_next_to_a_photo(folder: Path, content: Any) -> None:
    save(folder / "1.json", content)
    try:
        load(ImagesSource(folder), 0)
    except UsageError as error:
        assert "\n" not in str(error)
    finally:
        (folder / "1.json").unlink()


@many
@given(damaged(RESULTS), st.sampled_from(["bbox", "segmentation"]))
def test_results(folder: Path, content: Any, need: Any) -> None:
    save(folder / "results.jsn", content)
    entries = read_results(folder / "results.jsn", "--detections")
    kept, rows = check_results(entries, {1: (H, W), 2: (H, W)}, {1}, need)
    assert len(kept) + len(rows) == len(content)
    assert all("\n" not in message for _, message in rows)
    if need == "segmentation":
        average_precision(read_ground_truth(save(folder / "coco.jsn", COCO)), kept, style="coco")


@many
@given(damaged(COCO) | VALUES)
def test_any_json_as_coco(folder: Path, content: Any) -> None:
    file = save(folder / "coco.jsn", content)
    for read in (lambda: CocoSource(folder, file), lambda: read_ground_truth(file)):
        try:
            read()
        except UsageError as error:
            assert "\n" not in str(error)
