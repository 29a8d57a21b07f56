"""TinyViT and MobileSAM: the published names and sizes, the file with its unused head."""

from __future__ import annotations

import dataclasses

import deterministic_weights
import jax
import numpy as np
import pytest
from published_keys import read_keys

from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.guess import published_shapes
from edgesam_jax.config import TinyVitConfig
from edgesam_jax.models.encoders.tiny_vit import offset_index
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.sam import MODELS


def test_the_tree_of_mobile_sam_is_the_published_list_without_its_classifier():
    keys = {name: shape for name, (shape, _) in read_keys("mobile_sam").items()}
    assert len(keys) == 439
    head = {name for name in keys if names.CLASSIFIER.match(name)}
    assert len(head) == 4 and sum(int(np.prod(keys[name])) for name in head) == 321_640
    assert published_shapes(MODELS["mobile_sam"]) == {name: keys[name] for name in keys if name not in head}


def test_its_size_is_the_published_one():
    params = abstract_variables(MODELS["mobile_sam"])["params"]
    size = lambda tree: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(params["image_encoder"]) == 5_743_892  # published: 6,065,532, of which the classifier has 321,640
    assert size(params) == 10_130_092 - 321_640
    fused = dataclasses.replace(MODELS["mobile_sam"], encoder=TinyVitConfig(fuse=True))
    assert (
        size(abstract_variables(fused)["params"]["image_encoder"]) == 5_850_388
    )  # docs/published_code.md, "Other models"
    assert MODELS["mobile_sam"].grid == fused.grid == 64


def test_biases_go_by_the_absolute_offset():
    index = offset_index(3)
    assert index[0, 0] == 0 and index[0, 1] == 1 == index[1, 0] and index[0, 3] == 3 and index[2, 6] == 2 * 3 + 2
    np.testing.assert_array_equal(index, index.T)


@pytest.mark.parametrize("head", [True, False])
def test_a_published_file_loads_with_and_without_its_head(tmp_path, head):
    torch = pytest.importorskip("torch")
    from convert.to_torch import save_published
    from edgesam_jax.checkpoints.published.read import load_published

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
