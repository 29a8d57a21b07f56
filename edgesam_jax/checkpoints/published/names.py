"""Convert between published parameter names and this project's parameter tree. Needs numpy only.

One path rule and one table of leaf kinds cover all models.

Path rule: an integer segment folds into its predecessor with ``_``
(``features.0.0.c.weight`` <-> ``features_0_0/c/kernel``).

Leaf kinds (torch layout -> ours)::

    weight, 4-D                conv O I H W -> kernel H W I O (depthwise C 1 k k -> k k 1 C is the same permutation)
    weight, 4-D, transposed    I O H W -> kernel H W I O, unflipped
    weight, 2-D                linear O I -> kernel I O
    weight, 1-D                norm -> scale
    weight of an embedding     unchanged -> embedding
    bias, pos_embed, rel_pos_h, rel_pos_w, lora_A, lora_B, attention_biases, fusion_weights: unchanged
    running_mean, running_var  -> collection batch_stats: mean, var
    num_batches_tracked        -> no leaf: returned as counts, which make the way back exact
    positional_encoding_gaussian_matrix -> collection constants

Conversions are strict: ``check`` reports all entries that are missing, left over or misshapen at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesam_jax.config import UsageError

Array = np.ndarray
Tree = dict[str, Any]

EMBEDDINGS = re.compile(
    r"(point_embeddings(_\d+)?|not_a_point_embed|no_mask_embed|iou_token|mask_tokens"
    r"|invalid_points|bbox_(top_left|bottom_right)_embeddings)$"  # EfficientSAM's
)
TRANSPOSED = re.compile(r"(^|/)(output_upscaling_\d+|final_output_upscaling_layers_\d_0)$")
CONSTANTS = ("positional_encoding_gaussian_matrix",)
STATISTICS = {"running_mean": "mean", "running_var": "var"}
COUNT = "num_batches_tracked"
UNCHANGED = ("bias", "pos_embed", "rel_pos_h", "rel_pos_w", "lora_A", "lora_B", "attention_biases", "fusion_weights")
TINY_VIT = "image_encoder.patch_embed.seq.0.c.weight"  # in every MobileSAM file
CLASSIFIER = re.compile(
    r"image_encoder\.(norm_head|head)\.(weight|bias)$"
)  # TinyViT's unused head, in every MobileSAM file
BUFFERS = ("pixel_mean", "pixel_std")  # SAM's normalisation, in some exports; a constant here

FROM_OIHW, TO_OIHW = (2, 3, 1, 0), (3, 2, 0, 1)
FROM_IOHW, TO_IOHW = (2, 3, 0, 1), (2, 3, 0, 1)


# ------------------------------------------------------------------------------------------------------ one name


def fold_path(published: str) -> str:
    """Convert a published path: ``features.0.0.c`` -> ``features_0_0/c``."""
    segments: list[str] = []
    for segment in published.split("."):
        if segment.isdigit() and segments:
            segments[-1] += f"_{segment}"
        else:
            segments.append(segment)
    return "/".join(segments)


def unfold_path(path: str) -> str:
    """Invert ``fold_path``: ``features_0_0/c`` -> ``features.0.0.c``."""
    segments: list[str] = []
    for segment in path.split("/"):
        digits = []
        while match := re.fullmatch(r"(.+)_(\d+)", segment):
            segment = match[1]
            digits.append(match[2])
        segments += [segment, *reversed(digits)]
    return ".".join(segments)


def leaf_to_ours(published: str, ndim: int) -> tuple[str, str, tuple[int, ...]] | None:
    """Return (collection, path, permutation) of a published entry of ``ndim`` axes; None if no rule matches.

    ``num_batches_tracked`` belongs to no collection; "counts" is returned as its name.
    """
    module, _, leaf = published.rpartition(".")
    folder = fold_path(module)
    same = tuple(range(ndim))

    def at(name: str) -> str:
        return f"{folder}/{name}" if folder else name

    if leaf == COUNT:
        return "counts", at(leaf), same
    if leaf in CONSTANTS:
        return "constants", at(leaf), same
    if leaf in STATISTICS:
        return "batch_stats", at(STATISTICS[leaf]), same
    if leaf in UNCHANGED:
        return "params", at(leaf), same
    if leaf != "weight":
        return None
    if EMBEDDINGS.search(folder):
        return "params", at("embedding"), same
    if ndim == 4:
        return "params", at("kernel"), FROM_IOHW if TRANSPOSED.search(folder) else FROM_OIHW
    if ndim == 2:
        return "params", at("kernel"), (1, 0)
    return ("params", at("scale"), same) if ndim == 1 else None


def leaf_to_published(collection: str, path: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Return (published name, permutation) of a leaf; the inverse of ``leaf_to_ours``.

    Raises:
      UsageError: no published model has such a leaf.
    """
    folder, _, leaf = path.rpartition("/")
    module = unfold_path(folder) + "." if folder else ""
    same = tuple(range(ndim))
    if collection == "constants" and leaf in CONSTANTS:
        return module + leaf, same
    if collection == "batch_stats":
        for theirs, ours in STATISTICS.items():
            if leaf == ours:
                return module + theirs, same
    if collection == "params":
        if leaf in UNCHANGED:
            return module + leaf, same
        if leaf in ("scale", "embedding"):
            return module + "weight", same
        if leaf == "kernel" and ndim == 2:
            return module + "weight", (1, 0)
        if leaf == "kernel" and ndim == 4:
            return module + "weight", TO_IOHW if TRANSPOSED.search(folder) else TO_OIHW
    raise UsageError(f"{collection}/{path}: no published model has such a parameter; nothing was converted")


# ------------------------------------------------------------------------------------------------------ entire trees


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a/b/c": leaf}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def expected_shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    """Return {published name: published shape} of all leaves of a tree, whose leaves are arrays or shapes.

    Every batch norm also gets its ``num_batches_tracked``.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for collection, content in tree.items():
        for path, leaf in flatten(content).items():
            name, order = leaf_to_published(collection, path, len(leaf.shape))
            shapes[name] = tuple(leaf.shape[axis] for axis in order)
            if name.endswith(".running_var"):
                shapes[name.removesuffix("running_var") + COUNT] = ()
    return shapes


def check(source: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Compare published entries with a model's expected shapes.

    Raises:
      UsageError: one report of all entries that are missing, left over, misshapen, of a wrong type or not finite.
    """
    lines = [f"missing: {name} {list(expected[name])}" for name in expected if name not in source]
    lines += [f"left over: {name} {list(source[name].shape)}" for name in source if name not in expected]
    for name, array in source.items():
        if name not in expected:
            continue
        if array.shape != expected[name]:
            lines.append(f"misshapen: {name} is {list(array.shape)}, the model has {list(expected[name])}")
        elif array.dtype.kind not in ("iu" if name.endswith(COUNT) else "f"):
            lines.append(f"wrong type: {name} is {array.dtype}")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            lines.append(f"not finite: {name}")
    if lines:
        counts: dict[str, int] = {}
        for line in lines:
            kind = line.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
        summary = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        raise UsageError(f"{what}: {summary}: " + "; ".join(lines))


def to_tree(published: Mapping[str, Array]) -> tuple[Tree, dict[str, int]]:
    """Convert published entries to a tree.

    Returns:
      ``params``, ``batch_stats`` and ``constants`` of float32 arrays, and the counts by published module name.

    Raises:
      UsageError: an entry that no rule matches.
    """
    tree: Tree = {"params": {}, "batch_stats": {}, "constants": {}}
    counts: dict[str, int] = {}
    for name, array in published.items():
        rule = leaf_to_ours(name, array.ndim)
        if rule is None:
            raise UsageError(f"{name} {list(array.shape)}: not an entry of a SAM-family model")
        collection, path, order = rule
        if collection == "counts":
            counts[name.removesuffix("." + COUNT)] = int(array)
            continue
        *folders, leaf = path.split("/")
        node = tree[collection]
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = np.ascontiguousarray(array.transpose(order), dtype=np.float32)
    return tree, counts


def to_published(tree: Tree, counts: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Invert ``to_tree``. Batch norms that are not in ``counts`` get 0, as in a new torch module.

    Raises:
      UsageError: a leaf that no published model has.
    """
    published: dict[str, Array] = {}
    for collection, content in tree.items():
        for path, leaf in flatten(content).items():
            array = np.asarray(leaf)
            name, order = leaf_to_published(collection, path, array.ndim)
            published[name] = np.ascontiguousarray(array.transpose(order))
            if name.endswith(".running_var"):
                module = name.removesuffix(".running_var")
                published[f"{module}.{COUNT}"] = np.asarray((counts or {}).get(module, 0), np.int64)
    return published
