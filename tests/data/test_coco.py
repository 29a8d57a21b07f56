import contextlib
import json
import pickle
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from whole_masks import decode_mask

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers.coco import CocoSource, find_annotations
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.scenes.scene import scene

H, W = 48, 64


def compressed(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    runs, value, count = [], False, 0
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            runs.append(count)
            value, count = pixel, 0
        count += 1
    return {"size": list(mask.shape), "counts": [*runs, count]}


def photo(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H W 3) and the non-empty masks (n H W) of its instances."""
    example = scene(0, index, W)
    masks = example.masks[:, :H]
    return example.image[:H], masks[masks.any((1, 2))]


def annotation(mask: np.ndarray, image_id: int, number: int, **more) -> dict:
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
    plain = {"bbox": [float(v) for v in box], "area": int(mask.sum()), "segmentation": compressed(mask)}
    return {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, **plain, **more}


def write_coco(root, count=3, folder="images", change=None):
    """Write a data set of ``count`` photos; image ``i`` has id ``10 + i``."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels, masks = photo(i)
        Image.fromarray(pixels).save(root / folder / f"{i}.png")
        content["images"].append({"id": 10 + i, "file_name": f"{i}.png", "height": H, "width": W})
        for mask in masks:
            content["annotations"].append(annotation(mask, 10 + i, len(content["annotations"])))
    if change:
        change(content)
    (root / "instances.json").write_text(json.dumps(content))
    return content


def kinds(source) -> dict[str, int]:
    return dict(Counter(kind for kind, _ in source.skipped_entries.rows))


@pytest.mark.parametrize("folder", ["", "images", "train2017", "val2017"])
def test_photos_are_found_and_read(tmp_path, folder):
    content = write_coco(tmp_path, folder=folder)
    source = pickle.loads(pickle.dumps(CocoSource(tmp_path)))  # workers get a copy
    assert len(source) == 3 and source.skipped_entries.rows == [] and source.categories == {1: "thing"}
    for i in range(3):
        pixels, masks = photo(i)
        example = source.load(i)
        assert (example.image == pixels).all() and (example.masks == masks).all()
        assert example.image_id == 10 + i
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == 10 + i]
        assert (example.boxes == [[x, y, x + w, y + h] for x, y, w, h in boxes]).all()
        for mask, (x, y) in zip(example.masks, example.points, strict=True):
            assert mask[int(y), int(x)]
        assert (source.load(i).points == example.points).all()
        assert [a["id"] for a in source.annotations(i)] == example.annotation_ids.tolist()


def test_keep_chooses_before_masks_are_decoded(tmp_path):
    def damage(content):
        content["annotations"][0]["segmentation"] = {"size": [H, W], "counts": [5]}

    write_coco(tmp_path, change=damage)
    source, masks = CocoSource(tmp_path), photo(0)[1]
    seen = {}

    def keep(areas, hw):
        seen.update(areas=areas, hw=hw)
        return np.array([2, 1])

    example = source.load(0, keep)  # the damaged first one is not touched
    assert seen["hw"] == (H, W) and seen["areas"].tolist() == masks.sum((1, 2)).tolist()
    assert (example.masks == masks[[2, 1]]).all()
    assert len(source.load(0, lambda areas, hw: np.array([], int))) == 0
    example = source.load(0)  # a damaged annotation costs only itself
    assert (example.masks == masks[1:]).all() and len(example.skipped) == 1
    assert example.skipped[0][0] == "segmentation damaged"
    assert "instances.json: image 10, annotation 0: damaged segmentation" in example.skipped[0][1]


def test_crowds_and_empty_annotations_are_skipped(tmp_path):
    def change(content):
        of = [[a for a in content["annotations"] if a["image_id"] == 10 + i] for i in range(3)]
        of[0][0]["iscrowd"] = 1
        of[0][1]["bbox"] = [3.0, 3.0, 0.0, 5.0]
        of[0][2]["segmentation"] = []
        for crowd in of[1]:
            crowd["iscrowd"] = 1
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 12]

    write_coco(tmp_path, change=change)
    source = CocoSource(tmp_path)
    assert len(source) == 1 and len(source.load(0)) == len(photo(0)[1]) - 3
    crowds = 1 + len(photo(1)[1])
    assert kinds(source) == {"annotation empty": 2, "no annotations": 2, "crowd": crowds}
    assert source.skipped_entries.damaged == 1


def test_missing_photos_are_counted_and_named(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    source = CocoSource(tmp_path)
    assert len(source) == 2 and kinds(source) == {"file missing": 1} and not source.skipped_entries.damaged
    assert "1 entries" in source.skipped_entries.note and "1.png" in source.skipped_entries.note
    for i in (0, 2):
        (tmp_path / "images" / f"{i}.png").unlink()
    with pytest.raises(UsageError, match=r"none of the 3 photos .*0\.png"):
        CocoSource(tmp_path)


def test_limit_takes_the_first(tmp_path):
    write_coco(tmp_path)
    source = CocoSource(tmp_path, limit=2)
    assert [source.load(i).image_id for i in range(len(source))] == [10, 11]


def test_lvis_names_photos_by_address(tmp_path):
    def change(content):
        for image in content["images"]:
            image["coco_url"] = "http://images/val2017/" + image.pop("file_name")
        for entry in content["annotations"]:
            del entry["iscrowd"]

    write_coco(tmp_path, folder="val2017", change=change)
    assert len(CocoSource(tmp_path)) == 3


def test_the_only_annotation_file_is_found(tmp_path):
    with pytest.raises(UsageError, match="no annotations"):
        find_annotations(tmp_path)
    (tmp_path / "annotations").mkdir()
    one = tmp_path / "annotations" / "instances_val2017.json"
    one.write_text("{}")
    assert find_annotations(tmp_path) == one
    (tmp_path / "captions.json").write_text("{}")
    assert find_annotations(tmp_path) == one
    (tmp_path / "instances_train2017.json").write_text("{}")
    with pytest.raises(UsageError, match="several annotation files"):
        find_annotations(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "not in COCO format"),
        ('{"images": [], "annotations": {}}', "not in COCO format"),
        ('{"images": [{"id": 1}], "annotations": []}', "no 'height'"),
        ('{"images": [], "annotations": [7]}', "not an object"),
        ('{"images": [], "annotations": []}', "no photo in it can be used: it lists none"),
        ("[" * 100_000, "not valid JSON"),
        (
            '{"images": [{"id": 1, "height": 2, "width": 2}], "annotations": '
            '[{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1]]}]}',
            "neither file_name nor coco_url",
        ),
    ],
)
def test_damaged_annotation_files_are_named(tmp_path, text, reason):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason) as caught:
        CocoSource(tmp_path)
    assert "mine.json" in str(caught.value)


def test_missing_roots_and_files_are_named(tmp_path):
    for source in (CocoSource, ImagesSource):
        with pytest.raises(UsageError, match="no such folder"):
            source("")
        with pytest.raises(UsageError, match="nowhere"):
            source(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"gone\.json: no such file"):
        CocoSource(tmp_path, tmp_path / "gone.json")


def test_the_annotated_size_decides_whether_orientation_is_applied(tmp_path):
    content = write_coco(tmp_path, count=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images" / "0.png"
    pixels = photo(0)[0]
    Image.fromarray(pixels).save(path, exif=exif)  # annotated as stored
    assert (CocoSource(tmp_path).load(0).image == pixels).all()
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)  # annotated as seen
    assert (CocoSource(tmp_path).load(0).image == pixels).all()
    Image.fromarray(pixels[:-1]).save(path)
    with pytest.raises(UsageError, match=r"0\.png: it has 64x47 pixels but .* says 64x48"):
        CocoSource(tmp_path).load(0)
    assert content["images"][0]["height"] == 48


@given(seed=st.integers(0, 999), height=st.integers(1, 30), width=st.integers(1, 30), share=st.floats(0, 1))
def test_both_run_length_codes_decode(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert (decode_mask(compressed(mask), height, width, "") == mask).all()
    assert (decode_mask(uncompressed(mask), height, width, "") == mask).all()


@settings(max_examples=300)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
def test_no_code_corrupts_memory(counts):
    with contextlib.suppress(UsageError):
        assert decode_mask({"size": [20, 30], "counts": counts}, 20, 30, "").shape == (20, 30)


def test_polygons_are_united():
    polygons = [[0, 0, 4, 0, 4, 4, 0, 4], [6, 6, 9, 6, 9, 9, 6, 9]]
    mask = decode_mask(polygons, 10, 10, "")
    assert mask[:4, :4].all() and mask[6:9, 6:9].all() and mask.sum() == 25
    assert (
        decode_mask([*polygons, [0, 0, 9, 9]], 10, 10, "") == mask
    ).all()  # a line encloses nothing, and four numbers are not a box
    assert not decode_mask([[0, 0, 9, 9]], 10, 10, "").any()


@pytest.mark.parametrize(
    "bad",
    [
        {"size": [4, 4]},
        {"size": [9, 9], "counts": [81]},
        {"size": [4, 4], "counts": [99]},
        {"size": [4, 4], "counts": [20, -8, 4]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "P"},  # a digit that announces more
        {"size": [4, 4], "counts": "\x7f"},
        {"size": [4, 4], "counts": "PPPPPPPPP0"},
        {"size": [4, 4], "counts": "TTT0"},
        [["a"] * 6],
        [[0, 0, 1, 1, 1, float("nan")]],
        "text",
        7,
    ],
)
def test_damaged_segmentations_are_named(bad):
    with pytest.raises(UsageError, match="annotation 5: damaged segmentation"):
        decode_mask(bad, 4, 4, "annotation 5")


def write_sa1b(root, names):
    root.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        pixels, masks = photo(i)
        Image.fromarray(pixels).save(root / f"{name}.png")
        entries = [annotation(m, 0, k, point_coords=[[1.5 + k, 2.5]]) for k, m in enumerate(masks)]
        content = {"image": {"image_id": 70 + i, "height": H, "width": W}, "annotations": entries}
        (root / f"{name}.json").write_text(json.dumps(content))


def test_photos_with_annotations_beside_them(tmp_path):
    write_sa1b(tmp_path, ["sa_1", "sa_2"])
    Image.fromarray(photo(3)[0]).save(tmp_path / "other.jpg")
    source = ImagesSource(tmp_path)
    assert len(source) == 2 and kinds(source) == {"no annotations": 1} and "other.jpg" in source.skipped_entries.note
    example = source.load(1)
    assert example.image_id == 71 and (example.masks == photo(1)[1]).all()
    assert example.points[:2].tolist() == [[1.5, 2.5], [2.5, 2.5]]
    assert len(ImagesSource(tmp_path, limit=1)) == 1
    assert source.load(0, lambda areas, hw: np.array([1])).annotation_ids.tolist() == [1]


def test_the_published_folders_are_read(tmp_path):
    write_sa1b(tmp_path, ["sa_1"])
    for kind, suffix in (("images", "png"), ("annotations", "json")):
        (tmp_path / kind / "val").mkdir(parents=True)
        (tmp_path / f"sa_1.{suffix}").rename(tmp_path / kind / "val" / f"sa_1.{suffix}")
    assert len(ImagesSource(tmp_path).load(0)) == len(photo(0)[1])


def test_annotations_in_a_folder_beside_the_photos(tmp_path):
    write_sa1b(tmp_path, ["sa_1"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "sa_1.json").rename(tmp_path / "annotations" / "sa_1.json")
    source = ImagesSource(tmp_path)
    assert source.annotated and len(source.load(0)) == len(photo(0)[1]) and not kinds(source)


def test_photos_without_any_annotations_are_enough_for_the_encoder(tmp_path):
    Image.fromarray(photo(0)[0]).save(tmp_path / "b.PNG")
    Image.fromarray(photo(1)[0]).save(tmp_path / "a.png")
    source = ImagesSource(tmp_path)
    assert [source.path(i).name for i in range(2)] == ["a.png", "b.PNG"]
    example = source.load(0)
    assert example.masks.shape == (0, H, W) and example.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"image": {}, "annotations": []}', '{"image": {"height": 1, "width": 1}, "annotations": [{}]}']
)
def test_damaged_neighbours_are_named(tmp_path, text):
    write_sa1b(tmp_path, ["sa_1"])
    (tmp_path / "sa_1.json").write_text(text)
    with pytest.raises(UsageError, match=r"sa_1\.json: (not SA-1B's format|not valid JSON|no usable annotation)"):
        ImagesSource(tmp_path).load(0)


def test_a_folder_without_photos_is_named(tmp_path):
    with pytest.raises(UsageError, match="no photos"):
        ImagesSource(tmp_path)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_either_unicode_form_are_the_same_photo(tmp_path, forms):
    on_disk, listed = (unicodedata.normalize(form, "Käfer é.png") for form in forms)

    def change(content):
        content["images"][0]["file_name"] = listed

    write_coco(tmp_path, count=1, change=change)
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / on_disk)
    assert len(CocoSource(tmp_path)) == 1
    ids = tmp_path / "ids.txt"
    ids.write_text(on_disk.removesuffix(".png") + "\n", encoding="utf-8-sig")
    assert len(open_source(DataConfig(source="coco", root=str(tmp_path), ids=str(ids)), 64)) == 1


def test_backslashes_separate_folders(tmp_path):
    def change(content):
        names = "images\\0.png", "images\\val\\1.png", "..\\images\\2.png"
        for image, name in zip(content["images"], names, strict=True):
            image["file_name"] = name

    write_coco(tmp_path, change=change)
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / "val" / "1.png")
    source = CocoSource(tmp_path)
    assert source.names() == ["images/0.png", "images/val/1.png"]
    assert [source.path(i).name for i in range(2)] == ["0.png", "1.png"]
    assert kinds(source) == {"path outside the data root": 1}
    (tmp_path / "images" / "0.png").unlink()
    assert "images\\0.png is not in" in CocoSource(tmp_path).skipped_entries.note


def test_annotations_of_images_that_are_not_listed_share_a_row_per_image(tmp_path):
    def change(content):
        content["images"] = content["images"][:1]

    content = write_coco(tmp_path, change=change)
    source = CocoSource(tmp_path)
    others = [sum(a["image_id"] == i for a in content["annotations"]) for i in (11, 12)]
    assert kinds(source) == {"photo unknown": 2} and source.skipped_entries.damaged == 0
    for (_, message), count, image_id in zip(source.skipped_entries.rows, others, (11, 12), strict=True):
        assert f" and {count - 1} more: no image has their image_id, {image_id}" in message


def test_a_byte_order_mark_is_no_fault(tmp_path):
    write_coco(tmp_path)
    text = (tmp_path / "instances.json").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "instances.json").write_text(text, encoding=encoding)
        assert len(CocoSource(tmp_path)) == 3
