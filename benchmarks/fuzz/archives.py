"""SA-1B's tars and the folders of runs: damaged, cut, and made to lead elsewhere."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.fuzz.cases import Case
from benchmarks.fuzz.damage import WRONG, damaged_bytes, paths, replaced
from edgesam_jax import load_model
from edgesam_jax.config import Config, UsageError
from edgesam_jax.data.readers.tars import TarsSource
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import skipped_entries
from edgesam_jax.train.run import fit

PAIRS = 3


def _pair(number: int) -> dict[str, bytes]:
    """A photo of SA-1B's kind and its annotations."""
    file = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), 20 * number, np.uint8)).save(file, "JPEG")
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[5:20, 4:30] = 1
    annotation = {
        "id": number, "bbox": [4, 5, 26, 15], "area": 390, "predicted_iou": 0.9, "stability_score": 0.9,
        "segmentation": {"size": [30, 40], "counts": coco_mask.encode(mask)["counts"].decode()},
        "point_coords": [[6.5, 7.0]], "crop_box": [0, 0, 40, 30],
    }  # fmt: skip
    image = {"image_id": number, "width": 40, "height": 30, "file_name": f"sa_{number}.jpg"}
    text = json.dumps({"image": image, "annotations": [annotation]})
    return {f"sa_{number}.jpg": file.getvalue(), f"sa_{number}.json": text.encode()}


def _tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tars(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Tars with names that lead elsewhere, links, devices, sparse and huge members, damaged headers and JSON files."""
    folder.mkdir()
    secret = folder / "secret"
    secret.mkdir()
    (secret / "sa_9.jpg").write_bytes(_pair(9)["sa_9.jpg"])
    (secret / "sa_9.json").write_bytes(_pair(9)["sa_9.json"])
    sound = [(tarfile.TarInfo(name), content) for n in range(1, PAIRS + 1) for name, content in _pair(n).items()]
    number = 0
    while True:
        number += 1
        file = folder / f"{number}.tar"
        members = [(tarfile.TarInfo(member.name), content) for member, content in sound]
        kind = rng.choice(("bytes", "bytes", "path", "link", "device", "json", "empty", "twice", "size", "other"))
        wrong = False
        if kind == "bytes":
            did, raw = damaged_bytes(rng, _tar(members))
            # Zeros after the last member end a tar, as many as there may be.
            kind, wrong = f"bytes, {did}", did.startswith("cut") and not raw.endswith(bytes(tarfile.BLOCKSIZE))
        elif kind == "path":
            prefix = rng.choice(("../", "/", "../../secret/", "a/../../", "//", "\x1b[31m/"))
            members[0][0].name = members[1][0].name = ""
            for k, suffix in enumerate(("jpg", "json")):
                members[k][0].name = f"{prefix}sa_1.{suffix}"
            kind, raw = f"path {prefix!r}", _tar(members)
        elif kind == "link":
            for type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                for suffix in ("jpg", "json"):
                    link = tarfile.TarInfo(f"sa_9.{suffix}")
                    link.type, link.linkname = type_, str(secret / f"sa_9.{suffix}")
                    members.append((link, b""))
            raw = _tar(members)
        elif kind == "device":
            device = tarfile.TarInfo("sa_9.jpg")
            device.type = rng.choice((tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE))
            raw = _tar([*members, (device, b"")])
        elif kind == "json":
            content = json.loads(members[1][1])
            path, value = rng.choice(list(paths(content))), rng.choice(WRONG)
            members[1] = (members[1][0], json.dumps(replaced(content, path, value)).encode())
            # Only what training and evaluation use; file_name, crop_box and the ratings are not.
            used = path[:1] == ("annotations",) and path[2:3] in (("bbox",), ("segmentation",), ("id",))
            wrong = used and not (len(path) > 3 and isinstance(value, bool | float)) and not isinstance(value, str)
            kind, raw = f"json, {path} = {value!r:.40}", _tar(members)
        elif kind == "empty":
            k = rng.randrange(len(members))
            members[k] = (members[k][0], b"")
            kind, raw, wrong = f"empty {members[k][0].name}", _tar(members), True
        elif kind == "twice":
            raw = _tar(members + members[:2])
        elif kind == "size":
            raw = bytearray(_tar(members))
            raw[124:136] = rng.choice((b"77777777777\0", b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\xff" * 11))
            raw, wrong = bytes(raw), True
        else:
            raw = rng.choice((b"", bytes(512), bytes(10240), b"\x1f\x8b" + rng.randbytes(100), _tar(members)[:511]))
            wrong = True
        file.write_bytes(raw)
        yield Case(f"tar, {kind}", lambda file=file: _tar_read(file, secret), wrong)
        for path in folder.glob(f"{number}.tar*"):
            path.unlink()


def _tar_read(file: Path, secret: Path) -> bool:
    source = TarsSource(file)
    bad = 0
    for index in range(len(source)):
        try:
            example = source.load(index)
            bad += not len(example)
            assert not (example.image == 9 * 20).all(), f"a link led to {secret}"
        except BadExample:
            bad += 1
    return bool(bad or skipped_entries(source).rows or len(source) < PAIRS)


def runs(rng: random.Random, folder: Path) -> Iterator[Case]:
    """A run's folder whose files are cut, flipped, emptied, removed, or replaced by folders."""
    from edgesam_jax.config import apply_overrides, load_config

    folder.mkdir()
    sound = folder / "run"
    config: Config = load_config(Path(__file__).parents[2] / "configs" / "quickstart.py")
    short = ["study=()", "distill.mode=encoder_only", "train.steps=2", "train.checkpoint_every=1", "eval.images=0"]
    short += ["train.picture_every=0", "optim.warmup_steps=0", "data.batch_size=2"]
    fit(apply_overrides(config, short), sound)
    files = sorted(path.relative_to(sound) for path in (sound / "checkpoints").rglob("*") if path.is_file())
    number = 0
    while True:
        number += 1
        copy = folder / f"{number}"
        shutil.copytree(sound, copy)
        shutil.rmtree(copy / "model", ignore_errors=True)
        step = sorted((copy / "checkpoints").iterdir())[-1]
        inside = [path for path in files if path.parts[1] == step.name]
        victim = copy / rng.choice(inside)
        kind = rng.choice(("cut", "flip", "empty", "remove", "folder"))
        content = bytearray(victim.read_bytes())
        if kind == "cut":
            victim.write_bytes(content[: len(content) // 2])
        elif kind == "flip" and content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
        elif kind == "empty":
            victim.write_bytes(b"")
        else:
            victim.unlink()
            if kind == "folder":
                victim.mkdir()
        yield Case(f"run, {kind} {victim.relative_to(step)}", lambda step=step: _same(step, sound), wrong=False)
        shutil.rmtree(copy)


def _same(step: Path, sound: Path) -> bool:
    """Load a damaged checkpoint; what is loaded must be what was saved."""
    import jax

    found = load_model(step)
    want = load_model(sound / "checkpoints" / step.name)
    if found.config != want.config:
        raise UsageError("another config")
    equal: Any = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found.variables, want.variables)
    assert all(jax.tree.leaves(equal)), "other weights than were saved"
    return False
