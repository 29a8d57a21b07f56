"""A decoder as two graphs: one that runs once per photo, or per earlier mask, and one that runs once per prompt.

The outputs of the first, by name, are inputs of the second, beside the points. There are two forms:

- ``folded`` (``convert.export.folded``) for few tokens, and for any number of points;
- ``shared`` (``convert.export.shared``) for many tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from convert.export.common import ExportJob
from convert.export.decoder import ExportDecoder
from convert.export.folded import FoldedDecoder
from convert.export.photo_maps import PhotoMaps
from convert.export.shared import FirstProducts, SharedDecoder
from edgesam_jax.portable.onnx_model import PHOTO_INPUTS

FOLDED_SLOTS = 8  # up to which the folded form is the faster one: docs/export.md, "Measured: the split decoder"


@dataclass(frozen=True)
class Halves:
    """The two graphs of a decoder.

    Attributes:
      form: ``folded`` or ``shared``.
      image: image_embeddings (1 c g g), mask_input (1 1 s s), has_mask_input (1) -> the maps, each (1 channels g g).
      decoder: the maps as a list, point_coords (1 n 2), point_labels (1 n) -> scores (1 m), masks (1 m s s).
      maps: the maps' names.
    """

    form: str
    image: nn.Module
    decoder: nn.Module
    maps: list[str]


def form_of(slots: int) -> str:
    """Return the form for a number of slots; 0 is any number."""
    return "folded" if slots <= FOLDED_SLOTS else "shared"


def split(whole: ExportDecoder, slots: int, flat: bool) -> Halves:
    """Split a decoder that takes a mask.

    ``flat``: in the form that is fast in ONNX Runtime, where that differs from the one that coremltools recognises.
    """
    if form_of(slots) == "folded":
        image = PhotoMaps(whole)
        return Halves("folded", image, FoldedDecoder(whole), image.names)
    first = FirstProducts(whole)
    return Halves("shared", first, SharedDecoder(whole, flat), first.names)


def entry(job: ExportJob, suffix: str, maps: list[str]) -> dict[str, Any]:
    """Return the contract's entry on the parts of a split decoder and their files."""
    return {
        "split": form_of(job.slots),
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
