"""Means merge exactly, and overlaps equal hand-counted ones."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesam_jax.eval.metrics import Mean, mask_iou, mean_iou


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-10, 10, width=32)), st.integers(0, 40))
def test_merged_means_equal_the_mean_of_all(values: np.ndarray, cut: int) -> None:
    merged = Mean.empty() + Mean.of(values[:cut]) + Mean.of(values[cut:])
    np.testing.assert_allclose(merged.compute(), values.astype(np.float64).mean(), atol=1e-4)


def test_weights_leave_elements_out_even_nan_ones_and_work_inside_jit() -> None:
    values, weights = np.array([1.0, np.nan, 3.0]), np.array([1.0, 0.0, 3.0])
    mean = jax.jit(Mean.of)(values, weights)
    assert mean.compute() == 2.5 and np.isnan(Mean.empty().compute())


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
