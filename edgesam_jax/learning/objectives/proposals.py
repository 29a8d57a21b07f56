"""Stage 3: the proposal network of the granularity priors learns the data set's boxes (EdgeSAM section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from edgesam_jax.config import Config
from edgesam_jax.learning.objective import Outcome, Setting, Share, balance, frame, refuse, student_model
from edgesam_jax.learning.proposal_loss import proposal_loss, targets_of
from edgesam_jax.types import Batch

MODE = "distill.mode=proposals"


def check(config: Config) -> None:
    """Check that the targets are boxes, and that the model has a proposal network."""
    refuse(
        {
            f"{MODE}: set distill.targets=ground_truth; proposals are learned from boxes, not from a teacher": (
                config.distill.targets != "ground_truth"
            ),
            f"{MODE}: the model has no proposal network; set model.proposals={{}}": config.model.proposals is None,
        }
    )


def needs_annotations(config: Config) -> bool:
    """Boxes come from annotated instances."""
    return True


def needs_true_masks(config: Config) -> bool:
    """Boxes are enough."""
    return False


def reads_masks(config: Config) -> bool:
    """Only boxes are read."""
    return False


def compares_embeddings(config: Config) -> bool:
    """There is no teacher."""
    return False


def keeps_decoder(config: Config) -> bool:
    """The decoder comes from the checkpoint that the run starts from."""
    return False


def decodes(config: Config) -> int:
    """Nothing is decoded."""
    return 0


def learns(path: tuple[str, ...], config: Config) -> bool:
    """The proposal network only."""
    return path[0] == "proposals"


def share(batch: Batch, keys: Array, config: Config, total: Callable[[Array], Array]) -> Share:
    """Targets of all anchors; the weight (b) is one over the number of positive anchors in the batch."""
    targets = targets_of(batch, config.model)
    positive = balance((targets.kind == 1).astype(jnp.float32), config)
    return Share(batch, keys, jnp.full(batch.image.shape[0], 1 / total(positive)), targets)


def loss(variables: Mapping[str, Any], teacher: Any, share: Share, key: Array, setting: Setting) -> Outcome:
    """Focal loss of the scores and Huber loss of the positive anchors' codes."""
    proposals = setting.config.model.proposals
    assert share.weights is not None and proposals is not None
    images, sam = frame(share.batch), student_model(setting)
    (_, logits, codes), updated = sam.apply(variables, images, True, method="propose", mutable=["batch_stats"])
    value, metrics = proposal_loss(logits, codes, share.targets, share.weights[0], proposals)
    return Outcome(value, updated["batch_stats"], {"loss": value, **metrics})


def statistics(before: Any, after: Any, config: Config) -> Any:
    """Keep the new statistics of the proposal network only; the other parts are frozen."""
    return {**before, "proposals": after["proposals"]}
