"""Data types shared by all parts of the package, and the letters that name dimensions.

``b`` images, ``p`` prompts per image, ``n`` prompt slots per prompt, ``t`` tokens, ``m`` masks, ``h w`` rows and
columns, ``c d`` channels. Images and features are NHWC. Coordinates are (x, y) in pixels of the model's square input
frame. A photo fills the frame's top left corner (``valid_size``); the rest is padding.
"""

from __future__ import annotations

from typing import Any

from flax import struct
from jax import Array

# Labels of prompt slots, as SAM's published checkpoints number them.
NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, NOT_A_POINT = 0, 1, 2, 3, -1
IGNORED = -2  # a zero vector that still takes part in attention, as in the published EdgeSAM's evaluation protocol


@struct.dataclass
class Prompts:
    """Prompts of points, boxes or both, in a buffer of fixed size.

    ``coords`` (b p n 2) float32; ``labels`` (b p n) int32: 1 foreground, 0 background, 2 and 3 the corners of a box,
    -1 SAM's learned "not a point", -2 a zero vector; ``valid`` (b p n) bool: invalid slots are excluded from all
    attention.
    """

    coords: Array
    labels: Array
    valid: Array


@struct.dataclass
class MaskPrediction:
    """Outputs of the mask decoder.

    ``logits`` (b p m h w) float32 at the low resolution, ``iou`` (b p m) float32. ``targets`` holds the
    distillation targets by name if they were requested: ``query`` (b p m c) hypernetwork outputs, ``feat`` (b p h w c)
    upscaled embedding, and the attention maps ``t2t_0 t2i_0 i2t_0 t2t_1 t2i_1 i2t_1 t2i_final``, each
    (b p heads queries keys).
    """

    logits: Array
    iou: Array
    targets: dict[str, Array] | None = None


@struct.dataclass
class Batch:
    """One batch of examples, as the data pipeline yields it.

    ``image`` (b h w 3) RGB from 0 to 255, uint8 or float32, zero padded; ``valid_size`` (b 2) int32 rows and columns
    that the photo fills; ``boxes`` (b p 4) float32 XYXY; ``points`` (b p 2) float32 one point inside each instance;
    ``prompt_valid`` (b p) bool; ``masks`` (b p s s) bool ground truth at the model's low mask resolution, or None;
    ``teacher_embedding`` (b g g c) float if it is read from a store, else None.
    """

    image: Array
    valid_size: Array
    boxes: Array
    points: Array
    prompt_valid: Array
    masks: Array | None = None
    teacher_embedding: Array | None = None


@struct.dataclass
class TrainState:
    """The state of training. ``constants`` holds the positional encoding's Gaussian matrix, which isn't trained."""

    step: Array
    params: Any
    batch_stats: Any
    constants: Any
    opt_state: Any
