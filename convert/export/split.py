"""A decoder as two graphs: one that runs once per photo, or per earlier mask, and one that runs once per prompt.

The outputs of the first, by name, are inputs of the second, beside the points. There are two forms:

- ``folded`` (``convert.export.folded``) for few tokens;
- ``shared`` (``convert.export.shared``) for many tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convert.export.common import ExportJob
from convert.export.decoder import ExportDecoder
from convert.export.folded import FoldedDecoder
from convert.export.photo_maps import PhotoMaps, names
from convert.export.shared import NAMES, FirstProducts, SharedDecoder
from edgesam_jax.config import SamConfig
from edgesam_jax.portable.per_photo import PHOTO_INPUTS

Form = Literal["folded", "shared"]
USUAL = 4  # points and corners of a prompt, if any number is possible


@dataclass(frozen=True)
class Halves:
    """The two graphs of a decoder.

    Attributes:
      image: image_embeddings (1 c g g), mask_input (1 1 s s), has_mask_input (1) -> the maps, each (1 channels g g).
      decoder: the maps as a list, point_coords (1 n 2), point_labels (1 n) -> scores (1 m), masks (1 m s s).
      maps: the maps' names.
    """

    image: nn.Module
    decoder: nn.Module
    maps: list[str]

    def example(self, config: SamConfig) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return inputs of ``image``, and its outputs for them."""
        g, s = config.grid, config.mask_size
        inputs = torch.zeros(1, config.embed_dim, g, g), torch.zeros(1, 1, s, s), torch.zeros(1)
        with torch.no_grad():
            return inputs, list(self.image(*inputs))


def form_of(config: SamConfig, slots: int) -> Form:
    """Return the faster form for a number of slots; 0 is any number, of which ``USUAL`` is assumed.

    A folded product costs heads*tokens where another costs the width of attention (measured: docs/export.md).
    """
    decoder = config.decoder
    tokens = 1 + decoder.num_mask_tokens + (slots or USUAL) + 1
    return "folded" if decoder.heads * tokens <= config.embed_dim // decoder.attention_downsample else "shared"


def split(whole: ExportDecoder, form: Form, flat: bool) -> Halves:
    """Split a decoder that takes a mask.

    ``flat``: in the form that is fast in ONNX Runtime, where that differs from the one that coremltools recognises.
    """
    if form == "folded":
        return Halves(PhotoMaps(whole), FoldedDecoder(whole), names(len(whole.layers)))
    return Halves(FirstProducts(whole), SharedDecoder(whole, flat), NAMES)


def entry(job: ExportJob, suffix: str) -> dict[str, Any]:
    """Return the contract's entries on the parts of a split decoder and their files; none for a whole one."""
    if not job.split:
        return {}
    form = form_of(job.model.config, job.slots)
    maps = names(job.model.config.decoder.depth) if form == "folded" else NAMES
    return {
        "split": form,
        "parts": {
            **({"encoder": {"file": job.file("encoder", suffix)}} if "encoder" in job.parts else {}),
            "image": {"file": job.file("image", suffix), "inputs": list(PHOTO_INPUTS), "outputs": maps},
            "decoder": {
                "file": job.file("decoder", suffix),
                "inputs": [*maps, "point_coords", "point_labels"],
                "outputs": ["scores", "masks"],
            },
        },
    }
