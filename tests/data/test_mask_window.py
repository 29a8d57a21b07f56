import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from edgesam_jax.data.mask_window import EMPTY_WINDOW, crop, from_runs
from edgesam_jax.data.readers.records import decode_window
from edgesam_jax.data.schema import boxes_of


def masks(height: int, width: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    block = np.zeros((height, width), bool)
    block[rng.integers(height) :, : rng.integers(width) + 1] = True  # columns that are full to the lower edge
    sparse = rng.random((height, width)) < 0.1
    return [block, sparse, ~sparse, np.zeros_like(block), np.ones_like(block)]


def pasted(window, shape) -> np.ndarray:
    mask = np.zeros(shape, bool)
    window.paste(mask)
    return mask


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 999))
def test_a_window_is_the_mask_in_its_tight_box(height, width, seed):
    for mask in masks(height, width, seed):
        code = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        for window in (crop(mask), decode_window(code, height, width, "")):
            assert window.pixels.dtype == bool and (pasted(window, mask.shape) == mask).all()
            assert bool(window) == mask.any()
            x0, y0, x1, y1 = boxes_of(mask[None])[0].tolist()
            assert (window.left, window.top) == (x0, y0) and window.pixels.shape == (y1 - y0, x1 - x0)


def test_runs_may_be_empty_and_go_on_in_the_next_column():
    # Columns of four: the third and fourth pixel of the first one, the first of the second; a run of nothing between.
    window = from_runs(np.array([2, 1, 0, 2, 7]), 4)
    expected = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]], bool)
    assert (pasted(window, (4, 3)) == expected).all()
    assert from_runs(np.array([12]), 4) is EMPTY_WINDOW and from_runs(np.array([5, 0, 7]), 4) is EMPTY_WINDOW
