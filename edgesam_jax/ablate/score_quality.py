"""Does a score tell good masks from bad ones?  Correlation of scores with the true overlap.

The paper leaves the IoU head undistilled, and its README advises the stability score instead.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.schema import Example
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.portable.postprocess import stability_score
from edgesam_jax.predict.predictor import Predictor

Correlations = dict[str, dict[str, float]]


def correlations(model: Model, examples: list[Example]) -> Correlations:
    """Of the first mask's scores with its IoU, over all instances and two prompts of each: its box, its point.

    Returns:
      ``{"iou": {"pearson", "spearman"}, "stability": {...}}``; NaN where a score or the overlap is the same everywhere.
    """
    from scipy import stats

    predictor = Predictor(dataclasses.replace(model, metadata=model.metadata | {"score": "iou"}))
    found: dict[str, list[np.ndarray]] = {"iou": [], "stability": [], "truth": []}
    for example in (e for e in examples if len(e)):
        predictor.set_image(example.image)
        boxes, points, one = example.boxes, example.points[:, None], np.ones((len(example), 1), np.int32)
        for prompt in ((boxes, None, None), (None, points, one)):
            masks, scores, logits = predictor.predict_prompts(*prompt)
            found["iou"].append(scores[:, 0])
            found["stability"].append(stability_score(logits)[:, 0])
            found["truth"].append(np.nan_to_num(mask_iou(masks[:, 0], example.masks), nan=1.0))
    values = {name: np.nan_to_num(np.concatenate(parts)) for name, parts in found.items()}
    return {
        name: {
            "pearson": float(stats.pearsonr(values[name], values["truth"]).statistic),
            "spearman": float(stats.spearmanr(values[name], values["truth"]).statistic),
        }
        for name in ("iou", "stability")
    }
