"""The data that flows between rooms, and the one vocabulary of dimensions.

``b`` images, ``p`` prompts per image, ``n`` prompt slots per prompt, ``t`` tokens, ``m`` masks, ``h w`` rows and
columns, ``c d`` channels.  Images and features are NHWC.  Coordinates are (x, y) in pixels of the model's square input
frame, in which a photo fills the top left corner (``valid_size``) and the rest is padding.
"""

from __future__ import annotations

from typing import Any

from flax import struct
from jax import Array

# Labels of prompt slots, as SAM's published checkpoints number them.
NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, NOT_A_POINT = 0, 1, 2, 3, -1
IGNORED = -2  # the published EdgeSAM's zero vector, which still takes part in attention: for its protocol only


@struct.dataclass
class Prompts:
    """A buffer of fixed size for points, boxes and mixtures of both.

    ``coords`` (b p n 2) float32; ``labels`` (b p n) int32: 1 foreground, 0 background, 2 and 3 the corners of a box,
    -1 SAM's learned "not a point", -2 a zero vector; ``valid`` (b p n) bool: slots that are not valid take no part in
    any attention.
    """

    coords: Array
    labels: Array
    valid: Array


@struct.dataclass
class MaskPrediction:
    """What the mask decoder gives.

    ``logits`` (b p m h w) float32 at the low resolution, ``iou`` (b p m) float32.  ``targets`` holds the named
    distillation targets when they are asked for: ``query`` (b p m c) hypernetwork outputs, ``feat`` (b p h w c)
    upscaled embedding, and the attention maps ``t2t_0 t2i_0 i2t_0 t2t_1 t2i_1 i2t_1 t2i_final``, each
    (b p heads queries keys).
    """

    logits: Array
    iou: Array
    targets: dict[str, Array] | None = None


@struct.dataclass
class Batch:
    """One batch of examples, as the pipeline hands it to a step.

    ``image`` (b h w 3) uint8 RGB, zero padded; ``valid_size`` (b 2) int32 rows and columns that hold the photo;
    ``boxes`` (b p 4) float32 XYXY; ``points`` (b p 2) float32 one point inside each instance; ``prompt_valid`` (b p)
    bool; ``masks`` (b p s s) bool ground truth at the model's low mask resolution, or None;
    ``teacher_embedding`` (b g g c) float or None, where it comes from a store.
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
    """Everything a step changes.  ``constants`` holds the Gaussian matrix of the positional encoding: no gradient."""

    step: Array
    params: Any
    batch_stats: Any
    constants: Any
    opt_state: Any
