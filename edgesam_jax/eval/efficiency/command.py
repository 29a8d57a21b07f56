"""``python -m edgesam_jax.eval efficiency``: parameters, work, speed and memory of models (EdgeSAM, Table 1).

Parameters and multiply-accumulates are counted from shapes (``model_cost.py``).  Speed and memory are measured with
random weights, on which they do not depend, in a process of its own for each model (``measure.py``).  Nothing here
imports JAX before the flags are found to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgesam_jax.cli.flags import count
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.eval.efficiency.report import beside_published, table
from edgesam_jax.files import write_atomically

__all__ = ["add_arguments", "run", "table", "timings"]

FRAME = 32  # pixels: the coarsest grid of every registered encoder divides by it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="registered models; default: all, or --checkpoint's"
    )
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PATH", help="also the models of these files or folders"
    )
    parser.add_argument("--image-size", type=count, metavar="PIXELS", help="side of the frame; default: each model's")
    parser.add_argument("--batches", type=count, nargs="+", default=[1, 8], metavar="N", help="photos at a time")
    parser.add_argument("--prompts", type=count, nargs="+", default=[1, 16], metavar="N", help="boxes on one photo")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="timed calls, of which the median counts")
    parser.add_argument("--no-timing", action="store_true", help="count parameters and work, run nothing")
    parser.add_argument(
        "--timing-limit", type=float, default=600.0, metavar="GMAC",
        help="on a CPU, encoder calls with more work than this are not timed; 0: no limit",
    )  # fmt: skip
    parser.add_argument("--output", default="", metavar="FILE.json", help="where the report goes")


# ---------------------------------------------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count and measure the models; writes ``--output`` and returns the report.

    A model that can't be counted or measured has ``failed`` with the reason, and the others go on.  This process is
    told to use the CPU, so that an accelerator's memory is left to the processes that measure.

    Returns:
      ``device`` (``measure.describe``; empty without timing), ``rounds``, ``timing_limit_gmac``; ``models``: for each
      ``model``, ``image_size``, ``encoder`` (kind), what ``model_cost.counts`` gives and ``timing``, a list of what
      ``measure.measure`` gives with ``part``, ``size`` and ``peak_memory_bytes``; ``published``
      (``efficiency_text.beside_published``).

    Raises:
      UsageError: a flag, checkpoint or output file that is wrong.
    """
    output = _output(arguments.output)
    if arguments.timing_limit < 0:
        raise UsageError(f"--timing-limit {arguments.timing_limit:g}: give GMAC above 0, or 0 for no limit")
    chosen = _chosen(arguments)

    import jax
    from tqdm import tqdm

    from edgesam_jax.eval.efficiency.model_cost import counts

    jax.config.update("jax_platforms", "cpu")
    request = {
        "batches": sorted(set(arguments.batches)), "prompts": sorted(set(arguments.prompts)),
        "rounds": arguments.rounds, "limit": arguments.timing_limit,
    }  # fmt: skip
    steps = 1 + (0 if arguments.no_timing else len(request["batches"]) + len(request["prompts"]))
    rows: list[dict[str, Any]] = []
    device: dict[str, Any] = {}
    with tqdm(total=len(chosen) * steps, unit="step") as bar:
        for name, config in chosen.items():
            bar.set_description(name)
            row: dict[str, Any] = {"model": name, "image_size": config.image_size, "encoder": config.encoder.kind}
            rows.append(row)
            try:
                row |= counts(config)
                bar.update()
                if not arguments.no_timing:
                    own = request | {"gmac": row["gmac"]["encoder"]}
                    found, row["timing"] = timings(config, own, bar.update)
                    device = found or device
            except Exception as error:  # of whatever kind: the other models have rows of their own
                row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            bar.update(len(rows) * steps - bar.n)
    report = {
        "task": "efficiency", "device": device, "rounds": arguments.rounds, "timing_limit_gmac": arguments.timing_limit,
        "models": rows, "published": beside_published(rows),
    }  # fmt: skip
    if output:
        try:
            write_atomically(output, json.dumps(report, indent=1))
        except OSError as error:
            raise UsageError(f"--output {output}: cannot write there ({error.strerror})") from None
    return report


def _output(name: str) -> Path | None:
    """Where the report goes, looked at before minutes of measuring and not after."""
    if not name:
        return None
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"--output {path}: is a folder; name the report's file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {path}: cannot write there ({error.strerror})") from None
    return path


def _chosen(arguments: argparse.Namespace) -> dict[str, SamConfig]:
    """Configs of the models asked for, by name, at the size asked for."""
    size = arguments.image_size
    if size and size % FRAME:
        raise UsageError(f"--image-size {size}: must be a multiple of {FRAME}")

    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.models.sam import MODELS

    names = arguments.models or ([] if arguments.checkpoint else list(MODELS))
    for name in names:
        if name not in MODELS:
            raise UsageError(f"--models {name}: not a model; choose from {', '.join(MODELS)}")
    found = {name: MODELS[name] for name in names}
    # Only a checkpoint's config is of use: speed does not depend on its weights.
    found |= {str(path): load_model(path).config for path in arguments.checkpoint}
    return {name: replace(config, image_size=size or config.image_size) for name, config in found.items()}


# ------------------------------------------------------------------------------------------------------------- timing


def timings(
    config: SamConfig, request: Mapping[str, Any], on_result: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a model in a process of its own.

    Args:
      request: as in ``measure.py``, without the config.
      on_result: called after each measurement.

    Returns:
      ``measure.describe``'s device, empty where the process did not come so far; and the measurements, each with
      ``part`` and ``size``, and with ``skipped`` or ``failed`` and a reason where there are no figures.
    """
    command = [sys.executable, "-m", "edgesam_jax.eval.efficiency.measure"]
    device: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    # The package that runs here, wherever it lies; the environment chooses the device, as for any other command.
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryFile("w+", errors="replace") as errors, subprocess.Popen(
        [*command, json.dumps({"config": asdict(config), **request})],
        stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"PYTHONPATH": path},
    ) as child:  # fmt: skip
        try:
            for message in _messages(child):
                device = message.get("device", device)
                if "part" in message:
                    results.append(message)
                    on_result()
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        errors.seek(0)
        said = [line.strip() for line in errors.read().splitlines() if line.strip()]
    done = {(found["part"], found["size"]) for found in results}
    asked = [("decoder", size) for size in request["prompts"]] + [("encoder", size) for size in request["batches"]]
    reason = _reason(code, said)
    return device, [
        *results, *({"part": part, "size": size, "failed": reason} for part, size in asked if (part, size) not in done)
    ]  # fmt: skip


def _messages(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            yield json.loads(line)


def _reason(code: int, said: list[str]) -> str:
    if code < 0:
        return f"ended by signal {-code}, as when memory runs out"
    return f"ended with exit code {code}" + (f": {said[-1][:160]}" if said else "")
