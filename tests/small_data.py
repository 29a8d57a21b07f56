"""Small data sets on disk for tests: a COCO-format folder and SA-1B tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def coco_folder(folder: Path, photos: int = 5) -> Path:
    """Write a COCO-format data set with polygons, both run-length codes, and PNG as well as JPEG photos."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, photos + 1):
        height, width = 40 + number % 20, 60 - number % 20
        name = f"{number:03d}.{'png' if number == 2 else 'jpg'}"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[10:30, 5 : 20 + number % 20] = 1
        shapes = [
            [[3.5, 4.25, 30.1, 5.0, 20.0, 33.3]],
            {"size": [height, width], "counts": coco_mask.encode(mask)["counts"].decode()},
            {"size": [height, width], "counts": [0, 5 * height, height * (width - 5)]},
        ]
        for k, shape in enumerate(shapes):
            annotations.append(
                {"id": 10 * number + k, "image_id": number, "category_id": 3, "bbox": [3.1, 4.2, 20.7, 15.4],
                 "segmentation": shape, "area": 123.5, "iscrowd": 0}
            )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def photo(number: int) -> bytes:
    """Return a plain grey 40x30 JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), number * 10, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def annotation(number: int, masks: int = 2) -> bytes:
    """Return SA-1B's JSON file for ``photo(number)``."""
    annotations = []
    for k in range(masks):
        mask = np.zeros((30, 40), np.uint8, order="F")
        mask[5 : 15 + k, 4 : 20 + number] = 1
        rle = coco_mask.encode(mask)
        box = [4, 5, 16 + number, 10 + k]
        annotations.append(
            {
                "id": 100 * number + k,
                "bbox": box,
                "area": int(mask.sum()),
                "segmentation": {"size": [30, 40], "counts": rle["counts"].decode()},
                "point_coords": [[6.5, 7.0]],
            }
        )
    image = {"image_id": number, "width": 40, "height": 30, "file_name": f"sa_{number}.jpg"}
    return json.dumps({"image": image, "annotations": annotations}).encode()


def write_tar(path, numbers, prefix="", leave_out=()):
    """Write a tar of SA-1B photos and JSON files, except members whose names end as in ``leave_out``."""
    with tarfile.open(path, "w") as file:
        for number in numbers:
            for suffix, content in (("json", annotation(number)), ("jpg", photo(number))):
                if f"{number}.{suffix}" not in leave_out:
                    member = tarfile.TarInfo(f"{prefix}sa_{number}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return path
