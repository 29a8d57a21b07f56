"""ViTs in the form for accelerators equal those for a CPU, values and gradients, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesam_jax.config import PlainVitConfig, VitConfig
from edgesam_jax.models.encoders.plain_vit import PlainVit
from edgesam_jax.models.encoders.vit import Vit
from edgesam_jax.models.kernels import platforms

CONFIG = functools.partial(VitConfig, width=32, depth=2, heads=2, patch_size=8)
# Grids of 5 x 5 cells: windows of 3 reach beyond the grid, windows of 5 don't.
CASES = {
    "windows beyond the grid, then global": CONFIG(global_blocks=(1,), window_size=3),
    "global, then windows that fit; recomputed": CONFIG(global_blocks=(0,), window_size=5, remat=True),
}


PLAIN = PlainVitConfig(width=32, depth=2, heads=2, patch_size=8, trained_grid=3)


def values_and_gradients(model, platform: str):
    images = jax.random.normal(jax.random.key(1), (2, 40, 40, 3))
    variables = model.init(jax.random.key(0), images)
    variables = jax.tree.map(  # rel_pos starts as zeros
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size % 97), p.shape), variables
    )

    def loss(variables, images):
        out = model.apply(variables, images)
        return jnp.sum(out**2), out

    with platforms.traced_for(platform):
        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, images)
    return out, gradients


@pytest.mark.parametrize("name", [*CASES, "plain"])
def test_both_forms_agree(name):
    model = PlainVit(PLAIN, 16) if name == "plain" else Vit(CASES[name], 40, 16)
    on_cpu, on_tpu = (values_and_gradients(model, platform) for platform in ("cpu", "tpu"))
    for expected, found in zip(jax.tree.leaves(on_cpu), jax.tree.leaves(on_tpu), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max() + 1e-12))
