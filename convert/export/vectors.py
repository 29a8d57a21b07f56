"""Test vectors for the programs that run an export: photos, prompts, and the masks that the JAX model predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convert.export import common, gate
from convert.export.common import ExportJob
from edgesam_jax.portable.postprocess import upscale_masks

VECTORS = ("large box", "small box", "point", "five points")
MIN_OVERLAP = 0.95  # IoU required by check.py; allows for float16 and another way of resizing the photo


def write_vectors(folder: Path, photos: dict[str, np.ndarray], cases: Sequence[gate.Case], job: ExportJob) -> None:
    """Write photos and first masks as PNG, and the prompts in pixels of the photos as JSON."""
    folder.mkdir()
    entries = []
    for number, case in enumerate(cases):
        photo = photos[case.name]
        size = (photo.shape[0], photo.shape[1])
        Image.fromarray(photo).save(folder / f"photo_{number}.png")
        # The prompts of ``gate.make_cases``, before scaling to the frame.
        unscaled = gate.sample_prompts(size, job.slots, job.mask_input, number)
        prompts = []
        for i, prompt in enumerate(unscaled):
            if prompt.name not in VECTORS:
                continue
            mask = upscale_masks(case.logits[i, :1], job.model.config.image_size, case.filled, size)[0]
            name = f"photo_{number}_{prompt.name.replace(' ', '_')}.png"
            Image.fromarray(mask).save(folder / name)
            prompts.append(
                {
                    "name": prompt.name,
                    "points": np.round(prompt.coords, 4).tolist(),
                    "labels": prompt.labels.tolist(),
                    "mask": name,
                    "pixels": int(mask.sum()),
                    "scores": np.round(case.scores[i].astype(float), 5).tolist(),
                }
            )
        flat = case.embedding.reshape(-1)
        entries.append(
            {
                "photo": f"photo_{number}.png",
                "what": case.name,
                "frame": {"rows": case.filled[0], "columns": case.filled[1]},
                "embedding": {"mean": float(flat.mean()), "std": float(flat.std()), "first": flat[:8].tolist()},
                "prompts": prompts,
            }
        )  # fmt: skip
    common.write_json(folder / "vectors.json", {"least_overlap": MIN_OVERLAP, "photos": entries})
