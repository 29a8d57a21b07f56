"""Targets and loss of the proposal network: which anchors are objects, and their offsets from the objects' boxes.

Focal loss of the scores, Huber loss of the positive anchors' codes, both over the number of positive anchors
(EdgeSAM section 3.2; with EfficientDet's numbers; docs/published_code.md, "Other models").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from edgesam_jax.config import ProposalConfig, SamConfig
from edgesam_jax.learning import losses
from edgesam_jax.models.anchors import anchors_of, assign, encode
from edgesam_jax.types import Batch


@struct.dataclass
class Targets:
    """Targets of all anchors.

    ``kind`` (b n) int32 is 1 for positive, 0 for negative, -1 for ignored anchors; ``codes`` (b n 4) encode the matched
    boxes.
    """

    kind: Array
    codes: Array


def targets_of(batch: Batch, model: SamConfig) -> Targets:
    """Assign the anchors of each image to its valid boxes."""
    anchors, config = jnp.asarray(anchors_of(model)), model.proposals
    assert config is not None

    def one(boxes: Array, valid: Array) -> Targets:
        kind, match = assign(anchors, boxes, valid, config)
        return Targets(kind, encode(anchors, boxes[match]))

    return jax.vmap(one)(batch.boxes, batch.prompt_valid)


def proposal_loss(
    logits: Array, codes: Array, targets: Targets, weight: Array, config: ProposalConfig
) -> tuple[Array, dict[str, Array]]:
    """Loss of scores (b n) and codes (b n 4), and its parts.

    Args:
      weight: one over the number of positive anchors in the entire batch.
    """
    positive = targets.kind == 1
    focal = losses.focal(logits, positive, config.focal_alpha, config.focal_gamma)
    score = weight * jnp.sum(focal * (targets.kind >= 0))
    wrong = jnp.where(positive[..., None], codes - targets.codes, 0)  # codes of negative anchors may be infinite
    box = config.box_weight * weight * losses.huber(wrong, config.huber_beta).sum() / 4
    return score + box, {"score": score, "box": box}
