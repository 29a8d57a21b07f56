"""One training job of many processes on this machine, over gloo: what grows with their number, and what breaks.

    python -m benchmarks.many_processes --processes 2 4 8 16 32 --output OUT [--cache] [--share] [--set a.b=c ...]
    python -m benchmarks.many_processes --kill 8 --resume 4 --output OUT
    python -m benchmarks.many_processes --connect 2 16 64 256 --output OUT [--late 330]

Each process is ``python -m edgesam_jax.train`` with one CPU device, a tiny student and generated scenes.  The global
batch is the same for every number of processes, so that the job's work is the same and what grows is the price of the
processes.  Prints, for every stage, the seconds of the slowest process, then memory, open files, threads and CPU time.
``--cache`` runs every number twice with an empty compilation cache in a folder that the processes share: cold, then
warm.  With ``--share`` process 0 compiles the step and sends the program to the others, which have a core each on real
hosts; without it 32 processes on two cores need 25 GB and a quarter of an hour to compile.

``--kill N --resume M``: a job of N processes, one of which gets SIGKILL between two checkpoints, is run again with M
processes; its losses and weights must equal those of an undisturbed job of one process.  Exits with code 1 otherwise.

``--connect``: processes forked from one that has imported everything (256 take 8 GB), which connect, compare their
start, meet, and stop together after a SIGTERM to one of them; they don't train.  With ``--late`` process 0 comes this
many seconds later than the others, at the start and at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.config import (
    Config,
    ConvEncoderConfig,
    DataConfig,
    DecoderConfig,
    DistillConfig,
    EvalConfig,
    OptimConfig,
    RepVitConfig,
    SamConfig,
    TrainConfig,
    apply_overrides,
    to_json,
)
from edgesam_jax.reporting.tables import aligned_table

ROOT = Path(__file__).parents[1]
BATCH, STEPS, SAVE_EVERY = 32, 6, 3
TEACHER = SamConfig(
    encoder=ConvEncoderConfig(widths=(8, 8, 8, 8), depths=(0, 0, 0, 0)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=32, embed_dim=16, mask_in_chans=4,
)  # fmt: skip
STUDENT = RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), stem_strides=(2, 1))
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def config(output: Path, overrides: Sequence[str]) -> Config:
    """Return stage 1 on scenes: 6 steps and two checkpoints.

    Its teacher is ``output/teacher.msgpack``.
    """
    from dataclasses import replace

    base = Config(
        name="many", model=replace(TEACHER, encoder=STUDENT), teacher=str(output / "teacher.msgpack"),
        data=DataConfig(batch_size=BATCH, max_prompts=3),
        distill=DistillConfig(mode="encoder_only"),
        optim=OptimConfig(learning_rate=1e-2, eps=1e-1, schedule="constant", clip_norm=5.0),
        train=TrainConfig(steps=STEPS, log_every=1, picture_every=0, checkpoint_every=SAVE_EVERY, devices=1),
        eval=EvalConfig(images=0),
    )  # fmt: skip
    return apply_overrides(base, overrides)


# ------------------------------------------------------------------------------------------------------- one process


def child(record: Path, arguments: Sequence[str]) -> int:
    """Run the training command, and append the time of each stage and the use of resources to ``record``."""
    began = time.time()
    from edgesam_jax.checkpoints.training import TrainCheckpointer
    from edgesam_jax.train import __main__ as train
    from edgesam_jax.train import loop, parallel, run, setup, study
    from edgesam_jax.train.watchers.saves import Saves

    def note(**values: Any) -> None:
        with record.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def timed(owner: Any, name: str, stage: str | None = None) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begin = time.time()
            try:
                return original(*args, **kwargs)
            finally:
                label = stage or f"meet: {args[0]}"
                note(stage=label, begin=begin, end=time.time())
                if label == "loop":
                    note(**resources())

        setattr(owner, name, wrapper)

    if "EDGESAM_JAX_SHARE" in os.environ:
        share_programs()
    note(stage="import", begin=began, end=time.time())
    timed(parallel, "start_processes", "connect")
    timed(run, "load_teacher", "load teacher")
    timed(run, "initial_state", "initial state")
    timed(parallel, "check_same_start", "compare the start")
    timed(parallel, "compile_together", "compile")
    timed(parallel, "meet")
    timed(parallel, "agree_to_stop", "step")
    timed(loop.Loop, "run", "loop")
    timed(loop.Loop, "_evaluate", "evaluate")
    timed(loop.Loop, "_draw_picture", "picture")
    timed(Saves, "save", "save: copy")
    timed(TrainCheckpointer, "_write", "save: write")
    timed(study, "single", "run")
    step_for = setup.TrainSetup.step_for

    def timed_step(self: Any, phase: Any) -> Any:
        step = step_for(self, phase)

        def dispatch(*args: Any) -> Any:
            begin = time.thread_time()
            result = step(*args)
            note(dispatch=time.thread_time() - begin)
            return result

        dispatch.lower = step.lower  # type: ignore[attr-defined]
        return dispatch

    setup.TrainSetup.step_for = timed_step
    return train.main(arguments)


def share_programs() -> None:
    """Let process 0 compile the programs of all devices, and send them to the other processes.

    JAX does this where processes agree on a program's key.  The key contains the devices that a process describes; on a
    CPU these are its own, so that keys differ.
    """
    import jax
    from jax._src import cache_key

    cache_key._hash_accelerator_config = lambda *_: None
    jax.config.update("jax_share_binary_between_hosts", True)


def resources() -> dict[str, float]:
    """Return this process's memory (its part of shared pages counted once), open files, threads and CPU seconds."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "pss": next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")),
        "peak": used.ru_maxrss * 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "cpu": used.ru_utime + used.ru_stime,
    }


# ----------------------------------------------------------------------------------------------------------- one job


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port: int = opened.getsockname()[1]
    return port


def job(
    folder: Path,
    processes: int,
    timeout: float,
    cache: str = "off",
    share: bool = False,
    disturb: Callable[[list[Any]], None] | None = None,
) -> tuple[list[int | None], list[list[dict[str, Any]]], float]:
    """Run a job in ``folder/run`` to its end.

    Args:
      cache: folder of the compilation cache.
      share: process 0 compiles for all.
      disturb: called with the processes when they have started.

    Returns:
      Each process's exit code (None: killed after ``timeout`` seconds) and record, and the seconds of the job.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM", "XLA_FLAGS"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "EDGESAM_JAX_CACHE": cache}
    if share:
        environment["EDGESAM_JAX_SHARE"] = "1"
    address, records = f"localhost:{free_port()}", [folder / f"record.{index}.jsonl" for index in range(processes)]
    running, began = [], time.time()
    for index, record in enumerate(records):
        record.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.many_processes", "--child", str(record), "--"]
        command += ["--config", str(folder / "config.json"), "--workdir", str(folder / "run")]
        if processes > 1:
            command += ["--coordinator", address, "--processes", str(processes), "--process", str(index)]
        with (folder / f"{index}.log").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT))
    try:
        if disturb is not None:
            disturb(running)
        while any(process.poll() is None for process in running) and time.time() < began + timeout:
            time.sleep(0.1)
        codes = [process.poll() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    seconds = time.time() - began
    rows = [[json.loads(line) for line in r.read_text().splitlines()] if r.exists() else [] for r in records]
    return codes, [[{"stage": "start", "begin": began, "end": began}, *row] for row in rows], seconds


def prepare(output: Path, overrides: Sequence[str]) -> None:
    """Write the teacher and the config of all jobs."""
    from edgesam_jax.checkpoints.model import Model
    from edgesam_jax.checkpoints.save import save_model_file
    from edgesam_jax.models.init import init_variables

    output.mkdir(parents=True, exist_ok=True)
    save_model_file(output / "teacher.msgpack", Model(TEACHER, init_variables(TEACHER, 1)))
    (output / "config.json").write_text(to_json(config(output, overrides)))


def fresh(output: Path, name: str) -> Path:
    """Return a new folder for a job, with the config."""
    folder = output / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(output / "config.json", folder)
    return folder


def failure(folder: Path, codes: Sequence[int | None]) -> str:
    """Return the exit codes and the last line of the first process that failed."""
    bad = [index for index, code in enumerate(codes) if code != 0]
    lines = [line for line in (folder / f"{bad[0]}.log").read_text().splitlines() if line.strip()] or [""]
    return f"exit codes {dict(zip(bad, [codes[i] for i in bad], strict=True))}; process {bad[0]}: {lines[-1][:300]}"


# ------------------------------------------------------------------------------------------------------------ figures


def figures(rows: Sequence[Sequence[dict[str, Any]]], seconds: float) -> dict[str, str]:
    """Return a job's figures by name: of the slowest or largest process unless the name says otherwise."""

    def spans(row: Sequence[dict[str, Any]], stage: str) -> list[float]:
        return [r["end"] - r["begin"] for r in row if r.get("stage", "").startswith(stage)]

    def longest(stage: str) -> float:
        return max(sum(spans(row, stage)) for row in rows)

    compiling = [sum(spans(row, "compile")) - sum(spans(row, "meet: compiled")) for row in rows]
    steps: list[float] = []
    first = []
    for row in rows:
        ends = [r["end"] for r in row if r.get("stage") == "step"]
        compiled = max((r["end"] for r in row if r.get("stage") == "compile"), default=0.0)
        after = [end for end in ends if end > compiled]
        first.append(after[0] - compiled if after else 0.0)
        other = [r for r in row if r.get("stage") in ("evaluate", "picture", "save: copy")]
        steps += [b - a for a, b in itertools.pairwise(after) if not any(a < r["begin"] < b for r in other)]
    used = [r for row in rows for r in row if "pss" in r]
    dispatches = [r["dispatch"] for row in rows for r in [r for r in row if "dispatch" in r][1:]]
    began = rows[0][0]["begin"]
    loops = [r["end"] for row in rows for r in row if r.get("stage") == "loop"]
    connected = [r["end"] - began for row in rows for r in row if r.get("stage") == "connect"]
    found = {
        "start and import, until connected": f"{max(connected, default=0):.1f}",
        "of this inside connect": f"{longest('connect'):.1f}",
        "load teacher, initial state": f"{longest('load teacher') + longest('initial state'):.1f}",
        "compare the start (gather)": f"{longest('compare the start'):.1f}",
        "compile: fastest": f"{min(compiling):.1f}",
        "compile: slowest": f"{max(compiling):.1f}",
        "wait for the others' compilation": f"{longest('meet: compiled'):.1f}",
        "first step": f"{max(first):.2f}",
        "other steps, median": f"{statistics.median(steps):.3f}" if steps else "",
        "other steps, slowest": f"{max(steps):.2f}" if steps else "",
        "dispatch of a step, CPU ms, median": f"{1e3 * statistics.median(dispatches):.1f}" if dispatches else "",
        "evaluations, slowest": f"{longest('evaluate'):.1f}",
        "evaluations, fastest": f"{min(sum(spans(row, 'evaluate')) for row in rows):.1f}",
        "picture, with its meeting": f"{longest('picture'):.1f}",
        "checkpoints: copy, process 0": f"{sum(spans(rows[0], 'save: copy')):.2f}",
        "checkpoints: write, process 0": f"{sum(spans(rows[0], 'save: write')):.2f}",
        "end: last step to end of job": f"{began + seconds - max(loops):.1f}" if loops else "",
        "job": f"{seconds:.1f}",
    }  # fmt: skip
    if used:
        found |= {
            "memory of a process, GB": f"{max(u['pss'] for u in used) / 1e9:.2f}",
            "memory of all, GB": f"{sum(u['pss'] for u in used) / 1e9:.2f}",
            "open files": f"{max(u['files'] for u in used):.0f}",
            "threads": f"{max(u['threads'] for u in used):.0f}",
            "CPU seconds of a process": f"{max(u['cpu'] for u in used):.1f}",
        }
    return found


def measure(output: Path, counts: Sequence[int], cache: bool, share: bool, timeout: float) -> int:
    """Run a job of each size; print the table."""
    columns: dict[str, dict[str, str]] = {}
    failed = 0
    for count in counts:
        programs = output / f"cache-{count}"
        shutil.rmtree(programs, ignore_errors=True)
        for name in (f"{count} cold", f"{count} warm") if cache else (f"{count}",):
            folder = fresh(output, name.replace(" ", "-"))
            codes, rows, seconds = job(folder, count, timeout, str(programs) if cache or share else "off", share)
            columns[name] = figures(rows, seconds)
            if any(codes):
                failed = 1
                print(f"{name}: {failure(folder, codes)}", flush=True)
            print(f"{name}: {seconds:.0f} s", flush=True)
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    body = [[name, *(column.get(name, "") for column in columns.values())] for name in names]
    text = aligned_table(["seconds, processes:", *columns], body)
    (output / "table.md").write_text(text + "\n")
    print(f"\n{text}")
    return failed


def kill_and_resume(output: Path, killed: int, resumed: int, timeout: float) -> int:
    """Kill one process of a job, resume with another number of processes, and compare with an undisturbed run."""
    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.train.log import read_metrics

    def after_a_checkpoint(running: list[Any]) -> None:
        metrics, until = folder / "run" / "metrics.jsonl", time.time() + timeout
        while max((row["step"] for row in read_metrics(metrics)), default=0) <= SAVE_EVERY and time.time() < until:
            if any(process.poll() is not None for process in running):
                return
            time.sleep(0.02)
        running[killed // 2].send_signal(signal.SIGKILL)

    whole = fresh(output, "whole")
    codes, _, seconds = job(whole, 1, timeout)
    print(f"1 process, undisturbed: exit codes {codes}, {seconds:.0f} s", flush=True)
    folder = fresh(output, f"killed-{killed}")
    codes, _, seconds = job(folder, killed, timeout, disturb=after_a_checkpoint)
    steps = sorted(int(p.name) for p in (folder / "run" / "checkpoints").iterdir() if p.name.isdecimal())
    print(f"{killed} processes, {killed // 2} killed: exit codes {codes}, {seconds:.0f} s, saved {steps}", flush=True)
    if 0 in codes:
        return 1
    codes, _, seconds = job(folder, resumed, timeout)
    print(f"{resumed} processes, resumed: exit codes {codes}, {seconds:.0f} s", flush=True)
    if any(codes):
        print(failure(folder, codes))
        return 1
    losses = [
        np.array([row["loss"] for row in read_metrics(run / "run" / "metrics.jsonl") if "loss" in row])
        for run in (whole, folder)
    ]
    weights = [load_model(str(run / "run" / "model")).variables for run in (whole, folder)]
    import jax

    apart = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*map(jax.tree.leaves, weights), strict=True)
    )
    same = len(losses[0]) == len(losses[1]) and np.allclose(*losses, rtol=1e-4)
    worst = float(np.max(np.abs(losses[1] / losses[0] - 1))) if len(losses[0]) == len(losses[1]) else float("nan")
    print(f"rows {len(losses[0])} and {len(losses[1])}; losses differ by {worst:.1e} at most, weights by {apart:.1e}")
    return 0 if same and apart < 1e-3 else 1


# ------------------------------------------------------------------------------------------------- without training


def meetings(folder: Path, index: int, count: int, port: int, late: float) -> None:
    """Join a job, meet the others, and write the seconds that each part took to ``folder/INDEX.json``."""
    from edgesam_jax.train import parallel

    taken: dict[str, float] = {}
    last = time.time()

    def took(stage: str) -> None:
        nonlocal last
        taken[stage] = time.time() - last
        last = time.time()

    time.sleep(0 if index else late)
    took("waited")
    parallel.start_processes(f"localhost:{port}", count, index)
    took("connect")
    parallel.check_same_start(0, "config")
    took("compare the start (first exchange)")
    parallel.gather([0])
    took("second exchange")
    for number in range(20):
        parallel.meet(f"meeting {number}")
    took("20 meetings")
    for step in range(100):
        parallel.agree_to_stop(step, lambda: False)
    took("100 questions whether to stop")
    parallel.meet("signal")
    if index == count // 2:
        os.kill(os.getpid(), signal.SIGTERM)
    last, step = time.time(), 100
    while not parallel.agree_to_stop(step, lambda: False) and step < 1000:
        step, _ = step + 1, time.sleep(0.1)
    took("from SIGTERM to the common stop")
    time.sleep(0 if index else late)
    parallel.meet("end")
    taken |= {"stopped at": step} | resources()
    (folder / f"{index}.json").write_text(json.dumps(taken))


def connect(output: Path, counts: Sequence[int], late: float) -> int:
    """Run ``meetings`` in jobs of each size; print the table of the slowest process's seconds."""
    import orbax.checkpoint  # noqa: F401

    from edgesam_jax.train import parallel  # noqa: F401

    columns: dict[str, dict[str, str]] = {}
    failed = 0
    for count in counts:
        folder, port, began, children = fresh(output, f"connect-{count}"), free_port(), time.time(), []
        for index in range(count):
            child = os.fork()
            if child == 0:
                with (folder / f"{index}.log").open("w") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                meetings(folder, index, count, port, late)
                sys.exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        failed |= any(codes)
        found = [json.loads(path.read_text()) for path in folder.glob("[0-9]*.json")]
        column = {name: f"{max(taken[name] for taken in found):.2f}" for name in found[0]} if found else {}
        column |= {"pss": "", "peak": "", "waited": ""}
        columns[str(count)] = column | {
            "memory of a process, MB": f"{max((taken['pss'] for taken in found), default=0) / 1e6:.0f}",
            "processes that failed": str(sum(map(bool, codes))),
            "different stops": str(len({taken["stopped at"] for taken in found})),
            "job": f"{time.time() - began:.1f}",
        }
        print(f"{count}: {time.time() - began:.0f} s, failed {sum(map(bool, codes))}", flush=True)
    names = [name for name in list(columns.values())[-1] if name not in ("pss", "peak", "waited", "stopped at")]
    print(
        aligned_table(
            ["seconds, processes:", *columns], [[n, *(c.get(n, "") for c in columns.values())] for n in names]
        )
    )
    return failed


def main() -> int:
    """Run the benchmark."""
    if sys.argv[1:2] == ["--child"]:
        return child(Path(sys.argv[2]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=(), metavar="N")
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    parser.add_argument("--resume", type=int, default=4, metavar="M")
    parser.add_argument("--connect", type=int, nargs="+", default=(), metavar="N")
    parser.add_argument("--late", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", action="store_true", help="with a compilation cache: cold, then warm")
    parser.add_argument("--share", action="store_true", help="process 0 compiles the step for all")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a job is killed")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="change a field of the config")
    args = parser.parse_args()
    output = args.output.absolute()
    if args.connect:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.json").touch()
        return connect(output, args.connect, args.late)
    prepare(output, args.set)
    failed = measure(output, args.processes, args.cache, args.share, args.timeout) if args.processes else 0
    if args.kill:
        failed |= kill_and_resume(output, args.kill, args.resume, args.timeout)
    return failed


if __name__ == "__main__":
    sys.exit(main())
