"""Any data set as sharded ArrayRecord in TFDS's layout, with the photos' bytes untouched.

    python -m edgesam_jax.prepare --source tars --root DIR --output DIR [--subset sa_000020..sa_000029] [--workers N]

Every photo and mask is decoded once on the way: what can't be used is left out, counted by kind and listed in
``OUTPUT/prepared.json``.  The same command goes on where it was stopped; shards that are complete are kept.

``--sample 1000 --seed 0`` takes so many photos at random and writes which to ``OUTPUT/ids.txt``; ``--ids FILE``, and
``data.ids=FILE`` in training, take those of such a list.
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
from edgesam_jax.data.pipeline import check_size
from edgesam_jax.data.readers.id_list import digest, draw, ids_text, photo_ids, read_ids
from edgesam_jax.data.readers.prepared import FORMAT, MANIFEST, encode, features, load_tfds
from edgesam_jax.data.readers.records import Record, area_of, decode_record
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import check_share, left_out
from edgesam_jax.files import atomic_file, sha256_of, write_atomically

IDS = "ids.txt"  # which photos were drawn
NOTES = ".shards"  # what is known of the shards while not all are there


@dataclass(frozen=True)
class Shard:
    """One file to write: photos ``first`` to ``last`` of the source."""

    file: str
    first: int
    last: int


@dataclass(frozen=True)
class Written:
    """A complete shard: its checksum, its records, and the kinds and messages of what was left out."""

    file: str
    sha256: str
    records: int
    bytes: int
    skipped: list[tuple[str, str]]


def complete(record: Record) -> Record:
    """The record with everything its photo and masks have to say: size, run-length codes, areas, points.

    Raises:
      BadExample: the photo or a mask can't be decoded, or the photo is of no use.
    """
    example = decode_record(record)
    check_size(example)
    height, width = example.image.shape[:2]
    annotations = []
    for k, annotation in enumerate(record.annotations):
        found = {
            **annotation,
            "id": int(example.annotation_ids[k]),
            "area": area_of(annotation),
            "point_coords": [example.points[k].tolist()],
        }
        if "segmentation" in annotation:
            code = coco_mask.encode(np.asfortranarray(example.masks[k].view(np.uint8)))
            found["segmentation"] = {"counts": code["counts"].decode(), "size": [height, width]}
        annotations.append(found)
    return dataclasses.replace(record, annotations=annotations, size=(height, width))


def write_shard(data: DataConfig, output: Path, shard: Shard) -> Written:
    """Write one shard beside and rename it; what a worker does."""
    from array_record.python.array_record_module import ArrayRecordWriter

    source = _source(data)
    skipped: list[tuple[str, str]] = []
    records = 0
    with atomic_file(output / shard.file, sole_writer=True) as path:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            for index in range(shard.first, shard.last):
                try:
                    record = source.record(index)
                    if source.annotated and not record.annotations:
                        raise BadExample("no annotations", f"{record.where}: none that can be used; remove the photo")
                    record = complete(record)
                except BadExample as error:
                    skipped.append((error.kind, str(error)))
                    continue
                writer.write(encode(record))
                records += 1
        finally:
            writer.close()
        written = Written(shard.file, sha256_of(path), records, path.stat().st_size, skipped)
    write_atomically(output / NOTES / f"{shard.file}.json", json.dumps(dataclasses.asdict(written)))
    return written


_opened: dict[DataConfig, Any] = {}


def _source(data: DataConfig) -> Any:
    """The source, opened once in each worker."""
    if data not in _opened:
        _opened[data] = open_source(data, 1024)
    return _opened[data]


def shards_of(photos: int, per_shard: int, name: str, split: str) -> list[Shard]:
    """The source cut into files of TFDS's names."""
    count = -(-photos // per_shard)
    return [
        Shard(f"{name}-{split}.array_record-{k:05d}-of-{count:05d}", k * per_shard, min((k + 1) * per_shard, photos))
        for k in range(count)
    ]


def finished(output: Path, shard: Shard) -> Written | None:
    """What a shard holds if it is there, complete."""
    try:
        note = json.loads((output / NOTES / f"{shard.file}.json").read_text())
        written = Written(**{**note, "skipped": [(kind, message) for kind, message in note["skipped"]]})
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
    """Write the data set, or ``sample`` of its photos drawn by ``seed``; returns the manifest.

    Raises:
      UsageError: the source can't be opened, the folder holds something else or can't be written, more than
        ``max_bad_share`` of 1,000 or more photos can't be used, or none can.
    """
    source = _source(data)
    if not len(source) or not hasattr(source, "record"):
        raise UsageError(f"--source {data.source}: it has no photos to prepare; train on it as it is")
    settings = {
        "data": {k: getattr(data, k) for k in ("source", "root", "annotations", "subset", "limit")},
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
        about = f"source: {' '.join([data.source, *data.subset])}", f"drawn: {sample} of {len(source)}, seed {seed}"
        write_atomically(output / IDS, ids_text(ids, about))
        data = dataclasses.replace(data, ids=str(output / IDS))
        source = _source(data)
    shards = shards_of(len(source), per_shard, name, split)
    done = {shard: written for shard in shards if (written := finished(output, shard)) is not None}
    if done:
        print(f"going on: {len(done)} of {len(shards)} shards are complete", file=sys.stderr)
    with tqdm(total=len(source), unit="photo", desc="prepare", dynamic_ncols=True) as bar:
        bar.update(sum(shard.last - shard.first for shard in done))
        for shard, written in _write(data, output, [s for s in shards if s not in done], workers):
            done[shard] = written
            bar.update(shard.last - shard.first)
            bad = sum(len(w.skipped) for w in done.values())
            bar.set_postfix(skipped=bad)
            check_share(bad, sum(s.last - s.first for s in done), max_bad_share, "the shards that are complete stay")
    return _finish(source, output, settings, [done[shard] for shard in shards])


def _claim(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Make the folder and note what is prepared there; the manifest if that is done already.

    Raises:
      UsageError: it holds something else, or can't be written.
    """
    started, manifest = output / NOTES / "settings.json", output / MANIFEST
    try:
        for path, read in ((manifest, lambda text: json.loads(text)["settings"]), (started, json.loads)):
            if path.is_file():
                if read(path.read_text()) != settings:
                    raise UsageError(f"--output {output}: it holds another preparation; name another folder")
                return json.loads(path.read_text()) if path is manifest else None
        if output.exists() and any(output.iterdir()):
            raise UsageError(f"--output {output}: it holds other files; name a new folder")
        started.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(started, json.dumps(settings))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"--output {output}: cannot be used ({error}); name another folder") from None
    return None


def _write(data: DataConfig, output: Path, shards: list[Shard], workers: int) -> Iterator[tuple[Shard, Written]]:
    """Write shards, several at a time; each as it is done."""
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
            f"--workers {workers}: a worker process was ended from outside, as when memory runs out; complete shards"
            " stay: run the same command again, with fewer workers"
        ) from None
    except OSError as error:
        raise UsageError(
            f"--output {output}: writing failed ({error.strerror or error}); the shards that are complete stay:"
            " run the same command again"
        ) from None


def _finish(source: Any, output: Path, settings: dict[str, Any], done: list[Written]) -> dict[str, Any]:
    """Write TFDS's metadata and, last, the manifest.

    Raises:
      UsageError: nothing could be used.
    """
    tfds = load_tfds()
    records = sum(written.records for written in done)
    skipped = [row for written in done for row in written.skipped]
    if not records:
        raise UsageError(f"none of the {len(source)} photos can be used: {skipped[0][1]}")
    skipped = left_out(source).rows + skipped
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
    """Names of the shards that are missing or whose checksum is another than the manifest's.

    Raises:
      UsageError: no manifest there, or a damaged one.
    """
    from edgesam_jax.data.readers.prepared import read_manifest

    manifest = read_manifest(output)
    if not manifest:
        raise UsageError(f"--verify {output}: no {MANIFEST} in it; give a folder that prepare wrote")
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
    parser.add_argument("--source", choices=kinds, help="what the data set is")
    parser.add_argument("--root", default="", help="its folder")
    parser.add_argument("--annotations", default="", help="coco: the JSON file; found under the folder if not given")
    parser.add_argument("--subset", nargs="+", default=(), help="tars: sa_000020, or sa_000020..sa_000029")
    parser.add_argument("--limit", type=count, default=0, help="the first so many photos; all if not given")
    parser.add_argument("--ids", default="", metavar="FILE", help="the photos of this list, one a line")
    parser.add_argument(
        "--sample", type=count, default=0, metavar="N", help="N photos at random; OUTPUT/ids.txt says which"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--name", default="photos", help="name of the data set in TFDS's file names")
    parser.add_argument("--split", default="train", help="name of the split")
    parser.add_argument("--photos-per-shard", type=count, default=256)
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--max-bad-share", type=share, default=0.01, help="of 1,000 or more photos; beyond it: stop")
    parser.add_argument("--verify", action="store_true", help="check the checksums of OUTPUT and do nothing else")
    return parser


def run(given: argparse.Namespace) -> str:
    """Prepare or verify; returns what to say.

    Raises:
      UsageError: see ``prepare`` and ``verify``; or a flag that does not fit.
    """
    if given.verify:
        damaged = verify(given.output)
        if damaged:
            raise UsageError(f"{given.output}: damaged or missing: {', '.join(damaged)}; prepare it again")
        return f"{given.output}: all shards are as they were written"
    if not given.source:
        raise UsageError("--source: say what the data set is, or --verify")
    if not (given.name.isidentifier() and given.split.isidentifier()):
        raise UsageError(f"--name {given.name} --split {given.split}: use letters, digits and _ alone")
    data = DataConfig(
        source=given.source, root=given.root, annotations=given.annotations, subset=tuple(given.subset),
        limit=given.limit, ids=given.ids,
    )  # fmt: skip
    manifest = prepare(
        data,
        given.output,
        given.name,
        given.split,
        given.photos_per_shard,
        given.workers,
        given.sample,
        given.seed,
        given.max_bad_share,
    )
    left = ", ".join(f"{kind} {count}" for kind, count in manifest["skipped"].items())
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e9
    return (
        f"{manifest['records']} photos, {size:.2f} GB in {len(manifest['shards'])} shards in {given.output};"
        f" left out: {left or 'none'}"
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
