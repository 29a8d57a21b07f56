"""Time one model in a separate process: ``python -m edgesam_jax.eval.efficiency.measure REQUEST``.

``command.py`` starts this module once per model, because a process's peak memory never decreases, and because a model
that runs out of memory must not stop the others.  ``REQUEST`` is JSON: ``{"config", "batches", "prompts", "rounds",
"gmac", "limit"}``, where ``gmac`` is the encoder's work for one photo and ``limit`` the maximum work of a call on a CPU
(0: no limit).  The output is a line of JSON on standard output for the device, then one for each measurement as soon as
it is complete, so that a crash doesn't lose earlier measurements.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from edgesam_jax.config import SamConfig, from_json
from edgesam_jax.models.init import init_variables
from edgesam_jax.planning import accelerators
from edgesam_jax.predict import compiled as predict_compiled

STATUS, PROCESSORS = Path("/proc/self/status"), Path("/proc/cpuinfo")


def peak_memory(device: Any) -> int:
    """Peak memory so far in bytes: of the device if it reports one, else resident memory of this process.

    On Linux the latter is ``VmHWM``, because ``ru_maxrss``, which ``accelerators.peak_memory`` reads, starts at the
    peak of the parent process.
    """
    if not (device.memory_stats() or {}).get("peak_bytes_in_use") and STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return accelerators.peak_memory([device])


def describe(device: Any) -> dict[str, Any]:
    """The device's ``platform`` and ``name``, the CPU ``cores`` available to this process, and JAX's version."""
    name = device.device_kind
    if device.platform == "cpu":
        lines = PROCESSORS.read_text().splitlines() if PROCESSORS.is_file() else []
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        name = next(names, platform.processor() or platform.machine())
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return {"platform": device.platform, "name": name, "cores": cores, "jax": jax.__version__}


def measure(config: SamConfig, variables: Any, part: str, size: int, rounds: int) -> dict[str, Any]:
    """Compile a part, run it once to warm up, then time ``rounds`` calls with inputs on the device.

    Args:
      part: "encoder" for ``size`` photos, uint8 in the model's frame; or "decoder" for ``size`` boxes on one photo.

    Returns:
      ``seconds``, the median of the calls; ``rounds``, the seconds of each call; ``per_second``, photos or prompts per
      second; ``compile_seconds``, including tracing.
    """
    rng, side = np.random.default_rng(0), config.image_size
    run: Any
    inputs: tuple[Any, ...]
    if part == "encoder":
        run = predict_compiled.encoder(config)
        inputs = rng.integers(0, 256, (size, side, side, 3), np.uint8), np.full((size, 2), side, np.int32)
    else:
        run = predict_compiled.decoder(config)
        corners = np.sort(rng.uniform(0, side, (size, 2, 2)), axis=1).reshape(size, 4).astype(np.float32)
        embedding = rng.standard_normal((config.grid, config.grid, config.embed_dim)).astype(np.float32)
        inputs = embedding, corners, None, None, None
    inputs = jax.block_until_ready(jax.device_put(inputs))
    start = time.perf_counter()
    compiled = run.lower(variables, *inputs).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(variables, *inputs))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(compiled(variables, *inputs))
        times.append(time.perf_counter() - start)
    seconds = median(times)
    return {"seconds": seconds, "rounds": times, "per_second": size / seconds, "compile_seconds": compile_seconds}


def plan(request: dict[str, Any], on_cpu: bool) -> list[tuple[str, int, str]]:
    """The measurements in order: (part, size, reason to skip it or "").

    The decoder comes first and sizes increase, because a peak of memory hides all smaller peaks after it.
    """
    limit = request["limit"] if on_cpu and request["limit"] else float("inf")
    small = min(request["batches"]) * request["gmac"]
    works = [("decoder", size, small) for size in sorted(request["prompts"])]
    works += [("encoder", size, size * request["gmac"]) for size in sorted(request["batches"])]
    return [(part, size, f"over {limit:g} GMAC" if work > limit else "") for part, size, work in works]


def main() -> None:
    """Run the measurements of the request on the command line."""
    request = json.loads(sys.argv[1])
    config = from_json(SamConfig, json.dumps(request["config"]))
    jax.config.update("jax_enable_compilation_cache", False)  # time compilation, not reading a cache
    device = jax.devices()[0]
    send(device=describe(device))
    variables = None
    for part, size, skipped in plan(request, device.platform == "cpu"):
        result: dict[str, Any] = {"part": part, "size": size}
        try:
            if skipped:
                result["skipped"] = skipped
            else:
                if variables is None:
                    variables = predict_compiled.for_inference(config, init_variables(config))
                result |= measure(config, variables, part, size, request["rounds"])
                result["peak_memory_bytes"] = peak_memory(device)
        except Exception as error:  # XLA raises many types; the next measurement may succeed
            result["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        send(**result)


def send(**message: Any) -> None:
    """Print one line of JSON for the parent process."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
