"""Labelled objects on several photos: kept over a reload, exported, imported, and read by training and evaluation."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from tiny import CONV
from web_interface import FILES, Interface, png, scene_photo

from edgesam_jax.config import Config, DataConfig, DistillConfig, EvalConfig, TrainConfig, to_json
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.readers.images import ImagesSource

PHOTOS = {"left.png": scene_photo(3), "right.png": scene_photo(4, 256)[:200]}
FILE = {name: png(photo) for name, photo in PHOTOS.items()}
BLOCKED = {"service_workers": "block"}
Objects = dict[str, list[tuple[str, np.ndarray]]]


@pytest.fixture
def annotated(page, address) -> Interface:
    """Three objects on the first photo, two of them labelled, and one on the second; a prompt in progress."""
    interface = Interface(page(address, **BLOCKED))
    interface.open(FILE)
    interface.click(110, 150)
    interface.add("cup")
    interface.drag(150, 10, 280, 120)
    interface.add("plate")
    interface.click(40, 280)
    interface.click(200, 200, outside=True)
    interface.add("")
    interface.page.click("button.photo >> nth=1")
    interface.wait_for_photo("right.png")
    interface.click(120, 90)
    interface.add("cup")
    interface.click(60, 60)
    return interface


def objects(interface: Interface) -> Objects:
    """Return all photos' objects: label and mask (h w) bool."""
    found = interface.app(
        "return app.work.photos.map(({ name, width, height, history }) => ({ name, width, height, objects:"
        " history.present.objects.map(({ label, counts }) => ({ label, counts: Array.from(counts) })) }));"
    )
    result: Objects = {}
    for photo in found:
        shape = photo["width"], photo["height"]
        masks = [np.repeat(np.arange(len(o["counts"])) % 2 == 1, o["counts"]) for o in photo["objects"]]
        labels = [o["label"] for o in photo["objects"]]
        result[photo["name"]] = [(label, mask.reshape(shape).T) for label, mask in zip(labels, masks, strict=True)]
    return result


def assert_same(a: Objects, b: Objects, unlabelled: str = "") -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert [label for label, _ in a[name]] == [label or unlabelled for label, _ in b[name]]
        for (_, mask), (_, other) in zip(a[name], b[name], strict=True):
            assert mask.shape == other.shape and (mask == other).all()


def exported(interface: Interface, kind: str, photos: bool) -> bytes:
    interface.page.select_option("#format", kind)
    interface.page.set_checked("#with-photos", photos)
    return interface.download("#export")


def unpacked(archive: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        assert file.testzip() is None
        file.extractall(folder)
    return folder


def test_a_reload_loses_nothing(annotated):
    before, prompt = objects(annotated), annotated.prompt()
    mask = annotated.mask()
    assert [len(found) for found in before.values()] == [3, 1] and prompt["points"]
    annotated.page.wait_for_selector("#saved.ready")
    annotated.page.reload()
    interface = Interface(annotated.page)
    interface.wait_for_photo("right.png")  # the photo that was shown
    interface.settle()
    assert_same(objects(interface), before)
    assert interface.prompt() == prompt and (interface.mask() == mask).all()
    interface.page.click("button.photo >> nth=0")
    interface.wait_for_photo("left.png")
    assert interface.page.locator("#objects li").count() == 3
    assert interface.app("return app.photo.width;") == PHOTOS["left.png"].shape[1]


def test_objects_can_be_renamed_hidden_edited_and_deleted(annotated):
    opened = annotated.page
    opened.click("button.photo >> nth=0")
    annotated.wait_for_photo("left.png")
    row = opened.locator("#objects li").nth(1)
    row.locator("input").fill("dish")
    row.locator("input").press("Enter")
    row.locator("button[aria-label^=Hide]").click()
    assert annotated.app("return app.stage.layers.length;") == 2
    assert [label for label, _ in objects(annotated)["left.png"]] == ["cup", "dish", ""]
    opened.focus("#stage")
    for expected in (0, 3):
        annotated.keyboard.press("v")
        assert annotated.app("return app.stage.layers.length;") == expected
    before = objects(annotated)["left.png"]
    opened.locator("#objects li").nth(2).locator("button[aria-label^=Edit]").click()
    annotated.settle()
    assert len(annotated.prompt()["points"]) == 2 and opened.text_content("#add") == "Update object"
    annotated.click(60, 200)
    opened.fill("#label", "spoon")
    opened.click("#add")
    annotated.settle()
    after = objects(annotated)["left.png"]
    assert [label for label, _ in after] == ["cup", "dish", "spoon"] and (after[2][1] != before[2][1]).any()
    opened.locator("#objects li").nth(0).locator("button[aria-label^=Delete]").click()
    assert [label for label, _ in objects(annotated)["left.png"]] == ["dish", "spoon"]
    focused = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Delete dish"  # not lost with the row
    for _ in range(3):
        opened.click("#undo")
    annotated.settle()
    assert_same({"x": objects(annotated)["left.png"]}, {"x": before})


def test_removing_a_photo_asks_first(annotated):
    opened = annotated.page
    opened.click("button[aria-label='Remove left.png']")
    assert "its 3 objects" in opened.text_content("#confirm-text")
    opened.click("#confirm-no")
    assert opened.locator("button.photo").count() == 2
    opened.click("button[aria-label='Remove left.png']")
    opened.click("#confirm-yes")
    opened.wait_for_selector("button.photo >> nth=1", state="detached")
    annotated.settle()
    opened.reload()
    interface = Interface(opened)
    interface.wait_for_photo("right.png")
    assert list(objects(interface)) == ["right.png"]


def test_coco_files_have_the_masks_to_the_pixel(annotated, tmp_path):
    content = json.loads(exported(annotated, "coco", photos=False))
    before = objects(annotated)
    assert [image["file_name"] for image in content["images"]] == list(PHOTOS)
    assert [category["name"] for category in content["categories"]] == ["cup", "object", "plate"]
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        entries = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert len(entries) == len(before[image["file_name"]])
        for entry, (label, mask) in zip(entries, before[image["file_name"]], strict=True):
            code = entry["segmentation"]
            assert isinstance(code["counts"], str) and code["size"] == list(mask.shape)
            assert (coco_mask.decode(code) == mask).all()
            assert entry["bbox"] == coco_mask.toBbox(code).tolist() and entry["area"] == coco_mask.area(code)
            assert names[entry["category_id"]] == (label or "object") and entry["iscrowd"] == 0
            for x, y in entry.get("point_coords", []):
                assert mask[y, x]
    folder = unpacked(exported(annotated, "coco", photos=True), tmp_path)
    for name, file in FILE.items():
        assert (folder / "images" / name).read_bytes() == file
    source = CocoSource(folder)
    assert [path.name for path in map(source.path, range(len(source)))] == list(PHOTOS)
    for i, name in enumerate(PHOTOS):
        example = source.load(i)
        assert (example.image == PHOTOS[name]).all()
        for k, (_, mask) in enumerate(before[name]):
            assert (np.asarray(example.masks)[k] == mask).all()


def test_labelme_files_have_the_masks_to_the_pixel(annotated, tmp_path):
    before = objects(annotated)
    folder = unpacked(exported(annotated, "labelme", photos=True), tmp_path)
    source = ImagesSource(folder)
    assert source.names() == sorted(PHOTOS)
    for i, name in enumerate(sorted(PHOTOS)):
        assert not source.record(i).skipped, source.record(i).skipped
        masks = np.asarray(source.load(i).masks)
        assert len(masks) == len(before[name])
        for mask, (_, other) in zip(masks, before[name], strict=True):
            assert (mask == other).all()


@pytest.mark.parametrize("photos_first", [True, False])
@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_an_exported_file_gives_the_same_objects(annotated, page, address, kind, photos_first):
    before = objects(annotated)
    files: FILES = {}
    if kind == "coco":
        files["objects.json"] = exported(annotated, kind, photos=False)
    else:
        with zipfile.ZipFile(io.BytesIO(exported(annotated, kind, photos=False))) as archive:
            files |= {Path(name).name: archive.read(name) for name in archive.namelist()}
    interface = Interface(page(address, **BLOCKED))
    for step in (FILE, files) if photos_first else (files, FILE):
        interface.choose(step, "#import-input" if step is files else "#file")
        if step is files:
            interface.wait_for_message("Imported")
            if not photos_first:
                interface.page.wait_for_selector("#missing:not([hidden])")
    interface.wait_for_photo("left.png")
    interface.page.wait_for_selector("button.photo[title='right.png']:has-text(', 1 object') img")
    assert_same(objects(interface), before, unlabelled="object")
    interface.choose(files)  # once more: they are there already
    interface.wait_for_message("here already")
    assert_same(objects(interface), before, unlabelled="object")
    interface.page.reload()
    again = Interface(interface.page)
    again.wait_for_photo("left.png")
    assert_same(objects(again), before, unlabelled="object")


def labelme_file(rng: np.random.Generator) -> dict[str, Any]:
    """Return labelme's content for the first photo, with all kinds of shapes, and two that enclose nothing."""
    height, width = PHOTOS["left.png"].shape[:2]
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 8:] = 1
    mask[10:14, 15:20] = 0
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    polygons = [(rng.random((n, 2)) * [width, height]).tolist() for n in (3, 4, 7, 12)]
    polygons += [[[x + 0.5, y - 0.25] for x, y in [(-9, 5), (40, -12), (60.5, 80.25), (12, 300)]]]  # beyond the photo
    shapes = [{"label": f"polygon {i}", "points": p, "shape_type": "polygon"} for i, p in enumerate(polygons)]
    shapes += [
        {"label": "parts", "points": [[5, 5], [50, 6], [30, 40]], "group_id": 1},
        {"label": "parts", "points": [[200, 200], [260.5, 210], [230, 290.75]], "group_id": 1},
        {"label": "box", "points": [[30.2, 250.7], [100, 300]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[150, 150], [180.5, 170]], "shape_type": "circle"},
        {"label": "mask", "points": [[100, 50], [139, 79]], "shape_type": "mask",
         "mask": base64.b64encode(file.getvalue()).decode()},
        {"label": "spot", "points": [[10, 10]], "shape_type": "point"},
        {"label": "line", "points": [[10, 10], [20, 20]], "shape_type": "line"},
    ]  # fmt: skip
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "left.png", "imageData": None,
            "imageHeight": height, "imageWidth": width}  # fmt: skip


def test_labelmes_shapes_are_the_masks_that_training_reads(page, address, tmp_path):
    for seed in range(3):
        content = json.dumps(labelme_file(np.random.default_rng(seed))).encode()
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "left.png").write_bytes(FILE["left.png"])
        (folder / "left.json").write_bytes(content)
        masks = np.asarray(ImagesSource(folder).load(0).masks)
        interface = Interface(page(address, **BLOCKED))
        interface.open({"left.png": FILE["left.png"]})
        interface.choose({"left.json": content}, "#import-input")
        interface.wait_for_message("Imported 9 objects. 2 entries can’t be used: shapes[10]: a shape of type point")
        found = objects(interface)["left.png"]
        assert [label for label, _ in found[5:]] == ["parts", "box", "disc", "mask"]
        assert len(found) == len(masks)
        for i, (label, mask) in enumerate(found):
            assert (mask == masks[i]).all(), (seed, label, int((mask != masks[i]).sum()))


def test_coco_polygons_and_uncompressed_runs_are_the_masks_that_training_reads(page, address):
    height, width = PHOTOS["left.png"].shape[:2]
    rng = np.random.default_rng(5)
    polygons = [[(rng.random(2 * n) * 320).round(2).tolist() for n in (3, 5)], [(rng.random(16) * 320).tolist()]]
    runs = [0, 7 * height, height * (width - 7)]
    segmentations = [*polygons, {"size": [height, width], "counts": runs}]
    annotations = [
        {"id": i, "image_id": 5, "category_id": 3, "segmentation": s, "iscrowd": 0, "bbox": [0, 0, 9, 9], "area": 9}
        for i, s in enumerate(segmentations)
    ]
    annotations += [{**annotations[0], "id": 9, "iscrowd": 1}, {**annotations[0], "id": 10, "image_id": 6}]
    images = [{"id": 5, "file_name": "folder/left.png", "height": height, "width": width}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
    interface = Interface(page(address, **BLOCKED))
    interface.open({"left.png": FILE["left.png"]})
    interface.choose({"c.json": b"\xef\xbb\xbf" + json.dumps(content).encode()})
    interface.wait_for_message("Imported 3 objects. 2 entries can’t be used: annotations[3]: a crowd")
    references = [coco_mask.merge(coco_mask.frPyObjects(p, height, width)) for p in polygons]
    references += [coco_mask.frPyObjects(segmentations[-1], height, width)]
    for (label, mask), code in zip(objects(interface)["left.png"], references, strict=True):
        assert label == "thing" and (coco_mask.decode(code) == mask).all()


def test_annotations_of_another_size_are_refused(page, address):
    images = [{"id": 1, "file_name": "left.png", "height": 10, "width": 10}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 8, 1, 8, 8]], "iscrowd": 0}]
    content = json.dumps({"images": images, "annotations": annotations, "categories": []}).encode()
    interface = Interface(page(address, **BLOCKED))
    interface.open({"left.png": FILE["left.png"]})
    interface.choose({"c.json": content})
    interface.wait_for_message("320 x 320 pixels here, but 10 x 10 in c.json")
    assert objects(interface)["left.png"] == []


def test_a_full_storage_is_told(page, address):
    interface = Interface(page(address, **BLOCKED))
    session = interface.page.context.new_cdp_session(interface.page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": address.rstrip("/"), "quotaSize": 2_000_000})
    interface.open({"left.png": FILE["left.png"]})
    interface.page.wait_for_selector("#saved.ready")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), np.uint8)
    interface.choose({"noise.png": png(noise)})
    interface.wait_for_message("The browser’s storage is full")
    assert interface.page.text_content("#saved").startswith("Not saved")
    interface.wait_for_photo("noise.png")
    interface.click(110, 150)
    interface.add("cup")
    assert json.loads(exported(interface, "coco", photos=False))["annotations"]  # the way out that the message names
    assert interface.page.text_content("#saved").startswith("Not saved")  # although small things can be written
    session.send("Storage.overrideQuotaForOrigin", {"origin": address.rstrip("/"), "quotaSize": 50_000_000})
    interface.page.click("button[aria-label='Remove left.png']")
    interface.page.click("#confirm-yes")
    interface.page.wait_for_selector("#saved.ready")  # with space, what was missing is saved
    interface.page.reload()
    again = Interface(interface.page)
    again.wait_for_photo("noise.png")
    assert list(objects(again)) == ["noise.png"] and len(objects(again)["noise.png"]) == 1


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_clicked_trains_and_evaluates_a_model(annotated, tmp_path):
    """From the page to JSON to ``train`` to a checkpoint to ``eval``."""
    folder = unpacked(exported(annotated, "coco", photos=True), tmp_path / "data")
    config = Config(
        name="from_the_page",
        model=CONV,
        data=DataConfig(source="coco", root=str(folder), batch_size=2, max_prompts=2),
        distill=DistillConfig(targets="ground_truth", rounds=1, freeze_prompt_encoder=False),
        train=TrainConfig(steps=3, log_every=1, picture_every=3, checkpoint_every=3, devices=1),
        eval=EvalConfig(images=2, batch_size=2, refine=1),
    )
    (tmp_path / "config.json").write_text(to_json(config))
    workdir = tmp_path / "run"
    run("edgesam_jax.train", "--config", tmp_path / "config.json", "--workdir", workdir)
    losses = [
        row["loss"] for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if "loss" in row
    ]
    assert len(losses) == 3 and np.isfinite(losses).all()
    skipped = workdir / "skipped.jsonl"
    assert not skipped.exists() or not skipped.read_text()
    report = tmp_path / "report.json"
    flags = ["--dataset", "coco", "--data-root", folder, "--prompt", "box", "--no-pictures", "--output", report]
    run("edgesam_jax.eval", "--checkpoint", workdir / "model", "tiny_teacher", *flags)
    trained, teacher = json.loads(report.read_text())["systems"]
    assert trained["num_instances"] == teacher["num_instances"] == 4 and teacher["num_images"] == 2
    assert teacher["miou"][0] > 0.5  # the objects are masks of this very model
