"""Devices and processes: replicated arrays, batch sharding, and the start and meeting points of multi-process jobs."""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edgesam_jax.cli.command import print_note
from edgesam_jax.config import UsageError
from edgesam_jax.learning.step import AXIS
from edgesam_jax.types import Batch

# Seconds that processes may start apart.  The hosts of a large job pull their images and get their devices one by one;
# JAX's own limit is five minutes.
CONNECTING = 1800
# Longest wait of processes for one another: for compilation, an evaluation, the last save.  It only ends a job in which
# a process hangs: one that has ended is noticed at once.
MEETING_MS = 86_400_000


def start_processes(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes of the job, if any.  Call it before any device is initialised.

    Address and numbers come from the arguments; else from ``JAX_COORDINATOR_ADDRESS`` (host:port),
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; else from SLURM or a multi-host TPU slice, by JAX's own detection (the
    address ``auto`` requests the detection anywhere).

    Raises:
      UsageError: an incomplete or invalid set of addresses and numbers; or the other processes can't be reached.
    """
    address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    try:
        if address == "auto" or (not address and in_cluster(os.environ)):
            with _waiting("the other processes of this job"):
                jax.distributed.initialize(initialization_timeout=CONNECTING)
            return
        if not address:
            if processes or process >= 0:
                raise UsageError(
                    "--processes and --process need --coordinator HOST:PORT, the address of the first process"
                )
            return
        count = processes or int(os.environ["JAX_NUM_PROCESSES"])
        index = process if process >= 0 else int(os.environ["JAX_PROCESS_ID"])
        if not 0 <= index < count:
            raise UsageError(f"--process {index}: must be between 0 and {count - 1} with --processes {count}")
    except (KeyError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"coordinator {address}: set --processes and --process, or JAX_NUM_PROCESSES and JAX_PROCESS_ID, to numbers"
        ) from None
    try:
        with _waiting(f"the {count} processes of this job at {address}"):
            jax.distributed.initialize(address, count, index, initialization_timeout=CONNECTING)
    except Exception as error:  # grpc's and XLA's
        first = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(
            f"coordinator {address}: the {count} processes could not connect to each other ({first})"
        ) from None


@contextlib.contextmanager
def _waiting(whom: str) -> Iterator[None]:
    """Print a note if the block takes more than a minute."""
    note = threading.Timer(60, print_note, [f"waiting for {whom}, at most {CONNECTING // 60} minutes"])
    note.daemon = True
    note.start()
    try:
        yield
    finally:
        note.cancel()


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether SLURM or a TPU slice started this process as one of several."""
    slurm = "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") not in ("", "1")
    return slurm or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def is_first() -> bool:
    """Whether this process writes logs and prints.  Doesn't initialise a device in single-process jobs."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def agree_to_stop(step: int, stop: Callable[[], bool]) -> bool:
    """Whether to stop after a step; all processes of a job stop after the same one.

    In multi-process jobs JAX's preemption service handles SIGTERM on any host, without waiting for a device.
    """
    if jax.process_count() == 1:
        return stop()
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


def compile_together(step: Any, arguments: tuple[Any, ...], name: str) -> None:
    """In a multi-process job, compile ``step`` for ``arguments`` on all processes before any of them runs it.

    A process that compiles faster would otherwise wait inside the first collective, whose time-out may be short (30 s
    with gloo).  JAX caches the program, so the call that follows doesn't compile again.

    Args:
      name: unique name of the barrier.
    """
    if jax.process_count() > 1:
        step.lower(*arguments).compile()
        meet(f"compiled {name}")


def meet(name: str) -> None:
    """In a multi-process job, wait for all processes; ``name`` is the barrier's unique name."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=name, timeout_ms=MEETING_MS)


def gather(numbers: Sequence[int]) -> np.ndarray:
    """Gather the numbers (n) of every process: (processes n) int64.

    The exchange is compiled before the processes meet: it is a job's first, for which gloo connects all processes to
    one another and waits 30 s at most.
    """
    local = np.asarray(numbers, np.int64)
    if jax.process_count() == 1:
        return local[None]
    by_process = [jax.local_devices(process_index=index) for index in range(jax.process_count())]
    mesh = Mesh(np.asarray(by_process), ("process", "device"))
    halves = local.view(np.int32)[None]  # JAX has no int64 by default
    own = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("process")), halves)
    collect = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(own).compile()
    meet("gathering")
    return np.asarray(collect(own).addressable_data(0)).view(np.int64)


def of_first(seconds: float) -> float:
    """The first process's value of a number of seconds, to the microsecond.

    Processes measure different times; what they derive from them must be the same.
    """
    return float(gather([round(seconds * 1e6)])[0, 0] / 1e6) if jax.process_count() > 1 else seconds


def check_same_start(step: int, config: str) -> None:
    """Check that all processes take the same steps, or they would wait for one another forever.

    Raises:
      UsageError: the processes are at different steps, or have different configs.
    """
    found = gather([step, zlib.crc32(config.encode())])
    if len(set(found[:, 0].tolist())) > 1:
        raise UsageError(
            f"--workdir: the processes find checkpoints of different steps there"
            f" ({', '.join(map(str, found[:, 0]))}); give all of them the same shared folder"
        )
    if len(set(found[:, 1].tolist())) > 1:
        raise UsageError("--config, --set: the processes of this job have different ones; give all of them the same")


def request_devices(count: int) -> list[jax.Device]:
    """The local devices to train on: at most ``count``, or all for 0.

    On CPU, creates ``count`` host devices if no device has been initialised yet.
    """
    if count > 1:
        with contextlib.suppress(RuntimeError):  # the backend is already initialised: use its devices
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.local_devices()
    return devices[:count] if count and jax.process_count() == 1 else devices


def check_batch(batch_size: int, devices: Sequence[jax.Device], accumulate: int = 1) -> int:
    """Number of images that a device processes at once.

    Raises:
      UsageError: the global batch is not divisible by all devices of all processes and their micro-batches.
    """
    if accumulate < 1:
        raise UsageError(f"train.accumulate={accumulate}: must be at least 1")
    total = len(devices) * jax.process_count()
    if batch_size % (total * accumulate):
        pieces, fields = f"{total} devices", "train.devices"
        if accumulate > 1:
            pieces, fields = f"{pieces} x {accumulate} micro-batches", f"{fields} or train.accumulate"
        raise UsageError(
            f"data.batch_size={batch_size} is not divisible by {pieces}: change the batch size or {fields}"
        )
    return batch_size // (total * accumulate)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy every array to every local device, as ``pmap`` with donation requires before its first call."""
    if len(devices) == 1 and jax.process_count() == 1:
        return jax.device_put(tree, devices[0])
    return jax.device_put(tree, NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec()))


def shard_batch(batch: Batch, devices: Sequence[jax.Device]) -> Batch:
    """Reshape the local part of a batch for the step: (b ...) on one device, (d b/d ...) on several."""
    if len(devices) == 1 and jax.process_count() == 1:
        return jax.device_put(batch, devices[0])
    count = len(devices)
    return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), batch)


def to_host(tree: Any, copy: bool = False) -> Any:
    """Replicated arrays as numpy arrays, from the first local device; on CPU without a copy unless ``copy``."""
    as_numpy = np.array if copy else np.asarray
    return jax.tree.map(lambda x: as_numpy(x.addressable_data(0)) if isinstance(x, jax.Array) else x, tree)
