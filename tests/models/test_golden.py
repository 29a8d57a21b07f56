"""The JAX model against stored values of the torch model: parity where torch is not installed too."""

from __future__ import annotations

import deterministic_weights
import jax
import make_golden
import numpy as np
import pytest

from edgesam_jax.models.sam import Sam
from edgesam_jax.types import Prompts

SLOTS = 4


def all_kinds(config):
    """Every kind of prompt as one buffer (1 kinds slots), the short ones padded, and the masks beside it."""
    rows = []
    for coords, labels, valid, masked in make_golden.KINDS.values():
        missing = SLOTS - len(labels)
        rows.append((coords + [[3.0, 3.0]] * missing, labels + [1] * missing, valid + [False] * missing, masked))
    coords, labels, valid, masked = (np.asarray(column)[None] for column in zip(*rows, strict=True))
    mask_input = np.broadcast_to(make_golden.mask_input(config), (1, len(rows), config.mask_size, config.mask_size))
    return Prompts(coords.astype(np.float32), labels.astype(np.int32), valid), mask_input, masked


@pytest.fixture(scope="module", params=make_golden.CONFIGS)
def golden(request):
    """Stored values, and what the JAX model gives: embedding, and one prediction for all kinds of prompts."""
    config = make_golden.CONFIGS[request.param]
    with np.load(make_golden.DATA / f"golden_{request.param}.npz") as file:
        stored = dict(file)
    variables, model = deterministic_weights.variables(config), Sam(config)
    image = deterministic_weights.image(config.image_size)
    embedding = jax.jit(lambda v, x: model.apply(v, x, method="encode_image"))(variables, image)
    decode = jax.jit(lambda v, e, *given: model.apply(v, e, *given, targets=True, method="decode_masks"))
    return config, stored, embedding, decode(variables, stored["embedding"], *all_kinds(config))


def test_encoder(golden):
    _, stored, embedding, _ = golden
    assert stored["embedding"].std() > 0.5
    np.testing.assert_allclose(embedding, stored["embedding"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", make_golden.KINDS)
def test_decoder(golden, kind):
    _, stored, _, found = golden
    p = list(make_golden.KINDS).index(kind)
    logits = stored[f"{kind}.logits"][0]
    assert np.abs(found.logits[0, p] - logits).max() < 1e-3 * logits.std()
    assert np.mean((found.logits[0, p] > 0) == (logits > 0)) >= 0.9999
    np.testing.assert_allclose(found.iou[0, p], stored[f"{kind}.iou"][0], atol=1e-4)
    np.testing.assert_allclose(found.targets["query"][0, p], stored[f"{kind}.query"][0], atol=1e-4)


def test_the_prompts_matter(golden):
    """Golden values that all look alike would hold nothing."""
    logits = [golden[1][f"{kind}.logits"] for kind in make_golden.KINDS]
    for i, a in enumerate(logits):
        assert 0.05 < (a > 0).mean() < 0.95
        for b in logits[:i]:
            assert np.abs(a - b).max() > 0.05 * a.std()


def test_torch_still_gives_the_stored_values(golden):
    pytest.importorskip("torch")
    config, stored, _, _ = golden
    for name, value in make_golden.torch_outputs(config).items():
        np.testing.assert_allclose(value, stored[name], atol=1e-4 * max(1.0, stored[name].std()), err_msg=name)
