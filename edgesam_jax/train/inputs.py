"""The inputs of a run: teacher, data and store of embeddings, checked against the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax

from edgesam_jax.checkpoints.digest import encoder_digest
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model, with_compute_dtype
from edgesam_jax.config import AugmentConfig, Config, UsageError
from edgesam_jax.data.embeddings import EmbeddingStore
from edgesam_jax.data.pipeline import Batches, batches
from edgesam_jax.data.readers.ranged import pixel_note
from edgesam_jax.data.source import ENOUGH_TO_JUDGE, Part, skipped_entries
from edgesam_jax.learning.checks import check_teacher
from edgesam_jax.learning.objectives import needs_masks, objective_of


def check_data(config: Config, parts: Sequence[Part]) -> None:
    """Check that the data sets have the annotations that the objective needs, and few damaged entries.

    Raises:
      UsageError: a data set lacks annotations or has too many damaged entries; the message names its field.
    """
    objective = objective_of(config)
    roots = [f"data.mixture[{i}].root={m.root}" for i, m in enumerate(config.data.mixture)]
    for part, where in zip(parts, roots or [f"data.root={config.data.root}"], strict=True):
        if objective.needs_annotations(config) and not part.source.annotated:
            raise UsageError(
                f"{where}: no photo in it has annotations, so there is nothing to prompt with: set"
                " data.unlabelled=superpixels (or grid), put annotations next to the photos, use data.source=coco, or"
                " distill.mode=encoder_only"
            )
        if objective.needs_true_masks(config) and not part.source.true_masks:
            raise UsageError(f"{where}: has no ground-truth masks, which distill.targets=ground_truth needs")
        found, most = skipped_entries(part.source), config.data.max_bad_share
        if found.listed >= ENOUGH_TO_JUDGE and found.damaged > most * found.listed:
            raise UsageError(
                f"{where}: {found.damaged} of its {found.listed} photos have damaged entries, more than"
                f" data.max_bad_share={most} allows: fix the data set or raise data.max_bad_share ({found.note})"
            )


def check_store(config: Config, teacher: Model | None) -> None:
    """Check that a store was made with the config's teacher and resizing, and that the photos aren't augmented.

    Raises:
      UsageError: another teacher, size, shape, resizing or range of pixels; no teacher; or augmentation, which stored
        embeddings can't reflect.
    """
    for root in config.data.embeddings:
        where = f"data.embeddings={root}"
        if config.data.augment != AugmentConfig():
            raise UsageError(
                f"{where}: a store has embeddings of unaugmented photos; turn data.augment off or leave data.embeddings"
                " empty"
            )
        if teacher is None or config.distill.targets != "teacher":
            raise UsageError(f"{where}: the run has no teacher; set teacher, or leave data.embeddings empty")
        header = EmbeddingStore(root).header  # reports a missing or damaged shard now, not hours later
        ranges = {part.pixel_range for part in config.data.mixture or (config.data,)}
        if header.pixel_range not in ranges:
            raise UsageError(
                f"{where}: made with --pixel-range {header.pixel_range}, but data.pixel_range is"
                f" {' and '.join(sorted(ranges))}; run edgesam_jax.embed with this one"
            )
        if header.teacher != encoder_digest(teacher):
            raise UsageError(
                f"{where}: made with another teacher ({header.source or header.teacher[:12]}), or with other weights of"
                f" {config.teacher}; run edgesam_jax.embed with this one"
            )
        if header.resize != config.data.resize:
            raise UsageError(
                f"{where}: made from photos resized with {header.resize}, but data.resize={config.data.resize}; set"
                f" data.resize={header.resize}, or run edgesam_jax.embed with --resize {config.data.resize}"
            )


def load_teacher(config: Config) -> Model | None:
    """Load the teacher that the config names and check it against the student; None without a teacher.

    Raises:
      UsageError: no such checkpoint, or its sizes differ from the student's.
    """
    if not config.teacher:
        return None
    teacher = load_model(config.teacher)
    check_teacher(config, teacher.config)
    return replace(teacher, config=with_compute_dtype(teacher.config, config.train.teacher_dtype))


def open_data(config: Config, step: int, parts: Sequence[Part], notes: list[str] | None = None) -> Batches:
    """Open this process's share of the config's batches; remarks on skipped entries and pixels go to ``notes``.

    Args:
      parts: the config's data sets, from ``open_parts``.

    Raises:
      UsageError: a data set lacks annotations that the objective needs.
    """
    check_data(config, parts)
    for part in parts if step == 0 else ():
        if notes is not None and (found := skipped_entries(part.source)).rows:
            notes.append(f"note: {found.note}; skipped.jsonl lists them")
        if notes is not None and (remark := pixel_note(part.source)):
            notes.append(f"note: {remark}")
    shard = jax.process_index(), jax.process_count()
    return batches(config.data, config.model, step, parts=list(parts), shard=shard, masks=needs_masks(config))
