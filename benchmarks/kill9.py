"""Compare a run that is killed repeatedly with an uninterrupted one.

    python -m benchmarks.kill9 --kills 30 --output OUT

Trains the quickstart's student with the prompt loop, once without interruption and once killed by SIGKILL at random
moments: while it starts, while it steps, and while a checkpoint is half written.  After each kill the same command is
run again to resume.  At the end both runs must agree: the last checkpoint's hashes of parameters and optimiser, every
row of the logs except its times, the best checkpoint, the pictures and the model.  Exits with code 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from edgesam_jax.config import Config, apply_overrides, load_config, to_json
from edgesam_jax.reporting.tables import aligned_table
from edgesam_jax.train.log import read_metrics
from edgesam_jax.train.timing import TIMES

ROOT = Path(__file__).parents[1]
KINDS = ("starting", "stepping", "saving")
SETTINGS = (
    "train.steps=100", "train.checkpoint_every=2", "train.log_every=3", "train.picture_every=50", "train.keep_best=2",
    "eval.every=40", "eval.images=4", "data.batch_size=2", "data.workers=1",
)  # fmt: skip


def config(overrides: list[str]) -> Config:
    """Return a stage-2 config on scenes, saving so often that many kills hit a save."""
    # Rows come every 3 steps and saves every 2, so that rows don't always coincide with saves.
    base = load_config(ROOT / "configs" / "quickstart.py")
    return apply_overrides(dataclasses.replace(base, study=(), name="kill9"), [*SETTINGS, *overrides])


def start(workdir: Path) -> subprocess.Popen[bytes]:
    """Start or resume the run in ``workdir``."""
    command = [sys.executable, "-m", "edgesam_jax.train", "--config", str(workdir.parent / "config.json")]
    log = (workdir.parent / f"{workdir.name}.log").open("ab")
    return subprocess.Popen([*command, "--workdir", str(workdir)], cwd=ROOT, stdout=log, stderr=log)


def steps(workdir: Path) -> int:
    """Return the step of the log's last row; 0 if there is none."""
    return max((int(row["step"]) for row in read_metrics(workdir / "metrics.jsonl")), default=0)


def saved(workdir: Path) -> int:
    """Return the step of the newest complete checkpoint; 0 if there is none."""
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


def unfinished(workdir: Path) -> bool:
    """Whether a checkpoint is half written right now."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in p.name for p in folder.iterdir())


def kill_once(workdir: Path, kind: str, rng: random.Random, start_seconds: float) -> float | None:
    """Start the run and kill it at a moment of this kind.

    Returns:
      The seconds from the start to the first new row of the log, or ``start_seconds`` for a kill while starting; None
      if the run ended before the kill.
    """
    process = start(workdir)
    began, first = time.monotonic(), steps(workdir)
    # A killed save leaves its folder until the next start, so an unfinished folder counts only after a new row.
    if kind == "starting":
        until = began + rng.uniform(0.3, start_seconds)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    else:
        while process.poll() is None and steps(workdir) <= first:
            time.sleep(0.005)
        start_seconds = time.monotonic() - began
        if kind == "stepping":
            until = time.monotonic() + rng.uniform(0, 2.5)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
        else:
            while process.poll() is None and not unfinished(workdir):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.05))
    if process.poll() is not None:
        if process.returncode:
            raise SystemExit(f"the run failed before the kill: see {workdir.parent / f'{workdir.name}.log'}")
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return start_seconds


def timeless(path: Path) -> list[dict[str, object]]:
    """Return a log's rows without times and other values that differ from run to run."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(path)]


def differences(one: Path, other: Path) -> list[str]:
    """Name the results in which two finished runs differ."""
    last = saved(one)
    names = []
    if saved(other) != last:
        return [f"last checkpoint: {last} and {saved(other)}"]
    hashes = [
        json.loads((w / "checkpoints" / str(last) / "extra" / "metadata").read_text())["sha256"] for w in (one, other)
    ]
    names += [f"hash of the {name}" for name in hashes[0] if hashes[0][name] != hashes[1][name]]
    for name in ("metrics.jsonl", "skipped.jsonl", "nonfinite.jsonl"):
        if timeless(one / name) != timeless(other / name):
            names.append(name)
    models = [json.loads((w / "model" / "config.json").read_text())["sha256"] for w in (one, other)]
    if models[0] != models[1]:
        names.append("model")
    best = [json.loads((w / "best.json").read_text()) for w in (one, other)]
    if best[0] != best[1]:
        names.append("best.json")
    pictures = [{p.name: p.read_bytes() for p in (w / "pictures").iterdir()} for w in (one, other)]
    if pictures[0] != pictures[1]:
        names.append("pictures")
    return names


def main() -> int:
    """Run the check; exits with code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--set", action="append", default=[], nargs="+", metavar="a.b=c", help="config overrides")
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    full_config = config([text for texts in args.set for text in texts])
    (args.output / "config.json").write_text(to_json(full_config))
    began = time.monotonic()
    if start(args.output / "uninterrupted").wait():
        raise SystemExit(f"the run failed: see {args.output / 'uninterrupted.log'}")
    print(f"uninterrupted: {full_config.train.steps} steps in {time.monotonic() - began:.0f} s", flush=True)

    rng, killed, done = random.Random(args.seed), args.output / "killed", Counter[str]()
    lost: list[int] = []
    start_seconds = 6.0  # until the first row; kills while starting happen before it
    kinds = [KINDS[i % len(KINDS)] for i in range(args.kills)]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        seconds = kill_once(killed, kind, rng, start_seconds)
        if seconds is None:
            break
        start_seconds = seconds
        done[kind] += 1
        lost.append(max(0, steps(killed) - saved(killed)))
        half = " (half a checkpoint left)" if unfinished(killed) else ""
        print(f"{number}: {kind}, {steps(killed)} steps logged, {saved(killed)} saved{half}", flush=True)
    if start(killed).wait():
        raise SystemExit(f"the run failed: see {args.output / 'killed.log'}")
    rows = [[kind, str(done[kind])] for kind in KINDS]
    print(aligned_table(["killed while", "times"], rows))
    different = differences(args.output / "uninterrupted", killed)
    print(f"{sum(done.values())} kills, at most {max(lost, default=0)} logged steps repeated")
    print(
        f"different: {', '.join(different)}"
        if different
        else "the same: parameters, optimiser, log, best, pictures, model"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
