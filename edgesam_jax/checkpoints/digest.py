"""Checksums over trees of arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np

from edgesam_jax.checkpoints.model import Model


def digest_of(tree: Any) -> str:
    """Return the SHA-256 over a tree's names, shapes, types and bytes. Orbax itself doesn't notice flipped bits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def json_digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON content. JSON preserves every number exactly."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def encoder_digest(model: Model) -> str:
    """Return the SHA-256 of everything an embedding depends on: the image encoder's weights and config."""
    parts = {name: tree["image_encoder"] for name, tree in model.variables.items() if "image_encoder" in tree}
    encoder = {name: value for name, value in dataclasses.asdict(model.config.encoder).items() if name != "remat"}
    settings = encoder, model.config.image_size, model.config.embed_dim
    return hashlib.sha256(f"{digest_of(parts)} {json.dumps(settings)}".encode()).hexdigest()
