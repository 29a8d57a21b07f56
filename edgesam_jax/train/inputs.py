"""What a run reads: its teacher, its data and its store, checked against its config."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from edgesam_jax.checkpoints.digest import encoder_digest
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import AugmentConfig, Config, UsageError
from edgesam_jax.config.rules import check_teacher
from edgesam_jax.data.embeddings import EmbeddingStore
from edgesam_jax.data.opening import open_parts
from edgesam_jax.data.pipeline import Batches, batches
from edgesam_jax.data.source import ENOUGH_TO_JUDGE, Part, skipped_entries


def check_data(config: Config, parts: Sequence[Part]) -> None:
    """The prompt loop needs instances, ground truth as a target needs true masks, and few entries may be damaged.

    Raises:
      UsageError: a data set that has not what is needed, named by its field.
    """
    loop = config.distill.mode != "encoder_only"
    truth = config.distill.targets == "ground_truth" and config.distill.mode != "proposals"  # boxes do, too
    roots = [f"data.mixture[{i}].root={m.root}" for i, m in enumerate(config.data.mixture)]
    for part, where in zip(parts, roots or [f"data.root={config.data.root}"], strict=True):
        if loop and not part.source.annotated:
            raise UsageError(
                f"{where}: no photo in it has annotations, so there is nothing to prompt with: set"
                " data.unlabelled=superpixels (or grid), put annotations beside the photos, use data.source=coco, or"
                " distill.mode=encoder_only"
            )
        if truth and not part.source.true_masks:
            raise UsageError(f"{where}: it has no masks of its own; distill.targets=ground_truth needs them")
        found, most = skipped_entries(part.source), config.data.max_bad_share
        if found.listed >= ENOUGH_TO_JUDGE and found.damaged > most * found.listed:
            raise UsageError(
                f"{where}: {found.damaged} of its {found.listed} photos have entries that are damaged, more than"
                f" data.max_bad_share={most} allows: mend the data set or raise the share ({found.note})"
            )


def check_store(config: Config, teacher: Model | None) -> None:
    """A store must be of the teacher that the config names, and of photos as they are.

    Raises:
      UsageError: another teacher, size or shape; no teacher at all; or augmentation, which a store can't follow.
    """
    for root in config.data.embeddings:
        where = f"data.embeddings={root}"
        if config.data.augment != AugmentConfig():
            raise UsageError(
                f"{where}: a store holds embeddings of unchanged photos; switch data.augment off, or use no store"
            )
        if teacher is None or config.distill.targets != "teacher":
            raise UsageError(f"{where}: there is no teacher to learn from; name it, or leave the store out")
        header = EmbeddingStore(root).header  # a shard that is missing or damaged shows here, not hours later
        if header.teacher != encoder_digest(teacher):
            raise UsageError(
                f"{where}: made with another teacher ({header.source or header.teacher[:12]}), or with other weights of"
                f" {config.teacher}; embed with this one"
            )


def load_teacher(config: Config) -> Model | None:
    """The teacher that the config names, checked against the student.

    Raises:
      UsageError: no such checkpoint, or one of other sizes.
    """
    if not config.teacher:
        return None
    teacher = load_model(config.teacher)
    check_teacher(config, teacher.config)
    return teacher


def open_data(config: Config, step: int, notes: list[str] | None = None) -> Batches:
    """This process's share of the batches that the config names; what it left out is added to ``notes``.

    Raises:
      UsageError: a data set that can't be opened, or does not fit what is to be learnt.
    """
    parts = open_parts(config.data, config.model.image_size)
    check_data(config, parts)
    for part in parts if step == 0 else ():
        if notes is not None and (found := skipped_entries(part.source)).rows:
            notes.append(f"note: {found.note}; skipped.jsonl lists them")
    shard = jax.process_index(), jax.process_count()
    return batches(config.data, config.model, step, parts=parts, shard=shard)
