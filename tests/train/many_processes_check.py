"""Run by test_many_processes.py: a job of many processes, forked from one that has imported everything.

python many_processes_check.py FOLDER PROCESSES: each process writes what it saw to FOLDER/INDEX.json.  FOLDER/model is
a model.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.experimental.multihost_utils
import orbax.checkpoint  # noqa: F401

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.train import parallel


def process(folder: Path, index: int, count: int, port: int) -> dict[str, Any]:
    """Join the job, load a model in one process, exchange numbers, and stop at a SIGTERM that all get at once."""
    parallel.start_processes(f"localhost:{port}", count, index)
    jax.local_devices()
    if index == count - 1:  # it doesn't need the others for this
        load_model(folder / "model")
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append("compiled") if "backend_compile" in name else None
    )
    meet = parallel.meet

    def met(name: str) -> None:
        meet(name)
        events.append(f"met {name}")

    parallel.meet = met
    numbers = parallel.gather([index, index << 40])
    seen = {"events": list(events), "numbers": numbers.tolist(), "seconds": parallel.of_first(0.1 + index)}
    parallel.meet("ready")
    os.kill(os.getpid(), signal.SIGTERM)
    step = 0
    while not parallel.agree_to_stop(step, lambda: False) and step < 600:
        step += 1
        time.sleep(0.02 + 0.002 * index)  # no two at the same rate
    parallel.meet("over")
    return seen | {"stopped": step}


def main() -> int:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port = opened.getsockname()[1]
    children = []
    for index in range(count):
        child = os.fork()
        if child == 0:
            (folder / f"{index}.json").write_text(json.dumps(process(folder, index, count, port)))
            return 0
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


if __name__ == "__main__":
    sys.exit(main())
