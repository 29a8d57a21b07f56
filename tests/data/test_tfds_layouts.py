"""Data sets in the layouts that TFDS publishes, written with its own features and without TensorFlow."""

from __future__ import annotations

import io
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from small_data import write_tar
from tensorflow_datasets.core import example_serializer

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers.prepared import PreparedSource
from edgesam_jax.data.readers.records import decode_record
from edgesam_jax.data.schema import BadExample

F = tfds.features
H, W = 40, 60
FIELDS = ("image", "masks", "boxes", "points", "annotation_ids")


def write_tfds(folder, features, examples, split="train"):
    """A data set of one shard."""
    folder.mkdir()
    features = F.FeaturesDict(features)
    writer = ArrayRecordWriter(str(folder / f"photos-{split}.array_record-00000-of-00001"), "group_size:1")
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for example in examples:
        writer.write(serializer.serialize_example(features.encode_example(example)))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        dataset_name="photos", split=split, filetype_suffix="array_record", data_dir=folder
    )
    info = tfds.core.SplitInfo(name=split, shard_lengths=[len(examples)], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[info], filename_template=None, check_data=False
    )
    return folder


def share(x, y, w, h):
    """Convert XYWH in pixels to TFDS's box."""
    return F.BBox(ymin=y / H, xmin=x / W, ymax=(y + h) / H, xmax=(x + w) / W)


def picture(values, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return io.BytesIO(file.getvalue())


def photo(number, height=H, width=W):
    return picture(np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8), "JPEG")


def rectangle(x, y, w, h):
    mask = np.zeros((H, W), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def row(number, box, crowd=False, label=3):
    return {"id": number, "area": box[2] * box[3], "bbox": share(*box), "label": label, "is_crowd": crowd}


OBJECT = {"id": np.int64, "area": np.int64, "bbox": F.BBoxFeature()}
PHOTO = {"image": F.Image(encoding_format="jpeg"), "image/id": np.int64}
COCO = PHOTO | {
    "image/filename": F.Text(),
    "objects": F.Sequence(OBJECT | {"label": F.ClassLabel(num_classes=80), "is_crowd": np.bool_}),
}
PANOPTIC = PHOTO | {
    "image/filename": F.Text(),
    "panoptic_image": F.Image(encoding_format="png"),
    "panoptic_image/filename": F.Text(),
    "panoptic_objects": F.Sequence(OBJECT | {"label": F.ClassLabel(num_classes=133), "is_crowd": np.bool_}),
}
LVIS = PHOTO | {
    "neg_category_ids": F.Sequence(F.ClassLabel(num_classes=1203)),
    "not_exhaustive_category_ids": F.Sequence(F.ClassLabel(num_classes=1203)),
    "objects": F.Sequence(
        OBJECT | {"label": F.ClassLabel(num_classes=1203), "segmentation": F.Image(shape=(None, None, 1))}
    ),
}


def test_segment_anything_is_read(tmp_path):
    """Integer types differ from prepared data's, and boxes are fractions of the sides."""
    features = {
        "image": {
            "content": F.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "file_name": F.Text(), "height": np.uint64, "width": np.uint64, "image_id": np.uint64,
        },
        "annotations": F.Sequence(
            {
                "area": np.uint64, "bbox": F.BBoxFeature(), "crop_box": F.BBoxFeature(), "id": np.uint64,
                "point_coords": F.Tensor(shape=(1, 2), dtype=np.float64), "predicted_iou": np.float64,
                "segmentation": {"counts": F.Text(), "size": F.Tensor(shape=(2,), dtype=np.uint64)},
                "stability_score": np.float64,
            }
        ),
    }  # fmt: skip
    write_tar(tmp_path / "sa_000000.tar", [4])
    record = open_source(DataConfig(source="tars", root=str(tmp_path)), 64).record(0)
    annotations = []
    for a in record.annotations:
        x, y, w, h = a["bbox"]
        box = F.BBox(ymin=y / 30, xmin=x / 40, ymax=(y + h) / 30, xmax=(x + w) / 40)
        annotations.append(
            {"area": a["area"], "bbox": box, "crop_box": box, "id": a["id"], "point_coords": a["point_coords"],
             "predicted_iou": 0.9, "stability_score": 0.95, "segmentation": a["segmentation"]}
        )  # fmt: skip
    image = {
        "content": io.BytesIO(record.photo), "file_name": "sa_4.jpg", "height": 30, "width": 40, "image_id": 4
    }  # fmt: skip
    folder = write_tfds(tmp_path / "sa", features, [{"image": image, "annotations": annotations}])
    a, b = decode_record(record), PreparedSource(folder).load(0)
    assert a.image_id == b.image_id == 4
    for name in FIELDS:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_coco_gives_boxes_and_leaves_crowds_out(tmp_path):
    boxes = [(3, 4, 20, 15), (30, 10, 25, 28), (0, 0, W, H), (5, 5, 0, 9)]
    examples = [
        {
            "image": photo(n), "image/id": 70 + n, "image/filename": f"{70 + n:012d}.jpg",
            "objects": [row(10 * n + k, box, crowd=k == 2) for k, box in enumerate(boxes)],
        }
        for n in range(2)
    ]  # fmt: skip
    folder = write_tfds(tmp_path / "coco", COCO, examples, "validation")
    source = pickle.loads(pickle.dumps(PreparedSource(folder, "validation")))
    assert len(source) == 2 and source.annotated and not source.true_masks
    assert source.record(1).photo == examples[1]["image"].getvalue()
    example = source.load(1)
    assert example.image_id == 71 and example.annotation_ids.tolist() == [10, 11]
    assert [kind for kind, _ in example.skipped] == ["crowd", "annotation empty"]
    assert np.abs(example.boxes - [[3, 4, 23, 19], [30, 10, 55, 38]]).max() < 1e-3
    assert (example.masks == [rectangle(*box) for box in boxes[:2]]).all()
    assert "tensorflow" not in sys.modules


def test_panoptic_pictures_become_masks_of_things(tmp_path):
    boxes = [(3, 4, 20, 15), (30, 10, 25, 28), (0, 30, 20, 9), (50, 0, 9, 5)]
    numbers = [6202563, 255, 9, 70000]
    colours = np.zeros((H, W, 3), np.uint8)
    for number, box in zip(numbers, boxes, strict=True):
        colours[rectangle(*box)] = number & 255, number >> 8 & 255, number >> 16
    rows = [
        row(number, box, crowd=k == 2, label=120 if k == 3 else k)  # a crowd, and a stuff label
        for k, (number, box) in enumerate(zip(numbers, boxes, strict=True))
    ]
    example = {
        "image": photo(0), "image/id": 5, "image/filename": "5.jpg", "panoptic_image": picture(colours),
        "panoptic_image/filename": "5.png", "panoptic_objects": [*rows, row(1234, boxes[0])],  # the last is not drawn
    }  # fmt: skip
    source = PreparedSource(write_tfds(tmp_path / "panoptic", PANOPTIC, [example]))
    assert source.true_masks
    loaded = source.load(0)
    assert loaded.annotation_ids.tolist() == numbers[:2]
    assert [kind for kind, _ in loaded.skipped] == ["crowd", "stuff", "annotation empty"]
    assert (loaded.masks == [rectangle(*box) for box in boxes[:2]]).all()
    assert all(mask[int(y), int(x)] for mask, (x, y) in zip(loaded.masks, loaded.points, strict=True))


def lvis_example(number, masks):
    rows = [
        {"id": k, "area": 9, "bbox": share(3 + k, 4, 20, 15), "label": k, "segmentation": picture(mask * np.uint8(255))}
        for k, mask in enumerate(masks)
    ]
    return {
        "image": photo(number), "image/id": number, "neg_category_ids": [1], "not_exhaustive_category_ids": [],
        "objects": rows,
    }  # fmt: skip


def test_lvis_gives_a_mask_for_each_object(tmp_path):
    masks = [rectangle(3 + k, 4, 20, 15) for k in range(3)]
    empty = np.zeros((H, W), bool)
    other = np.zeros((9, 9), bool)
    examples = [lvis_example(139, [*masks, empty]), lvis_example(200, []), lvis_example(201, [other])]
    source = PreparedSource(write_tfds(tmp_path / "lvis", LVIS, examples))
    assert source.true_masks and source.names() == [f"{n:012d}.jpg" for n in (139, 200, 201)]
    example = source.load(0)
    assert [kind for kind, _ in example.skipped] == ["annotation empty"]
    assert example.image_id == 139 and (example.masks == masks).all() and example.annotation_ids.tolist() == [0, 1, 2]
    assert len(source.load(1)) == 0
    with pytest.raises(BadExample, match="000000000201") as caught:
        source.load(2)
    assert caught.value.kind == "photo of another size"


def test_other_layouts_are_named(tmp_path):
    folder = write_tfds(tmp_path / "digits", {"image": F.Image(), "label": np.int64}, [{"image": photo(0), "label": 1}])
    with pytest.raises(UsageError, match=r"features \(image, label\) not supported"):
        PreparedSource(folder)


@pytest.mark.parametrize("damage", ["photo", "mask"])
def test_damage_inside_a_record_is_a_bad_example(tmp_path, damage):
    example = lvis_example(1, [rectangle(1, 1, 9, 9)])
    if damage == "photo":
        example["image"] = io.BytesIO(b"torn")
    else:
        example["objects"][0]["segmentation"] = io.BytesIO(picture(np.zeros((H, W), np.uint8)).getvalue()[:50])
    source = PreparedSource(write_tfds(tmp_path / "lvis", LVIS, [example]))
    with pytest.raises(BadExample, match="record 0") as caught:
        source.load(0)
    assert caught.value.kind == {"photo": "photo damaged", "mask": "record damaged"}[damage]
