"""The two losses: encoder-only, and prompt-in-the-loop (EdgeSAM sections 3.2 and appendix D; facts, section 6)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from edgesam_jax import losses, prompts
from edgesam_jax.config import Config, DistillConfig, SamConfig
from edgesam_jax.models.sam import decode
from edgesam_jax.types import Batch, Prompts

POINT_SLOTS_AT_START = 1


@struct.dataclass
class Trace:
    """What the last decode round saw, for pictures: prompts and masks at low resolution (b p s s)."""

    prompts: Prompts
    student: Array
    target: Array
    disagreement: Array


@struct.dataclass
class LoopCarry:
    """State of the prompt loop between two rounds; all shapes fixed."""

    prompts: Prompts
    previous: Array  # (b p s s) logits fed back as a mask prompt
    previous_valid: Array  # (b p)
    terms: dict[str, Array]
    trace: Trace


def encoder_only_loss(student: Array, teacher: Array, batch: Batch, config: Config) -> tuple[Array, dict[str, Array]]:
    """Stage 1: squared feature error over valid cells, mean over images (EdgeSAM equation 1).

    ``student`` and ``teacher`` are embeddings (b g g c).
    """
    model = config.model
    valid = losses.valid_weights(batch.valid_size, model.grid, model.image_size) > 0.5
    loss = losses.feature_error(student, teacher, valid).mean()
    return loss, {"encoder": loss}


def start_prompts(key: Array, keys: Array, batch: Batch, config: DistillConfig, slots: int) -> tuple[Prompts, Array]:
    """The first prompts of the loop and which of them are boxes (b p).

    ``key`` is shared by all devices, ``keys`` (b) belong to the images.
    """
    boxes = prompts.from_boxes(batch.boxes, POINT_SLOTS_AT_START + slots)
    points = batch.points
    coin_keys, point_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    if config.point_start == "interior":
        assert batch.masks is not None
        points = _interior_points(point_keys, batch.masks, boxes_frame=batch.image.shape[1])
    one = jnp.ones((*points.shape[:2], 1), jnp.int32)
    clicks = prompts.from_points(points[:, :, None], one, POINT_SLOTS_AT_START + slots)
    shape = batch.prompt_valid.shape
    if config.start == "box":
        is_box = jnp.ones(shape, bool)
    elif config.start == "point":
        is_box = jnp.zeros(shape, bool)
    elif config.coin == "batch":
        is_box = jnp.broadcast_to(jax.random.bernoulli(key, config.box_share), shape)
    else:
        is_box = jax.vmap(lambda k: jax.random.bernoulli(k, config.box_share, shape[1:]))(coin_keys)
    return prompts.choose(is_box, boxes, clicks), is_box


def _interior_points(keys: Array, masks: Array, boxes_frame: int) -> Array:
    """One random pixel of each mask (b p s s), in the input frame (b p 2)."""
    s = masks.shape[-1]
    cell = boxes_frame / s

    def one(key: Array, mask: Array) -> Array:
        index, _ = prompts.draw_pixels(key, mask)
        return (jnp.stack([index[0] % s, index[0] // s]) + 0.5) * cell - 0.5

    return jax.vmap(lambda k, m: jax.vmap(one)(jax.random.split(k, len(m)), m))(keys, masks)


def prompt_in_the_loop_loss(
    variables: Any,
    embedding: Array,
    teacher: tuple[SamConfig, Any, Array] | None,
    batch: Batch,
    weights: Array,
    key: Array,
    keys: Array,
    config: Config,
) -> tuple[Array, dict[str, Array], Trace]:
    """Stage 2: decode with student and teacher, compare, prompt again where they differ (EdgeSAM algorithm 1).

    Args:
      variables: the student's; gradients flow to its decoder through every round.
      embedding: the student's (b g g c); gradients flow to the encoder through every round.
      teacher: its config, variables and embedding; None when the targets are ground-truth masks.
      weights: (b p) share of each prompt in the loss; they sum to 1 over the global batch.
      key, keys: random keys shared by all devices, and per image.

    Returns:
      loss, its terms and other metrics (sums over this device's prompts, already weighted), and the last round's trace.
    """
    cfg, model = config.distill, config.model
    size, cell = model.mask_size, model.image_size / model.mask_size
    b, p = batch.prompt_valid.shape
    valid = losses.valid_weights(batch.valid_size, size, model.image_size)
    inside = valid == 1.0
    rounds = cfg.rounds + 1
    slots = cfg.rounds * cfg.points_per_round
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    first, is_box = start_prompts(key, keys[:, 0], batch, cfg, slots)
    single = is_box if cfg.box_start_masks == "one" else jnp.zeros_like(is_box)
    feedback = jax.vmap(lambda k: jax.random.bernoulli(k, cfg.mask_feedback, (p,)))(keys[:, 1])

    def one_round(i: Array | int, carry: LoopCarry) -> LoopCarry:
        mask_input = (carry.previous, carry.previous_valid) if cfg.mask_feedback else (None, None)
        student = decode(
            model, variables, embedding, carry.prompts, *mask_input, num_masks=4, chunk=config.train.prompt_chunk
        )
        if teacher is None:
            assert batch.masks is not None
            target, chosen = batch.masks[:, :, None], jnp.zeros((b, p), jnp.int32)
            terms = _ground_truth_terms(student, target, valid, inside, single, i == 0, cfg)
        else:
            teacher_config, teacher_variables, teacher_embedding = teacher
            answer = lax.stop_gradient(
                decode(
                    teacher_config,
                    teacher_variables,
                    teacher_embedding,
                    carry.prompts,
                    *mask_input,
                    num_masks=4,
                    chunk=config.train.prompt_chunk,
                )
            )
            target = answer.logits > 0
            chosen = jnp.where(single, 0, answer.iou.argmax(axis=-1))
            terms = _teacher_terms(student, answer, valid, single, cfg)
        own = _pick(student.logits, chosen)
        want = target[:, :, 0] if teacher is None else _pick(target, chosen)
        agreement = losses.measured_iou((own > 0)[:, :, None], want[:, :, None], inside)[:, :, 0]
        round_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys[:, 2])
        coords, labels, drawn = prompts.sample_disagreement(
            round_keys,
            own > 0,
            want,
            inside,
            cell=cell,
            count=cfg.points_per_round,
            min_disagreement=cfg.min_disagreement,
            law=cfg.sampling,
        )
        terms |= {"agreement": agreement, "drawn": drawn.mean(axis=-1)}
        totals = {
            name: carry.terms[name] + jnp.sum(weights * lax.convert_element_type(v, jnp.float32))
            for name, v in terms.items()
        }
        following = carry.prompts
        if cfg.rounds:
            # The last round's points would have no slot: they are drawn only to keep the body the same, and dropped.
            slot = prompts.BOX_SLOTS + POINT_SLOTS_AT_START + jnp.minimum(i, cfg.rounds - 1) * cfg.points_per_round
            more = prompts.append(carry.prompts, slot, coords, labels, drawn)
            following = jax.tree.map(lambda new, old: jnp.where(i < cfg.rounds, new, old), more, carry.prompts)
        trace = Trace(carry.prompts, own > 0, want, ((own > 0) != want) & inside[:, None])
        return LoopCarry(following, lax.stop_gradient(own), feedback, totals, trace)

    blank = jnp.zeros((b, p, size, size), bool)
    names = ["bce", "dice", "iou", "agreement", "drawn"]
    carry = LoopCarry(
        first,
        jnp.zeros((b, p, size, size), jnp.float32),
        jnp.zeros((b, p), bool),
        {name: jnp.zeros(()) for name in names},
        Trace(first, blank, blank, blank),
    )
    carry = lax.fori_loop(0, rounds, one_round, carry)
    scale = 1 / rounds if cfg.loss_over_rounds == "mean" else 1.0
    metrics = {name: carry.terms[name] / rounds for name in ("agreement", "drawn")}
    metrics |= {name: carry.terms[name] * scale for name in ("bce", "dice", "iou")}
    loss = sum(getattr(cfg.loss, name) * metrics[name] for name in ("bce", "dice", "iou"))
    return jnp.asarray(loss), metrics, carry.trace


def _pick(masks: Array, chosen: Array) -> Array:
    """(b p m h w) at index (b p) -> (b p h w)."""
    return jnp.take_along_axis(masks, chosen[:, :, None, None, None], axis=2)[:, :, 0]


def _mean_over(values: Array, active: Array) -> Array:
    """(b p m) -> (b p): the mean over the masks that take part."""
    return jnp.sum(values * active, axis=-1) / jnp.maximum(active.sum(axis=-1), 1)


def _teacher_terms(student: Any, teacher: Any, valid: Array, single: Array, cfg: DistillConfig) -> dict[str, Array]:
    """Loss terms (b p) against the teacher's masks; of ``single`` prompts only mask token 0 counts."""
    m = student.logits.shape[2]
    active = jnp.where(single[..., None], jnp.arange(m) == 0, True).astype(jnp.float32)
    own = student.logits / cfg.temperature
    target = jax.nn.sigmoid(teacher.logits / cfg.temperature) if cfg.teacher_mask == "soft" else teacher.logits > 0
    target = target.astype(jnp.float32)
    return {
        "bce": _mean_over(losses.binary_cross_entropy(own, target, valid), active),
        "dice": _mean_over(losses.dice(own, target, valid), active),
        "iou": _mean_over(jnp.square(student.iou - teacher.iou), active),
    }


def _ground_truth_terms(
    student: Any, target: Array, valid: Array, inside: Array, single: Array, first: Array | bool, cfg: DistillConfig
) -> dict[str, Array]:
    """Loss terms (b p) against ground truth (b p 1 h w): token 0 always, in the first round the other tokens too.

    Of ``single`` prompts token 0 alone counts.  With ``point_start_masks = best`` only the best of the other tokens
    counts (SAM section 3: a point is ambiguous).
    """
    soft = jnp.broadcast_to(target, student.logits.shape).astype(jnp.float32)
    bce = losses.binary_cross_entropy(student.logits, soft, valid)
    dice = losses.dice(student.logits, soft, valid)
    ambiguous = ~single & first
    if cfg.point_start_masks == "best":
        total = cfg.loss.bce * bce + cfg.loss.dice * dice
        others = jax.nn.one_hot(total[..., 1:].argmin(axis=-1), total.shape[-1] - 1)
    else:
        others = jnp.ones_like(bce[..., 1:])
    others = others * ambiguous[..., None]
    active = jnp.concatenate([jnp.ones_like(others[..., :1]), others], axis=-1)
    measured = lax.stop_gradient(losses.measured_iou(student.logits > 0, target, inside))
    return {
        "bce": _mean_over(bce, active),
        "dice": _mean_over(dice, active),
        "iou": jnp.square(student.iou - measured).mean(axis=-1),
    }
