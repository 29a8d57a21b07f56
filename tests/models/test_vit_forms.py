"""SAM's image encoder in the form for accelerators equals the one for a CPU, values and gradients, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesam_jax.config import VitConfig
from edgesam_jax.models.encoders.vit import Vit
from edgesam_jax.models.kernels import ops

CONFIG = functools.partial(VitConfig, width=32, depth=2, heads=2, patch_size=8)
# Grids of 5 x 5 cells: windows of 3 reach beyond the grid, windows of 5 don't.
CASES = {
    "windows beyond the grid, then global": CONFIG(global_blocks=(1,), window_size=3),
    "global, then windows that fit; recomputed": CONFIG(global_blocks=(0,), window_size=5, remat=True),
}


def values_and_gradients(config: VitConfig, platform: str):
    model, images = Vit(config, 40, 16), jax.random.normal(jax.random.key(1), (2, 40, 40, 3))
    variables = model.init(jax.random.key(0), images)
    variables = jax.tree.map(  # rel_pos starts as zeros
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size % 97), p.shape), variables
    )

    def loss(variables, images):
        out = model.apply(variables, images)
        return jnp.sum(out**2), out

    with ops.traced_for(platform):
        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, images)
    return out, gradients


@pytest.mark.parametrize("name", CASES)
def test_both_forms_agree(name):
    on_cpu, on_tpu = (values_and_gradients(CASES[name], platform) for platform in ("cpu", "tpu"))
    for expected, found in zip(jax.tree.leaves(on_cpu), jax.tree.leaves(on_tpu), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max() + 1e-12))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_it_lowers_for_accelerators_without_one(platform, dtype):
    model, images = Vit(CASES["windows beyond the grid, then global"], 40, 16, dtype), jnp.zeros((2, 40, 40, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with ops.traced_for({"cuda": "gpu"}.get(platform, platform)):
        traced = jax.jit(model.apply).trace(variables, images)
        assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()
