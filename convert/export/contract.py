"""The contract of an export: its inputs, outputs and conventions, as JSON for the programs that run it."""

from __future__ import annotations

from typing import Any

from convert.export import sam_form
from convert.export.common import ExportJob
from edgesam_jax.config import SamConfig
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD
from edgesam_jax.portable.onnx_model import UNUSED


def contract(job: ExportJob, image_input: str) -> dict[str, Any]:
    """Return the contract of an export.

    Args:
      image_input: form of the encoder's input: ``tensor``, ``image``, ``photo`` or ``hwc``
        (``convert.export.encoder.Input``).
    """
    config = job.model.config
    side = config.image_size
    image = {
        "tensor": {
            "shape": [1, 3, side, side], "type": "float32",
            "values": "RGB, (pixel - mean) / std; zeros to the right of the photo and below",
        },
        "image": {
            "shape": [1, 3, side, side], "type": "image",
            "values": "RGB from 0 to 255; to the right of the photo and below, the colour 124, 116, 104 (becomes 0)",
        },
        "photo": {
            "shape": [1, 3, "height", "width"], "type": "uint8",
            "values": "RGB from 0 to 255, not padded; the longest side is image_size; the model normalises and pads",
        },
        "hwc": {
            "shape": ["height", "width", 3], "type": "float32",
            "values": "RGB from 0 to 255, not padded; the longest side is image_size; the model normalises and pads",
        },
    }[image_input]  # fmt: skip
    return {
        "format": "edgesam_jax export/1",
        "image_size": side,
        "mask_size": config.mask_size,
        "embedding": [1, config.embed_dim, config.grid, config.grid],
        "image": {**image, "mean": list(PIXEL_MEAN), "std": list(PIXEL_STD)},
        "resizing": "longest side to image_size, bilinear with antialiasing (Pillow), sides rounded half up;"
        " placed at the top left",
        "coordinates": "x, y; x in pixels of the photo times resized width / width, y times resized height / height",
        "labels": {
            "1": "a point inside the object", "0": "a point outside the object",
            "2": "the box's top left corner", "3": "the box's bottom right corner",
            "-1": "SAM's learned padding token, in any slot", str(UNUSED): "no point: the slot is unused",
        },
        "slots": job.slots or "dynamic",
        "batch": "dynamic" if job.batched else 1,
        "adds_padding": True,
        "mask_input": job.mask_input,
        "masks": "logits of four masks; threshold 0; the first is the single mask, the other three range from part to"
        " whole; resize to image_size, crop to the resized photo, resize to the photo (bilinear, half-pixel centres)",
        "score": job.score,
        "licence": job.model.metadata.get("licence", "the checkpoint's"),
        "source": str(job.model.metadata.get("source", "")),
        **({"proposals": selection(config)} if job.priors else {}),
        **sam_form.entry(job),
    }  # fmt: skip


def selection(config: SamConfig) -> dict[str, float]:
    """Return how proposals are selected among all anchors: the arguments of ``portable.priors.select``."""
    proposals = config.proposals
    assert proposals is not None
    return {
        "min_score": proposals.min_score, "before": proposals.before_nms, "iou": proposals.nms_iou,
        "most": proposals.kept,
    }  # fmt: skip
