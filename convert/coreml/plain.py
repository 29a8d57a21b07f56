"""A straightforward conversion of the torch twin, for comparison in reports.

As in the published exporters, branches aren't folded, and up-sampling is bilinear, since Core ML has no bicubic one.
The decoder has linear layers, channels last, and no unused slots.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from convert.torch_twin.loading import load_twin
from convert.torch_twin.model import TorchSam
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import STUDENTS


class PlainDecoder(nn.Module):
    """The twin's decoder: unlike ``ExportDecoder`` without mask input, unused slots and padding token."""

    def __init__(self, sam: TorchSam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        prompt = self.sam.prompt_encoder
        image, tokens = image_embeddings + prompt.dense(None), prompt.tokens(point_coords, point_labels)
        masks, _, _ = self.sam.mask_decoder(image, prompt.dense_position(), tokens, None)
        inner, outer = ((masks > threshold).float().mean(dim=(2, 3)) for threshold in (1.0, -1.0))
        return inner / outer, masks


def part(model: Model, name: str) -> nn.Module:
    """Return the plain encoder or decoder."""
    config = model.config
    if isinstance(config.encoder, STUDENTS):
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, upsample="bilinear"))
    sam = load_twin(dataclasses.replace(model, config=config))
    return sam.image_encoder if name == "encoder" else PlainDecoder(sam)
