"""Convert any data set to sharded ArrayRecord files in TFDS's layout, leaving the photos' bytes unchanged.

    python -m edgesam_jax.prepare --source tars --root DIR --output DIR [--subset sa_000020..sa_000029] [--workers N]

Every photo and mask is decoded once as a check.  Photos that can't be used are skipped, counted by kind and listed in
``OUTPUT/prepared.json``.  Run the same command again to resume; complete shards are kept.

``--sample 1000 --seed 0`` draws 1,000 photos at random and lists them in ``OUTPUT/ids.txt``.  ``--ids FILE``, or
``data.ids=FILE`` in training, uses the photos of such a list.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser, count, share
from edgesam_jax.config import DataConfig, SourceName, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.pipeline import check_sides
from edgesam_jax.data.pixels import AUTO, parse_range
from edgesam_jax.data.readers.annotations import area_of
from edgesam_jax.data.readers.id_list import digest, draw, ids_text, photo_ids, read_ids
from edgesam_jax.data.readers.prepared import FORMAT, MANIFEST, encode, features, load_tfds
from edgesam_jax.data.readers.records import Record, decode
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow, check_bad_share, reasons, skipped_entries
from edgesam_jax.files import atomic_file, sha256_of, write_atomically

IDS = "ids.txt"  # list of the photos drawn by --sample
NOTES = ".shards"  # folder with the settings and a note on each complete shard, until all are complete


@dataclass(frozen=True)
class Shard:
    """One file to write: photos ``first`` to ``last`` (exclusive) of the source."""

    file: str
    first: int
    last: int


@dataclass(frozen=True)
class Written:
    """A complete shard: its checksum and number of records, and a row for each photo and each annotation skipped.

    ``annotations`` has the rows of the annotations of photos that are in the shard.
    """

    file: str
    sha256: str
    records: int
    bytes: int
    skipped: list[SkippedRow]
    annotations: list[SkippedRow]


def complete(record: Record) -> Record:
    """Return the record with size, run-length codes, areas and points filled in from its photo and masks.

    Annotations that can't be used are left out and added to ``skipped``.

    Raises:
      BadExample: the photo can't be decoded, is too large or too thin, or has no usable annotation.
    """

    def keep(areas: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        check_sides(record.image_id, *size)
        return np.arange(len(areas))

    decoded = decode(record, keep)
    height, width = decoded.size
    annotations = []
    for k, annotation in enumerate(decoded.annotations):
        completed = {
            **annotation,
            "id": int(decoded.ids[k]),
            "area": area_of(annotation),
            "point_coords": [decoded.points[k].tolist()],
        }
        if "segmentation" in annotation:
            mask = np.zeros((height, width), np.uint8, order="F")
            decoded.masks[k].paste(mask)
            code = coco_mask.encode(mask)
            completed["segmentation"] = {"counts": code["counts"].decode(), "size": [height, width]}
        annotations.append(completed)
    return dataclasses.replace(record, annotations=annotations, size=(height, width), skipped=decoded.skipped)


def write_shard(data: DataConfig, output: Path, shard: Shard) -> Written:
    """Write one shard, in a worker: to a temporary file, renamed when complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    source = _source(data)
    skipped: list[SkippedRow] = []
    unused: list[SkippedRow] = []
    records = 0
    with atomic_file(output / shard.file, sole_writer=True) as path:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            for index in range(shard.first, shard.last):
                try:
                    record = source.record(index)
                    if source.annotated and not record.annotations and not record.skipped:
                        raise BadExample("no annotations", f"{record.where}: no usable annotation; remove the photo")
                    record = complete(record)
                except BadExample as error:
                    skipped.append((error.kind, str(error)))
                    continue
                writer.write(encode(record))
                unused += record.skipped
                records += 1
        finally:
            writer.close()
        written = Written(shard.file, sha256_of(path), records, path.stat().st_size, skipped, unused)
    write_atomically(output / NOTES / f"{shard.file}.json", json.dumps(dataclasses.asdict(written)))
    return written


_opened: dict[DataConfig, Any] = {}


def _source(data: DataConfig) -> Any:
    """Return the source, opened once per worker."""
    if data not in _opened:
        _opened[data] = open_source(data, 1024)
    return _opened[data]


def shards_of(photos: int, per_shard: int, name: str, split: str) -> list[Shard]:
    """Split the photos into shards with TFDS's file names."""
    count = -(-photos // per_shard)
    return [
        Shard(f"{name}-{split}.array_record-{k:05d}-of-{count:05d}", k * per_shard, min((k + 1) * per_shard, photos))
        for k in range(count)
    ]


def finished(output: Path, shard: Shard) -> Written | None:
    """Return the note on a complete shard; None if the shard is missing or incomplete."""
    try:
        note = json.loads((output / NOTES / f"{shard.file}.json").read_text())
        rows = {name: [(kind, message) for kind, message in note[name]] for name in ("skipped", "annotations")}
        written = Written(**note | rows)
        return written if (output / shard.file).stat().st_size == written.bytes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare(
    data: DataConfig,
    output: Path,
    name: str = "photos",
    split: str = "train",
    per_shard: int = 256,
    workers: int = 1,
    sample: int = 0,
    seed: int = 0,
    max_bad_share: float = 0.01,
) -> dict[str, Any]:
    """Write the data set, or ``sample`` of its photos drawn with ``seed``; returns the manifest.

    Args:
      data: the source.
      output: folder to write; one that an interrupted call left is completed.
      name, split: names of the data set and of its split in TFDS.
      per_shard: photos per shard.
      workers: number of processes.
      sample: number of photos to draw; 0 takes all.
      seed: seed of the draw.
      max_bad_share: largest fraction of photos that may be skipped, checked from 1,000 photos on.

    Raises:
      UsageError: the source can't be opened, the folder contains other files or can't be written, too many photos can't
        be used, or none can.
    """
    source = _source(data)
    if not len(source) or not hasattr(source, "record"):
        raise UsageError(f"--source {data.source}: no photo files to prepare; train on it directly")
    fields = ["source", "root", "annotations", "subset", "limit"]
    fields += [] if data.pixel_range == AUTO else ["pixel_range"]  # absent from data sets of earlier versions
    settings = {
        "data": {k: getattr(data, k) for k in fields},
        "name": name, "split": split, "photos_per_shard": per_shard, "photos": len(source),
    }  # fmt: skip
    if data.ids:
        settings["ids"] = digest(read_ids(Path(data.ids)))
    ids = draw(photo_ids(source, f"{data.source} {data.root}"), sample, seed) if sample else []
    if sample:
        settings |= {"sample": sample, "seed": seed, "photos": sample}
    settings = json.loads(json.dumps(settings))
    if (manifest := _claim(output, settings)) is not None:
        return manifest
    if sample:
        comments = f"source: {' '.join([data.source, *data.subset])}", f"drawn: {sample} of {len(source)}, seed {seed}"
        write_atomically(output / IDS, ids_text(ids, comments))
        data = dataclasses.replace(data, ids=str(output / IDS))
        source = _source(data)
    shards = shards_of(len(source), per_shard, name, split)
    done = {shard: written for shard in shards if (written := finished(output, shard)) is not None}
    if done:
        print(f"resuming: {len(done)} of {len(shards)} shards are complete", file=sys.stderr)
    with tqdm(total=len(source), unit="photo", desc="prepare", dynamic_ncols=True) as bar:
        bar.update(sum(shard.last - shard.first for shard in done))
        for shard, written in _write(data, output, [s for s in shards if s not in done], workers):
            done[shard] = written
            bar.update(shard.last - shard.first)
            bad = sum(len(w.skipped) for w in done.values())
            bar.set_postfix(skipped=bad)
            check_bad_share(bad, sum(s.last - s.first for s in done), max_bad_share, "complete shards are kept")
    return _finish(source, output, settings, [done[shard] for shard in shards])


def _claim(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Create the folder and save the settings in it; returns the manifest if the data set is already complete.

    Raises:
      UsageError: the folder contains another data set or other files, or can't be written.
    """
    started, manifest = output / NOTES / "settings.json", output / MANIFEST
    try:
        for path, read in ((manifest, lambda text: json.loads(text)["settings"]), (started, json.loads)):
            if path.is_file():
                if read(path.read_text()) != settings:
                    raise UsageError(
                        f"--output {output}: already contains a data set with other settings; choose another folder"
                    )
                return json.loads(path.read_text()) if path is manifest else None
        if output.exists() and any(output.iterdir()):
            raise UsageError(f"--output {output}: already contains other files; choose a new folder")
        started.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(started, json.dumps(settings))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"--output {output}: cannot be used ({error}); choose another folder") from None
    return None


def _write(data: DataConfig, output: Path, shards: list[Shard], workers: int) -> Iterator[tuple[Shard, Written]]:
    """Write shards, ``workers`` at a time; yields each when it is complete."""
    try:
        if workers <= 1:
            for shard in shards:
                yield shard, write_shard(data, output, shard)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, max(1, len(shards))), mp_context=context) as pool:
            running: dict[Future[Written], Shard] = {pool.submit(write_shard, data, output, s): s for s in shards}
            try:
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    except BrokenExecutor:
        raise UsageError(
            f"--workers {workers}: a worker process was killed, possibly out of memory; complete shards are kept:"
            " run the same command again with fewer workers"
        ) from None
    except OSError as error:
        raise UsageError(
            f"--output {output}: writing failed ({error.strerror or error}); complete shards are kept:"
            " run the same command again"
        ) from None


def _finish(source: Any, output: Path, settings: dict[str, Any], done: list[Written]) -> dict[str, Any]:
    """Write TFDS's metadata and then the manifest.

    Raises:
      UsageError: no photo could be used.
    """
    tfds = load_tfds()
    records = sum(written.records for written in done)
    skipped = [row for written in done for row in written.skipped]
    if not records:
        raise UsageError(f"none of the {len(source)} photos can be used: {reasons(skipped)}")
    skipped = skipped_entries(source).rows + skipped + [row for written in done for row in written.annotations]
    template = tfds.core.ShardedFileTemplate(
        dataset_name=settings["name"], split=settings["split"], filetype_suffix="array_record", data_dir=output
    )
    split = tfds.core.SplitInfo(
        name=settings["split"],
        shard_lengths=[written.records for written in done],
        num_bytes=sum(written.bytes for written in done),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=output, features=features(), split_infos=[split], filename_template=None, check_data=False,
        description="Photos with instance masks, prepared by edgesam_jax.prepare.",
    )  # fmt: skip
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "annotated": source.annotated,
        "true_masks": source.true_masks,
        "records": records,
        "skipped": dict(Counter(kind for kind, _ in skipped)),
        "skipped_photos": skipped,
        "shards": [{"file": w.file, "sha256": w.sha256, "records": w.records, "bytes": w.bytes} for w in done],
    }
    write_atomically(output / MANIFEST, json.dumps(manifest, indent=1))
    for note in (output / NOTES).iterdir():
        note.unlink()
    (output / NOTES).rmdir()
    return manifest


def verify(output: Path) -> list[str]:
    """Return the names of the shards that are missing or don't match the manifest's checksum.

    Raises:
      UsageError: the manifest is missing or damaged.
    """
    from edgesam_jax.data.readers.prepared import read_manifest

    manifest = read_manifest(output)
    if not manifest:
        raise UsageError(f"--verify {output}: no {MANIFEST} in it; pass a folder written by edgesam_jax.prepare")
    try:
        shards = [(str(shard["file"]), str(shard["sha256"])) for shard in manifest["shards"]]
    except (KeyError, TypeError):
        raise UsageError(f"--verify {output}: its {MANIFEST} is damaged; prepare the data set again") from None
    listed = tqdm(shards, "verify", unit="shard", dynamic_ncols=True)
    return [f for f, sha256 in listed if not (output / f).is_file() or sha256_of(output / f) != sha256]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m edgesam_jax.prepare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kinds = [name for name in get_args(SourceName) if name != "scenes"]
    parser.add_argument("--source", choices=kinds, help="kind of the data set; required unless --verify")
    parser.add_argument("--root", default="", help="folder of the data set")
    parser.add_argument("--annotations", default="", help="coco: the JSON file; default: the only one in --root")
    parser.add_argument(
        "--subset",
        nargs="+",
        default=(),
        help="tars: names such as sa_000020, or ranges such as sa_000020..sa_000029; default: all",
    )
    parser.add_argument("--limit", type=count, default=0, metavar="N", help="use only the first N photos; default: all")
    parser.add_argument("--ids", default="", metavar="FILE", help="use the photos of this list of ids, one per line")
    parser.add_argument(
        "--pixel-range", default="auto", metavar="LO,HI",
        help="map these pixel values to 0 and 255, for photos of more than 8 bits; default: auto",
    )  # fmt: skip
    parser.add_argument(
        "--sample", type=count, default=0, metavar="N", help="use N photos drawn at random; OUTPUT/ids.txt lists them"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --sample")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--name", default="photos", help="name of the data set in TFDS's file names")
    parser.add_argument("--split", default="train", help="name of the split")
    parser.add_argument(
        "--photos-per-shard", type=count, default=256, metavar="N", help="photos per shard; default: 256"
    )
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, metavar="N", help="number of processes")
    parser.add_argument(
        "--max-bad-share", type=share, default=0.01, metavar="FRACTION",
        help="stop when a larger fraction of the photos can't be used, checked from 1,000 photos on; default: 0.01",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="only check the shards of OUTPUT against their checksums")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Prepare or verify; returns the line to print.

    Raises:
      UsageError: see ``prepare`` and ``verify``; or a flag is missing or invalid.
    """
    if arguments.verify:
        damaged = verify(arguments.output)
        if damaged:
            raise UsageError(f"{arguments.output}: damaged or missing: {', '.join(damaged)}; prepare it again")
        return f"{arguments.output}: all shards are as they were written"
    if not arguments.source:
        raise UsageError("--source: required; pass the kind of the data set, or --verify")
    if not (arguments.name.isidentifier() and arguments.split.isidentifier()):
        raise UsageError(
            f"--name {arguments.name} --split {arguments.split}: use only letters, digits and _, and no digit first"
        )
    parse_range(arguments.pixel_range)
    data = DataConfig(
        source=arguments.source, root=arguments.root, annotations=arguments.annotations, subset=tuple(arguments.subset),
        limit=arguments.limit, ids=arguments.ids, pixel_range=arguments.pixel_range,
    )  # fmt: skip
    manifest = prepare(
        data,
        arguments.output,
        name=arguments.name,
        split=arguments.split,
        per_shard=arguments.photos_per_shard,
        workers=arguments.workers,
        sample=arguments.sample,
        seed=arguments.seed,
        max_bad_share=arguments.max_bad_share,
    )
    skipped = ", ".join(f"{kind} {count}" for kind, count in manifest["skipped"].items())
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e9
    return (
        f"{manifest['records']} photos, {size:.2f} GB in {len(manifest['shards'])} shards in {arguments.output};"
        f" skipped: {skipped or 'none'}"
    )


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
