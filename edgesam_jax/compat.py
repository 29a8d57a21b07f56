"""SAM's interface to this package's models, so that code written for ``segment_anything`` needs another import only.

    from edgesam_jax.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

Names, arguments, their order and defaults, and results are those of segment-anything 1.0, with NumPy arrays in place of
tensors. docs/compat.md lists the differences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never

import jax
import numpy as np

from edgesam_jax.checkpoints.load import TINY_TEACHER, load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.published.guess import architecture
from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.everything import EverythingGenerator
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import MODELS
from edgesam_jax.portable.errors import type_text
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, upscale_logits
from edgesam_jax.portable.predictor import ImageEmbedding, read_photo
from edgesam_jax.predict.predictor import Predictor


class SamModel:
    """A model in the form that ``sam_model_registry`` returns. Whatever is made from it shares its weights.

    Args:
      model: from ``load_model``.
    """

    mask_threshold = MASK_THRESHOLD
    image_format = "RGB"

    def __init__(self, model: Model) -> None:
        self.model = model

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The ``Predictor`` that has the weights on the device."""
        return Predictor(self.model)

    @property
    def device(self) -> jax.Device:
        """JAX's default device."""
        return jax.devices()[0]

    def to(self, device: Any = None) -> SamModel:
        """Return the model unchanged: JAX picks the device; ``JAX_PLATFORMS`` in the environment overrules it."""
        del device
        return self

    def cuda(self) -> SamModel:
        """Return the model unchanged, as ``to``."""
        return self

    def eval(self) -> SamModel:
        """Return the model unchanged: predictors always run in inference."""
        return self


class SamPredictor:
    """SAM's predictor: call ``set_image`` once, then ``predict`` for any number of prompts.

    Args:
      sam_model: from ``sam_model_registry`` or ``load_model``.

    Raises:
      UsageError: something else.
    """

    def __init__(self, sam_model: SamModel | Model) -> None:
        self.model = _sam_model(sam_model)
        self._embedding: ImageEmbedding | None = None

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode a photo.

        Args:
          image: (h w 3) uint8.
          image_format: order of its channels, ``RGB`` or ``BGR``.

        Raises:
          UsageError: an image or format that is not as described.
        """
        if image_format not in ("RGB", "BGR"):
            raise UsageError(f"image_format: must be RGB or BGR, not {image_format!r}")
        photo = read_photo(image)
        self._embedding = self.model.predictor.set_image(photo if image_format == "RGB" else photo[..., ::-1])

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for one prompt: points, a box, or both.

        Args:
          point_coords: (n 2) x, y in pixels of the photo.
          point_labels: (n) 1 inside the object, 0 outside.
          box: (4) x0, y0, x1, y1.
          mask_input: (1 s s) low-resolution logits of an earlier prediction, together with points or a box.
          multimask_output: three masks, of the mask tokens 1 to 3; otherwise one, of token 0.
          return_logits: logits at the photo's size in place of masks.

        Returns:
          masks (m h w) bool or float32 logits, scores (m) float32, low-resolution logits (m s s) float32; s = 256 for
          SAM and EdgeSAM. The scores are the IoU head's, or stability scores where that head was not trained (EdgeSAM).

        Raises:
          UsageError: see ``Predictor.predict``.
        """
        image, predictor = self._photo(), self.model.predictor
        masks, scores, logits = predictor.predict(
            point_coords, point_labels, box, mask_input, 3 if multimask_output else 1, image=image
        )
        if return_logits:
            masks = upscale_logits(logits, predictor.image_size, image.input_size, image.original_size, predictor.frame)
        return masks, np.array(scores), np.array(logits)  # writable, which views of JAX's arrays are not

    def get_image_embedding(self) -> np.ndarray:
        """Return the photo's embedding (1 c g g) float32; c = 256 channels and g = 64 cells for SAM and EdgeSAM.

        Raises:
          UsageError: no photo is set.
        """
        return np.array(self._photo().values, np.float32).transpose(2, 0, 1)[None]

    def reset_image(self) -> None:
        """Forget the photo."""
        self._embedding = None

    @property
    def is_image_set(self) -> bool:
        """Whether a photo is set."""
        return self._embedding is not None

    @property
    def features(self) -> np.ndarray | None:
        """The photo's embedding (1 c g g), or None."""
        return self.get_image_embedding() if self.is_image_set else None

    @property
    def original_size(self) -> tuple[int, int] | None:
        """Rows and columns of the photo, or None."""
        return None if self._embedding is None else self._embedding.original_size

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Rows and columns of the model's frame that the photo fills, or None."""
        return None if self._embedding is None else self._embedding.input_size

    @property
    def device(self) -> jax.Device:
        """JAX's default device."""
        return self.model.device

    @property
    def transform(self) -> Never:
        """Raise a ``UsageError``: prompts need no transform."""
        raise UsageError("transform: not needed; predict takes points and boxes in pixels of the photo")

    def set_torch_image(self, *_: Any, **__: Any) -> Never:
        """Raise a ``UsageError``: photos are passed to ``set_image``."""
        raise UsageError("set_torch_image: takes a torch tensor in the model's frame; pass the photo to set_image")

    def predict_torch(self, *_: Any, **__: Any) -> Never:
        """Raise a ``UsageError`` that names the alternatives."""
        raise UsageError(
            "predict_torch: takes torch tensors; call predict for each prompt, or Predictor.predict_prompts for many"
        )

    def _photo(self) -> ImageEmbedding:
        if self._embedding is None:
            raise UsageError("no photo is set: call set_image first")
        return self._embedding


class SamAutomaticMaskGenerator(EverythingGenerator):
    """SAM's automatic mask generator; ``generate`` and the options are those of ``portable.everything``.

    Args:
      model: from ``sam_model_registry`` or ``load_model``.
      own_options: those that SAM doesn't have: ``coarse_to_fine``, ``min_area``, ``max_masks``, ``memory``.

    Raises:
      UsageError: something else as the model, or an option out of range.
    """

    def __init__(
        self,
        model: SamModel | Model,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        **own_options: Any,
    ) -> None:
        super().__init__(
            _sam_model(model).predictor, points_per_side, points_per_batch, pred_iou_thresh, stability_score_thresh,
            stability_score_offset, box_nms_thresh, crop_n_layers, crop_nms_thresh, crop_overlap_ratio,
            crop_n_points_downscale_factor, point_grids, min_mask_region_area, output_mode, **own_options,
        )  # fmt: skip


def _sam_model(model: Any) -> SamModel:
    if isinstance(model, SamModel):
        return model
    if isinstance(model, Model):
        return SamModel(model)
    raise UsageError(f"model: expected what sam_model_registry[NAME](checkpoint=FILE) returns, got {type_text(model)}")


# ------------------------------------------------------------------------------------------------------------- registry

Builder = Callable[..., SamModel]

CONFIGS: dict[str, SamConfig] = {
    "default": MODELS["sam_vit_h"],
    "vit_h": MODELS["sam_vit_h"],
    "vit_l": MODELS["sam_vit_l"],
    "vit_b": MODELS["sam_vit_b"],
    "vit_t": MODELS["mobile_sam"],  # MobileSAM's name for it
    **{name: MODELS[name] for name in ("edge_sam", "edge_sam_m2", "edge_sam_m3", TINY_TEACHER)},
}


class _Registry(dict[str, Builder]):
    """Models by name."""

    def __missing__(self, name: object) -> Never:
        raise UsageError(f"sam_model_registry: no model {name!r}; choose one of {', '.join(self)}")


def _builder(name: str) -> Builder:
    config = CONFIGS[name]

    def build(checkpoint: str | Path | None = None) -> SamModel:
        """Return the model with the weights of a file, or with random weights of seed 0 as SAM's registry does.

        Args:
          checkpoint: whatever ``load_model`` reads. ``tiny_teacher`` has its weights in the package and needs none.

        Raises:
          UsageError: the file can't be read, or holds another model.
        """
        if checkpoint is None and name == TINY_TEACHER:
            checkpoint = TINY_TEACHER
        if checkpoint is None:
            score = "stability" if name.startswith("edge_sam") else "iou"  # as of the published weights
            return SamModel(Model(config, init_variables(config), {"source": "random weights", "score": score}))
        model = load_model(checkpoint)
        found = architecture(model.config)
        if found != architecture(config):
            fitting = next((other for other in CONFIGS if found == architecture(CONFIGS[other])), None)
            remedy = f"sam_model_registry[{fitting!r}]" if fitting else "SamModel(load_model(FILE))"
            raise UsageError(f"sam_model_registry[{name!r}]: checkpoint {checkpoint} holds another model; use {remedy}")
        return SamModel(model)

    return build


sam_model_registry = _Registry({name: _builder(name) for name in CONFIGS})
build_sam = build_sam_vit_h = sam_model_registry["vit_h"]
build_sam_vit_l, build_sam_vit_b = sam_model_registry["vit_l"], sam_model_registry["vit_b"]
