"""Read rate of the store of teacher embeddings against the disk's sequential rate, measured in one run.

    python -m benchmarks.store --folder FOLDER [--rows 512] [--dtype float16] [--rounds 7] [--processes 1]

Writes a store of random 64x64x256 embeddings under FOLDER with the store's writer, and removes it at the end.  Each
contender reads all of it, after dropping it from the page cache (posix_fadvise; Linux): the files in order in pieces of
8 MB, which gives the disk's sequential rate; the rows in order; and the rows in random order, as training reads them.
Then the same from the page cache, against the rate of copying.  Contenders take turns.  Goal: 0.8 of the sequential
rate.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from benchmarks import timing
from edgesam_jax.data.embeddings import STORE, EmbeddingStore, StoredType, StoreHeader, shard_name, write_shard
from edgesam_jax.files import write_atomically

SHAPE = (64, 64, 256)
PER_SHARD = 64
PIECE = 8 << 20
FILES = "files, 8 MB at a time"
AHEAD = 2


def key(row: int) -> bytes:
    """Return the key of a row of the random store."""
    return row.to_bytes(16, "little")


def make(folder: Path, rows: int, dtype: StoredType) -> list[Path]:
    """Write a store and flush it to the disk; returns its shards."""
    count = -(-rows // PER_SHARD)
    header = StoreHeader("random", "random", 1024, SHAPE, dtype, rows, count, "random")
    write_atomically(folder / STORE, json.dumps(asdict(header)))
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        keys = [key(row) for row in range(number * PER_SHARD, min(rows, (number + 1) * PER_SHARD))]
        path = folder / shard_name(number, count)
        write_shard(path, header, keys, rng.standard_normal((len(keys), *SHAPE), np.float32))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        paths.append(path)
    return paths


def forget(paths: list[Path]) -> None:
    """Drop the files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_files(paths: list[Path]) -> int:
    """Read the files in pieces, one after the other; returns the number of bytes."""
    buffer, total = bytearray(PIECE), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                total += size
    return total


def read_directly(paths: list[Path]) -> int:
    """Read the files bypassing the page cache, which requires aligned memory."""
    buffer, total = mmap.mmap(-1, PIECE), 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            while size := os.readv(descriptor, [buffer]):
                total += size
        finally:
            os.close(descriptor)
    return total


def read_rows(folder: Path, rows: list[int]) -> None:
    """Read rows as the pipeline does, each announced in advance (here by two rows, there before decoding a photo)."""
    store = EmbeddingStore(folder)
    for row, later in zip(rows, [*rows[AHEAD:], *rows[:AHEAD]], strict=True):
        store.expect(key(later))
        store.read(key(row))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder on the disk to measure")
    parser.add_argument("--rows", type=int, default=512, help="number of embeddings")
    parser.add_argument("--dtype", choices=get_args(StoredType), default="float16", help="stored type")
    parser.add_argument("--rounds", type=int, default=7, help="number of measurements of each contender")
    parser.add_argument("--processes", type=int, default=1, help="number of readers, which divide the rows or files")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=args.folder))
    try:
        paths = make(folder, args.rows, args.dtype)
        measure(folder, paths, args.rows, args.rounds, args.processes)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, paths: list[Path], rows: int, rounds: int, processes: int) -> None:
    """Time all contenders from the disk and from the page cache, and print a table of each."""
    total = sum(path.stat().st_size for path in paths)
    shuffled = np.random.default_rng(1).permutation(rows).tolist()
    with ProcessPoolExecutor(
        processes
    ) as pool:  # in separate processes, so that only the readers' processor time counts
        list(pool.map(time.sleep, [0.2] * processes))

        def processor_seconds(work: Callable[..., object], *shares: list[Any]) -> float:
            return sum(pool.map(_processor_seconds, [work] * processes, *shares))

        def of_files(work: Callable[..., object]) -> Callable[[], float]:
            return lambda: processor_seconds(work, [paths[i::processes] for i in range(processes)])

        def of_rows(order: list[int]) -> Callable[[], float]:
            shares = [order[i::processes] for i in range(processes)]
            return lambda: processor_seconds(read_rows, [folder] * processes, shares)

        contenders = {
            FILES: of_files(read_files),
            "files, bypassing the cache": of_files(read_directly),
            "rows in order": of_rows(list(range(rows))),
            "rows in random order": of_rows(shuffled),
        }
        print(f"{total / 1e9:.2f} GB, {rows} rows, {processes} processes; copying {timing.machine()[1] / 2e9:.1f} GB/s")
        for state in ("from the disk", "from the page cache"):
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
            for _ in range(rounds):
                for name, run in contenders.items():
                    if state == "from the disk":
                        forget(paths)
                    begin = time.perf_counter()
                    processor = run()
                    times[name].append((time.perf_counter() - begin, processor))
            print(f"{state:26s} {'GB/s':>6s} {'best':>6s} {'ratio':>6s} {'(range)':>14s} {'processor ms/row':>17s}")
            base = [wall for wall, _ in times[FILES]]
            for name, runs in times.items():
                ratios = [b / wall for b, (wall, _) in zip(base, runs, strict=True)]
                rate, best = (total / of([wall for wall, _ in runs]) / 1e9 for of in (median, min))
                spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
                milliseconds = median(processor for _, processor in runs) / rows * 1e3
                print(
                    f"{name:26s} {rate:6.2f} {best:6.2f} {median(ratios):6.2f} {spread:>14s} {milliseconds:17.2f}",
                    flush=True,
                )


def _processor_seconds(work: Callable[..., object], *arguments: object) -> float:
    begin = time.process_time()
    work(*arguments)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
