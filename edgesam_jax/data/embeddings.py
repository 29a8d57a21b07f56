"""A store of teacher embeddings: one safetensors file per shard, indexed by the hash of each photo's file.

    ROOT/store.json                          the header of all shards: teacher, preprocessing, shape, dtype, photos
    ROOT/embeddings-00003-of-00430.safetensors

A shard holds ``embedding`` (n g g c), ``scale`` (n c) for int8, ``key`` (n 16) uint8 and ``crc32`` (n) of each row's
bytes.  Its metadata repeat ``store.json``, so that a shard of another store is recognised.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.pixels import AUTO
from edgesam_jax.data.schema import BadExample
from edgesam_jax.portable.frame import Resize

FORMAT = 1
STORE = "store.json"
PREPROCESSING: dict[Resize, str] = {
    "pillow": "sam: longest side to image_size, Pillow bilinear on uint8, normalised, padded with zeros",
    "torch": "sam: longest side to image_size, torch antialiased bilinear on float32, normalised, padded with zeros",
}
StoredType = Literal["float16", "bfloat16", "int8"]
KEY_BYTES = 16
_NUMPY = {"float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}
_PIECE = 1 << 18  # bytes read at a time, so that the checksum finds them in the core's cache


@dataclass(frozen=True)
class StoreHeader:
    """The contents of a store.

    ``teacher`` is the SHA-256 of the encoder's weights, ``source`` its readable name, ``compute_dtype`` that of its
    activations, ``dtype`` that of the stored embeddings.
    """

    teacher: str
    source: str
    image_size: int
    shape: tuple[int, int, int]
    dtype: StoredType
    photos: int
    shards: int
    data: str  # fingerprint of the data set
    preprocessing: str = PREPROCESSING["pillow"]
    pixel_range: str = AUTO
    compute_dtype: str = "float32"
    format: int = FORMAT

    @property
    def resize(self) -> Resize:
        """How the photos were resized."""
        return next(resize for resize, text in PREPROCESSING.items() if text == self.preprocessing)


def photo_key(photo: bytes, pixel_range: str = AUTO) -> bytes:
    """Return a photo's key, so that an embedding is never paired with a different photo.

    The key is a hash of the photo's file and, unless it is ``auto``, of the range that its pixels were read with.
    """
    reading = b"" if pixel_range == AUTO else f"pixel_range={pixel_range}".encode()
    return hashlib.sha256(photo + reading).digest()[:KEY_BYTES]


def shard_name(number: int, count: int) -> str:
    """Return the file name of shard ``number`` of ``count``."""
    return f"embeddings-{number:05d}-of-{count:05d}.safetensors"


# -------------------------------------------------------------------------------------------------------- quantisation


def quantise(embedding: np.ndarray, dtype: StoredType) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert float32 embeddings (n g g c) to the stored type.

    Returns:
      The stored array, and for int8 the float32 scales (n c), which map the largest magnitude of a channel to 127;
      None for the other types.
    """
    if dtype == "float16":
        largest = np.finfo(np.float16).max  # SAM's embeddings stay far below this; a broken teacher's may not
        return np.clip(embedding, -largest, largest).astype(np.float16), None
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(embedding, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None  # to nearest, ties to even
    scale = np.abs(embedding).max((1, 2)) / 127
    steps = embedding / np.where(scale > 0, scale, 1)[:, None, None]
    return np.rint(steps).astype(np.int8), scale.astype(np.float32)


def dequantise(stored: np.ndarray, scale: np.ndarray | None, dtype: StoredType) -> np.ndarray:
    """Convert one stored row (g g c) for the training step: float16 stays as it is, other types become float32."""
    if dtype == "float16":
        return stored
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    assert scale is not None
    return stored * scale.astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ writing


def write_shard(path: Path, header: StoreHeader, keys: list[bytes], embedding: np.ndarray) -> None:
    """Write a shard of ``keys`` and ``embedding`` (n g g c) float32 to a file."""
    from safetensors.numpy import save_file

    stored, scale = quantise(embedding, header.dtype)
    arrays = {
        "embedding": stored,
        "key": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
        "crc32": np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in stored], np.uint32),
    }
    if scale is not None:
        arrays["scale"] = scale
    save_file(arrays, path, {"edgesam_jax": json.dumps(asdict(header))})


# ------------------------------------------------------------------------------------------------------------ reading


def read_header(root: Path) -> StoreHeader:
    """Read the header of a store.

    Raises:
      UsageError: ``root`` holds no store, or its header is damaged or of another version.
    """
    path = root / STORE
    if not path.is_file():
        raise UsageError(f"embeddings {root}: no {STORE} in this folder; pass a folder written by edgesam_jax.embed")
    return _header(path.read_text(), path)


def _header(text: str, path: Path) -> StoreHeader:
    try:
        values = json.loads(text)
        header = StoreHeader(**{**values, "shape": tuple(values["shape"])})
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"embeddings {path}: damaged header; run edgesam_jax.embed again") from None
    if header.format != FORMAT or header.preprocessing not in PREPROCESSING.values():
        raise UsageError(
            f"embeddings {path}: written by another version, with other preprocessing; run edgesam_jax.embed again"
        )
    return header


@dataclass(frozen=True)
class _Shard:
    """Layout of a shard: byte offsets of the first embedding and of the first scale, and the checksum of each row."""

    path: Path
    embedding: int
    scale: int
    crc32: np.ndarray


@dataclass(frozen=True)
class _Index:
    """The place of each key, in sorted arrays: a dictionary would take nine times the memory, in every worker.

    Attributes:
      high, low: halves of the keys, sorted.
      number: of each key, counted over all shards.
      starts: number of each shard's first key.
    """

    high: np.ndarray
    low: np.ndarray
    number: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, shards: Sequence[np.ndarray]) -> _Index:
        """Index the keys (n 16) uint8 of all shards; of equal keys the first one is found."""
        halves = np.concatenate(shards).view(">u8").astype(np.uint64)
        order = np.lexsort((halves[:, 1], halves[:, 0])).astype(np.uint32)
        high, low = halves[order].T
        first = np.ones(len(order), bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        sizes = [len(keys) for keys in shards]
        return cls(high[first], low[first], order[first], np.cumsum([0, *sizes[:-1]]))

    def __len__(self) -> int:
        return len(self.number)

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Return a key's shard and its row there, or None."""
        high, low = struct.unpack(">QQ", key)
        first, end = (np.searchsorted(self.high, np.uint64(high), side) for side in ("left", "right"))
        place = first + np.searchsorted(self.low[first:end], np.uint64(low))
        if place == end or self.low[place] != low:
            return None
        number = int(self.number[place])
        shard = int(np.searchsorted(self.starts, number, "right")) - 1
        return shard, number - int(self.starts[shard])


class EmbeddingStore:
    """Reader of a complete store.  Can be pickled, and holds no open files.

    Raises:
      UsageError: ``root`` holds no store, or a shard is missing, damaged or of another store; the message names it.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self.header = read_header(self._root)
        count = self.header.shards
        absent = [i for i in range(count) if not (self._root / shard_name(i, count)).is_file()]
        if absent:
            raise UsageError(
                f"embeddings {root}: {len(absent)} of {count} shards are missing ({shard_name(absent[0], count)});"
                " run the same edgesam_jax.embed command again"
            )
        self._shards, keys = zip(*(self._open(self._root / shard_name(n, count)) for n in range(count)), strict=True)
        self._index = _Index.of(keys)

    def _open(self, path: Path) -> tuple[_Shard, np.ndarray]:
        """Return a shard's layout and its keys, after checking that it belongs to this store."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                text = (file.metadata() or {}).get("edgesam_jax", "")
                keys, crc32 = file.get_tensor("key"), file.get_tensor("crc32")
            # Rows are read with plain reads: safetensors maps the file, and the kernel reads mapped files in small
            # pieces.
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(size))
            embedding, scale = (
                8 + size + tensors[name]["data_offsets"][0] if name in tensors else 0 for name in ("embedding", "scale")
            )
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"embeddings {path}: damaged shard ({error}); remove it and run edgesam_jax.embed again"
            ) from None
        if _header(text, path) != self.header:
            raise UsageError(f"embeddings {path}: belongs to another store; remove it and run edgesam_jax.embed again")
        return _Shard(path, embedding, scale, crc32), keys

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return self._index.find(key) is not None

    def expect(self, key: bytes) -> None:
        """Start reading a photo's embedding, if stored, into the page cache while the caller does other work."""
        place = self._index.find(key)
        if place is not None and hasattr(os, "posix_fadvise"):
            shard, row = self._shards[place[0]], place[1]
            size = int(np.prod(self.header.shape)) * np.dtype(_NUMPY[self.header.dtype]).itemsize
            with contextlib.suppress(OSError), shard.path.open("rb", buffering=0) as file:  # ``read`` reports errors
                os.posix_fadvise(file.fileno(), shard.embedding + row * size, size, os.POSIX_FADV_WILLNEED)

    def read(self, key: bytes, name: object = "") -> np.ndarray:
        """Read the embedding (g g c) of a photo: float16, or float32 from the other types.

        Args:
          key: the photo's ``photo_key``.
          name: name of the photo in error messages.

        Raises:
          BadExample: the store has no such embedding, or its bytes are not those that were written; the message names
            the shard.
        """
        place = self._index.find(key)
        if place is None:
            raise BadExample(
                "embedding missing",
                f"photo {name}: not in the store {self._root}; run edgesam_jax.embed on its data set",
            )
        shard, row = self._shards[place[0]], place[1]
        stored = np.empty(self.header.shape, _NUMPY[self.header.dtype])
        scale = np.empty(self.header.shape[-1], np.float32) if self.header.dtype == "int8" else None
        try:
            with shard.path.open("rb", buffering=0) as file:
                crc32 = _read(file, shard.embedding + row * stored.nbytes, stored)
                if scale is not None:
                    _read(file, shard.scale + row * scale.nbytes, scale)
        except OSError as error:
            message = f"embeddings {shard.path}: {error.strerror or error}; check the file"
            raise BadExample("embedding unreadable", message) from None
        if crc32 != int(shard.crc32[row]):
            message = f"embeddings {shard.path}: row {row} is damaged; remove this file and run edgesam_jax.embed again"
            raise BadExample("embedding damaged", message)
        return dequantise(stored, scale, self.header.dtype)


def _read(file: io.FileIO, offset: int, array: np.ndarray) -> int:
    """Fill an array from a file, up to the file's end; returns the CRC-32 of the bytes read."""
    file.seek(offset)
    rest, crc32 = array.reshape(-1).view(np.uint8).data, 0
    while rest and (size := file.readinto(rest[:_PIECE])):
        crc32 = zlib.crc32(rest[:size], crc32)
        rest = rest[size:]
    return crc32
