"""Whole commands as processes: two at once in one folder, outputs that can't be written, limits of the system."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import write_scenes
from benchmarks.fuzz.cases import TRACEBACK, Case, Failed
from edgesam_jax.config import UsageError

ROOT = Path(__file__).parents[2]
LIMIT = 300.0  # seconds until a command counts as hanging


@dataclass(frozen=True)
class Job:
    """A command with one output: its flags but the output's, and whether the output is a folder."""

    name: str
    flags: tuple[str, ...]
    output: str
    folder: bool


def jobs(data: Path) -> list[Job]:
    """The commands that write, each with inputs so small that it takes seconds."""
    photo = str(data / "1.jpg")
    coco = ("--data-root", str(data), "--annotations", str(data / "instances.json"), "--limit", "4")
    source = ("--source", "coco", "--root", str(data), "--limit", "4")
    train = (
        "edgesam_jax.train", "--config", str(ROOT / "configs" / "quickstart.py"), "--set", "study=()",
        "distill.mode=encoder_only", "train.steps=4", "train.checkpoint_every=2", "eval.images=0", "data.batch_size=2",
        "train.picture_every=0", "optim.warmup_steps=0", "train.log_every=1",
    )  # fmt: skip
    return [
        Job("predict", ("edgesam_jax.predict", "--image", photo, "--box", "8,8,60,60"), "--output", True),
        Job("eval", ("edgesam_jax.eval", "--dataset", "coco", *coco, "--prompt", "box"), "--output", False),
        Job("prepare", ("edgesam_jax.prepare", *source), "--output", True),
        Job("embed", ("edgesam_jax.embed", "--teacher", "tiny_teacher", *source), "--output", True),
        Job("train", train, "--workdir", True),
        Job("to_onnx", ("convert.to_onnx", "tiny_teacher"), "--output", True),
    ]


def start(job: Job, output: Path, limit: int | None = None, ordinary: bool = False) -> subprocess.Popen[str]:
    """Start a command; ``limit`` is the largest file in bytes; ``ordinary`` takes root's right to write anywhere."""

    def before() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", *job.flags, job.output, str(output)]
    if ordinary:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", rights, "--inh-caps", rights, *command]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=before if limit is not None else None,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; return its exit code and its standard error.

    Raises:
      Failed: it hangs, prints a traceback, or ends with a code but 0 and 2.
    """
    try:
        _, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failed(f"hangs for {LIMIT:.0f} s") from None
    if "Traceback" in err:
        raise Failed(f"{TRACEBACK}: {err.strip().splitlines()[-1][:200]}")
    if process.returncode not in (0, 2):
        raise Failed(f"exit code {process.returncode}: {err.strip()[-200:]}")
    return process.returncode, err


def refused(job: Job, output: Path, limit: int | None = None, ordinary: bool = False) -> bool:
    """Run a command that can't succeed.

    Raises:
      UsageError: it ended with code 2 and one line, as it must.
      Failed: it ended otherwise.
    """
    code, err = end(start(job, output, limit, ordinary))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if code == 2 and len(errors) == 1:
        raise UsageError(errors[0].removeprefix("error: "))
    raise Failed(f"exit code {code}, {len(errors)} error lines")


def system(rng: random.Random, folder: Path) -> Iterator[Case]:
    """An output that is a file, a folder, read-only, behind a file, or larger than the largest file allowed."""
    data = _data(folder)
    number = 0
    while True:
        for job in jobs(data):
            number += 1
            base = folder / f"{number}"
            base.mkdir()
            taken = base / "taken"
            if job.folder:
                taken.write_text("mine")
            else:
                taken.mkdir()
            yield Case(f"{job.name}: output is taken", lambda j=job, p=taken: refused(j, p))
            behind = base / "file" / "out"
            behind.parent.write_text("mine")
            yield Case(f"{job.name}: output behind a file", lambda j=job, p=behind: refused(j, p))
            long = base / ("x" * 300)
            yield Case(f"{job.name}: name too long", lambda j=job, p=long: refused(j, p))
            limited = base / "limited"
            if job.name not in ("predict", "eval"):  # these write less than the limit
                yield Case(f"{job.name}: ulimit -f", lambda j=job, p=limited: refused(j, p, limit=2048))
            locked, root = base / "locked", os.geteuid() == 0
            locked.mkdir()
            locked.chmod(0o555)
            if not root or shutil.which("setpriv"):
                out = locked / "out"
                yield Case(f"{job.name}: read-only folder", lambda j=job, p=out, r=root: refused(j, p, ordinary=r))


def concurrent(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Two commands at once with one output: each succeeds or is refused, and afterwards the output is complete."""
    data = _data(folder)
    number = 0
    while True:
        for job in jobs(data):
            number += 1
            output = folder / f"{number}" / "out"
            output.parent.mkdir()
            delay = 3 * rng.random()
            yield Case(f"two {job.name}", lambda j=job, p=output, d=delay: _together(j, p, d), wrong=False)
            shutil.rmtree(output.parent)


def _together(job: Job, output: Path, delay: float) -> bool:
    first = start(job, output)
    time.sleep(delay)
    second = start(job, output)
    ended = []
    for process in (first, second):
        try:
            ended.append(end(process))
        except Failed:
            for other in (first, second):
                other.kill()
            raise
    if all(code for code, _ in ended):
        raise Failed(f"both were refused: {ended[0][1].strip()[-150:]!r}, {ended[1][1].strip()[-150:]!r}")
    again, err = end(start(job, output))
    if again:
        raise Failed(f"the output is not complete: {err.strip()[-200:]!r}")
    return any(code for code, _ in ended)


def _data(folder: Path) -> Path:
    folder.mkdir()
    write_scenes(folder / "data", 4)
    return folder / "data"
