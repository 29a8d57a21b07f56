"""Fill a store with a teacher's image embeddings, so that training need not run the teacher's encoder.

    python -m edgesam_jax.embed --teacher weights/sam_vit_h_4b8939.pth --source prepared --root DATA --output STORE
    ... --part 2/8     on the third of eight processes or hosts that share STORE's file system (the first is 0/8)

Shards that are complete are kept: the same command, on any number of processes, goes on where it was stopped.  What
could not be used is listed in ``STORE/skipped-2-of-8.jsonl``, one file for each part.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from tqdm import tqdm

from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser, count, part, share
from edgesam_jax.config import DataConfig, SourceName, UsageError
from edgesam_jax.data.embeddings import STORE, StoredType, StoreHeader, photo_key, read_header, shard_name, write_shard
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.readers.id_list import digest, read_ids
from edgesam_jax.data.readers.records import decode_record
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import check_share, left_out
from edgesam_jax.files import atomic_file, write_atomically
from edgesam_jax.portable.frame import pad_to_square, resize_longest_side

if TYPE_CHECKING:
    from edgesam_jax.checkpoints.model import Model


@dataclass(frozen=True)
class Report:
    """What a call did: photos embedded, kinds and messages of those left out, and shards still to be done by others."""

    embedded: int
    skipped: list[tuple[str, str]]
    remaining: int


def framed(source: Any, index: int, size: int) -> tuple[bytes, np.ndarray, tuple[int, int]]:
    """Key, padded frame (size size 3) and filled (rows, columns) of a photo, as the training pipeline frames it.

    Raises:
      BadExample: the photo can't be decoded.
    """
    record = source.record(index)
    example = decode_record(replace(record, annotations=()))
    resized, filled = resize_longest_side(example.image, size)
    return photo_key(record.photo), pad_to_square(resized, size), filled


def header_of(teacher: Model, data: DataConfig, photos: int, dtype: StoredType, per_shard: int) -> StoreHeader:
    """What a store of this teacher for this data set says of itself."""
    from edgesam_jax.checkpoints.digest import encoder_digest

    config = teacher.config
    fields = {name: getattr(data, name) for name in ("source", "root", "annotations", "subset", "split", "limit")}
    if data.ids:
        fields["ids"] = digest(read_ids(Path(data.ids)))
    return StoreHeader(
        teacher=encoder_digest(teacher), source=str(teacher.metadata.get("source", "")), image_size=config.image_size,
        shape=(config.grid, config.grid, config.embed_dim), dtype=dtype, photos=photos, shards=-(-photos // per_shard),
        data=hashlib.sha256(json.dumps([fields, photos]).encode()).hexdigest(),
    )  # fmt: skip


def embed(
    teacher: Model,
    data: DataConfig,
    output: Path,
    dtype: StoredType = "float16",
    per_shard: int = 256,
    batch_size: int = 1,
    part: tuple[int, int] = (0, 1),
    max_bad_share: float = 0.01,
) -> Report:
    """Write this part's shards that are not there yet, on all local devices.

    Raises:
      UsageError: the data set can't be opened; the folder holds another store, or can't be written; or more than
        ``max_bad_share`` of 1,000 or more photos can't be used, or none can.
    """
    import jax

    from edgesam_jax.predict import compiled

    source = open_source(data, teacher.config.image_size)
    if not len(source) or not hasattr(source, "record"):
        raise UsageError(f"--source {data.source}: it has no photos to embed; train with the teacher online")
    header = header_of(teacher, data, len(source), dtype, per_shard)
    claim(output, header)
    names = [shard_name(number, header.shards) for number in range(header.shards)]
    own = [n for n in range(part[0], header.shards, part[1]) if not (output / names[n]).is_file()]
    ranges = {n: range(n * per_shard, min((n + 1) * per_shard, len(source))) for n in own}
    devices = jax.local_devices() if own else []
    folded = compiled.for_inference(teacher.config, teacher.variables) if own else None
    variables = [jax.device_put(folded, device) for device in devices]
    encode = compiled.encoder(teacher.config)
    seen = 0
    skipped = list(left_out(source).rows) if part[0] == 0 else []
    listed = output / f"skipped-{part[0]}-of-{part[1]}.jsonl"
    embedded = 0
    with tqdm(total=sum(map(len, ranges.values())), unit="photo", desc="embed", dynamic_ncols=True) as bar:
        for number, indices in ranges.items():
            keys: list[bytes] = []
            pieces = [np.zeros((0, *header.shape), np.float32)]
            under_way: deque[tuple[Any, int]] = deque()  # a batch on each device

            def fetch(under_way: deque[tuple[Any, int]] = under_way, pieces: list[np.ndarray] = pieces) -> None:
                made, count = under_way.popleft()
                pieces.append(np.asarray(made, np.float32)[:count])
                bar.update(count)

            turn = itertools.cycle(zip(devices, variables, strict=True))
            for batch in _batches(source, indices, teacher.config.image_size, batch_size, skipped, len(devices)):
                images = np.zeros((batch_size, *batch[0][1].shape), np.uint8)  # the last batch has empty places
                sizes = np.ones((batch_size, 2), np.int32)
                for row, (_, image, filled) in enumerate(batch):
                    images[row], sizes[row] = image, filled
                device, own_variables = next(turn)
                under_way.append((encode(own_variables, *jax.device_put((images, sizes), device)), len(batch)))
                keys += [key for key, _, _ in batch]
                if len(under_way) == len(devices):
                    fetch()
            while under_way:
                fetch()
            try:
                list_skipped(listed, skipped)
                with atomic_file(output / names[number], sole_writer=True) as path:
                    write_shard(path, header, keys, np.concatenate(pieces))
            except OSError as error:
                raise UsageError(
                    f"--output {output}: writing failed ({error.strerror or error}); complete shards stay: run the same"
                    " command again"
                ) from None
            embedded += len(keys)
            seen += len(indices)
            check_share(seen - embedded, seen, max_bad_share, "complete shards stay")
    if len(own) == header.shards and not embedded:
        raise UsageError(f"--root {data.root}: none of the {seen} photos can be used: {skipped[-1][1]}")
    remaining = sum(not (output / name).is_file() for name in names)
    return Report(embedded, skipped, remaining)


def list_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Add to a list what is not in it yet; a shard that is done again adds nothing."""
    lines = [json.dumps({"kind": kind, "message": message}) for kind, message in skipped]
    there = path.read_text().splitlines() if path.is_file() else []
    if not set(lines) <= set(there):
        write_atomically(path, "".join(f"{line}\n" for line in dict.fromkeys(there + lines)))


def _batches(
    source: Any, indices: Sequence[int], size: int, batch_size: int, skipped: list[tuple[str, str]], devices: int
) -> Iterator[list[tuple[bytes, np.ndarray, tuple[int, int]]]]:
    """Photos in batches, read by threads while the device works; what can't be used is noted."""

    def read(index: int) -> tuple[bytes, np.ndarray, tuple[int, int]] | BadExample:
        try:
            return framed(source, index, size)
        except BadExample as error:
            return error

    ahead = (1 + devices) * batch_size + 2
    with ThreadPoolExecutor(4 * devices, thread_name_prefix="photos") as pool:
        waiting = [pool.submit(read, index) for index in indices[:ahead]]
        batch = []
        for position in range(len(indices)):
            found = waiting.pop(0).result()
            if position + ahead < len(indices):
                waiting.append(pool.submit(read, indices[position + ahead]))
            if isinstance(found, BadExample):
                skipped.append((found.kind, str(found)))
                continue
            batch.append(found)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def claim(output: Path, header: StoreHeader) -> None:
    """Make the folder and note what is stored there; several processes may do so at once.

    Raises:
      UsageError: it holds another store or other files, or can't be written.
    """
    try:
        if (output / STORE).is_file():
            there = read_header(output)
            if there != header:
                differing = [k for k, v in asdict(there).items() if v != asdict(header)[k]]
                raise UsageError(f"--output {output}: a store with another {', '.join(differing)}; name another folder")
            return
        if output.exists() and any(not p.name.startswith((STORE, f".{STORE}.")) for p in output.iterdir()):
            raise UsageError(f"--output {output}: it holds other files; name a new folder")
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / STORE, json.dumps(asdict(header), indent=1))
    except OSError as error:
        raise UsageError(
            f"--output {output}: cannot be used ({error.strerror or error}); name another folder"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m edgesam_jax.embed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--teacher", required=True, help="checkpoint folder, or a published file")
    parser.add_argument("--source", choices=[n for n in get_args(SourceName) if n != "scenes"], required=True)
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--annotations", default="", help="coco: the JSON file; found under the folder if not given")
    parser.add_argument("--subset", nargs="+", default=(), help="tars: sa_000020, or sa_000020..sa_000029")
    parser.add_argument("--split", default="", help="prepared: the split")
    parser.add_argument("--limit", type=count, default=0, help="the first so many photos; all if not given")
    parser.add_argument("--ids", default="", metavar="FILE", help="the photos of this list, one a line")
    parser.add_argument("--output", type=Path, required=True, help="folder of the store")
    parser.add_argument("--dtype", choices=get_args(StoredType), default="float16")
    parser.add_argument("--photos-per-shard", type=count, default=256)
    parser.add_argument("--batch-size", type=count, default=1, help="photos encoded at a time on a device")
    parser.add_argument("--max-bad-share", type=share, default=0.01, help="of 1,000 or more photos; beyond it: stop")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="I/N", help="this process of so many, from 0/N")
    return parser


def run(given: argparse.Namespace) -> str:
    """Embed; returns what to say.

    Raises:
      UsageError: see ``embed``.
    """
    # Imported late, so that a wrong flag is answered at once.
    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.cli import compile_cache

    compile_cache.enable()
    data = DataConfig(
        source=given.source, root=given.root, annotations=given.annotations, subset=tuple(given.subset),
        split=given.split, limit=given.limit, ids=given.ids,
    )  # fmt: skip
    report = embed(
        load_model(given.teacher),
        data,
        given.output,
        given.dtype,
        given.photos_per_shard,
        given.batch_size,
        given.part,
        given.max_bad_share,
    )
    if report.skipped:
        found = ", ".join(f"{kind} {count}" for kind, count in Counter(kind for kind, _ in report.skipped).items())
        print(f"note: left out: {found}; {given.output}/skipped-*.jsonl list them", file=sys.stderr)
    rest = f"; {report.remaining} shards remain for other parts" if report.remaining else ""
    return f"{report.embedded} photos embedded in {given.output}, {len(report.skipped)} left out{rest}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        print(run(_parser().parse_args(argv)))
        return 0

    return run_command(
        command, interrupted="stopped; run the same command again to resume from the shards that are complete"
    )


if __name__ == "__main__":
    sys.exit(main())
