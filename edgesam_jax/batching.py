"""Prompts on many photos: the items that ``Predictor.predict_many`` takes, and its results.

    from edgesam_jax.batching import Item

    for result in predictor.predict_many(Item(path, boxes=boxes) for path, boxes in work):
        ...

See ``docs/batches.md``.
"""

from __future__ import annotations

from edgesam_jax.predict.batching import Item, Result

__all__ = ["Item", "Result"]
