"""Time one model in a process of its own: ``python -m edgesam_jax.eval.efficiency.measure REQUEST``.

``efficiency.py`` starts it once for each model, because a process's peak of memory never falls, and because a model
that does not fit must not end the others.  ``REQUEST`` is JSON: ``{"config", "batches", "prompts", "rounds", "gmac",
"limit"}``, ``gmac`` being the encoder's work for one photo and ``limit`` what a call may have on a CPU (0: anything).
The answer is a line of JSON on standard output for the device, then one for each measurement as soon as it is known, so
that what was measured before a crash is not lost.
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
    """Bytes in use at most so far: on the device where it counts them, else resident in this process.

    On Linux the latter is ``VmHWM``: ``ru_maxrss``, which ``meter.peak_memory`` reads, starts at the peak of the
    process that started this one.
    """
    if not (device.memory_stats() or {}).get("peak_bytes_in_use") and STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return accelerators.peak_memory([device])


def describe(device: Any) -> dict[str, Any]:
    """The device's ``platform``, ``name``, ``cores`` of the processor that this process may use, and ``jax``."""
    name = device.device_kind
    if device.platform == "cpu":
        lines = PROCESSORS.read_text().splitlines() if PROCESSORS.is_file() else []
        found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        name = next(found, platform.processor() or platform.machine())
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return {"platform": device.platform, "name": name, "cores": cores, "jax": jax.__version__}


def measure(config: SamConfig, variables: Any, part: str, size: int, rounds: int) -> dict[str, Any]:
    """Compile a part, run it once to warm up, then ``rounds`` times; its inputs are on the device already.

    Args:
      part: "encoder" of ``size`` photos, uint8 in the model's frame; or "decoder" of ``size`` boxes on one photo.

    Returns:
      ``seconds`` median of a call, ``rounds`` all of them, ``per_second`` photos or prompts, ``compile_seconds`` with
      tracing.
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
    """What to measure in this order: (part, size, why it is skipped or "").

    The decoder comes first and sizes grow, since a peak of memory hides every smaller one after it.
    """
    limit = request["limit"] if on_cpu and request["limit"] else float("inf")
    small = min(request["batches"]) * request["gmac"]
    works = [("decoder", size, small) for size in sorted(request["prompts"])]
    works += [("encoder", size, size * request["gmac"]) for size in sorted(request["batches"])]
    return [(part, size, f"over {limit:g} GMAC" if work > limit else "") for part, size, work in works]


def main() -> None:
    """Answer the request of the command line."""
    request = json.loads(sys.argv[1])
    config = from_json(SamConfig, json.dumps(request["config"]))
    jax.config.update("jax_enable_compilation_cache", False)  # seconds of compilation, not of reading a cache
    device = jax.devices()[0]
    say(device=describe(device))
    variables = None
    for part, size, skipped in plan(request, device.platform == "cpu"):
        found: dict[str, Any] = {"part": part, "size": size}
        try:
            if skipped:
                found["skipped"] = skipped
            else:
                if variables is None:
                    variables = predict_compiled.for_inference(config, init_variables(config))
                found |= measure(config, variables, part, size, request["rounds"])
                found["peak_memory_bytes"] = peak_memory(device)
        except Exception as error:  # XLA's are many; the next measurement may fit
            found["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        say(**found)


def say(**message: Any) -> None:
    """One line for the process that waits."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
