"""Fault injection: cause each fault on purpose and check how the run reacts.

    python -m benchmarks.faults --output OUT

Trains the quickstart's student for a few steps on generated scenes, written as photos with a COCO-format JSON file.
Faults: a full or read-only disk, a flipped bit in a checkpoint or in a stored embedding, a loss that is not finite, a
signal to stop, damaged photos and annotations.  For each, the report has the exit code, the last line printed, the
files left, and whether running the same command again gives the results of an uninterrupted run.  As root on Linux the
full disk is a small tmpfs; otherwise a limit on the file size replaces it.  The report is printed and written to
``OUT/report.md``.  Exits with code 1 if anything differs from docs/reliability.md.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.kill9 import differences, saved, steps
from edgesam_jax.config import Config, DataConfig, EvalConfig, UsageError, apply_overrides, load_config, to_json
from edgesam_jax.data.embeddings import photo_key, read_header, write_shard
from edgesam_jax.data.opening import open_parts
from edgesam_jax.data.order import order
from edgesam_jax.data.scenes.scene import scene
from edgesam_jax.reporting.tables import aligned_table
from edgesam_jax.train.log import read_metrics

ROOT = Path(__file__).parents[1]
PHOTOS, SIDE, BATCH = 60, 128, 4
SETTINGS = (
    "distill.mode=encoder_only", "optim.warmup_steps=0", "train.steps=30", "train.log_every=3",
    "train.checkpoint_every=4", "train.picture_every=15",
)  # fmt: skip
POISONED_STEP = 9  # step whose batch has the photo with the non-finite embedding
FLIPS = 60  # bytes flipped one at a time in a checkpoint
LIMIT = 120.0  # seconds until a run counts as hanging; most take ten
HUNG = 124  # exit code recorded for a run that hangs, as timeout(1) does
MB = 1 << 20

# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass
class Ended:
    """How a run ended: its exit code, the line that gives the reason or the last one, and the entire output."""

    code: int
    line: str
    text: str


@dataclass
class Row:
    """One fault: how the run ended, the files it left, how it resumed; and what was unexpected."""

    fault: str
    ended: Ended
    left: str
    resumed: str
    wrong: list[str] = field(default_factory=list)


def train(
    workdir: Path,
    config: Config,
    *flags: object,
    act: Callable[[subprocess.Popen[bytes]], None] | None = None,
    at: int = 0,
    notes: Path | None = None,
) -> Ended:
    """Start or resume a run and wait for its end; ``act`` is called once step ``at`` is logged.

    Its config and output are saved in ``notes``, by default next to ``workdir``.
    """
    path, log = ((notes or workdir.parent) / f"{workdir.name}{suffix}" for suffix in (".json", ".log"))
    path.write_text(to_json(config))
    command = [sys.executable, "-m", "edgesam_jax.train", "--config", path, "--workdir", workdir, *flags]
    with log.open("wb") as file:
        process = subprocess.Popen([str(c) for c in command], cwd=ROOT, stdout=file, stderr=file)
    try:
        while act is not None and process.poll() is None and steps(workdir) < at:
            time.sleep(0.005)
        if act is not None and process.poll() is None:
            act(process)
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        code = HUNG
    finally:
        process.kill()
        process.wait()
    text = log.read_text(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("error: ", "stopped"))]
    line = f"nothing; killed after {LIMIT:.0f} s" if code == HUNG else (reasons or lines or [""])[-1]
    return Ended(code if code >= 0 else 128 - code, line, text)


def files_left(workdir: Path) -> str:
    """Describe what a run has left: checkpoints, log rows, half-written files."""
    folder = workdir / "checkpoints"
    complete = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    half = [p.name for p in workdir.rglob("*") if "tmp" in p.name or p.name.endswith(".part")]
    rows = [row["step"] for row in read_metrics(workdir / "metrics.jsonl")]
    return (
        f"checkpoints {', '.join(map(str, complete)) or 'none'}; rows to step {max(rows, default=0)};"
        f" half-written {', '.join(half) or 'nothing'}"
    )


def expected_rows(config: Config) -> list[int]:
    """Return the steps that a finished run's log has rows for."""
    every, last = config.train.log_every, config.train.steps
    return [step for step in range(1, last + 1) if step % every == 0 or step == last]


def resume(
    row: Row,
    workdir: Path,
    config: Config,
    uninterrupted: Path | None,
    how: str = "the same command",
    notes: Path | None = None,
) -> Row:
    """Start the run again, and record whether it ends like ``uninterrupted``."""
    before, stopped = saved(workdir), row.ended.code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    ended, faults = train(workdir, config, notes=notes), len(row.wrong)
    rows = [r["step"] for r in read_metrics(workdir / "metrics.jsonl")]
    if ended.code:
        row.wrong.append(f"{how}: exit code {ended.code}, {ended.line}")
    elif rows != expected_rows(config):
        row.wrong.append(f"{how}: rows of the log {rows}")
    elif uninterrupted is not None:
        # A stopped run saves an extra checkpoint, and here the best is rated by the loss between two saves.
        row.wrong += [text for text in differences(uninterrupted, workdir) if not (stopped and text == "best.json")]
    agrees = ", all as in the uninterrupted run" if uninterrupted is not None else ""
    row.resumed = f"{how}: from step {before} to the end, every row once{agrees}"
    if len(row.wrong) > faults:
        row.resumed = "NO"
    return row


def check(row: Row, code: int, *texts: str) -> Row:
    """Record whether a row has this exit code, contains these texts in its line, and has no traceback."""
    if row.ended.code != code:
        row.wrong.append(f"exit code {row.ended.code} instead of {code}")
    row.wrong += [f"its line lacks {text!r}" for text in texts if text not in row.ended.line]
    if "Traceback" in row.ended.text:  # of any thread
        row.wrong.append("a traceback was printed")
    return row


# ---------------------------------------------------------------------------------------------------------------- data


def write_scenes(root: Path, count: int = PHOTOS) -> dict[str, Any]:
    """Write scenes as JPEGs with a COCO-format JSON file; returns its content."""
    root.mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        example = scene(0, index, SIDE)
        name = f"{index + 1}.jpg"
        Image.fromarray(example.image).save(root / name, quality=92)
        images.append({"id": index + 1, "file_name": name, "height": SIDE, "width": SIDE})
        for k, (mask, box) in enumerate(zip(example.masks, example.boxes.tolist(), strict=True)):
            code = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
            annotations.append(
                {"id": 100 * (index + 1) + k, "image_id": index + 1, "category_id": 1, "iscrowd": 0,
                 "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                 "segmentation": {"size": [SIDE, SIDE], "counts": code["counts"].decode()}}
            )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return content


def base_config(root: Path, store: Path | None, *overrides: str) -> Config:
    """Return a config that trains the quickstart's student on the photos of a folder for a few steps."""
    base = load_config(ROOT / "configs" / "quickstart.py")
    stores = () if store is None else (str(store),)
    data = DataConfig(source="coco", root=str(root), batch_size=BATCH, max_prompts=4, embeddings=stores)
    config = replace(base, name="faults", study=(), data=data, eval=EvalConfig(images=0))
    return apply_overrides(config, [*SETTINGS, *overrides])


def run(*command: object) -> str:
    """Run a command of the package to its end; returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[0]}: exit code {done.returncode}: {done.stderr[-500:]}")
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------------------- disk


class Tmpfs:
    """A small disk that can be enlarged or made read-only; the context manager unmounts it."""

    def __init__(self, folder: Path, megabytes: float) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(folder))

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options], check=True, capture_output=True)

    def change(self, options: str) -> None:
        self._mount("-o", f"remount,{options}", str(self.folder))

    def __enter__(self) -> Tmpfs:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.folder)], check=False)


def can_mount() -> bool:
    """Whether this process may mount a tmpfs; tries it."""
    if os.geteuid():
        return False
    folder = Path(tempfile.mkdtemp())
    try:
        with Tmpfs(folder / "disk", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def size_of(folder: Path) -> float:
    """Return the size of a folder's files in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MB


def full_tmpfs(output: Path, config: Config, uninterrupted: Path) -> list[Row]:
    """Test a disk with room for 1.5 checkpoints, the same disk read-only, and a disk filled between two saves."""
    one = size_of(uninterrupted / "checkpoints" / str(saved(uninterrupted)))
    size, notes = 1.5 * one + 0.5, output / "notes"
    notes.mkdir()
    with Tmpfs(output / "disk", size) as disk:
        workdir = disk.folder / "run"
        ended = train(workdir, config, notes=notes)
        row = Row(f"a disk of {size:.1f} MB, checkpoints of {one:.1f} MB", ended, files_left(workdir), "as the next")
        rows = [check(row, 2, "could not be saved (No space left on device)", "is still valid")]
        disk.change("ro")
        ended = train(workdir, config, notes=notes)
        disk.change("rw,size=512m")
        row = Row("then the folder is read-only", ended, files_left(workdir), "")
        rows.append(check(row, 2, "cannot write there (Read-only file system)"))
        resume(row, workdir, config, uninterrupted, "made larger and writable, the same command", notes)
    often = apply_overrides(config, ["train.log_every=1", "train.checkpoint_every=25", "train.picture_every=0"])
    for at in (5, 9, 13):  # the next file written differs: the log, or TensorBoard's file
        with Tmpfs(output / f"filled_{at}", 64) as disk:
            workdir, filler = disk.folder / "run", disk.folder / "filler"
            ended = train(workdir, often, act=lambda _, path=filler: fill(path), at=at, notes=notes)
            row = Row(f"another program fills the disk after step {at}", ended, files_left(workdir), "")
            rows.append(check(row, 2, "No space left on device", "free disk space"))
            filler.unlink()
            resume(row, workdir, often, None, "space freed, the same command", notes)
    return rows


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError:
        pass
    finally:
        os.close(file)


def full_limit(output: Path, config: Config, uninterrupted: Path) -> list[Row]:
    """Test a limit on the file size set after the first checkpoint, and a folder without write permission."""
    workdir = output / "limited"

    def refuse(process: subprocess.Popen[bytes]) -> None:
        before = saved(workdir)
        while not before and process.poll() is None:
            before = saved(workdir)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = train(workdir, config, act=refuse, at=config.train.log_every)
    row = Row("file size limited to 100 kB after the first save", ended, files_left(workdir), "")
    rows = [check(row, 2, "could not be saved (File too large)", "is still valid")]
    resume(row, workdir, config, uninterrupted)
    if os.geteuid():  # root may write anywhere
        workdir = output / "locked"
        workdir.mkdir()
        workdir.chmod(0o555)
        ended = train(workdir, config)
        workdir.chmod(0o755)
        row = Row("a folder without write permission", ended, files_left(workdir), "")
        rows.append(resume(check(row, 2, "cannot write there (Permission denied)"), workdir, config, uninterrupted))
    return rows


# -------------------------------------------------------------------------------------------------------------- signals


def stopped_by_signal(output: Path, config: Config, uninterrupted: Path) -> list[Row]:
    """Test SIGTERM and SIGINT in the middle of a run."""
    rows = []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        workdir = output / number.name.lower()
        ended = train(workdir, config, act=lambda process, n=number: process.send_signal(n), at=9)
        row = check(Row(number.name, ended, files_left(workdir), ""), code, f"stopped by signal {number:d}, saved")
        if number == signal.SIGTERM:
            shutil.copytree(workdir, output / "flipped")
        rows.append(resume(row, workdir, config, uninterrupted))
    return rows


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def damaged_checkpoint(output: Path, config: Config, uninterrupted: Path) -> list[Row]:
    """Test a flipped bit in the newest checkpoint's arrays, in its index, and in many places, one at a time."""
    workdir = output / "flipped"
    step = workdir / "checkpoints" / str(saved(workdir))
    summaries = flips(config, workdir, step)
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    rows = []
    for target, path in (("index", step / "variables" / "manifest.ocdbt"), ("arrays", largest)):
        place = path.stat().st_size // 2
        flip(path, place)
        ended = train(workdir, config)
        row = Row(f"a bit of the newest checkpoint's {target} flipped", ended, files_left(workdir), "as the next")
        rows.append(check(row, 2, "damaged", "remove it to resume from step"))
        flip(path, place)
    shutil.rmtree(step)
    resume(rows[-1], workdir, config, uninterrupted, f"checkpoint {step.name} removed, the same command")
    return rows + summaries


def flips(config: Config, workdir: Path, step: Path) -> list[Row]:
    """Flip bits of a checkpoint, one at a time; count those that are detected, have no effect, or go undetected."""
    import jax

    from edgesam_jax.checkpoints.training import restore
    from edgesam_jax.train.initialization import initial_state
    from edgesam_jax.train.inputs import load_teacher

    template = initial_state(config, workdir, load_teacher(config)).state

    def read() -> tuple[Any, ...]:
        state, position, saved_config = restore(step, template)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], position, saved_config

    good = read()
    files = sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)
    rng = random.Random(0)
    everywhere = [(path, rng.randrange(path.stat().st_size)) for path in (files[n % len(files)] for n in range(FLIPS))]
    extra = step / "extra" / "metadata"
    text = extra.read_text()
    digits = [(extra, k) for k in range(text.index('"data"'), text.index('"sha256"')) if text[k].isdigit()]
    # Silences threads of tensorstore and tasks of asyncio, which complain after every damaged read.
    hook, sys.unraisablehook = sys.unraisablehook, lambda unused: None
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    rows = []
    for where, places in (("anywhere in it", everywhere), ("in digits of the run's position", digits[:FLIPS])):
        tally: Counter[str] = Counter()
        for path, place in places:
            flip(path, place)
            try:
                now = read()
                same = all((a == b).all() for a, b in zip(good[0], now[0], strict=True)) and good[1:] == now[1:]
                tally["without effect" if same else "undetected"] += 1
            except UsageError:
                tally["detected"] += 1
            finally:
                flip(path, place)
        counts = ", ".join(f"{count} {kind}" for kind, count in tally.most_common())
        missed = [f"{tally['undetected']} of {tally.total()} were undetected"] if tally["undetected"] else []
        rows.append(Row(f"{tally.total()} bits flipped {where}, one at a time", Ended(0, counts, ""), "-", "-", missed))
    sys.unraisablehook = hook
    return rows


# ----------------------------------------------------------------------------------------------------------- not finite


def poison(store: Path, key: bytes) -> Path:
    """Copy the store and put a NaN into a photo's embedding, as a broken teacher would."""
    from safetensors.numpy import load_file

    other = store.with_name("poisoned")
    shutil.copytree(store, other)
    for path in sorted(other.glob("*.safetensors")):
        arrays = load_file(path)
        embedding, keys = arrays["embedding"].astype(np.float32), [bytes(k) for k in arrays["key"]]
        if key in keys:
            embedding[keys.index(key), 0, 0, 0] = np.nan
            write_shard(path, read_header(other), keys, embedding)
    return other


def photo_of(config: Config, step: int) -> Any:
    """Return the record of the first photo of a step's batch."""
    parts = open_parts(config.data, config.model.image_size)
    part, index = order(parts, config.data)(step * config.data.batch_size)
    return parts[part].source.record(index)  # type: ignore[attr-defined]


def not_finite(output: Path, config: Config, uninterrupted: Path) -> list[Row]:
    """Test a non-finite teacher embedding with stop, skip and replay, and a learning rate that is too high."""
    store = Path(config.data.embeddings[0])
    record = photo_of(config, POISONED_STEP)
    poisoned = poison(store, photo_key(record.photo))
    original = store.with_name("original")
    rows = []

    store.rename(original)
    poisoned.rename(store)
    workdir = output / "stop"
    ended = train(workdir, config)
    listed = read_metrics(workdir / "nonfinite.jsonl")
    row = Row(f"NaN in an embedding of batch {POISONED_STEP}, stop", ended, files_left(workdir), "")
    rows.append(check(row, 1, "is nan", "last good checkpoint is 8", f"--replay {POISONED_STEP}"))
    if [(r["step"], str(record.image_id) in r["ids"]) for r in listed] != [(POISONED_STEP, True)]:
        row.wrong.append(f"nonfinite.jsonl has {listed}")

    again = train(workdir, config, "--replay", POISONED_STEP)
    named = [line for line in again.text.splitlines() if line.startswith("photo ") and "not finite" in line]
    replayed = Row(f"--replay {POISONED_STEP}", replace(again, line="; ".join(named)), "as before", "-")
    rows.append(check(replayed, 0, f"photo {record.image_id}: ", "not finite: teacher_embedding"))

    skipping = apply_overrides(config, ["train.nonfinite=skip"])
    workdir_skip = output / "skip"
    ended = train(workdir_skip, skipping)
    last = read_metrics(workdir_skip / "metrics.jsonl")[-1]
    line = f"nonfinite {last.get('nonfinite')} in the last row"
    skipped_row = Row("the same, skip", replace(ended, line=line), files_left(workdir_skip), "finished by itself")
    logged = [r["step"] for r in read_metrics(workdir_skip / "metrics.jsonl")]
    if logged != expected_rows(config) or last.get("nonfinite") != 2:
        skipped_row.wrong.append(f"rows {logged}, {line}; the photo is drawn twice")
    rows.append(check(skipped_row, 0))

    looping = apply_overrides(config, ["distill.mode=prompt_in_the_loop"])
    ended = train(output / "loop", looping)
    rows.append(check(Row("the same in the prompt loop, stop", ended, files_left(output / "loop"), "-"), 1, "is nan"))

    store.rename(poisoned)
    original.rename(store)
    resume(row, workdir, config, uninterrupted, "the store repaired, the same command")

    for how in ("stop", "skip"):
        workdir = output / f"rate_{how}"
        wild = apply_overrides(config, ["optim.learning_rate=1e30", f"train.nonfinite={how}"])
        ended = train(workdir, wild)
        row = Row(f"learning rate 1e30, {how}", ended, files_left(workdir), "-")
        reason = "step 2: loss is nan" if how == "stop" else "step 11: 10 steps in a row were not finite"
        rows.append(check(row, 1, reason))
        if how == "stop":  # nothing was saved, so the folder can be used with a corrected config
            resume(row, workdir, config, None, "with the usual rate, in the same folder")
    return rows


# --------------------------------------------------------------------------------------------------------- damaged data


def jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """Return a PNG of about sixty bytes whose header claims ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Planted:
    """A faulty photo of a data set: its file, the size in its JSON file, and the kind under which a run counts it.

    ``annotations`` is "good", "bare" (no fields), "rle" (of another size) or "none".  ``coco`` is the kind for a COCO
    file if the fault is found on opening the file.
    """

    name: str
    photo: bytes
    size: tuple[int, int]
    kind: str
    annotations: str = "good"
    coco: str = ""


def planted() -> list[Planted]:
    """Return one photo of each fault."""
    size = SIDE, SIDE
    good = jpeg(*size)
    return [
        Planted("truncated JPEG", good[: len(good) // 3], size, "photo damaged"),
        Planted("zero bytes", b"", size, "photo damaged"),
        Planted("another size than in its JSON", jpeg(SIDE, SIDE - 8), size, "photo of another size"),
        Planted("JSON without fields", good, size, "annotations damaged", "bare", "annotation damaged"),
        Planted("RLE of another size", good, size, "segmentation damaged", "rle"),
        Planted("empty annotation list", good, size, "no annotations", "none", "no annotations"),
        Planted("1 pixel wide", jpeg(300, 1), (300, 1), "photo too thin"),
        Planted("20,000 pixels wide", jpeg(400, 20000), (400, 20000), "photo too large"),
        Planted("decompression bomb", bomb(60000), (60000, 60000), "photo too large"),
        Planted("path leaving the root", good, size, "-", "good", "path outside the data root"),
    ]


FIRST_ID = 9001  # of planted photos; messages contain a photo's file name or id


def annotations_of(fault: Planted, image_id: int) -> list[dict[str, Any]]:
    """Return the annotations of a planted photo, in the form that both formats share."""
    if fault.annotations == "none":
        return []
    if fault.annotations == "bare":
        return [{"id": image_id, "image_id": image_id}]
    size = [9, 9] if fault.annotations == "rle" else list(fault.size)
    mask = np.ones((2, 2), np.uint8, order="F")
    counts = [0, 4, size[0] * size[1] - 4] if fault.annotations == "rle" else None
    shape: Any = {"size": size, "counts": counts} if counts else [[0.0, 0.0, 40.0, 0.0, 40.0, 40.0]]
    assert mask.all()
    return [{"id": image_id, "image_id": image_id, "bbox": [0.0, 0.0, 40.0, 40.0], "area": 800.0, "iscrowd": 0,
             "segmentation": shape}]  # fmt: skip


def plant_coco(root: Path) -> None:
    """Write scenes and planted photos with a COCO-format JSON file."""
    content = write_scenes(root)
    for k, fault in enumerate(planted()):
        number = FIRST_ID + k
        name = f"../{number}.jpg" if fault.coco == "path outside the data root" else f"{number}.jpg"
        (root / name).write_bytes(fault.photo)
        content["images"].append({"id": number, "file_name": name, "height": fault.size[0], "width": fault.size[1]})
        content["annotations"] += annotations_of(fault, number)
    (root / "instances.json").write_text(json.dumps(content))


def plant_images(root: Path) -> None:
    """Write the same photos with a JSON file next to each, as SA-1B does; no path can lead out of the folder."""
    content = write_scenes(root)
    (root / "instances.json").unlink()
    by_image: dict[int, list[Any]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        head = {"image_id": image["id"], "height": SIDE, "width": SIDE}
        text = json.dumps({"image": head, "annotations": by_image[image["id"]]})
        (root / f"{image['id']}.json").write_text(text)
    for k, fault in enumerate(planted()):
        if fault.kind == "-":
            continue
        number = FIRST_ID + k
        head = {"image_id": number, "height": fault.size[0], "width": fault.size[1]}
        (root / f"{number}.jpg").write_bytes(fault.photo)
        text = json.dumps({"image": head, "annotations": annotations_of(fault, number)})
        (root / f"{number}.json").write_text(text)


def kinds_of(rows: Sequence[dict[str, Any]], number: int) -> Counter[str]:
    """Count the kinds of the rows that name a photo."""
    return Counter(row["kind"] for row in rows if str(number) in row["message"])


def damaged_data(output: Path) -> tuple[list[Row], list[list[str]]]:
    """Train on and prepare data sets with one photo of each fault: rows, and a table of the kinds found."""
    rows: list[Row] = []
    table = [[fault.name] for fault in planted()]
    for source, plant in (("coco", plant_coco), ("images", plant_images)):
        root = output / "damaged" / source
        plant(root)
        overrides = ["train.steps=40", f"data.source={source}", "data.max_bad_share=0.2"]  # more than two epochs
        config = base_config(root, None, *overrides)
        workdir = output / f"damaged_{source}"
        ended = train(workdir, config)
        listed = read_metrics(workdir / "skipped.jsonl")
        last = read_metrics(workdir / "metrics.jsonl")[-1]
        peak = last["memory_bytes"] / MB  # of the entire process; decoding the bomb would take ten gigabytes
        opening = sum(row["step"] == 0 and f"{root}/instances.json" in row["message"] for row in listed)
        line = (
            f"{len(listed)} rows in skipped.jsonl, {last['skipped']} photos skipped in the log;"
            f" at most {peak:.0f} MB of memory"
        )
        row = check(Row(f"a data set ({source}) with the faults below", replace(ended, line=line), "-", "-"), 0)
        wrong_photos = [
            r["message"] for r in listed
            if not any(str(FIRST_ID + k) in r["message"] for k in range(len(table)))
        ]  # fmt: skip
        row.wrong += [f"a good photo was skipped: {message}" for message in wrong_photos]
        manifest_folder = output / "damaged" / f"{source}_prepared"
        run("edgesam_jax.prepare", "--source", source, "--root", root, "--output", manifest_folder, "--workers", 1)
        manifest = json.loads((manifest_folder / "prepared.json").read_text())
        prepared = [{"kind": kind, "message": message} for kind, message in manifest["skipped_photos"]]
        for k, fault in enumerate(planted()):
            trained, packed = kinds_of(listed, FIRST_ID + k), kinds_of(prepared, FIRST_ID + k)
            kind = fault.coco if source == "coco" and fault.coco else fault.kind
            expected = set() if source == "images" and fault.kind == "-" else {kind}
            if fault.annotations == "bare" and source == "coco":
                expected.add("no annotations")  # the photo has none left
            if set(trained) != expected or packed != Counter(expected):
                row.wrong.append(f"{fault.name}: trained {dict(trained)}, prepared {dict(packed)}, not {expected}")
            table[k].append(", ".join(f"{name} {count}" for name, count in trained.items()) or "-")
            table[k].append(", ".join(f"{name} {count}" for name, count in packed.items()) or "-")
        if manifest["records"] != PHOTOS:
            row.wrong.append(f"prepare kept {manifest['records']} photos of {PHOTOS} good ones")
        row.left = f"prepare kept {manifest['records']} of {PHOTOS} good photos; {opening} rows from opening the file"
        rows.append(row)
    return rows, table


def too_many_bad(output: Path) -> list[Row]:
    """Test more bad photos than ``data.max_bad_share`` allows: during training, on opening, and only bad photos."""
    rows = []
    root = output / "damaged" / "share"
    content = write_scenes(root)
    for number in range(1, PHOTOS + 1, 10):
        (root / f"{number}.jpg").write_bytes(b"")
    workdir = output / "share"
    config = base_config(
        root, None, "data.batch_size=16", "train.steps=80", "train.log_every=20", "train.checkpoint_every=20"
    )
    ended = train(workdir, config)
    row = Row("10 % of the photos are empty files, default data.max_bad_share", ended, files_left(workdir), "")
    rows.append(check(row, 2, "can't be used, more than data.max_bad_share=0.01"))
    raised = apply_overrides(config, ["data.max_bad_share=0.2"])
    resume(row, workdir, raised, None, "data.max_bad_share=0.2, in the same folder")

    root = output / "damaged" / "listed"
    root.mkdir()
    for name in ("1.jpg", "2.jpg"):
        shutil.copy(output / "photos" / name, root)
    images = [{**content["images"][k % 2], "id": k + 1} for k in range(1000)]
    for image in images[:20]:
        del image["height"]
    notes = [{**content["annotations"][0], "id": k, "image_id": k + 1} for k in range(1000)]
    (root / "instances.json").write_text(json.dumps({**content, "images": images, "annotations": notes}))
    ended = train(output / "listed", base_config(root, None))
    row = Row("20 of 1,000 entries without a field", ended, files_left(output / "listed"), "not started")
    rows.append(check(row, 2, "20 of its 1000 photos have damaged entries"))

    root = output / "damaged" / "all"
    write_scenes(root, 8)
    for path in root.glob("*.jpg"):
        path.write_bytes(b"")
    ended = train(output / "all", base_config(root, None))
    row = Row("only empty files", ended, files_left(output / "all"), "not started")
    rows.append(check(row, 2, "20 photos in a row could not be used"))
    return rows


def damaged_store(output: Path, config: Config) -> list[Row]:
    """Test a flipped bit in a stored embedding: its photo counts as bad."""
    store = Path(config.data.embeddings[0])
    damaged = store.with_name("damaged_store")
    shutil.copytree(store, damaged)
    (shard,) = damaged.glob("*.safetensors")
    flip(shard, shard.stat().st_size // 2)
    changed = replace(config, data=replace(config.data, embeddings=(str(damaged),), max_bad_share=0.2))
    workdir = output / "damaged_store_run"
    ended = train(workdir, changed)
    listed = read_metrics(workdir / "skipped.jsonl")
    line = f"{len(listed)} rows: {listed[0]['kind']}: {listed[0]['message']}" if listed else "nothing"
    row = Row("one bit of a stored embedding flipped", replace(ended, line=line), files_left(workdir), "finished")
    return [check(row, 0, "embedding damaged", shard.name)]


# ---------------------------------------------------------------------------------------------------------------- main


def blocks(rows: Sequence[Row], output: Path) -> str:
    """Format the rows with all details."""
    texts = []
    for row in rows:
        lines = [
            row.fault, f"  exit code {row.ended.code}", f"  printed: {row.ended.line}", f"  left: {row.left}",
            f"  then: {row.resumed}",
        ]  # fmt: skip
        texts.append("\n".join(lines + [f"  WRONG: {text}" for text in row.wrong]))
    return "\n".join(texts).replace(str(output), "OUT")


def main() -> int:
    """Run the check; exits with code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--no-mount", action="store_true", help="limit the file size instead of mounting a tmpfs")
    args = parser.parse_args()
    output = args.output.resolve()
    output.mkdir(parents=True)
    write_scenes(output / "photos")
    run(
        "edgesam_jax.embed", "--teacher", "tiny_teacher", "--source", "coco", "--root", output / "photos",
        "--output", output / "store",
    )  # fmt: skip
    config = base_config(output / "photos", output / "store")
    uninterrupted = output / "uninterrupted"
    if (ended := train(uninterrupted, config)).code:
        raise SystemExit(f"the uninterrupted run failed: {ended.line}")

    full = full_limit if args.no_mount or not can_mount() else full_tmpfs
    rows: list[Row] = []
    parts: list[Callable[[], list[Row]]] = [
        lambda: full(output, config, uninterrupted),
        lambda: stopped_by_signal(output, config, uninterrupted),
        lambda: damaged_checkpoint(output, config, uninterrupted),
        lambda: damaged_store(output, config),
        lambda: not_finite(output, config, uninterrupted),
        lambda: too_many_bad(output),
    ]
    for part in parts:
        new_rows = part()
        print(blocks(new_rows, output), flush=True)
        rows += new_rows
    new_rows, planted_table = damaged_data(output)
    print(blocks(new_rows, output), flush=True)
    rows += new_rows
    heads = ["planted", "coco: trained", "prepared", "images: trained", "prepared"]
    short = [[row.fault, str(row.ended.code), "NO" if row.wrong else "yes"] for row in rows]
    report = [
        blocks(rows, output), aligned_table(["fault", "exit code", "as expected"], short),
        aligned_table(heads, planted_table),
    ]  # fmt: skip
    (output / "report.md").write_text("\n\n".join(report) + "\n")
    print("\n" + "\n\n".join(report[1:]))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
