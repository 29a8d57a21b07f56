"""What a program that runs an export must know."""

from __future__ import annotations

from typing import Any

from convert.export.common import ExportJob
from edgesam_jax.config import SamConfig
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD


def contract(job: ExportJob, image_input: str) -> dict[str, Any]:
    """What a program that runs the export must know; ``image_input`` is ``export_encoder.Input``."""
    from convert.export.decoder import UNUSED

    config = job.model.config
    side = config.image_size
    image = {
        "tensor": {
            "shape": [1, 3, side, side], "type": "float32",
            "values": "RGB, (pixel - mean) / std, then zeros to the right and below the photo",
        },
        "image": {
            "shape": [1, 3, side, side], "type": "image",
            "values": "RGB from 0 to 255; to the right and below the photo the colour 124, 116, 104, which becomes 0",
        },
        "photo": {
            "shape": [1, 3, "height", "width"], "type": "uint8",
            "values": "RGB from 0 to 255, not padded; the longest side is image_size; normalised and padded inside",
        },
    }[image_input]  # fmt: skip
    return {
        "format": "edgesam_jax export/1",
        "image_size": side,
        "mask_size": config.mask_size,
        "embedding": [1, config.embed_dim, config.grid, config.grid],
        "image": {**image, "mean": list(PIXEL_MEAN), "std": list(PIXEL_STD)},
        "resizing": "longest side to image_size, bilinear with antialiasing (Pillow), sides rounded half up; top left",
        "coordinates": "x, y; pixels of the photo times resized width / width, resized height / height",
        "labels": {
            "1": "a point inside the object", "0": "a point outside it",
            "2": "the box's top left corner", "3": "the box's bottom right corner",
            "-1": "SAM's learned padding, at any place", str(UNUSED): "no point: this slot changes nothing",
        },
        "slots": job.slots or "dynamic",
        "adds_padding": True,
        "mask_input": job.mask_input,
        "masks": "logits of four masks; threshold 0; the first for one mask, the other three for parts to wholes;"
        " resize to image_size, crop to the resized photo, resize to the photo (bilinear, half-pixel centres)",
        "score": job.score,
        "licence": job.model.metadata.get("licence", "the checkpoint's"),
        "source": str(job.model.metadata.get("source", "")),
        **({"proposals": selection(config)} if job.priors else {}),
    }  # fmt: skip


def selection(config: SamConfig) -> dict[str, float]:
    """How proposals are told among all anchors: arguments of ``portable.priors.select``."""
    own = config.proposals
    assert own is not None
    return {"min_score": own.min_score, "before": own.before_nms, "iou": own.nms_iou, "most": own.kept}
