"""Read published files, and files that training systems saved, as models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgesam_jax.checkpoints.model import BACKBONE, Model
from edgesam_jax.checkpoints.published import imagenet, names
from edgesam_jax.checkpoints.published.entries import Arrays, read_flat
from edgesam_jax.checkpoints.published.guess import ENCODER, guess, is_bare_encoder, published_shapes, with_variant
from edgesam_jax.config import SamConfig, UsageError, check_values
from edgesam_jax.config.parse import from_plain
from edgesam_jax.files import parse_json
from edgesam_jax.models.sam import MODELS

HEADER = "edgesam_jax"  # key of a .safetensors header under which convert.to_torch stores config and metadata
SHARED = ("prompt_encoder.", "mask_decoder.")  # the parts that EdgeSAM copies from SAM
LICENCES = {  # by prefix of the model's name
    "edge_sam": "converted official EdgeSAM weights stay under S-Lab License 1.0 (non-commercial)",
    "sam_vit": "SAM's weights are under Apache-2.0",
    "mobile_sam": "MobileSAM's weights are under Apache-2.0",
    "efficient_sam": "EfficientSAM's weights are under Apache-2.0",
    "": "that of whoever trained them",
}


def load_published(path: str | Path, model_name: str | None = None, decoder_from: str | Path | None = None) -> Model:
    """Read a published file as a model of this project.

    Args:
      path: a file with one of the suffixes in ``checkpoints.suffixes.PUBLISHED``.
      model_name: a name in ``models.sam.MODELS``; None: inferred from the names and shapes of the entries.
      decoder_from: for a file with only an image encoder: the SAM file to take prompt encoder and mask decoder from.

    Returns:
      The model; ``metadata`` has ``source``, ``model``, ``score`` ("stability" for EdgeSAM, whose IoU head was not
      distilled), ``licence`` and ``num_batches_tracked``, which makes the conversion back (``convert.to_torch``) exact.

    Raises:
      UsageError: the file doesn't exist, is damaged, of another kind, or would execute code; or its entries don't match
        the model, and one report lists all that are missing, left over or misshapen.
    """
    path = Path(path)
    if model_name is not None and model_name not in MODELS:
        raise UsageError(f"--model {model_name}: not a known model; choose one of {', '.join(MODELS)}")
    source, header = read_entries(path)
    origin = path.name
    layout = imagenet.layout_of(source)
    if layout is not None:
        if decoder_from is not None:
            raise UsageError(
                f"--decoder-from {decoder_from}: {path} contains only a backbone, to start stage 1 from; omit this flag"
            )
        return _backbone(source, layout, model_name, path)
    if is_bare_encoder(source):
        if decoder_from is None:
            raise UsageError(
                f"{path}: contains only an image encoder (stage 1 of the published training); "
                "pass --decoder-from FILE, the SAM file to take the prompt encoder and mask decoder from"
            )
        donor = {k: v for k, v in read_entries(Path(decoder_from))[0].items() if k.startswith(SHARED)}
        if not donor:
            raise UsageError(f"--decoder-from {decoder_from}: contains no prompt encoder and no mask decoder")
        source = {ENCODER + name: value for name, value in source.items()} | donor
        origin = f"{path.name}, prompt encoder and mask decoder from {Path(decoder_from).name}"
    elif decoder_from is not None:
        raise UsageError(f"--decoder-from {decoder_from}: {path} is a complete model and needs none; omit this flag")

    config, metadata = _identify(source, header, model_name, str(path))
    names.check(source, published_shapes(config), str(path))
    variables, counts = names.to_tree(source)
    metadata |= {"source": origin, "num_batches_tracked": counts}
    return Model(config, variables, metadata)


def _backbone(source: Arrays, layout: imagenet.Layout, model_name: str | None, path: Path) -> Model:
    name, config, entries = imagenet.backbone(source, layout, model_name, str(path))
    variables, counts = names.to_tree(entries)
    metadata = {
        "source": path.name, "model": name, "holds": BACKBONE, "licence": layout.licence, "score": "stability",
        "num_batches_tracked": counts,
    }  # fmt: skip
    return Model(config, {n: tree for n, tree in variables.items() if tree}, metadata)


def _identify(
    source: Arrays, header: dict[str, str], model_name: str | None, what: str
) -> tuple[SamConfig, dict[str, Any]]:
    """Return the config, and metadata without ``source`` and ``num_batches_tracked``."""
    if HEADER in header and model_name is None:  # written by convert.to_torch: the header contains the config
        try:
            content = parse_json(header[HEADER], what)
            plain, metadata = content["config"], dict(content["metadata"])
        except (ValueError, KeyError, TypeError):  # UsageError is a ValueError
            raise UsageError(f"{what}: damaged (its header is not readable); pass --model NAME") from None
        config = from_plain(SamConfig, plain, what)
        check_values(config, f"{what}: ")
        return config, metadata
    shapes = {name: value.shape for name, value in source.items()}
    if model_name is None:
        model_name, config = guess(shapes, what)
    else:
        config = with_variant(MODELS[model_name], shapes)
    licence = next(text for start, text in LICENCES.items() if model_name.startswith(start))
    score = "stability" if model_name.startswith(("edge_sam", "tiny_student")) else "iou"
    return config, {"model": model_name, "score": score, "licence": licence}


def read_entries(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Return the entries of a file without constants and unused ones, and the header of a .safetensors file.

    Raises:
      UsageError: see ``load_published``.
    """
    entries, header = read_flat(path)
    entries = {name: value for name, value in entries.items() if name not in names.BUFFERS}
    if names.TINY_VIT in entries:
        entries = {name: value for name, value in entries.items() if not names.CLASSIFIER.match(name)}
    if not entries:
        raise UsageError(f"{path}: contains no weights")
    return entries, header
