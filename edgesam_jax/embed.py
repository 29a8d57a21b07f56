"""Store a teacher's image embeddings, so that training doesn't have to run the teacher's encoder.

    python -m edgesam_jax.embed --teacher weights/sam_vit_h_4b8939.pth --source prepared --root DATA --output STORE
    ... --part 2/8     on the third of eight processes or hosts that share STORE's file system (the first is 0/8)

Complete shards are kept: run the same command again to resume, on any number of processes.  Each part lists the photos
it skipped in a separate file, such as ``STORE/skipped-2-of-8.jsonl``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from tqdm import tqdm

from edgesam_jax.cli.command import print_note, run_command
from edgesam_jax.cli.flags import Parser, count, part, share
from edgesam_jax.config import DataConfig, SourceName, UsageError
from edgesam_jax.data.embeddings import (
    PREPROCESSING,
    STORE,
    StoredType,
    StoreHeader,
    photo_key,
    read_header,
    shard_name,
    write_shard,
)
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.pixels import parse_range
from edgesam_jax.data.readers.id_list import digest, read_ids
from edgesam_jax.data.readers.ranged import pixel_note
from edgesam_jax.data.readers.records import decode_record
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import check_bad_share, reasons, skipped_entries
from edgesam_jax.files import atomic_file, write_atomically
from edgesam_jax.planning import dry_run
from edgesam_jax.portable.frame import Resize, pad_to_square, resize_longest_side

if TYPE_CHECKING:
    from edgesam_jax.checkpoints.model import Model
    from edgesam_jax.planning.compiling import Program


@dataclass(frozen=True)
class EmbedResult:
    """The result of a call: photos embedded, kind and message of each photo skipped, and shards left to other parts."""

    embedded: int
    skipped: list[tuple[str, str]]
    remaining: int


class FramedPhoto(NamedTuple):
    """A photo as the encoder takes it: its key, the padded frame (size size 3) and the (rows, columns) it fills."""

    key: bytes
    image: np.ndarray
    filled: tuple[int, int]


def read_framed(source: Any, index: int, size: int, resize: Resize) -> FramedPhoto:
    """Read a photo and resize and pad it as the training pipeline does.

    Raises:
      BadExample: the photo can't be read or decoded.
    """
    record = source.record(index)
    example = decode_record(replace(record, annotations=(), skipped=()))
    resized, filled = resize_longest_side(example.image, size, resize)
    return FramedPhoto(photo_key(record.photo, record.pixel_range), pad_to_square(resized, size), filled)


def header_of(teacher: Model, data: DataConfig, photos: int, dtype: StoredType, per_shard: int) -> StoreHeader:
    """Return the header of a store of this teacher's embeddings for this data set."""
    from edgesam_jax.checkpoints.digest import encoder_digest

    config = teacher.config
    fields = {name: getattr(data, name) for name in ("source", "root", "annotations", "subset", "split", "limit")}
    if data.ids:
        fields["ids"] = digest(read_ids(Path(data.ids)))
    return StoreHeader(
        teacher=encoder_digest(teacher), source=str(teacher.metadata.get("source", "")), image_size=config.image_size,
        shape=(config.grid, config.grid, config.embed_dim), dtype=dtype, photos=photos, shards=-(-photos // per_shard),
        data=hashlib.sha256(json.dumps([fields, photos]).encode()).hexdigest(),
        preprocessing=PREPROCESSING[data.resize], pixel_range=data.pixel_range,
        compute_dtype=config.compute_dtype,
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
) -> EmbedResult:
    """Write the missing shards of this part, using all local devices.

    Args:
      teacher: the model whose encoder is run.
      data: the data set.
      output: folder of the store.
      dtype: stored type.
      per_shard: photos per shard.
      batch_size: photos encoded at a time on each device.
      part: (index, number of parts); this call writes every ``part[1]``-th shard, starting with ``part[0]``.
      max_bad_share: largest fraction of photos that may be skipped, checked from 1,000 photos on.

    Raises:
      UsageError: the data set can't be opened, the folder contains another store or other files or can't be written,
        too many photos can't be used, or none can.
    """
    import jax

    from edgesam_jax.predict import compiled

    source = open_source(data, teacher.config.image_size)
    if not len(source) or not hasattr(source, "record"):
        raise UsageError(f"--source {data.source}: no photo files to embed; train with the teacher online")
    if note := pixel_note(source):
        print_note(note)
    header = header_of(teacher, data, len(source), dtype, per_shard)
    claim(output, header)
    names = [shard_name(number, header.shards) for number in range(header.shards)]
    pending = [n for n in range(part[0], header.shards, part[1]) if not (output / names[n]).is_file()]
    ranges = {n: range(n * per_shard, min((n + 1) * per_shard, len(source))) for n in pending}
    devices = jax.local_devices() if pending else []
    folded = compiled.for_inference(teacher.config, teacher.variables) if pending else None
    variables = [jax.device_put(folded, device) for device in devices]
    encode = compiled.encoder(teacher.config)
    seen = 0
    skipped = list(skipped_entries(source).rows) if part[0] == 0 else []
    listed = output / f"skipped-{part[0]}-of-{part[1]}.jsonl"
    embedded = 0
    with tqdm(total=sum(map(len, ranges.values())), unit="photo", desc="embed", dynamic_ncols=True) as bar:
        for number, indices in ranges.items():
            keys: list[bytes] = []
            pieces = [np.zeros((0, *header.shape), np.float32)]
            in_flight: deque[tuple[Any, int]] = deque()  # a batch on each device

            def fetch(in_flight: deque[tuple[Any, int]] = in_flight, pieces: list[np.ndarray] = pieces) -> None:
                embeddings, count = in_flight.popleft()
                pieces.append(np.asarray(embeddings, np.float32)[:count])
                bar.update(count)

            round_robin = itertools.cycle(zip(devices, variables, strict=True))
            read = functools.partial(read_framed, source, size=teacher.config.image_size, resize=data.resize)
            for batch in _batches(read, indices, batch_size, skipped, len(devices)):
                # The last batch may not be full.
                images = np.zeros((batch_size, *batch[0].image.shape), batch[0].image.dtype)
                sizes = np.ones((batch_size, 2), np.int32)
                for row, photo in enumerate(batch):
                    images[row], sizes[row] = photo.image, photo.filled
                device, device_variables = next(round_robin)
                in_flight.append((encode(device_variables, *jax.device_put((images, sizes), device)), len(batch)))
                keys += [photo.key for photo in batch]
                if len(in_flight) == len(devices):
                    fetch()
            while in_flight:
                fetch()
            try:
                list_skipped(listed, skipped)
                with atomic_file(output / names[number], sole_writer=True) as path:
                    write_shard(path, header, keys, np.concatenate(pieces))
            except OSError as error:
                raise UsageError(
                    f"--output {output}: writing failed ({error.strerror or error}); complete shards are kept: run the"
                    " same command again"
                ) from None
            embedded += len(keys)
            seen += len(indices)
            check_bad_share(seen - embedded, seen, max_bad_share, "complete shards are kept")
    if len(pending) == header.shards and not embedded:
        raise UsageError(f"--root {data.root}: none of the {seen} photos can be used: {reasons(skipped)}")
    remaining = sum(not (output / name).is_file() for name in names)
    return EmbedResult(embedded, skipped, remaining)


def list_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Add the rows to a file that are not in it yet, so that a shard written again adds nothing."""
    lines = [json.dumps({"kind": kind, "message": message}) for kind, message in skipped]
    listed = path.read_text().splitlines() if path.is_file() else []
    if not set(lines) <= set(listed):
        write_atomically(path, "".join(f"{line}\n" for line in dict.fromkeys(listed + lines)))


def _batches(
    read_photo: Callable[[int], FramedPhoto],
    indices: Sequence[int],
    batch_size: int,
    skipped: list[tuple[str, str]],
    devices: int,
) -> Iterator[list[FramedPhoto]]:
    """Yield photos in batches, read by threads while the devices work; unusable ones are added to ``skipped``."""

    def read(index: int) -> FramedPhoto | BadExample:
        try:
            return read_photo(index)
        except BadExample as error:
            return error

    ahead = (1 + devices) * batch_size + 2
    with ThreadPoolExecutor(4 * devices, thread_name_prefix="photos") as pool:
        waiting = [pool.submit(read, index) for index in indices[:ahead]]
        batch: list[FramedPhoto] = []
        for position in range(len(indices)):
            photo = waiting.pop(0).result()
            if position + ahead < len(indices):
                waiting.append(pool.submit(read, indices[position + ahead]))
            if isinstance(photo, BadExample):
                skipped.append((photo.kind, str(photo)))
                continue
            batch.append(photo)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def claim(output: Path, header: StoreHeader) -> None:
    """Create the folder and write the store's header to it; several processes may do this at once.

    Raises:
      UsageError: the folder contains another store or other files, or can't be written.
    """
    try:
        if (output / STORE).is_file():
            existing = read_header(output)
            if existing != header:
                differing = [k for k, v in asdict(existing).items() if v != asdict(header)[k]]
                raise UsageError(
                    f"--output {output}: contains a store with another {', '.join(differing)}; choose another folder"
                )
            return
        if output.exists() and any(not p.name.startswith((STORE, f".{STORE}.")) for p in output.iterdir()):
            raise UsageError(f"--output {output}: already contains other files; choose a new folder")
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / STORE, json.dumps(asdict(header), indent=1))
    except OSError as error:
        raise UsageError(
            f"--output {output}: cannot be used ({error.strerror or error}); choose another folder"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m edgesam_jax.embed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--teacher", required=True, help="checkpoint folder or published file; for a dry run also a model's name"
    )
    parser.add_argument(
        "--source",
        choices=[n for n in get_args(SourceName) if n != "scenes"],
        default="",
        help="kind of the data set",
    )
    parser.add_argument("--root", default="", help="folder of the data set")
    parser.add_argument("--annotations", default="", help="coco: the JSON file; default: the only one in --root")
    parser.add_argument(
        "--subset",
        nargs="+",
        default=(),
        help="tars: names such as sa_000020, or ranges such as sa_000020..sa_000029; default: all",
    )
    parser.add_argument("--split", default="", help="prepared: name of the split")
    parser.add_argument("--limit", type=count, default=0, metavar="N", help="use only the first N photos; default: all")
    parser.add_argument("--ids", default="", metavar="FILE", help="use the photos of this list of ids, one per line")
    parser.add_argument(
        "--pixel-range", default="auto", metavar="LO,HI",
        help="map these pixel values to 0 and 255, for photos of more than 8 bits; default: auto",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder of the store")
    parser.add_argument(
        "--dtype", choices=get_args(StoredType), default="float16", help="stored type; default: float16"
    )
    parser.add_argument(
        "--teacher-dtype", choices=("checkpoint", "float32", "bfloat16"), default="checkpoint",
        help="type of the teacher's activations; default: the checkpoint's, float32 for published files",
    )  # fmt: skip
    parser.add_argument(
        "--resize", choices=get_args(Resize), default="pillow",
        help="resizing of the photos; data.resize of the training must be the same; default: pillow",
    )  # fmt: skip
    parser.add_argument(
        "--photos-per-shard", type=count, default=256, metavar="N", help="photos per shard; default: 256"
    )
    parser.add_argument(
        "--batch-size", type=count, default=1, metavar="N", help="photos encoded at a time on each device; default: 1"
    )
    parser.add_argument(
        "--max-bad-share", type=share, default=0.01, metavar="FRACTION",
        help="stop when a larger fraction of the photos can't be used, checked from 1,000 photos on; default: 0.01",
    )  # fmt: skip
    parser.add_argument(
        "--part", type=part, default=(0, 1), metavar="I/N", help="write part I of N, from 0/N to N-1/N; default: 0/1"
    )
    group = parser.add_argument_group("dry run", "memory and speed of the encoder on a TPU; needs --teacher alone")
    group.add_argument("--dry-run", action="store_true", help="compile the encoder for --compile; don't embed")
    dry_run.add_compile_flags(group)
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Embed a data set; returns the line to print.

    Raises:
      UsageError: see ``embed``.
    """
    # Imported here because they load JAX, which a wrong flag or --help shouldn't have to wait for.
    from edgesam_jax.checkpoints.load import load_model
    from edgesam_jax.checkpoints.model import with_compute_dtype
    from edgesam_jax.cli import compile_cache

    if arguments.dry_run:
        return _plan(arguments)
    compile_cache.enable()
    parse_range(arguments.pixel_range)
    data = DataConfig(
        source=arguments.source, root=arguments.root, annotations=arguments.annotations, subset=tuple(arguments.subset),
        split=arguments.split, limit=arguments.limit, ids=arguments.ids, pixel_range=arguments.pixel_range,
        resize=arguments.resize,
    )  # fmt: skip
    teacher = load_model(arguments.teacher)
    report = embed(
        replace(teacher, config=with_compute_dtype(teacher.config, arguments.teacher_dtype)),
        data,
        arguments.output,
        dtype=arguments.dtype,
        per_shard=arguments.photos_per_shard,
        batch_size=arguments.batch_size,
        part=arguments.part,
        max_bad_share=arguments.max_bad_share,
    )
    if report.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(kind for kind, _ in report.skipped).items())
        print(f"note: skipped: {kinds}; see {arguments.output}/skipped-*.jsonl", file=sys.stderr)
    rest = f"; {report.remaining} shards remain for other parts" if report.remaining else ""
    return f"{report.embedded} photos embedded in {arguments.output}, {len(report.skipped)} skipped{rest}"


def _plan(arguments: argparse.Namespace) -> str:
    """Return the output of the dry run.

    Raises:
      UsageError: see ``planning.plan.model_config`` and ``planning.dry_run.inference_report``.
    """

    def made() -> list[Program]:
        from edgesam_jax.checkpoints.model import with_compute_dtype
        from edgesam_jax.planning import programs
        from edgesam_jax.planning.plan import model_config
        from edgesam_jax.predict import compiled

        model = model_config(arguments.teacher, f"--teacher {arguments.teacher}")
        model = with_compute_dtype(model, arguments.teacher_dtype)
        return [programs.encoder_program(arguments.teacher, model, compiled.encoder(model), arguments.batch_size)]

    return dry_run.inference_report(arguments.compile, made, arguments.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        parser = _parser()
        arguments = parser.parse_args(argv)
        dry_run.require(parser, arguments, ("--source", "--root", "--output"))
        print(run(arguments))
        return 0

    return run_command(
        command, interrupted="stopped; run the same command again to resume from the shards that are complete"
    )


if __name__ == "__main__":
    sys.exit(main())
