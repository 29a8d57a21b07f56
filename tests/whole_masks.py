"""Masks as arrays of the photo's size, where the package works on windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgesam_jax.data.mask_window import crop
from edgesam_jax.data.readers.segmentations import decode_window
from edgesam_jax.data.transforms import low_res_windows


def decode_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """``decode_window`` as a mask (height width) bool."""
    mask = np.zeros((height, width), bool)
    decode_window(segmentation, height, width, where).paste(mask)
    return mask


def low_res_masks(masks: np.ndarray, new_hw: tuple[int, int], image_size: int, mask_size: int) -> np.ndarray:
    """``low_res_windows`` of masks (n h w) bool."""
    return low_res_windows([crop(mask) for mask in masks], masks.shape[1:], new_hw, image_size, mask_size)
