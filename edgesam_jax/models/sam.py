"""The promptable model (image encoder, prompt encoder, mask decoder) and the registry of named models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import (
    ConvEncoderConfig,
    DecoderConfig,
    EfficientVitConfig,
    PlainVitConfig,
    RepVitConfig,
    SamConfig,
    TinyVitConfig,
    VitConfig,
)
from edgesam_jax.models.decoder import efficient_sam
from edgesam_jax.models.decoder.mask_decoder import MaskDecoder
from edgesam_jax.models.decoder.prompt_encoder import PromptEncoder
from edgesam_jax.models.encoders.conv_encoder import ConvEncoder
from edgesam_jax.models.encoders.efficient_vit import EfficientVit
from edgesam_jax.models.encoders.plain_vit import PlainVit
from edgesam_jax.models.encoders.repvit import REPVIT_M1, REPVIT_M2, REPVIT_M3, RepVit
from edgesam_jax.models.encoders.tiny_vit import TinyVit
from edgesam_jax.models.encoders.vit import Vit
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.layers import Mode
from edgesam_jax.models.proposals import Proposals
from edgesam_jax.portable.frame import PIXEL_MEAN, PIXEL_STD
from edgesam_jax.types import MaskPrediction, Prompts

TINY_REPVIT = RepVitConfig(widths=(16, 24, 32, 48), depths=(1, 2, 3, 2), stem_strides=(2, 1))
TINY = SamConfig(
    encoder=TINY_REPVIT,
    decoder=DecoderConfig(heads=4, mlp_dim=128),
    image_size=128,
    embed_dim=64,
    position_std=0.3,
)

MODELS: dict[str, SamConfig] = {
    "edge_sam": SamConfig(encoder=REPVIT_M1),
    "edge_sam_m2": SamConfig(encoder=REPVIT_M2),
    "edge_sam_m3": SamConfig(encoder=REPVIT_M3),
    "edge_sam_tiny_vit": SamConfig(encoder=TinyVitConfig(fuse=True)),
    "edge_sam_efficient_vit": SamConfig(encoder=EfficientVitConfig()),
    "mobile_sam": SamConfig(encoder=TinyVitConfig()),
    "sam_vit_b": SamConfig(encoder=VitConfig()),
    "sam_vit_l": SamConfig(encoder=VitConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))),
    "sam_vit_h": SamConfig(encoder=VitConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))),
    "efficient_sam_ti": SamConfig(encoder=PlainVitConfig(), variant="efficient_sam"),
    "efficient_sam_s": SamConfig(encoder=PlainVitConfig(width=384, heads=6), variant="efficient_sam"),
    "tiny_teacher": replace(TINY, encoder=ConvEncoderConfig(), decoder=replace(TINY.decoder, tie_cross_keys=True)),
    "tiny_student": TINY,
}


# The image encoder of a model, by the type of ``SamConfig.encoder``.
ENCODERS: dict[type, Callable[[Any, Mode], nn.Module]] = {
    RepVitConfig: lambda sam, mode: RepVit(sam.encoder, sam.embed_dim, mode),
    TinyVitConfig: lambda sam, mode: TinyVit(sam.encoder, sam.embed_dim, mode),
    EfficientVitConfig: lambda sam, mode: EfficientVit(sam.encoder, sam.embed_dim, mode),
    ConvEncoderConfig: lambda sam, mode: ConvEncoder(sam.encoder, sam.embed_dim, mode.dtype),
    PlainVitConfig: lambda sam, mode: PlainVit(sam.encoder, sam.embed_dim, mode.dtype),
    VitConfig: lambda sam, mode: Vit(sam.encoder, sam.image_size, sam.embed_dim, mode.dtype),
}


class Sam(nn.Module):
    """The promptable segmentation model that ``config`` describes.

    ``folded`` expects variables from ``fold.fold``.  ``axis_name`` is the device axis over which batch statistics are
    averaged in training.
    """

    config: SamConfig
    folded: bool = False
    axis_name: str | None = None

    def setup(self) -> None:
        cfg, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        mode = Mode(self.folded, dtype, self.axis_name)
        self.image_encoder = ENCODERS[type(cfg.encoder)](cfg, mode)
        if cfg.variant == "efficient_sam":
            self.prompt_encoder: nn.Module = efficient_sam.PromptEncoder(
                cfg.embed_dim, cfg.grid, cfg.image_size, cfg.position_std, dtype
            )
            self.mask_decoder: nn.Module = efficient_sam.MaskDecoder(cfg.decoder, cfg.embed_dim, cfg.grid, dtype)
        else:
            self.prompt_encoder = PromptEncoder(
                cfg.embed_dim, cfg.grid, cfg.image_size, cfg.mask_in_chans, cfg.position_std, dtype
            )
            self.mask_decoder = MaskDecoder(cfg.decoder, cfg.embed_dim, cfg.grid, dtype)
        self.proposals = None if cfg.proposals is None else Proposals(cfg.proposals, mode)

    def encode_image(self, images: Array, train: bool = False) -> Array:
        """Normalised images (b h w 3) -> embedding (b g g c)."""
        return self.image_encoder(images, train)

    def propose(self, images: Array, train: bool = False) -> tuple[Array, Array, Array]:
        """Normalised images (b h w 3) -> embedding (b g g c), score logits (b n) and box codes (b n 4) of all anchors.

        ``train`` concerns the proposal network only; the image encoder runs in inference and gets no gradient.
        """
        assert self.proposals is not None
        embedding, maps = self.image_encoder(images, False, True)
        return embedding, *self.proposals(jax.lax.stop_gradient(maps), train)

    def decode_masks(
        self,
        embedding: Array,
        prompts: Prompts,
        mask_input: Array | None = None,
        mask_input_valid: Array | None = None,
        num_masks: int = 4,
        targets: bool = False,
        placed: bool = True,
        positions: Array | None = None,
    ) -> MaskPrediction:
        """Embedding (b g g c) and prompts (b p n) -> masks of (4g 4g) pixels.

        ``mask_input`` (b p 4g 4g) holds the logits of an earlier round; ``mask_input_valid`` (b p) is False where they
        are ignored.  With ``placed`` False the masks are (16 g*g), by cell of the embedding.  ``positions`` are those
        of the embedding's cells, if they are computed already.
        """
        sparse, valid = self.prompt_encoder.tokens(prompts)
        dense = self.prompt_encoder.dense(mask_input, mask_input_valid)
        positions = self.dense_positions() if positions is None else positions
        return self.mask_decoder(embedding, positions, sparse, valid, dense, num_masks, targets, placed)

    def dense_positions(self) -> Array:
        """Positional encoding of the cells of an embedding (g g c)."""
        return self.prompt_encoder.dense_positions()

    def __call__(self, images: Array, prompts: Prompts) -> MaskPrediction:
        """Encode and decode; for initialisation."""
        if self.proposals is not None:
            self.propose(images)
        return self.decode_masks(self.encode_image(images), prompts)


def preprocess(images: Array, valid_size: Array) -> Array:
    """RGB (b h w 3), 0 to 255 in uint8 or float32 -> normalised float32, zero outside ``valid_size`` (b 2).

    SAM pads after normalisation.
    """
    x = (images.astype(jnp.float32) - jnp.asarray(PIXEL_MEAN)) / jnp.asarray(PIXEL_STD)
    rows = jnp.arange(images.shape[1])[None, :] < valid_size[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < valid_size[:, 1:]
    return x * (rows[:, :, None] & columns[:, None, :])[..., None]


def decode(
    config: SamConfig,
    variables: Any,
    embedding: Array,
    prompts: Prompts,
    mask_input: Array | None = None,
    mask_input_valid: Array | None = None,
    *,
    num_masks: int = 4,
    targets: bool = False,
    placed: bool = True,
    positions: Array | None = None,
    chunk: int = 0,
) -> MaskPrediction:
    """Call ``Sam.decode_masks`` with at most ``chunk`` prompts of each image at a time; 0 decodes all at once.

    The work of a chunk fits the cache, and memory does not grow with the number of prompts.
    """
    if positions is None and platforms.on_accelerator():
        positions = dense_positions(config, variables)  # once, not for every chunk

    def apply(arguments: tuple[Prompts, Array | None, Array | None]) -> MaskPrediction:
        result = Sam(config).apply(
            variables, embedding, *arguments, num_masks=num_masks, targets=targets, placed=placed,
            positions=positions, method="decode_masks",
        )  # fmt: skip
        return cast(MaskPrediction, result)

    arguments = (prompts, mask_input, mask_input_valid)
    p = prompts.labels.shape[1]
    if not chunk or chunk >= p:
        return apply(arguments)
    out = jax.lax.map(apply, split_prompts(arguments, chunk))
    return cast(MaskPrediction, join_prompts(out, p))


def dense_positions(config: SamConfig, variables: Any) -> Array:
    """Positional encoding of the cells of an embedding (g g c)."""
    return cast(Array, Sam(config).apply(variables, method="dense_positions"))


def split_prompts(tree: Any, chunk: int) -> Any:
    """Split leaves (b p ...) into (pieces b chunk ...); zeros fill the last piece."""

    def split(x: Array) -> Array:
        b, p = x.shape[:2]
        pieces = -(-p // chunk)
        x = jnp.pad(x, ((0, 0), (0, pieces * chunk - p), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(b, pieces, chunk, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def join_prompts(tree: Any, prompts: int) -> Any:
    """Undo ``split_prompts``: leaves (pieces b chunk ...) -> (b prompts ...)."""

    def join(x: Array) -> Array:
        pieces, b, chunk = x.shape[:3]
        return x.swapaxes(0, 1).reshape(b, pieces * chunk, *x.shape[3:])[:, :prompts]

    return jax.tree.map(join, tree)
