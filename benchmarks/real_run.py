"""Both training stages on real photos, with interruptions, from files to a scored model; two processes over gloo.

    python -m benchmarks.real_run --coco DIR --sa1b-pair DIR --sa1b-photos DIR --output OUT

Prepares three data sets (COCO format; SA-1B photos with their masks; photos without masks, prompted by superpixels),
stores the tiny teacher's embeddings, and distils the tiny student on the mixture: encoder-only, then with the prompt
loop, starting from the first stage.  In each stage one process gets SIGKILL and later the other one SIGTERM; each time
the same command is run again to resume.  Each stage also runs once uninterrupted, and the two runs must agree.  Then
the models are scored on the COCO photos.  The report is printed and written to ``OUT/report.md``.  Exits with code 1
if anything differs from docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.kill9 import differences, saved, steps, timeless
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.config import Config, DataConfig, EvalConfig, MixtureConfig, apply_overrides, load_config, to_json
from edgesam_jax.data.opening import open_source
from edgesam_jax.reporting.tables import aligned_table
from edgesam_jax.train.log import read_metrics

ROOT = Path(__file__).parents[1]
PROCESSES = 2
TEACHER = "tiny_teacher"
WEIGHTS = {"coco": 6.0, "pair": 1.0, "photos": 1.0}
LOG_EVERY, SAVE_EVERY = 4, 10  # some log rows span a save, as in long runs
WAIT = 600.0  # seconds until a wait counts as hanging
REASONS = ("error: ", "Error: ", "stopped by signal", "Terminating process", " steps, ")
GRACE = 15.0  # seconds for the helpers of an ended process to end too

# ------------------------------------------------------------------------------------------------------------- config


def configs(output: Path, first: int, second: int) -> dict[str, Config]:
    """Return the configs of the two stages, of ``first`` and ``second`` steps.

    The second stage starts from the first stage's interrupted run.
    """
    mixture = tuple(
        MixtureConfig(
            "prepared", root=str(output / "data" / name), weight=weight,
            unlabelled="superpixels" if name == "photos" else "none",
        )
        for name, weight in WEIGHTS.items()
    )  # fmt: skip
    stores = tuple(str(output / "stores" / name) for name in WEIGHTS)
    base = load_config(ROOT / "configs" / "quickstart.py")
    train = replace(
        base.train, steps=first, log_every=LOG_EVERY, checkpoint_every=SAVE_EVERY, picture_every=max(1, first // 3)
    )
    base = replace(
        base, study=(), teacher=TEACHER, train=train, eval=EvalConfig(images=0),
        data=DataConfig(batch_size=8, max_prompts=8, workers=1, mixture=mixture, embeddings=stores),
    )  # fmt: skip
    loop = [f"train.steps={second}", f"train.picture_every={max(1, second // 3)}", "optim.learning_rate=1e-3",
            "optim.warmup_steps=0", f"train.init_from={output / 'stage1' / 'stopped'}"]  # fmt: skip
    return {
        "stage1": apply_overrides(replace(base, name="stage1"), ["distill.mode=encoder_only"]),
        "stage2": apply_overrides(replace(base, name="stage2"), loop),
    }


# ---------------------------------------------------------------------------------------------------------- processes


def environment(output: Path) -> dict[str, str]:
    """Return the environment of all processes: CPU, which several processes can share, and one compilation cache."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "EDGESAM_JAX_CACHE": str(output / "cache")}


def run(output: Path, *command: object) -> str:
    """Run a command to its end; returns its output."""
    texts = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(texts, cwd=ROOT, env=environment(output), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(texts[1:])}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def shell_code(code: int) -> int:
    """Convert an exit code to a shell's: 128 plus the signal's number if a signal ended the process."""
    return code if code >= 0 else 128 - code


def lines(log: Path) -> list[str]:
    """Return a log's lines, splitting those that a progress bar overwrote."""
    return [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]


def reason(log: Path) -> str:
    """Return the line of a log that gives the reason why the process ended."""
    reasons = [line for line in lines(log) if any(mark in line for mark in REASONS)]
    return reasons[-1].strip()[:200] if reasons else ""


class Job:
    """The processes of a run, each the leader of its own process group, so that helpers it leaves behind can be found.

    The context manager kills everything still running.
    """

    def __init__(self, output: Path, workdir: Path, name: str) -> None:
        address = f"localhost:{free_port()}"
        self.began = time.monotonic()
        self.logs = [output / "logs" / f"{name}.{index}.log" for index in range(PROCESSES)]
        self.processes = []
        for index, path in enumerate(self.logs):
            command = [sys.executable, "-m", "edgesam_jax.train", "--config", str(workdir.parent / "config.json"),
                       "--workdir", str(workdir), "--coordinator", address, "--processes", str(PROCESSES),
                       "--process", str(index)]  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment(output), stdout=log, stderr=log, start_new_session=True
                    )
                )

    def reach(self, workdir: Path, step: int) -> None:
        """Wait until a step is logged."""
        while steps(workdir) < step:
            if any(process.poll() is not None for process in self.processes):
                raise SystemExit(f"the run ended before step {step}: see {self.logs[0].parent}")
            if time.monotonic() - self.began > WAIT:
                raise SystemExit(f"no step {step} within {WAIT:.0f} s: see {self.logs[0].parent}")
            time.sleep(0.02)

    def end(self) -> list[int]:
        """Wait for all processes and return their exit codes as a shell shows them; exits if one hangs."""
        until = time.monotonic() + WAIT
        for process in self.processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise SystemExit(f"a process did not end: see {self.logs[0].parent}") from None
        return [shell_code(process.returncode) for process in self.processes]

    def orphans(self) -> list[int]:
        """Return the indices of the processes, all ended, that left helpers running."""
        until = time.monotonic() + GRACE
        while (left := [k for k, process in enumerate(self.processes) if _lives(process.pid)]) and (
            time.monotonic() < until
        ):
            time.sleep(0.1)
        return left

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if _lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------------- stages


@dataclass
class Started:
    """One start of a stage: its first line, how it was stopped, and its state at the end."""

    began: str
    stop: str
    codes: list[int]
    logged: int
    saved: int
    seconds: float
    ending: float  # seconds from the signal until all processes had ended
    orphans: list[int]  # processes whose helpers kept running
    reasons: list[str]  # of each process


def start(output: Path, workdir: Path, name: str, stop: tuple[signal.Signals, int] | None, step: int) -> Started:
    """Start a stage's processes; at a logged ``step`` send a signal to one of them, or let them run to the end.

    Args:
      stop: (signal, index of the process), or None for a run to the end.
    """
    with Job(output, workdir, name) as job:
        if stop is not None:
            job.reach(workdir, step)
            time.sleep(random.uniform(0, 0.5))  # so that the signal doesn't always follow a row at once
            job.processes[stop[1]].send_signal(stop[0])
        sent = time.monotonic()
        codes = job.end()
        ended = time.monotonic()
        orphans = job.orphans()
    began = next((line for line in lines(job.logs[0]) if line.startswith("start: ")), "start: nothing printed")
    words = f"{stop[0].name} to {stop[1]}" if stop else "-"
    return Started(
        began.removeprefix("start: ").split(",")[0], words, codes, steps(workdir), saved(workdir),
        ended - job.began, ended - sent, orphans, [reason(path) for path in job.logs],
    )  # fmt: skip


def print_progress(name: str, started: Started) -> None:
    """Print how a start ended, with each process's reason."""
    print(f"{name}: {started.began}; exit codes {started.codes}; {started.seconds:.0f} s", flush=True)
    for index, text in enumerate(started.reasons):
        print(f"    process {index}: {text or 'nothing'}", flush=True)


def expected_rows(config: Config) -> list[int]:
    """Return the steps that a finished run's log has rows for."""
    every, last = config.train.log_every, config.train.steps
    return [step for step in range(1, last + 1) if step % every == 0 or step == last]


def skipped(workdir: Path) -> Counter[str]:
    """Count the photos that all processes skipped, by kind."""
    return Counter(row["kind"] for path in sorted(workdir.glob("skipped*.jsonl")) for row in read_metrics(path))


def loss_difference(one: Path, other: Path) -> float:
    """Return the largest relative difference between two logs, over all numbers except times."""
    pairs = zip(timeless(one / "metrics.jsonl"), timeless(other / "metrics.jsonl"), strict=True)
    values = [(float(str(a[name])), float(str(b[name]))) for a, b in pairs for name in a]
    return max((abs(x - y) / max(abs(x), 1e-12) for x, y in values), default=0.0)


def parameter_difference(one: Path, other: Path) -> float:
    """Return the largest difference between two runs' final weights and batch statistics."""
    trees = [jax.tree.leaves(load_model(path / "model").variables) for path in (one, other)]
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(*trees, strict=True))


def resumed_at(began: str) -> int:
    """Return the step that a first line names; 0 for a fresh start."""
    return int(began.rsplit(" ", 1)[-1]) if began.startswith("resume") else 0


def problems(config: Config, workdir: Path, starts: list[Started]) -> list[str]:
    """List everything unexpected about a stage's starts."""
    killed, terminated, last = starts
    wrong = []
    if killed.codes[int(killed.stop[-1])] != 128 + signal.SIGKILL or 0 in killed.codes:
        wrong.append(f"kill -9: exit codes {killed.codes}")
    if terminated.codes != [128 + signal.SIGTERM] * PROCESSES:
        wrong.append(f"SIGTERM: exit codes {terminated.codes}")
    if last.codes != [0] * PROCESSES:
        wrong.append(f"the last start: exit codes {last.codes}")
    for before, after in ((killed, terminated), (terminated, last)):
        if resumed_at(after.began) != before.saved:
            wrong.append(f"{before.saved} saved, but then: {after.began}")
    rows = [row["step"] for row in read_metrics(workdir / "metrics.jsonl")]
    if rows != expected_rows(config):
        wrong.append(f"rows of the log: {rows}")
    for s in starts:
        wrong += [f"{s.stop}: process {index} left its helpers running" for index in s.orphans]
    return wrong


def stage(output: Path, name: str, config: Config, kill: int) -> tuple[list[list[str]], list[str], list[str]]:
    """Run a stage with interruptions and once without.

    Args:
      kill: index of the process that gets SIGKILL; the other one gets SIGTERM.

    Returns:
      The rows for the table of starts, the row for the table of stages, and everything unexpected.
    """
    stopped, uninterrupted = output / name / "stopped", output / name / "uninterrupted"
    stopped.parent.mkdir(parents=True)
    (stopped.parent / "config.json").write_text(to_json(config))
    stops = ((signal.SIGKILL, kill), (signal.SIGTERM, 1 - kill), None)
    starts = []
    for number, stop in enumerate(stops, 1):
        at = config.train.steps * number // len(stops)
        starts.append(start(output, stopped, f"{name}.start{number}", stop, at))
        print_progress(f"{name}, start {number}", starts[-1])
    alone = start(output, uninterrupted, f"{name}.uninterrupted", None, 0)
    print_progress(f"{name}, uninterrupted", alone)
    wrong = problems(config, stopped, starts)
    if alone.codes != [0] * PROCESSES:
        raise SystemExit(f"the uninterrupted run failed: {alone.codes}, see {output / 'logs'}")
    # SIGTERM saves an extra checkpoint, and without an evaluation the best is rated by the loss between two saves.
    wrong += [text for text in differences(uninterrupted, stopped) if text != "best.json"]
    rows = [row for row in read_metrics(stopped / "metrics.jsonl") if "loss" in row]
    kinds = ", ".join(f"{kind} {count}" for kind, count in skipped(stopped).items()) or "none"
    weights = parameter_difference(uninterrupted, stopped)
    row = [
        name, str(len(rows)), f"{rows[0]['loss']:.4f}", f"{rows[-1]['loss']:.4f}", kinds,
        f"{loss_difference(uninterrupted, stopped):.1e}", "bit for bit" if weights == 0 else f"{weights:.1e}",
        f"{sum(s.seconds for s in starts):.0f}", f"{alone.seconds:.0f}",
    ]  # fmt: skip
    table = [
        [f"{name}, {number}", s.began.replace(str(output), "OUT"), s.stop, " ".join(map(str, s.codes)),
         str(s.logged), str(s.saved), f"{s.ending:.1f}" if s.stop != "-" else "-",
         " ".join(map(str, s.orphans)) or "none", f"{s.seconds:.0f}"]
        for number, s in enumerate(starts, 1)
    ]  # fmt: skip
    return table, row, [f"{name}: {text}" for text in wrong]


# --------------------------------------------------------------------------------------------------------------- data


def pack(output: Path, roots: dict[str, Path]) -> list[list[str]]:
    """Prepare and embed every data set; returns the rows of a table."""
    rows = []
    for name, root in roots.items():
        began = time.monotonic()
        data, store = output / "data" / name, output / "stores" / name
        source = "coco" if name == "coco" else "images"
        run(output, "edgesam_jax.prepare", "--source", source, "--root", root, "--output", data, "--workers", 2)
        run(output, "edgesam_jax.prepare", "--output", data, "--verify")
        printed = run(output, "edgesam_jax.embed", "--teacher", TEACHER, "--source", "prepared", "--root", data,
                   "--output", store, "--batch-size", 4)  # fmt: skip
        manifest = json.loads((data / "prepared.json").read_text())
        skipped_photos = ", ".join(f"{kind} {count}" for kind, count in manifest["skipped"].items()) or "none"
        photos = open_source(DataConfig(source="prepared", root=str(data)), 0)
        masks = [len(photos.record(index).annotations) for index in range(len(photos))]  # type: ignore[attr-defined]
        rows.append(
            [name, str(manifest["records"]), str(sum(masks)) if any(masks) else "superpixels", skipped_photos,
             printed.split()[0],
             f"{WEIGHTS[name]:g}", f"{time.monotonic() - began:.0f}"]
        )  # fmt: skip
    return rows


def main() -> int:
    """Run the check; exits with code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, help="folder of photos with one COCO-format JSON file")
    parser.add_argument("--sa1b-pair", type=Path, required=True, help="folder of SA-1B photos with their JSON files")
    parser.add_argument("--sa1b-photos", type=Path, required=True, help="folder of photos without annotations")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, nargs=2, default=(120, 60), metavar="N", help="steps of the two stages")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    random.seed(args.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # ends the processes it started too
    output = args.output.resolve()
    output.mkdir(parents=True)
    roots = {"coco": args.coco, "pair": args.sa1b_pair, "photos": args.sa1b_photos}
    packed = pack(output, {name: root.resolve() for name, root in roots.items()})
    report = [aligned_table(["data", "photos", "masks", "skipped", "embedded", "weight", "seconds"], packed)]
    print(report[0], flush=True)

    starts, stages, wrong = [], [], []
    for kill, (name, config) in enumerate(configs(output, *args.steps).items()):
        table, row, unexpected = stage(output, name, config, kill)
        starts += table
        stages.append(row)
        wrong += unexpected
    report.append(
        aligned_table(
            ["start", "first line", "stopped by", "exit codes", "logged", "saved", "s to end", "helpers left by", "s"],
            starts,
        )
    )
    report.append(
        aligned_table(
            [
                "",
                "rows, each once",
                "first loss",
                "last",
                "skipped",
                "log differs by",
                "weights",
                "s",
                "s uninterrupted",
            ],
            stages,
        )
    )
    models = [output / name / "stopped" / "model" for name in ("stage1", "stage2")]
    scored = run(
        output, "edgesam_jax.eval", "--checkpoint", *models, TEACHER, "--dataset", "coco", "--data-root",
        roots["coco"].resolve(), "--prompt", "box", "--refine", 1, "--no-boundary", "--output", output / "eval.json",
    )  # fmt: skip
    report.append(scored.replace(str(output), "OUT"))
    report.append("\n".join(f"wrong: {text}" for text in wrong) or "all as expected")
    (output / "report.md").write_text("\n\n".join(report) + "\n")
    print("\n" + "\n\n".join(report[1:]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
