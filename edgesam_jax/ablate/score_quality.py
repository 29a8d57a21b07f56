"""Correlation of a model's own mask scores with the true overlap: do the scores separate good masks from bad ones?

EdgeSAM doesn't distil the IoU head, and its README advises to use the stability score instead.
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
    """Correlate the first mask's scores with its true IoU, over all instances with two prompts each: box and point.

    Returns:
      ``{"iou": {"pearson": r, "spearman": r}, "stability": {...}}``; NaN where a score or the overlap is constant.
    """
    from scipy import stats

    predictor = Predictor(dataclasses.replace(model, metadata=model.metadata | {"score": "iou"}))
    parts: dict[str, list[np.ndarray]] = {"iou": [], "stability": [], "truth": []}
    for example in (e for e in examples if len(e)):
        predictor.set_image(example.image)
        boxes, points, one = example.boxes, example.points[:, None], np.ones((len(example), 1), np.int32)
        for prompt in ((boxes, None, None), (None, points, one)):
            masks, scores, logits = predictor.predict_prompts(*prompt)
            parts["iou"].append(scores[:, 0])
            parts["stability"].append(stability_score(logits)[:, 0])
            parts["truth"].append(np.nan_to_num(mask_iou(masks[:, 0], example.masks), nan=1.0))
    values = {name: np.nan_to_num(np.concatenate(arrays)) for name, arrays in parts.items()}
    return {
        name: {
            "pearson": float(stats.pearsonr(values[name], values["truth"]).statistic),
            "spearman": float(stats.spearmanr(values[name], values["truth"]).statistic),
        }
        for name in ("iou", "stability")
    }
