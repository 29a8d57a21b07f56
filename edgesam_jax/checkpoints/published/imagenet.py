"""Backbones of ImageNet classifiers, to start stage 1 from.

Supports RepViT, TinyViT and EfficientViT, each in its authors' files and in timm's.

Entries are renamed to those of this project's image encoder, and the classifier is dropped. The files contain no fusion
layers and no neck: ``train.init_from`` leaves these, and the decoder, at their initial values.

Source: docs/published_code.md, "Other models" (names, and the two generations of RepViT).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.guess import ENCODER, guess, published_shapes
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.models.fold import EPSILON
from edgesam_jax.models.sam import MODELS

Arrays = dict[str, np.ndarray]
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
END = re.compile(
    rf"{re.escape(ENCODER)}(fuse_stage\d|neck)\."
)  # parts of the encoder that don't belong to the backbone
OTHER = re.compile(
    r"(neck|fuse_stage\d|prompt_encoder|mask_decoder|image_encoder)\."
)  # entries of a segmentation model

TIMM_TINY_VIT: Rules = (
    (r"^patch_embed\.conv1\.", "patch_embed.seq.0."),
    (r"^patch_embed\.conv2\.", "patch_embed.seq.2."),
    (r"\.conv\.", ".c."),
    (r"^stages\.(\d+)\.blocks\.", r"layers.\1.blocks."),
)
TIMM_EFFICIENT_VIT: Rules = (
    (r"^stem\.in_conv\.", "input_stem.op_list.0."),
    (r"^stem\.res(\d+)\.", lambda m: f"input_stem.op_list.{int(m[1]) + 1}."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1.op_list."),
)
TIMM_REPVIT_BLOCK: Rules = (
    (r"\.token_mixer\.", ".token_mixer.0."),
    (r"\.se\.", ".token_mixer.1."),
    (r"\.spatial_downsample\.", ".token_mixer.0."),
    (r"\.channel_downsample\.", ".token_mixer.2."),
    (r"\.(channel_mixer|ffn)\.conv1\.", ".channel_mixer.m.0."),
    (r"\.(channel_mixer|ffn)\.conv2\.", ".channel_mixer.m.2."),
)


class Layout(NamedTuple):
    """How to recognise one kind of file, and how to rename its entries to those of the encoder (without prefix)."""

    title: str
    mark: str  # an entry that only this kind has
    licence: str
    head: str  # regular expression of the classifier's entries
    rename: Callable[[Arrays], Arrays]


def _renamed(entries: Arrays, rules: Rules) -> Arrays:
    out = {}
    for name, value in entries.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        out[name] = value
    return out


def _timm_tiny_vit(entries: Arrays) -> Arrays:
    def moved(name: str) -> str:  # timm assigns a down-sampling to the stage after it
        return re.sub(r"^stages\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)

    return _renamed({moved(name): value for name, value in entries.items()}, TIMM_TINY_VIT)


def _timm_repvit(entries: Arrays) -> Arrays:
    """Convert stages, and down-samplings that each begin with an extra block, to one list of blocks."""
    depths: dict[int, int] = {}
    for name in entries:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            depths[int(match[1])] = max(depths.get(int(match[1]), 0), int(match[2]) + 1)
    first, number = {}, 1  # stage -> its first entry in features
    for stage in sorted(depths):
        first[stage] = number
        number += depths[stage] + (2 if stage else 0)

    def moved(name: str) -> str:
        name = re.sub(r"^stem\.conv1\.", "features.0.0.", re.sub(r"^stem\.conv2\.", "features.0.2.", name))
        match = re.match(r"stages\.(\d+)\.(downsample\.pre_block|downsample|blocks\.(\d+))\.", name)
        if match is None or int(match[1]) not in first:
            return name
        at = first[int(match[1])]
        if match[3] is not None:
            at += int(match[3]) + (2 if int(match[1]) else 0)
        elif not match[2].endswith("pre_block"):
            at += 1
        return f"features.{at}.{name[match.end() :]}"

    return _repvit(_renamed({moved(name): value for name, value in entries.items()}, TIMM_REPVIT_BLOCK))


def _repvit(entries: Arrays) -> Arrays:
    """Convert depthwise units of the second generation (M0.9) to equivalent ones of the first; keep all other entries.

    In the second generation a unit is BN(conv3x3 + 1x1 with bias + identity). With the outer norm written as s x + t:
    s is multiplied into the 3x3's norm; the 1x1 becomes s (w + 1) - 1, because the identity branch stays unscaled; and
    the 1x1's norm, otherwise the identity, adds s b + t.
    """
    units = [name.removesuffix(".conv1.weight") for name in entries if name.endswith("token_mixer.0.conv1.weight")]
    out = dict(entries)
    fields = (
        "conv1.weight", "conv1.bias", "conv.bn.weight", "conv.bn.bias",
        "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
    )  # fmt: skip
    for unit in units:
        try:
            count = out.pop(f"{unit}.bn.{names.COUNT}")
            taken = [np.asarray(out.pop(f"{unit}.{name}"), np.float64) for name in fields]
        except KeyError as error:
            raise UsageError(f"missing: {error.args[0]}, an entry of a second-generation RepViT") from None
        weight, bias, inner_scale, inner_bias, scale, shift, mean, var = taken
        s = scale / np.sqrt(var + EPSILON)
        ones = np.ones_like(s)
        new = {
            "conv.bn.weight": inner_scale * s, "conv.bn.bias": inner_bias * s,
            "conv1.c.weight": s[:, None, None, None] * (weight + 1) - 1,
            "conv1.bn.weight": ones * np.sqrt(1 + EPSILON), "conv1.bn.bias": s * bias + shift - mean * s,
            "conv1.bn.running_mean": 0 * ones, "conv1.bn.running_var": ones,
        }  # fmt: skip
        out |= {f"{unit}.{name}": value.astype(np.float32) for name, value in new.items()}
        out[f"{unit}.conv1.bn.{names.COUNT}"] = count
    return out


def _efficient_vit(entries: Arrays) -> Arrays:
    return {name.removeprefix("backbone."): value for name, value in entries.items()}


APACHE = "the weights are under Apache-2.0"
LAYOUTS = (
    Layout("RepViT", "features.0.0.c.weight", APACHE, r"classifier\.", _repvit),
    Layout("RepViT (timm)", "stem.conv1.c.weight", APACHE, r"head\.", _timm_repvit),
    Layout("TinyViT", "patch_embed.seq.0.c.weight", "the weights are under MIT", r"(norm_head|head)\.", dict),
    Layout("TinyViT (timm)", "patch_embed.conv1.conv.weight", "the weights are under MIT", r"head\.", _timm_tiny_vit),
    Layout("EfficientViT", "backbone.input_stem.op_list.0.conv.weight", APACHE, r"head\.", _efficient_vit),
    Layout(
        "EfficientViT (timm)", "stem.in_conv.conv.weight", APACHE, r"head\.",
        lambda entries: _renamed(entries, TIMM_EFFICIENT_VIT),
    ),
)  # fmt: skip


def layout_of(entries: Mapping[str, object]) -> Layout | None:
    """Return the layout of an ImageNet classifier's entries, or None for other files."""
    if any(OTHER.match(name) for name in entries):
        return None
    return next((layout for layout in LAYOUTS if layout.mark in entries), None)


def backbone(entries: Arrays, layout: Layout, model_name: str | None, what: str) -> tuple[str, SamConfig, Arrays]:
    """Return the name and config of the model that a classifier's backbone belongs to, and the renamed entries.

    Raises:
      UsageError: entries are missing, left over or misshapen (one report lists all); or the model is unknown.
    """
    kept = {n: v for n, v in entries.items() if not re.match(layout.head, n) and not n.endswith("attention_bias_idxs")}
    try:
        renamed = {ENCODER + name: value for name, value in layout.rename(kept).items()}
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    if model_name is None:
        model_name, _ = guess({name: value.shape for name, value in renamed.items()}, what)
        if model_name == "mobile_sam":  # same backbone, but the student is the model to train from ImageNet weights
            model_name = "edge_sam_tiny_vit"
    config = MODELS[model_name]
    shapes = published_shapes(config)
    expected = {n: s for n, s in shapes.items() if n.startswith(ENCODER) and not END.match(n)}
    names.check(renamed, expected, f"{what} ({layout.title}, as the backbone of {model_name})")
    return model_name, config, renamed
