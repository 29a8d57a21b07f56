"""Overlaps equal hand-counted ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as hnp

from edgesam_jax.eval.metrics import mask_iou, mean_iou

masks = hnp.arrays(bool, (3, 5, 4))


@given(masks, masks)
def test_iou_is_the_count_of_pixels(a: np.ndarray, b: np.ndarray) -> None:
    found = mask_iou(a, b)
    for i in range(3):
        inside, either = (a[i] & b[i]).sum(), (a[i] | b[i]).sum()
        assert found[i] == inside / either if either else np.isnan(found[i])
    np.testing.assert_array_equal(found, mask_iou(b, a))


def test_mean_iou_leaves_nan_out_column_by_column() -> None:
    ious = np.array([[0.5, np.nan, np.nan], [1.0, 0.25, np.nan]])
    np.testing.assert_array_equal(mean_iou(ious), [0.75, 0.25, np.nan])
