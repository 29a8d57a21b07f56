"""A model as an ONNX pair with the published names, exported through the torch twin."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from edgesam_jax.checkpoints.model import Model


def export_pair(model: Model, folder: Path) -> tuple[Path, Path]:
    """Write ``m_encoder.onnx`` and ``m_decoder.onnx``; skip the test where the libraries are missing."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from convert.to_torch import state_dict
    from convert.torch_twin.model import TorchSam

    twin = TorchSam(model.config).eval()
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state_dict(model).items()})

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = twin

        def forward(self, image):
            return self.model.encode_image(image)

    class Decode(Encode):
        def forward(self, embedding, coords, labels):
            masks, iou, *_ = self.model.decode_tokens(embedding, coords, labels)
            return iou, masks

    def export(part, arguments, path, inputs, outputs, axes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                part.eval(), arguments, str(path), dynamo=False, opset_version=17, input_names=inputs,
                output_names=outputs, dynamic_axes=axes,
            )  # fmt: skip

    size, grid, channels = model.config.image_size, model.config.grid, model.config.embed_dim
    encoder, decoder = folder / "m_encoder.onnx", folder / "m_decoder.onnx"
    export(Encode(), (torch.zeros(1, 3, size, size),), encoder, ["image"], ["image_embeddings"], {})
    given = (torch.zeros(1, channels, grid, grid), torch.zeros(1, 2, 2), torch.ones(1, 2))
    names = ["image_embeddings", "point_coords", "point_labels"]
    export(Decode(), given, decoder, names, ["scores", "masks"], {n: {1: "n"} for n in names[1:]})
    return encoder, decoder
