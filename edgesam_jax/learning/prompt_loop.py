"""The prompt loop: decode, compare, draw new points, decode again (EdgeSAM section 3.2, algorithm 1 in appendix D)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from edgesam_jax.config import Config, DistillConfig, SamConfig
from edgesam_jax.learning import losses, sampling
from edgesam_jax.learning.freezing import hold_frozen
from edgesam_jax.models import prompts
from edgesam_jax.models.kernels import image_columns, platforms
from edgesam_jax.models.sam import decode, dense_positions, join_prompts, split_prompts
from edgesam_jax.types import Batch, Prompts

POINT_SLOTS_AT_START = 1
PROMPTS_ON_TPU = 8  # prompts of a photo that a TPU decodes at once: their image tokens fit its fast memory
MASK_TERMS = ("bce", "dice", "iou")  # always computed, for the log
MATCHED_TERMS = ("attention", "features", "query")  # computed only if they have weight: they keep large arrays


@struct.dataclass
class Trace:
    """Prompts and low-resolution masks (b p s s) of the last decode round, for pictures."""

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
    by_round: dict[str, Array]  # each (rounds,), for the log
    gradient: Any  # of the rounds so far, in float32, by decoder and embedding; None if not requested
    trace: Trace


@struct.dataclass
class TeacherSide:
    """The teacher's variables and its embedding (b g g c)."""

    variables: Any
    embedding: Array


@struct.dataclass
class LoopInputs:
    """The inputs of all rounds; no gradient flows to them.

    ``teacher`` is None if the targets are ground-truth masks.  ``weights`` (b p) are the prompts' shares in the loss:
    they sum to 1 over the global batch.  ``key`` is shared by all devices, ``keys`` (b) belong to the images.
    """

    constants: Any
    teacher: TeacherSide | None
    batch: Batch
    weights: Array
    key: Array
    keys: Array


@struct.dataclass
class RoundInputs:
    """The prompts of one round, their weights and their ground-truth masks; every leaf starts with (b p)."""

    prompts: Prompts
    previous: Array | None
    previous_valid: Array | None
    single: Array  # only mask token 0 counts
    weights: Array
    masks: Array | None  # (b p h w)


@struct.dataclass
class PhotoInputs:
    """What the prompts of a photo have in common; every leaf starts with (b).

    ``teacher`` (b g g c) is the teacher's embedding, None if the targets are ground truth; ``valid`` (b h w) the
    weights of mask pixels, ``inside`` where they are 1; ``cells`` (b g g) bool those of the embedding.
    """

    teacher: Array | None
    valid: Array
    inside: Array
    cells: Array


@struct.dataclass
class RoundOutputs:
    """Loss terms (b p), and the compared masks (b p h w): the student's logits and the target."""

    terms: dict[str, Array]
    logits: Array
    target: Array


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
        index, _ = sampling.draw_pixels(key, mask)
        return (jnp.stack([index[0] % s, index[0] // s]) + 0.5) * cell - 0.5

    return jax.vmap(lambda k, m: jax.vmap(one)(jax.random.split(k, len(m)), m))(keys, masks)


def learns(path: tuple[str, ...], config: Config) -> bool:
    """Whether the parameter at this path is trained in stage 2.

    With LoRA only ``lora_A`` and ``lora_B`` are trained in the decoder (EdgeSAM Table 6).
    """
    part, distill = path[0], config.distill
    if part == "proposals":
        return False
    if distill.iou_head_only:
        return path[:2] == ("mask_decoder", "iou_prediction_head")
    if part == "image_encoder":
        return not distill.freeze_image_encoder
    if part == "prompt_encoder":
        return not distill.freeze_prompt_encoder
    if part == "mask_decoder":
        if config.model.decoder.lora_rank > 0:
            return path[-1] in ("lora_A", "lora_B")
        if distill.freeze_tokens and path[1] in ("iou_token", "mask_tokens"):
            return False
        return not distill.freeze_mask_decoder
    return True


def prompt_in_the_loop_loss(
    params: Any, embedding: Array, inputs: LoopInputs, config: Config, teacher: SamConfig | None
) -> tuple[Array, dict[str, Array], Trace]:
    """Stage 2: decode with student and teacher, compare, prompt again where they differ (EdgeSAM algorithm 1).

    Args:
      params: the student's; gradients flow to its decoder through every round.
      embedding: the student's (b g g c); gradients flow to the encoder through every round.
      teacher: the teacher's config; None if the targets are ground-truth masks.

    Returns:
      loss, its terms and other metrics (sums over this device's prompts, already weighted), and the last round's trace.
      Only the loss has a gradient.
    """
    decoder = {part: params[part] for part in ("prompt_encoder", "mask_decoder")}
    return _loop(config, teacher, decoder, embedding, inputs)


# Nothing that a round passes to the next carries a gradient (points are sampled, masks fed back are constant), so the
# gradient of a round, and of any subset of its prompts, is complete as soon as its loss is.  It is taken right away,
# while the activations are in memory: JAX's reverse pass would keep them for all rounds, or recompute them.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(
    config: Config, teacher_config: SamConfig | None, decoder: Any, embedding: Array, inputs: LoopInputs
) -> tuple[Array, dict[str, Array], Trace]:
    return _rounds(config, teacher_config, decoder, embedding, inputs, differentiate=False)[0]


def _loop_forward(
    config: Config, teacher_config: SamConfig | None, decoder: Any, embedding: Array, inputs: LoopInputs
) -> tuple[tuple[Array, dict[str, Array], Trace], Any]:
    return _rounds(config, teacher_config, decoder, embedding, inputs, differentiate=True)


def _loop_backward(
    config: Config, teacher_config: SamConfig | None, gradient: tuple[Any, Array], cotangents: tuple[Array, Any, Any]
) -> tuple[Any, Array, None]:
    decoder, embedding = jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradient)
    return decoder, embedding, None


_loop.defvjp(_loop_forward, _loop_backward)


def _rounds(
    config: Config,
    teacher_config: SamConfig | None,
    decoder: Any,
    embedding: Array,
    inputs: LoopInputs,
    differentiate: bool,
) -> tuple[tuple[Array, dict[str, Array], Trace], tuple[Any, Array] | None]:
    """The result of ``prompt_in_the_loop_loss``, and the gradient by decoder and embedding if ``differentiate``."""
    constants, teacher, batch, weights = inputs.constants, inputs.teacher, inputs.batch, inputs.weights
    cfg, model = config.distill, config.model
    size, cell = model.mask_size, model.image_size / model.mask_size
    b, p = batch.prompt_valid.shape
    # Decoders leave the pixels of masks (h w) by cell, (16 g*g), where placing them would cost more than the loss.
    by_cell = platforms.on_accelerator()
    place, arrange = (
        functools.partial(f, grid=model.grid) if by_cell else lambda x: x
        for f in (image_columns.place, image_columns.arrange)
    )
    in_rows = losses.valid_weights(batch.valid_size, size, model.image_size)
    valid = arrange(in_rows)
    inside = valid == 1.0
    masks = None if batch.masks is None or teacher is not None else arrange(batch.masks)
    rounds = cfg.rounds + 1
    scale = 1 / rounds if cfg.loss_over_rounds == "mean" else 1.0
    slots = cfg.rounds * cfg.points_per_round
    matched = tuple(name for name in MATCHED_TERMS if getattr(cfg.loss, name))
    cells = losses.valid_weights(batch.valid_size, model.grid, model.image_size) > 0.5
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(inputs.keys)
    first, is_box = start_prompts(inputs.key, keys[:, 0], batch, cfg, slots)
    single = is_box if cfg.box_start_masks == "one" else jnp.zeros_like(is_box)
    feedback = jax.vmap(lambda k: jax.random.bernoulli(k, cfg.mask_feedback, (p,)))(keys[:, 1])
    learning = decoder, embedding
    photos = PhotoInputs(None if teacher is None else teacher.embedding, valid, inside, cells)
    positions: dict[str, Array] = {}
    if by_cell:  # computed once, not in every round and for every chunk of prompts
        positions["student"] = dense_positions(model, {"params": decoder, "constants": constants})
        if teacher is not None:
            assert teacher_config is not None
            positions["teacher"] = dense_positions(teacher_config, teacher.variables)

    def compare(
        learning: tuple[Any, Array], photos: PhotoInputs, round_inputs: RoundInputs, i: Array | int
    ) -> tuple[Array, RoundOutputs]:
        """Decode with student and teacher in round i: the prompts' part of the loss, and its terms."""
        params, seen = hold_frozen(learning[0], learns, config), learning[1]
        if cfg.freeze_image_encoder:
            seen = lax.stop_gradient(seen)
        drawn = round_inputs.prompts, round_inputs.previous, round_inputs.previous_valid
        with jax.named_scope("student_decoder"):
            student = decode(
                model, {"params": params, "constants": constants}, seen, *drawn, targets=bool(matched),
                placed=not by_cell, positions=positions.get("student"),
            )  # fmt: skip
        if teacher is None:
            assert round_inputs.masks is not None
            target, chosen = round_inputs.masks[:, :, None], jnp.zeros(round_inputs.single.shape, jnp.int32)
            terms = _ground_truth_terms(student, target, photos.valid, photos.inside, round_inputs.single, i == 0, cfg)
            target_masks = round_inputs.masks
        else:
            assert teacher_config is not None and photos.teacher is not None
            with jax.named_scope("teacher_decoder"):
                answer = decode(
                    teacher_config, teacher.variables, photos.teacher, *drawn, targets=bool(matched),
                    placed=not by_cell, positions=positions.get("teacher"),
                )  # fmt: skip
            chosen = jnp.where(round_inputs.single, 0, answer.iou.argmax(axis=-1))
            terms = _teacher_terms(student, answer, photos.valid, round_inputs.single, cfg)
            if matched:
                found = _matched_terms(student, answer, round_inputs, photos.valid, photos.cells)
                terms |= {name: found[name] for name in matched}
            target_masks = _pick(answer.logits > 0, chosen)
        totals = {name: jnp.sum(round_inputs.weights * v.astype(jnp.float32)) for name, v in terms.items()}
        return scale * _total(totals, cfg), RoundOutputs(terms, _pick(student.logits, chosen), target_masks)

    def one_round(i: Array | int, carry: LoopCarry) -> LoopCarry:
        previous, previous_valid = (carry.previous, carry.previous_valid) if cfg.mask_feedback else (None, None)
        round_inputs = RoundInputs(carry.prompts, previous, previous_valid, single, weights, masks)
        gradient, outputs = _gradient(
            functools.partial(compare, i=i), learning, photos, round_inputs, config.train.prompt_chunk, carry.gradient
        )
        own = outputs.logits > 0
        agreement = losses.measured_iou(own[:, :, None], outputs.target[:, :, None], inside)[:, :, 0]
        own, target = place(own), place(outputs.target)
        round_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys[:, 2])
        coords, labels, drawn = sampling.sample_disagreement(
            round_keys,
            own,
            target,
            in_rows == 1.0,
            cell=cell,
            count=cfg.points_per_round,
            min_disagreement=cfg.min_disagreement,
            law=cfg.sampling,
        )
        terms = outputs.terms | {"agreement": agreement, "drawn": drawn.mean(axis=-1)}
        found = {name: jnp.sum(weights * lax.convert_element_type(v, jnp.float32)) for name, v in terms.items()}
        totals = {name: carry.terms[name] + value for name, value in found.items()}
        shown = {"loss": _total(found, cfg), "agreement": found["agreement"]}
        by_round = {name: carry.by_round[name].at[i].set(value) for name, value in shown.items()}
        following = carry.prompts
        if cfg.rounds:
            # The last round's points have no slot: they are drawn to keep the loop body uniform, and dropped.
            slot = prompts.BOX_SLOTS + POINT_SLOTS_AT_START + jnp.minimum(i, cfg.rounds - 1) * cfg.points_per_round
            more = prompts.append(carry.prompts, slot, coords, labels, drawn)
            following = jax.tree.map(lambda new, old: jnp.where(i < cfg.rounds, new, old), more, carry.prompts)
        trace = Trace(carry.prompts, own, target, (own != target) & (in_rows == 1.0)[:, None])
        fed_back = place(outputs.logits) if cfg.mask_feedback else carry.previous
        return LoopCarry(following, fed_back, feedback, totals, by_round, gradient, trace)

    blank = jnp.zeros((b, p, size, size), bool)
    names = [*MASK_TERMS, *matched, "agreement", "drawn"]
    carry = LoopCarry(
        first,
        jnp.zeros((b, p, size, size), jnp.float32),
        jnp.zeros((b, p), bool),
        {name: jnp.zeros(()) for name in names},
        {name: jnp.zeros(rounds) for name in ("loss", "agreement")},
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), learning) if differentiate else None,
        Trace(first, blank, blank, blank),
    )
    carry = lax.fori_loop(0, rounds, one_round, carry)
    metrics = {name: carry.terms[name] / rounds for name in ("agreement", "drawn")}
    metrics |= {name: carry.terms[name] * scale for name in (*MASK_TERMS, *matched)}
    loss = _total(metrics, cfg)
    metrics |= {f"round_{i}/{name}": values[i] for name, values in carry.by_round.items() for i in range(rounds)}
    gradient = jax.tree.map(lambda x, g: g.astype(x.dtype), learning, carry.gradient) if differentiate else None
    return (loss, metrics, carry.trace), gradient


def _total(terms: dict[str, Array], cfg: DistillConfig) -> Array:
    """The weighted sum of the terms."""
    counted = [name for name in (*MASK_TERMS, *MATCHED_TERMS) if name in terms]
    return jnp.asarray(sum(getattr(cfg.loss, name) * terms[name] for name in counted))


def _gradient(
    f: Callable[[Any, PhotoInputs, RoundInputs], tuple[Array, RoundOutputs]],
    learning: tuple[Any, Array],
    photos: PhotoInputs,
    round_inputs: RoundInputs,
    chunk: int,
    gradient: Any,
) -> tuple[Any, RoundOutputs]:
    """``gradient`` plus the gradient of f by ``learning``, and f's outputs, ``chunk`` prompts at a time (0: all).

    With ``gradient`` None no gradient is computed.  A TPU takes the photos one by one, at most ``PROMPTS_ON_TPU``
    prompts at a time.
    """
    if not platforms.on_tpu():
        return _in_chunks(f, learning, photos, round_inputs, chunk, gradient)
    chunk = chunk or PROMPTS_ON_TPU
    decoder, embedding = learning

    def photo(total: Any, inputs: tuple[Array, PhotoInputs, RoundInputs]) -> tuple[Any, Any]:
        seen, photo, round_inputs = inputs
        before = None if gradient is None else (total, jnp.zeros(seen.shape, jnp.float32))
        after, outputs = _in_chunks(f, (decoder, seen), photo, round_inputs, chunk, before)
        return (None, (None, outputs)) if after is None else (after[0], (after[1], outputs))

    alone = jax.tree.map(lambda x: x[:, None], (embedding, photos, round_inputs))
    total, found = lax.scan(photo, None if gradient is None else gradient[0], alone)
    by_embedding, outputs = jax.tree.map(lambda x: x[:, 0], found)
    return None if gradient is None else (total, gradient[1] + by_embedding), cast(RoundOutputs, outputs)


def _in_chunks(
    f: Callable[[Any, PhotoInputs, RoundInputs], tuple[Array, RoundOutputs]],
    learning: tuple[Any, Array],
    photos: PhotoInputs,
    round_inputs: RoundInputs,
    chunk: int,
    gradient: Any,
) -> tuple[Any, RoundOutputs]:
    def one(gradient: Any, piece: RoundInputs) -> tuple[Any, RoundOutputs]:
        if gradient is None:
            return None, f(learning, photos, piece)[1]
        more, outputs = jax.grad(f, has_aux=True)(learning, photos, piece)
        return jax.tree.map(jnp.add, gradient, more), outputs

    p = round_inputs.single.shape[1]
    if not chunk or chunk >= p:
        return one(gradient, round_inputs)
    gradient, outputs = lax.scan(one, gradient, split_prompts(round_inputs, chunk))
    return gradient, cast(RoundOutputs, join_prompts(outputs, p))


def _pick(masks: Array, chosen: Array) -> Array:
    """Select the mask of index ``chosen`` (b p): (b p m h w) -> (b p h w)."""
    if platforms.on_accelerator():  # one pass in place of gathering
        is_chosen = (chosen[..., None] == jnp.arange(masks.shape[2]))[..., None, None]
        picked = jnp.where(is_chosen, masks, jnp.zeros((), masks.dtype))
        return picked.any(axis=2) if masks.dtype == bool else picked.sum(axis=2)
    return jnp.take_along_axis(masks, chosen[:, :, None, None, None], axis=2)[:, :, 0]


def _mean_over(values: Array, active: Array) -> Array:
    """Mean over the active masks: (b p m) -> (b p)."""
    return jnp.sum(values * active, axis=-1) / jnp.maximum(active.sum(axis=-1), 1)


def _teacher_terms(student: Any, teacher: Any, valid: Array, single: Array, cfg: DistillConfig) -> dict[str, Array]:
    """Loss terms (b p) against the teacher's masks; for ``single`` prompts only mask token 0 counts."""
    active = _active(single, student.logits.shape[2])
    logits = student.logits / cfg.temperature
    target = jax.nn.sigmoid(teacher.logits / cfg.temperature) if cfg.teacher_mask == "soft" else teacher.logits > 0
    target = target.astype(jnp.float32)
    return {
        "bce": _mean_over(losses.binary_cross_entropy(logits, target, valid), active),
        "dice": _mean_over(losses.dice(logits, target, valid), active),
        "iou": _mean_over(jnp.square(student.iou - teacher.iou), active),
    }


def _active(single: Array, masks: int) -> Array:
    """Mask tokens that count for each prompt (b p): (b p m) float32, 1 or 0."""
    return jnp.where(single[..., None], jnp.arange(masks) == 0, True).astype(jnp.float32)


def _matched_terms(
    student: Any, teacher: Any, round_inputs: RoundInputs, valid: Array, cells: Array
) -> dict[str, Array]:
    """Errors (b p) between the internals of the two decoders; see ``LossConfig``.

    ``valid`` (b s s) weights of mask pixels, ``cells`` (b g g) bool of the embedding.  Slots without a prompt and cells
    without a photo are excluded from the attention maps.
    """
    mine, theirs = student.targets, teacher.targets
    fixed = mine["t2t_0"].shape[-1] - round_inputs.prompts.valid.shape[-1]  # IoU and mask tokens, always valid
    tokens = jnp.pad(round_inputs.prompts.valid, ((0, 0), (0, 0), (fixed, 0)), constant_values=True)
    image = cells.reshape(len(cells), 1, -1)
    sides = {"t": tokens, "i": image}
    maps = [name for name in mine if name not in ("query", "feat")]
    attention = [losses.attention_error(mine[name], theirs[name], sides[name[0]], sides[name[2]]) for name in maps]
    query = losses.query_error(mine["query"], theirs["query"])
    return {
        "attention": jnp.stack(attention).mean(axis=0),
        "features": losses.upscaled_error(mine["feat"], theirs["feat"], valid),
        "query": _mean_over(query, _active(round_inputs.single, query.shape[-1])),
    }


def _ground_truth_terms(
    student: Any, target: Array, valid: Array, inside: Array, single: Array, first: Array | bool, cfg: DistillConfig
) -> dict[str, Array]:
    """Loss terms (b p) against ground truth (b p 1 h w): token 0 always, in the first round the other tokens too.

    For ``single`` prompts only token 0 counts.  With ``point_start_masks = best`` only the best of the other tokens
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
