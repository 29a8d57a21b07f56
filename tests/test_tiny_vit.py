"""TinyViT and MobileSAM: the published names, parity with the torch twin, folding, the file with its unused head."""

from __future__ import annotations

import dataclasses
import functools

import deterministic_weights
import jax
import numpy as np
import pytest
import tiny
from test_convert_names import read_keys

from convert import names
from convert.guess import published_shapes
from edgesam_jax.config import TinyVitConfig
from edgesam_jax.models.fold import fold
from edgesam_jax.models.init import abstract_variables, init_variables
from edgesam_jax.models.sam import MODELS, Sam
from edgesam_jax.models.tiny_vit import offset_index

pytestmark = pytest.mark.usefixtures("quick_compile")

# 96 px: grids of 12, 6 and 6 (or 3), so that windows of 7, 4 and 7 are padded, and fit more than once.
ENCODER = TinyVitConfig(widths=(8, 16, 16, 24), depths=(1, 1, 2, 1), heads=(1, 2, 2, 3), windows=(7, 7, 4, 7))
SMALL = dataclasses.replace(tiny.CONV, encoder=ENCODER, image_size=96)
FUSED = dataclasses.replace(SMALL, encoder=dataclasses.replace(ENCODER, fuse=True))


def encode(config, variables, image, folded=False):
    return jax.jit(functools.partial(Sam(config, folded=folded).apply, method="encode_image"))(variables, image)


def test_the_tree_of_mobile_sam_is_the_published_list_without_its_classifier():
    keys = {name: shape for name, (shape, _) in read_keys("mobile_sam").items()}
    assert len(keys) == 439
    head = {name for name in keys if names.CLASSIFIER.match(name)}
    assert len(head) == 4 and sum(int(np.prod(keys[name])) for name in head) == 321_640
    assert published_shapes(MODELS["mobile_sam"]) == {name: keys[name] for name in keys if name not in head}


def test_its_size_is_the_published_one():
    params = abstract_variables(MODELS["mobile_sam"])["params"]
    size = lambda tree: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(params["image_encoder"]) == 5_743_892  # facts: 6,065,532 less the classifier's 321,640
    assert size(params) == 10_130_092 - 321_640
    fused = dataclasses.replace(MODELS["mobile_sam"], encoder=TinyVitConfig(fuse=True))
    assert size(abstract_variables(fused)["params"]["image_encoder"]) == 5_850_388  # more_model_facts, section 2
    assert MODELS["mobile_sam"].grid == fused.grid == 64


def test_biases_go_by_the_absolute_offset():
    index = offset_index(3)
    assert index[0, 0] == 0 and index[0, 1] == 1 == index[1, 0] and index[0, 3] == 3 and index[2, 6] == 2 * 3 + 2
    np.testing.assert_array_equal(index, index.T)


@pytest.mark.parametrize("config", [SMALL, FUSED], ids=["mobile_sam", "fused"])
def test_the_encoder_is_the_torch_twins(config):
    torch = pytest.importorskip("torch")
    from convert import exporting
    from convert.export_encoder import ExportEncoder
    from edgesam_jax.checkpoint import Model

    model, image = Model(config, deterministic_weights.variables(config)), deterministic_weights.image(96)
    found = np.asarray(encode(config, model.variables, image))
    assert found.shape == (1, config.grid, config.grid, 16)
    planes = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        twin = exporting.torch_sam(model).encode_image(planes).numpy().transpose(0, 2, 3, 1)
        export = ExportEncoder(config, model.variables)(planes).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, twin, atol=2e-5)
    np.testing.assert_allclose(export, twin, atol=2e-5)


@pytest.mark.parametrize("config", [SMALL, FUSED], ids=["mobile_sam", "fused"])
def test_folding_changes_nothing(config):
    variables, image = deterministic_weights.variables(config), deterministic_weights.image(96)
    folded = fold(config, variables)
    assert not folded["batch_stats"]
    want = encode(config, variables, image)
    np.testing.assert_allclose(encode(config, folded, image, True), want, atol=2e-5)


def test_in_training_every_parameter_has_a_gradient_and_statistics_move():
    variables = init_variables(SMALL, 0)
    image = deterministic_weights.image(96)
    rest = {"batch_stats": variables["batch_stats"], "constants": variables["constants"]}

    @jax.jit
    def step(params):
        out, updated = Sam(SMALL).apply(
            {"params": params, **rest}, image, True, method="encode_image", mutable=["batch_stats"]
        )
        return (out**2 * np.arange(out.shape[-1])).sum(), updated["batch_stats"]

    (_, stats), gradients = jax.value_and_grad(step, has_aux=True)(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(gradients["image_encoder"]):
        keys = jax.tree_util.keystr(path)
        assert np.isfinite(g).all()
        # A residual that ends in a norm of scale 0 passes nothing on to what is before it, at the start.
        assert np.abs(g).max() > 0 or ("blocks_0" in keys and "layers_0" in keys), keys
    for path, new in jax.tree_util.tree_leaves_with_path(stats):
        old = variables["batch_stats"]
        for part in path:
            old = old[part.key]
        assert np.abs(np.asarray(new) - old).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("head", [True, False])
def test_a_published_file_loads_with_and_without_its_head(tmp_path, head):
    torch = pytest.importorskip("torch")
    from convert.from_torch import load_published
    from convert.to_torch import save_published

    entries = deterministic_weights.published(MODELS["mobile_sam"])
    shapes = {name: shape for name, (shape, _) in read_keys("mobile_sam").items() if head or name in entries}
    content = {n: torch.from_numpy(np.array(entries[n])) if n in entries else torch.zeros(shapes[n]) for n in shapes}
    torch.save(content, tmp_path / "mobile_sam.pt")
    model = load_published(tmp_path / "mobile_sam.pt")
    assert model.config == MODELS["mobile_sam"]
    assert model.metadata["model"] == "mobile_sam" and "Apache-2.0" in model.metadata["licence"]
    if head:
        back = torch.load(save_published(tmp_path / "back.pth", model), weights_only=True)
        assert set(back) == set(entries)
        assert all(back[name].numpy().tobytes() == entries[name].tobytes() for name in entries)
