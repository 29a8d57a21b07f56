"""Few photos on a TPU: horizontal bands of their maps, as if they were more photos.

A TPU stores and computes eight rows of 128 channels at a time, and XLA gives the rows of a convolution's map to the
batch, so that two photos take as long as eight.  Cut into n bands, (b h w c) becomes (b*n h/n w c).  Whatever treats
all pixels alike is the same as before.  A convolution also needs the rows beside each band, which are its neighbours'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from edgesam_jax.models.kernels import platforms

BATCH = 8  # photos or bands that a TPU computes together


def number(photos: int, heights: Sequence[int]) -> int:
    """Number of bands for maps of these heights: the fewest that make up whole tiles; 1 on other platforms than a TPU.

    ``heights`` are those of all maps that are cut; each must be a multiple of the next.
    """
    if not platforms.on_tpu() or photos >= BATCH:
        return 1
    bands = BATCH // math.gcd(BATCH, photos)
    whole = all(height % bands == 0 for height in heights)
    return bands if whole and all(high % low == 0 for high, low in itertools.pairwise(heights)) else 1


def cut(x: Array, bands: int) -> Array:
    """(b h w c) -> (b*n h/n w c)."""
    b, h, w, c = x.shape
    return x.reshape(b * bands, h // bands, w, c)


def join(x: Array, bands: int) -> Array:
    """Invert ``cut``."""
    b, h, w, c = x.shape
    return x.reshape(b // bands, h * bands, w, c)


def _moved(x: Array, bands: int, step: int) -> Array:
    """Each band (b*n h w c) at the place of the one ``step`` further down; zeros enter at the photo's edge."""
    apart = x.reshape(-1, bands, *x.shape[1:])
    before, after = max(step, 0), max(-step, 0)
    apart = jnp.pad(apart, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)))
    return lax.slice_in_dim(apart, after, after + bands, axis=1).reshape(x.shape)


def extend(x: Array, rows: int, bands: int) -> Array:
    """Add to each band (b*n h w c) as many ``rows`` of its neighbours, or of zeros at the photo's edge."""
    if not rows:
        return x
    above, below = _moved(x[:, -rows:], bands, 1), _moved(x[:, :rows], bands, -1)
    return jnp.concatenate([above, x, below], axis=1)


def fold(g: Array, rows: int, bands: int) -> Array:
    """The gradient of ``extend``'s x, from that of its result."""
    if not rows:
        return g
    height = g.shape[1] - 2 * rows
    above, below = _moved(g[:, :rows], bands, -1), _moved(g[:, -rows:], bands, 1)
    room = ((0, 0), (0, height - rows), (0, 0), (0, 0)), ((0, 0), (height - rows, 0), (0, 0), (0, 0))
    return g[:, rows:-rows] + jnp.pad(below, room[0]) + jnp.pad(above, room[1])


def photo_mean(mean: Array, bands: int) -> Array:
    """The mean (b*n 1 1 c) of each band's photo, from the means of the bands."""
    if bands == 1:
        return mean
    apart = mean.reshape(-1, bands, *mean.shape[1:])
    return jnp.broadcast_to(apart.mean(1, keepdims=True), apart.shape).reshape(mean.shape)
