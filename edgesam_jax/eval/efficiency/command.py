"""``python -m edgesam_jax.eval efficiency``: parameters, operations, speed and memory of models (EdgeSAM, Table 1).

Parameters and multiply-accumulates are counted from shapes (``model_cost.py``).  Speed and memory don't depend on the
weights, so they are measured with random weights, in a separate process for each model (``measure.py``).  JAX is only
imported once the flags are valid.
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
from typing import TYPE_CHECKING, Any

from edgesam_jax.cli.flags import count
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.eval.efficiency.report import compare_with_published, table
from edgesam_jax.files import write_atomically
from edgesam_jax.planning.dry_run import add_compile_flags, inference_report

if TYPE_CHECKING:
    from edgesam_jax.planning.compiling import Program

__all__ = ["add_arguments", "run", "table", "timings"]

STRIDE = 32  # pixels: the largest stride of the registered encoders, which must divide the image size
# The folder that contains the package, so that the subprocess imports the same code from any working directory.
PACKAGE_PARENT = Path(__file__).resolve().parents[3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``efficiency``."""
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="registered models; default: all, or none with --checkpoint"
    )
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PATH", help="checkpoint files or folders of models to add"
    )
    parser.add_argument(
        "--image-size", type=count, metavar="PIXELS", help="side of the frame; default: that of each model"
    )
    parser.add_argument(
        "--batches", type=count, nargs="+", default=[1, 8], metavar="N", help="encoder batch sizes to time"
    )
    parser.add_argument(
        "--prompts", type=count, nargs="+", default=[1, 16], metavar="N", help="numbers of boxes on one photo to time"
    )
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="timed calls; the median is reported")
    parser.add_argument("--no-timing", action="store_true", help="only count parameters and operations")
    parser.add_argument(
        "--timing-limit", type=float, default=600.0, metavar="GMAC",
        help="on a CPU, skip encoder calls above this; 0 sets no limit",
    )  # fmt: skip
    parser.add_argument("--output", default="", metavar="FILE.json", help="also write the report as JSON")
    add_compile_flags(parser.add_argument_group("instead of measuring", "compile encoder and decoder for a TPU or GPU"))


# ---------------------------------------------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> dict[str, Any] | str:
    """Measure the models and return the report; with ``--compile``, compile them instead and return the text to print.

    Raises:
      UsageError: see ``measure_models`` and ``planning.dry_run.inference_report``.
    """
    if arguments.compile:
        return inference_report(arguments.compile, lambda: _programs(arguments), arguments.json)
    if arguments.json:
        raise UsageError("--json: only with --compile; otherwise pass --output FILE.json")
    return measure_models(arguments)


def measure_models(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count and measure the models, write ``--output`` and return the report.

    A model that can't be counted or measured gets ``failed`` with the reason, and the others are still processed.  This
    process uses the CPU only, which leaves an accelerator's memory to the measuring processes.

    Returns:
      ``task``, ``device`` (``measure.describe``; empty without timing), ``rounds``, ``timing_limit_gmac``; ``models``:
      for each ``model``, ``image_size``, ``encoder`` (kind), the result of ``model_cost.counts``, and ``timing``, a
      list of results of ``measure.measure`` with ``part``, ``size`` and ``peak_memory_bytes``; ``published``
      (``report.compare_with_published``).

    Raises:
      UsageError: an invalid flag, checkpoint or output file.
    """
    output = _output(arguments.output)
    if arguments.timing_limit < 0:
        raise UsageError(
            f"--timing-limit {arguments.timing_limit:g}: must be a number of GMAC above 0, or 0 for no limit"
        )
    configs = _configs(arguments)

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
    with tqdm(total=len(configs) * steps, unit="step") as bar:
        for name, config in configs.items():
            bar.set_description(name)
            row: dict[str, Any] = {"model": name, "image_size": config.image_size, "encoder": config.encoder.kind}
            rows.append(row)
            try:
                row |= counts(config)
                bar.update()
                if not arguments.no_timing:
                    model_request = request | {"gmac": row["gmac"]["encoder"]}
                    measured_on, row["timing"] = timings(config, model_request, bar.update)
                    device = measured_on or device
            except Exception as error:  # any kind: the other models are still processed
                row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            bar.update(len(rows) * steps - bar.n)
    report = {
        "task": "efficiency", "device": device, "rounds": arguments.rounds, "timing_limit_gmac": arguments.timing_limit,
        "models": rows, "published": compare_with_published(rows),
    }  # fmt: skip
    if output:
        try:
            write_atomically(output, json.dumps(report, indent=1))
        except OSError as error:
            raise UsageError(f"--output {output}: cannot write ({error.strerror})") from None
    return report


def _programs(arguments: argparse.Namespace) -> list[Program]:
    """Encoders and decoders of the requested models, for each batch size and number of prompts."""
    from edgesam_jax.planning import programs
    from edgesam_jax.predict import compiled

    found = []
    for name, config in _configs(arguments).items():
        encode, decode = compiled.encoder(config), compiled.decoder(config)
        found += [programs.encoder_program(name, config, encode, size) for size in sorted(set(arguments.batches))]
        found += [programs.decoder_program(name, config, decode, size) for size in sorted(set(arguments.prompts))]
    return found


def _output(name: str) -> Path | None:
    """The path of the report, checked before minutes of measuring rather than after."""
    if not name:
        return None
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"--output {path}: is a folder; pass a file name for the report")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {path}: cannot write ({error.strerror})") from None
    return path


def _configs(arguments: argparse.Namespace) -> dict[str, SamConfig]:
    """Configs of the requested models by name, at the requested image size."""
    size = arguments.image_size
    if size and size % STRIDE:
        raise UsageError(f"--image-size {size}: must be a multiple of {STRIDE}")

    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.models.sam import MODELS

    names = arguments.models or ([] if arguments.checkpoint else list(MODELS))
    for name in names:
        if name not in MODELS:
            raise UsageError(f"--models {name}: unknown model; choose from {', '.join(MODELS)}")
    configs = {name: MODELS[name] for name in names}
    # Only the config of a checkpoint is used, because speed doesn't depend on the weights.
    configs |= {str(path): load_model(path).config for path in arguments.checkpoint}
    return {name: replace(config, image_size=size or config.image_size) for name, config in configs.items()}


# ------------------------------------------------------------------------------------------------------------- timing


def timings(
    config: SamConfig, request: Mapping[str, Any], on_result: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a model in a separate process.

    Args:
      request: as in ``measure.py``, without the config.
      on_result: called after each measurement.

    Returns:
      The device (``measure.describe``), empty if the process ended before reporting it; and the measurements, each
      with ``part`` and ``size``, and with ``skipped`` or ``failed`` and a reason if it has no figures.
    """
    command = [sys.executable, "-m", "edgesam_jax.eval.efficiency.measure"]
    device: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]))
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
        stderr = [line.strip() for line in errors.read().splitlines() if line.strip()]
    done = {(result["part"], result["size"]) for result in results}
    requested = [("decoder", n) for n in request["prompts"]] + [("encoder", n) for n in request["batches"]]
    reason = _reason(code, stderr)
    missing = [pair for pair in requested if pair not in done]
    return device, [*results, *({"part": part, "size": size, "failed": reason} for part, size in missing)]


def _messages(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            yield json.loads(line)


def _reason(code: int, stderr: list[str]) -> str:
    """Why a process ended without all results."""
    if code < 0:
        return f"killed by signal {-code}, possibly out of memory"
    return f"exited with code {code}" + (f": {stderr[-1][:160]}" if stderr else "")
