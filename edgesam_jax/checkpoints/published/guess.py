"""Infer the model in a published file from the names and shapes of its entries."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.unwrap import first_segments
from edgesam_jax.config import STUDENTS, ProposalConfig, SamConfig, UsageError
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.sam import MODELS

Shapes = Mapping[str, tuple[int, ...]]
ENCODER = "image_encoder."
SIZES = {  # config fields that distinguish models of the same kind
    "vit": ("width", "depth"), "plain_vit": ("width", "depth"), "tiny_vit": ("widths", "depths", "fuse"),
    "efficient_vit": ("widths",),
}  # fmt: skip

# Prefixes of entries of related models, for a clear error message.
STRANGERS = {
    "image_encoder.backbone.": "EfficientViT-SAM",
    "image_encoder.trunk.": "SAM 2",
    "vision_encoder.": "a transformers export of SAM (its names differ from the published file's)",
}


@functools.cache
def published_shapes(config: SamConfig) -> Shapes:
    """Return {published name: published shape} of all entries of a model."""
    return names.expected_shapes(abstract_variables(config))


def guess(shapes: Shapes, what: str) -> tuple[str, SamConfig]:
    """Return the name and config of the known model that is nearest to the entries of a complete model.

    The caller must then check the entries strictly against the config, so that an incomplete file is reported and not
    mistaken for another model. Fusion (``fuse``), LoRA and proposals are inferred from the entries.

    Raises:
      UsageError: no known image encoder.
    """
    for prefix, stranger in STRANGERS.items():
        if any(name.startswith(prefix) for name in shapes):
            raise UsageError(
                f"{what}: contains {stranger}, which is not supported; use a file of EdgeSAM, SAM or MobileSAM"
            )
    found = _features(shapes)
    if found is None:
        raise UsageError(
            f"{what}: not a known model: none of its {len(shapes)} entries is of an EdgeSAM or SAM image encoder "
            f"(image_encoder.features.* or image_encoder.blocks.*); their names start with {first_segments(shapes)}"
        )
    name = min(MODELS, key=lambda known: _distance(architecture(MODELS[known]), found))
    return name, with_variant(MODELS[name], shapes)


def with_variant(config: SamConfig, shapes: Shapes) -> SamConfig:
    """Return ``config`` with fusion, LoRA and proposals set according to the entries."""
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(".lora_A")}
    config = replace(config, decoder=replace(config.decoder, lora_rank=max(ranks, default=0)))
    if isinstance(config.encoder, STUDENTS):
        fuse = any(name.startswith(ENCODER + "fuse_stage") for name in shapes)
        config = replace(config, encoder=replace(config.encoder, fuse=fuse))
    if any(name.startswith("proposals.") for name in shapes):
        config = replace(config, proposals=ProposalConfig())
    return config


def is_bare_encoder(entries: Mapping[str, Any]) -> bool:
    """Return whether the entries are an image encoder's without its prefix (stage 1 of the published training)."""
    parts = r"(features|fuse_stage\d|neck|pos_embed|patch_embed|blocks|layers|input_stem|stages)\b"
    return bool(entries) and all(re.match(parts, name) for name in entries)


def _features(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that the entries reveal, named as in ``architecture``; None without an image encoder."""
    neck = shapes.get(ENCODER + "neck.2.weight", (0,))[0]
    mlp = shapes.get("mask_decoder.transformer.layers.0.mlp.lin1.weight", (0,))[0]
    common = {"embed_dim": neck, "mlp_dim": mlp}
    positions = shapes.get(ENCODER + "pos_embed", ())
    if len(positions) == 3:  # EfficientSAM's: a class token and patches; SAM's is a map
        plain_mlp = shapes.get("mask_decoder.transformer.layers.0.mlp.layers.0.0.weight", (0,))[0]
        depth = max(_indices(shapes, r"image_encoder\.blocks\.(\d+)\."), default=-1) + 1
        common = {"embed_dim": neck, "mlp_dim": plain_mlp}
        return {**common, "kind": "plain_vit", "width": positions[2], "depth": depth}
    blocks = _indices(shapes, r"image_encoder\.blocks\.(\d+)\.")
    if blocks:
        width = shapes.get(ENCODER + "patch_embed.proj.weight", shapes.get(ENCODER + "neck.0.weight", (0,)))[0]
        return {**common, "kind": "vit", "width": width, "depth": max(blocks) + 1}
    stages = _indices(shapes, r"image_encoder\.downsample\.(\d+)\.")
    if stages:
        widths = tuple(shapes[f"{ENCODER}downsample.{i}.weight"][0] for i in stages)
        depths = tuple(len(_indices(shapes, rf"image_encoder\.stages\.{i}\.(\d+)\.")) for i in stages)
        return {**common, "kind": "conv", "widths": widths, "depths": depths}
    layers = _indices(shapes, r"image_encoder\.layers\.(\d+)\.blocks")
    if layers:
        counts = [len(_indices(shapes, rf"image_encoder\.layers\.{i}\.blocks\.(\d+)\.")) for i in layers]
        merged = [shapes.get(f"{ENCODER}layers.{i}.downsample.conv1.c.weight", (0,))[0] for i in layers[:-1]]
        stem = shapes.get(ENCODER + "patch_embed.seq.2.c.weight", (0,))[0]
        fuse = f"{ENCODER}fuse_stage2.weight" in shapes
        return {**common, "kind": "tiny_vit", "widths": (stem, *merged), "depths": tuple(counts), "fuse": fuse}
    stages = _indices(shapes, r"image_encoder\.stages\.(\d+)\.op_list")
    if stages:
        stem = shapes.get(ENCODER + "input_stem.op_list.0.conv.weight", (0,))[0]
        ends = (shapes.get(f"{ENCODER}stages.{i}.op_list.0.main.point_conv.conv.weight", (0,))[0] for i in stages)
        return {**common, "kind": "efficient_vit", "widths": (stem, *ends)}
    features = _indices(shapes, r"image_encoder\.features\.(\d+)\.")
    if not features:
        return None
    entries = [n for n in features if f"{ENCODER}features.{n}.token_mixer.2.c.weight" in shapes]
    starts = [1, *entries, max(features) + 1]
    depths = tuple(b - a for a, b in itertools.pairwise(starts))
    stem = shapes.get(ENCODER + "features.0.2.c.weight", (0,))[0]
    widths = (stem, *(shapes[f"{ENCODER}features.{n}.token_mixer.2.c.weight"][0] for n in entries))
    return {**common, "kind": "repvit", "widths": widths, "depths": depths}


def architecture(config: SamConfig) -> dict[str, Any]:
    """Return the config fields that tell known models apart: the image encoder's kind and sizes, and two widths."""
    encoder = config.encoder
    plain = dataclasses.asdict(encoder)
    distinctive = {name: plain[name] for name in ("kind", *SIZES.get(encoder.kind, ("widths", "depths")))}
    return {**distinctive, "embed_dim": config.embed_dim, "mlp_dim": config.decoder.mlp_dim}


def _distance(known: dict[str, Any], found: dict[str, Any]) -> int:
    if known["kind"] != found["kind"]:
        return 100
    return sum(known[name] != value for name, value in found.items())


def _indices(shapes: Shapes, pattern: str) -> list[int]:
    return sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})
