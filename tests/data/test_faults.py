"""Faulty photos and annotations are skipped and counted by kind, and never take more memory than good ones."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import tarfile
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from whole_masks import decode_mask

from edgesam_jax import prepare
from edgesam_jax.config import DataConfig, SamConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.pipeline import BatchSource
from edgesam_jax.data.readers import records
from edgesam_jax.data.readers.images import ImagesSource
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import Part, skipped_entries

H, W = 40, 60
NAN = float("nan")
TRIANGLE = [[3.0, 4.0, 30.0, 5.0, 20.0, 33.0]]


def encode(height=H, width=W, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(file, form)
    return file.getvalue()


def bomb(width, height):
    """A PNG of about a hundred bytes whose header claims this size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def annotation(**changes):
    fields = {"id": 7, "image_id": 1, "bbox": [3.0, 4.0, 27.0, 29.0], "area": 300.0, "segmentation": TRIANGLE} | changes
    return {name: value for name, value in fields.items() if value != "absent"}


def coco(root, photo, size, annotations):
    """The photo in question, and a good one."""
    (root / "bad.jpg").write_bytes(photo)
    (root / "good.jpg").write_bytes(encode())
    images = [
        {"id": 1, "file_name": "bad.jpg", "height": size[0], "width": size[1]},
        {"id": 2, "file_name": "good.jpg", "height": H, "width": W},
    ]
    content = {"images": images, "annotations": [*annotations, annotation(id=8, image_id=2)]}
    (root / "instances.json").write_text(json.dumps(content))


def pairs(photo, size, annotations):
    head = {"image_id": 1, "height": size[0], "width": size[1]}
    yield "bad", photo, {"image": head, "annotations": annotations}
    yield "good", encode(), {"image": {"image_id": 2, "height": H, "width": W}, "annotations": [annotation(id=8)]}


def images(root, photo, size, annotations):
    for name, content, label in pairs(photo, size, annotations):
        (root / f"{name}.jpg").write_bytes(content)
        (root / f"{name}.json").write_text(json.dumps(label))


def tars(root, photo, size, annotations):
    with tarfile.open(root / "sa_000000.tar", "w") as file:
        for name, content, label in pairs(photo, size, annotations):
            for suffix, data in (("jpg", content), ("json", json.dumps(label).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


SOURCES = {"coco": coco, "images": images, "tars": tars}

# Name: the photo's bytes, the size that its annotations say, the kind.
PHOTOS = {
    "zero bytes": (b"", (H, W), "photo damaged"),
    "a text": (b"hello", (H, W), "photo damaged"),
    "a truncated JPEG": (encode(form="JPEG")[:600], (H, W), "photo damaged"),
    "a PNG bomb": (bomb(60000, 60000), (60000, 60000), "photo too large"),
    "20,000 px wide": (bomb(20000, 500), (500, 20000), "photo too large"),
    "many pixels": (bomb(16000, 9000), (9000, 16000), "photo too large"),
    "1 px wide": (encode(300, 1), (300, 1), "photo too thin"),
    "another size": (encode(H, W + 1), (H, W), "photo of another size"),
}
# Kind "segmentation damaged".
RLE = {
    "an RLE of another size": {"size": [9, 9], "counts": [40, 41]},
    "an RLE too long": {"size": [H, W], "counts": [10, 10**12]},
    "an RLE too short": {"size": [H, W], "counts": [10, 10]},
    "no RLE": {"size": [H, W], "counts": "\x7f"},
    "a polygon far away": [[0, 0, 1e9, 0, 1e9, 1e9]],
    "a corner that is no number": [[0, 0, NAN, 0, 1, 1]],
    "corners that are texts": [["a"] * 6],
}
# COCO's entries are checked one by one when the file is opened, the other formats' when the photo is loaded.
WRONG = {
    "no fields": {},
    "a list": [],
    "no bbox": annotation(bbox="absent"),
    "no segmentation": annotation(segmentation="absent"),
    "a text for a bbox": annotation(bbox="3 4 5 6"),
    "a bbox that is not finite": annotation(bbox=[1.0, 1.0, NAN, 3.0]),
    "a bbox beyond all numbers": annotation(bbox=[1, 1, 10**400, 3]),
    "a bbox of three": annotation(bbox=[1, 2, 3]),
    "a text for an id": annotation(id="seven"),
    "an id beyond 64 bits": annotation(id=1 << 70),
    "a number for a segmentation": annotation(segmentation=7),
    "a flat list for polygons": annotation(segmentation=TRIANGLE[0]),
    "polygons of points": annotation(segmentation=[[[3.0, 4.0], [30.0, 5.0], [20.0, 33.0]]]),
    "a polygon of points": annotation(segmentation=[[3.0, 4.0], [30.0, 5.0], [20.0, 33.0]]),
    "an odd number of coordinates": annotation(segmentation=[[*TRIANGLE[0], 1.0]]),
    "counts that are the text of bytes": annotation(segmentation={"size": [H, W], "counts": "b'X]4'"}),
    "counts that are a number": annotation(segmentation={"size": [H, W], "counts": 7}),
    "a run-length code without counts": annotation(segmentation={"size": [H, W]}),
    "a text for a category": annotation(category_id="x"),
    "an object for a category": annotation(category_id={"id": 1}),
    "an infinite category": annotation(category_id=float("inf")),
    "a text for iscrowd": annotation(iscrowd="0"),
    "a list for iscrowd": annotation(iscrowd=[1]),
    "a text for an area": annotation(area="300"),
    "an area that is not finite": annotation(area=NAN),
    "an area below nothing": annotation(area=-1),
    "true for a bbox's number": annotation(bbox=[True, 4.0, 27.0, 29.0]),
    "a text for points": annotation(point_coords="3, 4"),
    "points that are no pairs": annotation(point_coords=[[3.0]]),
}
EMPTY = {
    "two corners": [annotation(segmentation=[[1.0, 1.0, 9.0, 9.0]])],
    "no polygon": [annotation(segmentation=[])],
    "a box without an inside": [annotation(bbox=[3.0, 4.0, 0.0, 29.0])],
    "no annotation": [],
}


def kinds_found(root, name):
    """Return the kinds skipped in three batches of the two photos, and those skipped on opening, with counts."""
    source = open_source(DataConfig(source=name, root=str(root)), 64)
    steps = BatchSource(
        DataConfig(batch_size=2, max_prompts=2, shuffle=False), SamConfig(image_size=64), [Part(source)]
    )
    loaded = [steps[k] for k in range(3)]
    assert {i for batch in loaded for i in batch.ids} == {2}
    assert all("bad" in row.message or "photo 1" in row.message for batch in loaded for row in batch.skipped)
    opening = Counter(kind for kind, _ in skipped_entries(source).rows)
    return {row.kind for batch in loaded for row in batch.skipped}, opening


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("fault", PHOTOS)
@pytest.mark.parametrize("source", SOURCES)
def test_bad_photos(tmp_path, monkeypatch, source, fault):
    photo, size, kind = PHOTOS[fault]
    SOURCES[source](tmp_path, photo, size, [annotation()])
    if kind == "photo too large":
        load = ImageFile.ImageFile.load

        def refuse(self):
            assert self.width == W, "decoded"  # decoding beyond the header would give another kind
            return load(self)

        monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert kinds_found(tmp_path, source) == ({kind}, {})


@pytest.mark.parametrize("fault", RLE)
@pytest.mark.parametrize("source", SOURCES)
def test_bad_masks(tmp_path, source, fault):
    SOURCES[source](tmp_path, encode(), (H, W), [annotation(segmentation=RLE[fault])])
    assert kinds_found(tmp_path, source) == ({"segmentation damaged"}, {})


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("source", SOURCES)
def test_bad_annotations(tmp_path, source, fault):
    wrong = WRONG[fault]
    SOURCES[source](tmp_path, encode(), (H, W), [wrong])
    if source == "coco":
        assert kinds_found(tmp_path, source) == (set(), {"annotation damaged": 1, "no annotations": 1})
        SOURCES[source](
            tmp_path, encode(), (H, W), [wrong, annotation()]
        )  # the photo's other annotations can still be used
        assert len(open_source(DataConfig(source=source, root=str(tmp_path)), 64).load(0)) == 1
    else:
        assert kinds_found(tmp_path, source) == ({"annotations damaged"}, {})


@pytest.mark.parametrize("fault", EMPTY)
@pytest.mark.parametrize("source", SOURCES)
def test_annotations_of_nothing(tmp_path, source, fault):
    SOURCES[source](tmp_path, encode(), (H, W), EMPTY[fault])
    if source == "coco":
        empty = {"annotation empty": 1} if EMPTY[fault] else {}
        assert kinds_found(tmp_path, source) == (set(), empty | {"no annotations": 1})
    else:
        assert kinds_found(tmp_path, source) == ({"no annotations"}, {})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"file_name": "../bad.jpg"}, "path outside the data root"),
        ({"file_name": "images/../../bad.jpg"}, "path outside the data root"),
        ({"file_name": "/etc/passwd"}, "path outside the data root"),
        ({"file_name": ""}, "image entry damaged"),
        ({"file_name": 7}, "image entry damaged"),
        ({"file_name": "a\0b.jpg"}, "image entry damaged"),
        ({"file_name": "a" * 400 + ".jpg"}, "file missing"),
        ({"file_name": "\ud800.jpg"}, "file missing"),
        ({"height": "forty"}, "image entry damaged"),
        ({"height": 40.5}, "image entry damaged"),
        ({"width": -60}, "image entry damaged"),
        ({"width": None}, "image entry damaged"),
        ({"id": [1]}, "image entry damaged"),
        ({"id": None}, "image entry damaged"),
        ({"id": 2}, "image entry damaged"),  # twice
    ],
)
def test_bad_image_entries_of_coco(tmp_path, changes, kind):
    root = tmp_path / "data"
    root.mkdir()
    coco(root, encode(), (H, W), [annotation()])
    (root / "bad.jpg").rename(tmp_path / "bad.jpg")
    content = json.loads((root / "instances.json").read_text())
    content["images"] = [content["images"][1], content["images"][0] | changes]
    content["annotations"].append(annotation(id=9, image_id={"no": "id"}))
    (root / "instances.json").write_text(json.dumps(content))
    found, opening = kinds_found(root, "coco")
    unknown = {"photo unknown": 1} if "id" in changes else {}  # the annotation of the image without a valid id
    assert (found, opening) == (set(), {kind: 1, "annotation damaged": 1} | unknown)
    left = open_source(DataConfig(source="coco", root=str(root)), 64).skipped_entries
    assert (left.listed, left.damaged) == (2, 1 + (kind != "file missing"))


def test_numbers_as_tables_export_them_are_fine(tmp_path):
    coco(tmp_path, encode(), (float(H), float(W)), [annotation(id=7.0, image_id=1.0)])
    assert kinds_in(tmp_path) == [] and len(open_source(DataConfig(source="coco", root=str(tmp_path)), 64)) == 2


def kinds_in(root):
    return [kind for kind, _ in open_source(DataConfig(source="coco", root=str(root)), 64).skipped_entries.rows]


def test_a_file_of_nothing_but_bad_entries_is_one_error(tmp_path):
    (tmp_path / "mine.json").write_text('{"images": [{"id": 1}], "annotations": [4]}')
    with pytest.raises(UsageError, match=r"mine\.json: no photo in it can be used: 2 entries .*no 'height'|not an obj"):
        open_source(DataConfig(source="coco", root=str(tmp_path)), 64)


def labelme(shape=None, **head):
    triangle = {"label": "a", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    return json.dumps(
        {"imageHeight": H, "imageWidth": W, "imagePath": "../../x.jpg", "shapes": [shape or triangle]} | head
    )


def test_labelme_and_mask_pictures_can_not_take_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(encode())

    def kind_of(text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(BadExample) as caught:
            ImagesSource(tmp_path).load(0)
        return caught.value.kind

    crop = {"label": "a", "points": [[1, 1], [9, 9]], "shape_type": "mask"}
    far = {"label": "a", "points": [[1, 1], [1e9, 1], [9, 1e9]], "shape_type": "polygon"}
    circle = {"label": "a", "points": [[1, 1], [1e9, 1]], "shape_type": "circle"}
    assert kind_of(labelme(imageHeight=10**6, imageWidth=10**6)) == "photo of another size"
    assert kind_of(labelme(crop | {"mask": base64.b64encode(bomb(9000, 9000)).decode()})) == "annotations damaged"
    assert kind_of(labelme(far)) == kind_of(labelme(circle)) == "annotations damaged"
    assert kind_of("[" * 100_000) == "annotations damaged"
    (tmp_path / "a.json").write_text(labelme())
    assert len(ImagesSource(tmp_path).load(0)) == 1  # imagePath leads out of the folder and is not followed

    (tmp_path / "a.json").unlink()
    (tmp_path / "masks").mkdir()
    for content, kind in ((bomb(9000, 9000), "photo of another size"), (bomb(60000, 60000), "annotations damaged")):
        (tmp_path / "masks/a.png").write_bytes(content)
        with pytest.raises(BadExample) as caught:
            ImagesSource(tmp_path).load(0)
        assert caught.value.kind == kind


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.one_of(st.floats(), st.integers()), max_size=9), max_size=3))
def test_no_polygon_corrupts_memory(polygons):
    with contextlib.suppress(BadExample):
        assert decode_mask(polygons, 20, 30, "").shape == (20, 30)


def test_excessive_files_and_masks_are_rejected_before_reading(tmp_path, monkeypatch):
    images(tmp_path, encode(), (H, W), [annotation(), annotation(id=9)])
    monkeypatch.setattr(records, "MAX_MASKS", 2 * H * W - 1)
    with pytest.raises(BadExample, match="2 masks") as caught:
        ImagesSource(tmp_path).load(0)
    assert caught.value.kind == "too many masks"
    monkeypatch.setattr(records, "MAX_BYTES", 1000)
    with pytest.raises(BadExample, match=r"bad\.jpg: more than") as caught:
        ImagesSource(tmp_path).load(0)
    assert caught.value.kind == "file too large"


def test_names_in_tars_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as file:
        for name, content, label in pairs(encode(), (H, W), [annotation()]):
            for suffix, data in (("jpg", content), ("json", json.dumps(label).encode())):
                member = tarfile.TarInfo(f"../../{name}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    source = open_source(DataConfig(source="tars", root=str(tmp_path)), 64)
    assert len(source) == 2 and source.record(0).photo == encode()
    assert {path.name for path in tmp_path.parent.iterdir()} >= {tmp_path.name}
    assert not list(tmp_path.rglob("*.jpg"))


def test_links_in_the_data_root_are_followed(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    root.mkdir()
    coco(root, encode(), (H, W), [annotation()])
    elsewhere.mkdir()
    (root / "bad.jpg").rename(elsewhere / "bad.jpg")
    (root / "images").symlink_to(elsewhere)
    assert len(open_source(DataConfig(source="coco", root=str(root)), 64)) == 2


def test_prepare_lists_skipped_photos(tmp_path, capsys):
    root, output = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    images(root, encode(), (H, W), [])
    (root / "bare.jpg").write_bytes(encode())
    assert prepare.main(["--source", "images", "--root", str(root), "--output", str(output), "--workers", "1"]) == 0
    manifest = json.loads((output / "prepared.json").read_text())
    assert manifest["records"] == 1 and manifest["skipped"] == {"no annotations": 2}
    assert [message for _, message in manifest["skipped_photos"]] == [
        f"{root}/bare.jpg: no annotation file and no masks",
        f"{root}/bad.json: no usable annotation; remove the photo",
    ]
    assert "no annotations 2" in capsys.readouterr().out
