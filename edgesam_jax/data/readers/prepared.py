"""Prepared data sets: ArrayRecord shards in TFDS's layout, with photos as the bytes of their original files.

    ROOT/NAME-SPLIT.array_record-00000-of-00010    records, with random access
    ROOT/features.json, ROOT/dataset_info.json     TFDS's metadata, for ``tfds.builder_from_directory(ROOT)``
    ROOT/prepared.json                             the origin, checksums and skipped photos

Reads and writes without TensorFlow.  Some of TFDS's own data sets can be read as well: see ``tfds_layouts``.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.annotations import box_of
from edgesam_jax.data.readers.records import Record, decode_record
from edgesam_jax.data.readers.tfds_layouts import Layout, decoders, layout_of
from edgesam_jax.data.schema import BadExample, Example
from edgesam_jax.data.source import Keep
from edgesam_jax.files import read_json

MANIFEST = "prepared.json"
FORMAT = 1


def load_tfds() -> Any:
    """Import and return ``tensorflow_datasets``, which takes half a second and is therefore imported on use."""
    import tensorflow_datasets

    return tensorflow_datasets


@functools.cache
def features() -> Any:
    """Return the TFDS features of a record.

    ``image_id`` is JSON (a number or a string); ``counts`` is empty for an instance without a mask.
    """
    tfds = load_tfds()
    f = tfds.features
    return f.FeaturesDict(
        {
            "image": {
                "content": f.Image(shape=(None, None, 3)),
                "file_name": f.Text(),
                "image_id": f.Text(),
                "height": np.int64,
                "width": np.int64,
            },
            "annotations": f.Sequence(
                {
                    "id": np.int64,
                    "category_id": np.int64,
                    "area": np.float32,
                    "box": f.Tensor(shape=(4,), dtype=np.float32),  # XYXY in pixels
                    "point_coords": f.Tensor(shape=(1, 2), dtype=np.float32),
                    "segmentation": {"counts": f.Text(), "size": f.Tensor(shape=(2,), dtype=np.int64)},
                }
            ),
        }
    )


def encode(record: Record) -> bytes:
    """Serialise a record with complete annotations (``prepare.complete``) as a ``tf.train.Example``."""
    assert record.size is not None
    height, width = record.size
    annotations = [
        {
            "id": int(a["id"]),
            "category_id": int(a.get("category_id", 0)),
            "area": float(a["area"]),
            "box": box_of(a["bbox"]).tolist(),
            "point_coords": [[float(v) for v in a["point_coords"][0]]],
            "segmentation": {
                "counts": a["segmentation"]["counts"] if "segmentation" in a else "",
                "size": [height, width],
            },
        }
        for a in record.annotations
    ]
    image = {
        "content": io.BytesIO(record.photo),
        "file_name": Path(record.name).name,
        "image_id": json.dumps(record.image_id),
        "height": height,
        "width": width,
    }
    return _serializer().serialize_example(features().encode_example({"image": image, "annotations": annotations}))


@functools.cache
def _serializer() -> Any:
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(features().get_serialized_info())


class PreparedSource:
    """A data set written by ``edgesam_jax.prepare`` or TFDS.

    Args:
      root: the folder with ``dataset_info.json``.
      split: name of the split; if empty, the only split, or "train" of several.
      limit: keep only the first ``limit`` photos; 0 keeps all.

    Raises:
      UsageError: the folder is missing or TFDS can't read it, the split doesn't exist, or shards are missing.
    """

    def __init__(self, root: str | Path, split: str = "", limit: int = 0) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UsageError(f"data root {str(root)!r}: no such folder; pass a folder written by edgesam_jax.prepare")
        if not (folder / "dataset_info.json").is_file():
            unfinished = (
                "preparation not finished: run the same command again to resume" if any(folder.iterdir()) else "empty"
            )
            raise UsageError(f"{folder}: no dataset_info.json in it; {unfinished}, or pass another folder")
        self._root, self._split = str(root), split
        manifest = read_manifest(folder)
        self._data: Any = None
        self._layout: Layout
        total = len(self._open())
        self.annotated = bool(manifest.get("annotated", True))
        self.true_masks = bool(manifest.get("true_masks", self._layout.true_masks))
        self._length = min(limit or total, total)
        if not self._length:
            raise UsageError(f"{folder}: no record in it; prepare the data set again")

    def _open(self) -> Any:
        """Return the records, opened once per process."""
        if self._data is None:
            tfds = load_tfds()
            try:
                builder = tfds.builder_from_directory(self._root)
                splits = list(builder.info.splits)
                split = self._split or (splits[0] if len(splits) == 1 else "train")
                if split not in splits:
                    raise UsageError(f"{self._root}: no split {split!r}; it has {', '.join(splits)}")
                layout = layout_of(builder.info.features)
                if layout is None:
                    names = ", ".join(sorted(builder.info.features))
                    raise UsageError(
                        f"{self._root}: features ({names}) not supported; use segment_anything, coco, lvis or a data"
                        " set written by edgesam_jax.prepare"
                    )
                self._layout = layout
                self._data = builder.as_data_source(split=split, decoders=decoders(layout, tfds))
            except UsageError:
                raise
            except Exception as error:  # TFDS and ArrayRecord raise many types
                first = (str(error).splitlines() or [""])[0][:200]
                raise UsageError(f"{self._root}: the data set can't be read ({first}); prepare it again") from None
        return self._data

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_layout"} | {"_data": None}

    def __len__(self) -> int:
        return self._length

    def load(self, index: int, keep: Keep | None = None) -> Example:
        """Read one example; see ``Source.load``."""
        return decode_record(self.record(index), keep)

    def record(self, index: int) -> Record:
        """Read a photo's file and its annotations."""
        stored, name = self._stored(index)
        where = f"{self._root}: record {index} ({name})"
        try:
            return self._layout.record(stored, where)
        except BadExample:
            raise
        except Exception as error:  # content that doesn't match the features, or a damaged PNG
            raise _damaged(self._root, index, error) from None

    def names(self) -> list[str]:
        """Return the photos' file names.  Reads every record, since the names are stored inside."""
        bar = tqdm(range(self._length), f"names in {self._root}", unit="record", leave=False, disable=None)
        return [self._stored(index)[1] for index in bar]

    def _stored(self, index: int) -> tuple[Any, str]:
        """Return a record as TFDS decodes it, and the name of its photo."""
        data = self._open()
        try:
            stored = data[index]
            return stored, self._layout.name(stored)
        except Exception as error:  # a damaged shard raises errors of ArrayRecord, protobuf or TFDS
            raise _damaged(self._root, index, error) from None


def _damaged(root: str, index: int, error: Exception) -> BadExample:
    first = (str(error).splitlines() or [""])[0][:120]
    return BadExample("record damaged", f"{root}: record {index} is damaged ({first}); prepare the data set again")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``prepared.json``; empty for a data set that TFDS wrote.

    Raises:
      UsageError: the file is damaged or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = read_json(path, "data set")
        version = manifest["format"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}: damaged; prepare the data set again") from None
    if version != FORMAT:
        raise UsageError(f"{path}: format {version} instead of {FORMAT}; prepare the data set again")
    return manifest
