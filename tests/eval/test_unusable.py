"""What can't be scored is left out and counted, and if nothing is left, the command says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.eval.job import Job
from edgesam_jax.eval.scoring.device import Bits, pack
from edgesam_jax.eval.scoring.photos import Photo, load
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.systems import Answer

H, W = 60, 80
SQUARE = [[10, 10, 40, 10, 40, 40, 10, 40]]
BOX = [10, 10, 30, 30]


def annotation(number: int, image_id: int, **changes: Any) -> dict[str, Any]:
    plain = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 900, "bbox": BOX}
    return plain | {"segmentation": SQUARE} | changes


def write(root: Path, *annotations: dict[str, Any], photos: int = 2) -> CocoSource:
    images = []
    for number in range(1, photos + 1):
        Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": H, "width": W})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return CocoSource(root)


class Filled:
    """A system that answers every box with the filled box."""

    name, digest, image_size, mask_size, frame = "filled", "0", 64, 16, "pad"

    def start(self, photo: Photo, resize: str = "pillow") -> None:
        return None

    def masks(self, state: None, photo: Photo, slots: Any) -> Answer:
        masks = np.zeros((len(slots.coords), H, W), bool)
        for mask, corners in zip(masks, slots.coords, strict=True):
            (x0, y0), (x1, y1) = np.round(corners[:2] * W / 64).astype(int)
            mask[y0:y1, x0:x1] = True
        low = np.zeros((len(masks), 1, 16, 16), bool)
        return Answer(low, [[Bits(pack(mask), (H, W))] for mask in masks])


EMPTY = {
    "beside the photo": {"segmentation": [[90, 10, 99, 10, 99, 40]], "bbox": [90, 10, 9, 30]},
    "smaller than a pixel": {"segmentation": [[10.1, 10.1, 10.2, 10.1, 10.2, 10.2]]},
    "no run": {"segmentation": {"size": [H, W], "counts": [H * W]}},
}


@pytest.mark.parametrize("form", EMPTY)
def test_an_annotation_without_a_pixel_is_left_out(tmp_path: Path, form: str) -> None:
    source = write(tmp_path, annotation(1, 1), annotation(2, 1, **EMPTY[form]), annotation(3, 1, area=None))
    photo = load(source, 0)
    assert photo.ids.tolist() == [1, 3] and [kind for kind, _ in photo.skipped] == ["annotation empty"]
    assert photo.areas[0] == 900 and photo.areas[1] == photo.masks[1].pixels.sum()
    assert "instances.json: image 1, annotation 2: its mask has no pixel" in photo.skipped[0][1]


def test_instances_with_equal_ids_keep_their_own_fields(tmp_path: Path) -> None:
    source = write(tmp_path, annotation(1, 1, area=5), annotation(1, 1, area=7, category_id=2))
    photo = load(source, 0)
    assert photo.areas.tolist() == [5, 7] and photo.categories.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segmentation": SQUARE[0]}, "a flat list of numbers; write each polygon as a list of its own"),
        ({"segmentation": [[[10, 10], [40, 10], [40, 40]]]}, "lists of points; write each polygon as one list"),
        ({"segmentation": {"size": [H, W], "counts": "b'X]4'"}}, "the text of Python bytes"),
        ({"iscrowd": 1}, r"\(crowd 2, no annotations 2\), the first: .*a crowd region"),
        ({"category_id": "x"}, "its category_id is not an integer"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_says_why(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=rf"instances\.json: no photo in it can be used: .*{reason}"):
        write(tmp_path, annotation(1, 1, **changes), annotation(2, 2, **changes))


def scored(source: CocoSource, prompt: str = "box", detections: Path | None = None) -> Any:
    settings = Settings()
    job = Job(settings, "coco", "ROOT", prompt, detections_file=detections, boundary=False)
    job.open(source)
    return job.score(Filled(), None)  # type: ignore[arg-type]


def test_the_report_counts_annotations_and_photos(tmp_path: Path) -> None:
    source = write(tmp_path, annotation(1, 1), annotation(2, 1, **EMPTY["no run"]), annotation(3, 2, **EMPTY["no run"]))
    report = scored(source)
    assert report["num_instances"] == report["num_images"] == 1 and report["miou"][0] > 0.9
    assert report["skipped"]["counts"] == {"no annotations": 1, "annotation empty": 1}


def test_masks_that_only_decoding_shows_to_be_damaged_are_the_reason(tmp_path: Path) -> None:
    swapped = {"segmentation": {"size": [W, H], "counts": [H * W]}}
    source = write(tmp_path, annotation(1, 1, **swapped), annotation(2, 2, **swapped))
    with pytest.raises(
        UsageError, match=r"no photo there has an instance .* segmentation damaged 2, .*COCO's is \[height"
    ):
        scored(source)


def detections(root: Path, *entries: dict[str, Any]) -> Path:
    (root / "boxes").mkdir(exist_ok=True)
    (root / "boxes" / "det.json").write_text(json.dumps(entries), encoding="utf-8-sig")
    return root / "boxes" / "det.json"


DETECTION = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.9}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([DETECTION | {"category_id": 0}] * 2, r"2 entries .*category unknown 2.*no category has the id 0.* are 1"),
        (
            [DETECTION | {"image_id": "1.png"}],
            r"photo unknown 1.*'1\.png'; the data set's ids are integers, such as 1, 2",
        ),
        ([{k: v for k, v in DETECTION.items() if k != "score"}], "score missing 1"),
        (
            [DETECTION | {"score": None}, *[DETECTION | {"bbox": [0, 0, 0, 0]}] * 2],
            "box without area 2, score missing 1",
        ),
        ([], "an empty list"),
    ],
)
def test_detections_of_which_none_can_be_used_are_an_error(
    tmp_path: Path, entries: list[dict[str, Any]], reason: str
) -> None:
    write(tmp_path, annotation(1, 1), annotation(2, 2))
    with pytest.raises(UsageError, match=rf"--detections .*det\.json: none of its .*{reason}") as caught:
        scored(CocoSource(tmp_path, bare=True), "detections", detections(tmp_path, *entries))
    assert "\n" not in str(caught.value)


def test_detections_are_scored_against_what_can_be_used(tmp_path: Path) -> None:
    damaged = annotation(2, 2, category_id=None), annotation(3, 2, **EMPTY["no run"]), annotation(4, 99)
    write(tmp_path, annotation(1, 1), *damaged)
    file = detections(tmp_path, DETECTION, DETECTION | {"image_id": 7})
    report = scored(CocoSource(tmp_path, bare=True), "detections", file)
    assert report["ap"]["AP50"] == pytest.approx(1) and report["num_detections"] == 1
    assert report["skipped"]["counts"] == {"photo unknown": 1, "annotation damaged": 2, "annotation empty": 1}


def test_detections_without_an_object_to_compare_with_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, annotation(1, 1))
    file = detections(tmp_path, DETECTION)
    for changes, reason in (({"iscrowd": 1}, "crowd regions only"), ({"area": "x"}, "annotation damaged 1.*its area")):
        content = json.loads((tmp_path / "instances.json").read_text())
        content["annotations"] = [annotation(1, 1, **changes)]
        (tmp_path / "instances.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=rf"instances\.json: no object in it to compare with: {reason}"):
            scored(CocoSource(tmp_path, bare=True), "detections", file)
