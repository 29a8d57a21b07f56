"""A store of teacher embeddings: one safetensors file a shard, each photo found by the hash of its file's bytes.

    ROOT/store.json                          what every shard is of: teacher, preprocessing, shape, dtype, photos
    ROOT/embeddings-00003-of-00430.safetensors

A shard holds ``embedding`` (n g g c), ``scale`` (n c) for int8, ``key`` (n 16) uint8 and ``crc32`` (n) of each row's
bytes; its header repeats ``store.json``, so that a stray shard says what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.schema import BadExample

FORMAT = 1
STORE = "store.json"
PREPROCESSING = "sam: longest side to image_size, Pillow bilinear on uint8, normalised, padded with zeros"
StoredType = Literal["float16", "bfloat16", "int8"]
KEY_BYTES = 16
_NUMPY = {"float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}
_PIECE = 1 << 18  # bytes of a row that are read at a time: as much as a core's cache holds well


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds.  ``teacher`` is the SHA-256 of the encoder's weights, ``source`` a name for people."""

    teacher: str
    source: str
    image_size: int
    shape: tuple[int, int, int]
    dtype: StoredType
    photos: int
    shards: int
    data: str  # fingerprint of the data set
    preprocessing: str = PREPROCESSING
    format: int = FORMAT


def photo_key(photo: bytes) -> bytes:
    """The key of a photo: of its file's bytes, so that no other photo's embedding can be taken for its own."""
    return hashlib.sha256(photo).digest()[:KEY_BYTES]


def shard_name(number: int, count: int) -> str:
    return f"embeddings-{number:05d}-of-{count:05d}.safetensors"


# ------------------------------------------------------------------------------------------------------------ numbers


def quantise(embedding: np.ndarray, dtype: StoredType) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 (n g g c) as it is stored, and for int8 the scales (n c): the largest magnitude of a channel is 127."""
    if dtype == "float16":
        largest = np.finfo(np.float16).max  # SAM's embeddings stay far below; a broken teacher's need not
        return np.clip(embedding, -largest, largest).astype(np.float16), None
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(embedding, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None  # to nearest, ties to even
    scale = np.abs(embedding).max((1, 2)) / 127
    steps = embedding / np.where(scale > 0, scale, 1)[:, None, None]
    return np.rint(steps).astype(np.int8), scale.astype(np.float32)


def dequantise(stored: np.ndarray, scale: np.ndarray | None, dtype: StoredType) -> np.ndarray:
    """One row (g g c) as it goes to the step: float16 as it is, else float32."""
    if dtype == "float16":
        return stored
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    assert scale is not None
    return stored * scale.astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ writing


def write_shard(path: Path, header: StoreHeader, keys: list[bytes], embedding: np.ndarray) -> None:
    """Write a shard of ``embedding`` (n g g c) float32 to a file."""
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
    """The header of a store.

    Raises:
      UsageError: no store there, or one that is damaged or of another version.
    """
    path = root / STORE
    if not path.is_file():
        raise UsageError(f"embeddings {root}: no {STORE} in it; name a folder that edgesam_jax.embed wrote")
    return _header(path.read_text(), path)


def _header(text: str, path: Path) -> StoreHeader:
    try:
        values = json.loads(text)
        header = StoreHeader(**{**values, "shape": tuple(values["shape"])})
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"embeddings {path}: its header is damaged; embed again") from None
    if (header.format, header.preprocessing) != (FORMAT, PREPROCESSING):
        raise UsageError(f"embeddings {path}: made by another version, with other preprocessing; embed again")
    return header


@dataclass(frozen=True)
class _Shard:
    """Where a shard's rows lie: byte offsets of the first embedding and of the first scale, and each row's checksum."""

    path: Path
    embedding: int
    scale: int
    crc32: np.ndarray


class EmbeddingStore:
    """Reads a complete store.  Pickles, and holds no open files.

    Raises:
      UsageError: no store there, shards that are missing or of another store, or a damaged one, named.
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
        self._shards: list[_Shard] = []
        self._rows: dict[bytes, tuple[int, int]] = {}
        for number in range(count):
            shard, keys = self._open(self._root / shard_name(number, count))
            self._shards.append(shard)
            self._rows.update((bytes(key), (number, row)) for row, key in enumerate(keys))

    def _open(self, path: Path) -> tuple[_Shard, np.ndarray]:
        """A shard's places and its keys, having checked that it is one of this store."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                text = (file.metadata() or {}).get("edgesam_jax", "")
                keys, crc32 = file.get_tensor("key"), file.get_tensor("crc32")
            # Rows are read by ourselves: safetensors maps the file, and the kernel reads a mapped file in small pieces.
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                places = json.loads(file.read(size))
            embedding, scale = (
                8 + size + places[name]["data_offsets"][0] if name in places else 0 for name in ("embedding", "scale")
            )
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UsageError(f"embeddings {path}: damaged shard ({error}); remove it and embed again") from None
        if _header(text, path) != self.header:
            raise UsageError(f"embeddings {path}: a shard of another store; remove it and embed again")
        return _Shard(path, embedding, scale, crc32), keys

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def expect(self, key: bytes) -> None:
        """Have the disk read a photo's embedding, if it is there, while the caller does something else."""
        place = self._rows.get(key)
        if place is not None and hasattr(os, "posix_fadvise"):
            shard, row = self._shards[place[0]], place[1]
            size = int(np.prod(self.header.shape)) * np.dtype(_NUMPY[self.header.dtype]).itemsize
            with contextlib.suppress(OSError), shard.path.open("rb", buffering=0) as file:  # reading will tell
                os.posix_fadvise(file.fileno(), shard.embedding + row * size, size, os.POSIX_FADV_WILLNEED)

    def read(self, key: bytes, name: object = "") -> np.ndarray:
        """The embedding (g g c) of a photo: float16, or float32 from the other types.

        Raises:
          BadExample: the store hasn't it, or its bytes are not those that were written; the shard is named.
        """
        place = self._rows.get(key)
        if place is None:
            raise BadExample("embedding missing", f"photo {name}: not in the store {self._root}; embed this data set")
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
            message = f"embeddings {shard.path}: row {row} is damaged; remove it and embed again"
            raise BadExample("embedding damaged", message)
        return dequantise(stored, scale, self.header.dtype)


def _read(file: io.FileIO, offset: int, array: np.ndarray) -> int:
    """Fill an array from an offset of a file, as far as that goes; returns the checksum of what was read."""
    file.seek(offset)
    rest, crc32 = array.reshape(-1).view(np.uint8).data, 0
    while rest and (size := file.readinto(rest[:_PIECE])):
        crc32 = zlib.crc32(rest[:size], crc32)
        rest = rest[size:]
    return crc32
