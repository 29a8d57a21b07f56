"""The prompt loop against the same rounds written out in numpy, and its gradients against finite differences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CELL, CONV, GRID, MASK, configured, make_batch

from edgesam_jax.learning import losses, prompt_loop, sampling
from edgesam_jax.learning.feature_loss import feature_loss
from edgesam_jax.models import prompts
from edgesam_jax.models.init import init_variables
from edgesam_jax.models.sam import decode

B, P = 2, 3
KEY, KEYS = jax.random.key(0), jax.random.split(jax.random.key(1), B)
BATCH = make_batch(images=B, prompts=P)
WEIGHTS = (BATCH.prompt_valid / BATCH.prompt_valid.sum()).astype(np.float32)
CELLS_INSIDE = np.asarray(losses.valid_weights(BATCH.valid_size, GRID, 32)) > 0.5
STUDENT, TEACHER = init_variables(CONV, 0), init_variables(CONV, 1)
EMBEDDING, TEACHER_EMBEDDING = np.random.default_rng(0).standard_normal((2, B, GRID, GRID, 16)).astype(np.float32)
DECODE = jax.jit(functools.partial(decode, CONV), static_argnames="targets")
SAMPLE = jax.jit(sampling.sample_disagreement, static_argnames=("cell", "count", "min_disagreement", "law"))


def loss_of(config, params, embedding, teacher_params=TEACHER["params"], batch=BATCH, keys=KEYS, key=KEY):
    teacher = None
    if config.distill.targets == "teacher":
        teacher = prompt_loop.TeacherSide({**TEACHER, "params": teacher_params}, TEACHER_EMBEDDING)
    inputs = prompt_loop.LoopInputs(STUDENT["constants"], teacher, batch, WEIGHTS, key, keys)
    return prompt_loop.prompt_in_the_loop_loss(params, embedding, inputs, config, CONV)


# ---------------------------------------------------------------------------------------------------- written out


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def mask_terms(logits, target, weight):
    """BCE and dice of (s s) logits, in float64."""
    p, x = sigmoid(logits), np.asarray(logits, np.float64)
    bce = ((np.logaddexp(0, x) - x * target) * weight).sum() / weight.sum()
    p, t = p * weight, target * weight
    return bce, 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def matched_terms(student, teacher, valid_slots, b, p, taking_part):
    """Attention maps, upscaled embedding and hypernetwork outputs of one prompt, compared in float64."""
    real = {"t": np.r_[np.ones(5, bool), valid_slots[b, p]], "i": CELLS_INSIDE[b].ravel()}
    errors = []
    for name in ("t2t_0", "t2i_0", "i2t_0", "t2i_final"):
        mine, theirs = (np.asarray(x.targets[name][b, p], np.float64) for x in (student, teacher))
        errors.append(((mine - theirs) ** 2)[:, real[name[0]]][:, :, real[name[2]]].mean())
    weight = np.asarray(losses.valid_weights(BATCH.valid_size, MASK, 32), np.float64)[b]
    feat = [np.asarray(x.targets["feat"][b, p], np.float64) for x in (student, teacher)]
    features = (((feat[0] - feat[1]) ** 2).mean(-1) * weight).sum() / weight.sum()
    query = [np.asarray(x.targets["query"][b, p], np.float64) for x in (student, teacher)]
    query = [q / np.abs(q).sum(-1, keepdims=True) for q in query]
    return np.mean(errors), features, ((query[0] - query[1]) ** 2).mean(-1)[list(taking_part)].mean()


def written_out(config, start, is_box):
    """EdgeSAM's algorithm 1, one round, prompt and mask at a time; loss and its terms."""
    cfg = config.distill
    weight = np.asarray(losses.valid_weights(BATCH.valid_size, MASK, 32), np.float64)
    inside = weight == 1
    sampling_keys = jax.vmap(lambda k: jax.random.split(k, 3))(KEYS)[:, 2]
    feedback_keys = jax.vmap(lambda k: jax.random.split(k, 3))(KEYS)[:, 1]
    feedback = jax.vmap(lambda k: jax.random.bernoulli(k, cfg.mask_feedback, (P,)))(feedback_keys)
    previous, use = np.zeros((B, P, MASK, MASK), np.float32), np.zeros((B, P), bool)
    matched = tuple(name for name in prompt_loop.MATCHED_TERMS if getattr(cfg.loss, name))
    buffer, totals = start, dict.fromkeys(("bce", "dice", "iou", *matched), 0.0)
    for i in range(cfg.rounds + 1):
        masks = (previous, use) if cfg.mask_feedback else (None, None)
        student = DECODE(STUDENT, EMBEDDING, buffer, *masks, targets=bool(matched))
        answer = DECODE(TEACHER, TEACHER_EMBEDDING, buffer, *masks, targets=bool(matched))
        own, want = np.zeros((2, B, P, MASK, MASK), np.float32)
        for b in range(B):
            for p in range(P):
                single = bool(is_box[b, p]) and cfg.box_start_masks == "one"
                if cfg.targets == "teacher":
                    taking_part = [0] if single else range(4)
                    best = 0 if single else int(np.argmax(answer.iou[b, p]))
                    targets = np.asarray(answer.logits[b, p])
                    t = sigmoid(targets / cfg.temperature) if cfg.teacher_mask == "soft" else targets > 0
                    logits = np.asarray(student.logits[b, p]) / cfg.temperature
                    iou = np.mean([(student.iou[b, p, m] - answer.iou[b, p, m]) ** 2 for m in taking_part])
                    want[b, p] = targets[best] > 0
                else:
                    taking_part, best = [0], 0
                    logits, t = np.asarray(student.logits[b, p]), np.stack([BATCH.masks[b, p]] * 4)
                    if not single and i == 0:
                        others = [1, 2, 3]
                        if cfg.point_start_masks == "best":
                            terms = [mask_terms(logits[m], t[m], weight[b]) for m in others]
                            others = [others[int(np.argmin(terms @ np.array([cfg.loss.bce, cfg.loss.dice])))]]
                        taking_part = [0, *others]
                    want[b, p] = t[0]
                    hits = (logits > 0) & t & inside[b], ((logits > 0) | t) & inside[b]
                    measured = hits[0].sum((1, 2)) / np.maximum(hits[1].sum((1, 2)), 1)
                    iou = np.mean((student.iou[b, p] - measured) ** 2)
                terms = np.array([mask_terms(logits[m], t[m], weight[b]) for m in taking_part]).mean(0)
                for name, value in zip(("bce", "dice", "iou"), (*terms, iou), strict=True):
                    totals[name] += WEIGHTS[b, p] * value
                if matched:
                    found = matched_terms(student, answer, np.asarray(buffer.valid), b, p, taking_part)
                    for name, value in zip(prompt_loop.MATCHED_TERMS, found, strict=True):
                        if name in matched:
                            totals[name] += WEIGHTS[b, p] * value
                own[b, p] = student.logits[b, p, best]
        if i < cfg.rounds:
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(sampling_keys, i)
            more = SAMPLE(
                keys, own > 0, want > 0, inside, cell=CELL, count=cfg.points_per_round,
                min_disagreement=cfg.min_disagreement, law=cfg.sampling,
            )  # fmt: skip
            buffer = prompts.append(buffer, 3 + i * cfg.points_per_round, *more)
            previous, use = own, feedback
    scale = 1 if cfg.loss_over_rounds == "sum" else 1 / (cfg.rounds + 1)
    totals = {name: scale * value for name, value in totals.items()}
    return sum(getattr(cfg.loss, name) * value for name, value in totals.items()), totals


def start_of(config):
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(KEYS)[:, 0]
    slots = config.distill.rounds * config.distill.points_per_round
    return prompt_loop.start_prompts(KEY, keys, BATCH, config.distill, slots)


@pytest.fixture
def python_loop(monkeypatch):
    """The loop as a Python loop over two compiled functions: every option costs no compilation."""

    def loop(low, high, body, carry):
        for i in range(low, high):
            carry = body(i, carry)
        return carry

    monkeypatch.setattr(prompt_loop.lax, "fori_loop", loop)
    monkeypatch.setattr(prompt_loop, "decode", lambda model, *args, targets, **_: DECODE(*args, targets=targets))
    monkeypatch.setattr(prompt_loop.sampling, "sample_disagreement", SAMPLE)


OPTIONS = [
    (),
    ("distill.start=box",),
    ("distill.start=box", "distill.box_start_masks=all"),
    ("distill.start=point",),
    ("distill.coin=batch",),
    ("distill.loss_over_rounds=sum",),
    ("distill.sampling=side",),
    ("distill.min_disagreement=80",),
    ("distill.teacher_mask=soft", "distill.temperature=2.0"),
    ("distill.temperature=2.0",),
    ("distill.loss.iou=1.0", "distill.loss.bce=1.0", "distill.loss.dice=0.0"),
    ("distill.loss.attention=1.0", "distill.loss.features=0.5", "distill.loss.query=100.0"),
    ("distill.loss.attention=10.0", "distill.loss.bce=0", "distill.loss.dice=0"),
    ("distill.loss.features=1.0", "distill.loss.bce=0", "distill.loss.dice=0"),
    ("distill.loss.query=1.0", "distill.loss.bce=0", "distill.loss.dice=0", "distill.start=point"),
    ("distill.mask_feedback=0.6",),
    ("distill.point_start=interior",),
    ("distill.targets=ground_truth", "distill.loss.iou=1.0"),
    ("distill.targets=ground_truth", "distill.point_start_masks=best"),
    ("distill.targets=ground_truth", "distill.start=box", "distill.box_start_masks=all"),
]
seen: dict[float, tuple[str, ...]] = {}


@pytest.mark.parametrize("overrides", OPTIONS, ids=lambda o: ",".join(o).replace("distill.", "") or "default")
def test_loop_equals_the_rounds_written_out(python_loop, overrides):
    """With every named option; and no two of them give the same loss."""
    config = configured("distill.rounds=2", *overrides)
    loss, metrics, trace = loss_of(config, STUDENT["params"], EMBEDDING)
    expected, terms = written_out(config, *start_of(config))
    np.testing.assert_allclose(loss, expected, rtol=2e-4)
    for name, value in terms.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
    same = [other for value, other in seen.items() if abs(value - loss) < 1e-5 and other != overrides]
    if "distill.coin=batch" not in overrides:  # that is all boxes or all points
        assert not same, f"{overrides} has no effect: the same loss as {same}"
        seen[float(loss)] = overrides
    assert trace.disagreement.shape == (B, P, MASK, MASK)


def test_several_points_per_round(python_loop):
    """They fill their slots one after another, and are different pixels."""
    several = ("distill.points_per_round=2", "distill.start=box", "distill.min_disagreement=1")
    config = configured("distill.rounds=2", *several)
    loss, metrics, trace = loss_of(config, STUDENT["params"], EMBEDDING)
    expected, _ = written_out(config, *start_of(config))
    np.testing.assert_allclose(loss, expected, rtol=2e-4)
    np.testing.assert_array_equal(trace.prompts.valid.all((0, 1)), [True, True, False, True, True, True, True])
    points = np.asarray(trace.prompts.coords)[:, :, 3:]
    assert (points[:, :, 0] != points[:, :, 1]).any(-1).all() and (points[:, :, 2] != points[:, :, 3]).any(-1).all()
    assert set(np.unique(trace.prompts.labels[:, :, 3:])) == {0, 1}
    assert metrics["drawn"] == pytest.approx(1)


@pytest.mark.parametrize("points_per_round", [1, 5])
def test_no_loop_is_one_decode(python_loop, points_per_round):
    config = configured("distill.rounds=0", f"distill.points_per_round={points_per_round}")
    loss, _, trace = loss_of(config, STUDENT["params"], EMBEDDING)
    np.testing.assert_allclose(loss, written_out(config, *start_of(config))[0], rtol=2e-4)
    assert trace.prompts.labels.shape == (B, P, 3)


# ---------------------------------------------------------------------------------------------------- the start


def test_the_coin_per_prompt_and_per_batch():
    keys = jax.random.split(jax.random.key(3), 400)
    wide = make_batch(images=400, prompts=4)
    per_prompt = configured("distill.coin=prompt").distill
    is_box = np.asarray(prompt_loop.start_prompts(KEY, keys, wide, per_prompt, 0)[1])
    assert 0.45 < is_box.mean() < 0.55
    assert 0.3 < (is_box[:, 0] == is_box[:, 1]).mean() < 0.7 and len(np.unique(is_box, axis=0)) == 16
    per_batch = configured("distill.coin=batch").distill
    tosses = [np.asarray(prompt_loop.start_prompts(jax.random.key(k), KEYS, BATCH, per_batch, 0)[1]) for k in range(20)]
    assert all(t.all() or not t.any() for t in tosses) and 3 < sum(t.all() for t in tosses) < 17
    for kind, expected in (("box", True), ("point", False)):
        config = configured(f"distill.start={kind}").distill
        assert np.all(prompt_loop.start_prompts(KEY, KEYS, BATCH, config, 0)[1] == expected)


def test_interior_points_lie_in_their_masks():
    config = configured("distill.point_start=interior", "distill.start=point").distill
    first, _ = prompt_loop.start_prompts(KEY, KEYS, BATCH, config, 1)
    other, _ = prompt_loop.start_prompts(KEY, KEYS[::-1], BATCH, config, 1)
    pixels = (np.asarray(first.coords)[:, :, 2] + 0.5) / CELL - 0.5
    assert np.array_equal(pixels, np.round(pixels))
    for b in range(B):
        for p in range(P):
            x, y = pixels[b, p].astype(int)
            assert BATCH.masks[b, p, y, x]
    assert np.any(np.asarray(first.coords) != np.asarray(other.coords))


# ---------------------------------------------------------------------------------------------------- gradients


@functools.cache
def compiled(*overrides):
    """(loss, (metrics, trace)), gradients of decoder parameters, embedding and teacher parameters."""
    config = configured(*overrides)

    def loss(params, embedding, teacher_params):
        value, metrics, trace = loss_of(config, params, embedding, teacher_params)
        return value, (metrics, trace)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def decoder(params):
    """The parameters that the loop's gradient is tested for."""
    return {k: v for k, v in params.items() if k != "image_encoder"}


def leaf_pairs(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


CASES = [
    ("distill.rounds=2",),
    # Without the IoU head's loss: its target, a measured IoU, jumps whenever a pixel changes sides.
    ("distill.rounds=1", "distill.targets=ground_truth"),
    ("distill.rounds=0", "distill.targets=ground_truth"),
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", CASES, ids=["teacher,2", "truth,1", "truth,0"])
def test_gradients_are_finite_differences(overrides):
    """Along the gradient and along random parts of it, of decoder and embedding at once.

    What is sampled is piecewise constant in the parameters: only steps that leave the prompts as they are may be
    compared.
    """
    run = compiled(*overrides)
    (_, (_, trace)), (grads, wrt_embedding, wrt_teacher) = run(STUDENT["params"], EMBEDDING, TEACHER["params"])
    assert all(not np.any(g) for g in jax.tree.leaves(wrt_teacher)), "the teacher gets a gradient"
    assert all(not np.any(g) for g in jax.tree.leaves(grads["image_encoder"]))
    gradient = {"decoder": decoder(grads), "embedding": wrt_embedding}
    assert all(np.any(g) for g in (wrt_embedding, *jax.tree.leaves(grads["mask_decoder"]["transformer"])[:1]))
    rng, compared = np.random.default_rng(0), 0
    for attempt in range(12):
        keep = 1.0 if attempt == 0 else 0.5
        direction = jax.tree.map(lambda g: np.asarray(g, np.float64) * (rng.random(g.shape) < keep), gradient)  # noqa: B023
        norm = np.sqrt(sum((d**2).sum() for d in jax.tree.leaves(direction)))
        slope = sum((d * np.asarray(g)).sum() for d, g in leaf_pairs(direction, gradient)) / norm
        values, h = [], 2e-4 / slope
        for sign in (1, -1):
            moved = jax.tree.map(lambda d: (sign * h / norm * d).astype(np.float32), direction)  # noqa: B023
            params = {k: jax.tree.map(np.add, STUDENT["params"][k], v) for k, v in moved["decoder"].items()}
            params["image_encoder"] = STUDENT["params"]["image_encoder"]
            (value, (_, after)), _ = run(params, EMBEDDING + moved["embedding"], TEACHER["params"])
            if all(np.array_equal(x, y) for x, y in leaf_pairs(after.prompts, trace.prompts)):
                values.append(float(value))
        if len(values) == 2:
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=0.02)
            compared += 1
    assert compared >= 2


def gradients(*overrides):
    """Loss, its terms, and gradients by decoder and embedding."""
    (loss, (metrics, _)), (wrt_params, wrt_embedding, _) = compiled(*overrides)(
        STUDENT["params"], EMBEDDING, TEACHER["params"]
    )
    return loss, metrics, decoder(wrt_params), wrt_embedding


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("distill.mask_feedback=0.6",)], ids=["plain", "masks fed back"])
def test_prompts_in_chunks_give_the_same_loss_and_gradients(options):
    """Two at a time, where the last chunk is not full."""
    whole, chunked = (
        gradients("distill.rounds=1", *options),
        gradients("distill.rounds=1", "train.prompt_chunk=2", *options),
    )
    for a, b in leaf_pairs(whole, chunked):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * float(np.abs(a).max()) + 1e-7)
    assert all(np.any(g) for g in jax.tree.leaves(chunked[2]["mask_decoder"]["transformer"])[:1])


@pytest.mark.slow
def test_what_is_frozen_gets_no_gradient_from_the_loop():
    """Neither a decoder that does not learn nor, where the encoder does not, the embedding."""
    _, _, params, embedding = gradients("distill.rounds=1", "distill.freeze_mask_decoder=true")
    assert not any(np.any(g) for g in jax.tree.leaves(params["mask_decoder"])) and np.any(embedding)
    _, _, params, embedding = gradients("distill.rounds=1", "distill.freeze_image_encoder=true")
    assert np.any(jax.tree.leaves(params["mask_decoder"]["transformer"])[0]) and not np.any(embedding)


@pytest.mark.slow
def test_the_compiled_loop_equals_the_rounds_written_out():
    config = configured("distill.rounds=2")
    (loss, (metrics, _)), _ = compiled("distill.rounds=2")(STUDENT["params"], EMBEDDING, TEACHER["params"])
    expected, terms = written_out(config, *start_of(config))
    np.testing.assert_allclose(loss, expected, rtol=2e-4)
    for name, value in terms.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4)


def subjaxprs(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from subjaxprs(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from subjaxprs(inner)


def test_the_loop_is_one_loop_without_callbacks():
    """However many rounds: the program does not grow with them."""
    sizes = []
    for rounds in (1, 4):
        config = configured(f"distill.rounds={rounds}")
        closed = jax.make_jaxpr(jax.grad(lambda p, c=config: loss_of(c, p, EMBEDDING)[0]))(STUDENT["params"])
        equations = list(subjaxprs(closed.jaxpr))
        names = [e.primitive.name for e in equations]
        loops = [e for e in equations if e.primitive.name in ("scan", "while")]
        carrying = [e for e in loops if any(v.aval.shape == (B, P, MASK, MASK) for v in e.outvars)]
        assert len(carrying) == 1
        assert not [n for n in names if "callback" in n]
        # Softmaxes add token by token, and each round has its own metrics.
        sizes.append(len([n for n in names if n not in ("slice", "squeeze", "add", "max")]))
    assert sizes[0] == sizes[1]


# ---------------------------------------------------------------------------------------------------- the rest


def test_encoder_only_loss_is_the_mean_over_images():
    config = configured("distill.mode=encoder_only")
    batch = BATCH.replace(valid_size=np.array([[32, 32], [20, 9]]))
    loss, metrics = feature_loss(EMBEDDING, TEACHER_EMBEDDING, batch, config)
    error = ((EMBEDDING - TEACHER_EMBEDDING) ** 2).mean(-1)
    np.testing.assert_allclose(loss, (error[0].mean() + error[1, :2, :1].mean()) / 2, rtol=1e-5)
    assert metrics == {"encoder": loss}


def test_encoder_only_loss_of_several_terms():
    batch = BATCH.replace(valid_size=np.array([[32, 32], [20, 9]]))
    weights = ("distill.loss.pixel=0.5", "distill.loss.channel=2", "distill.loss.correlation=3")
    config = configured("distill.mode=encoder_only", *weights)
    loss, metrics = feature_loss(EMBEDDING, TEACHER_EMBEDDING, batch, config)
    valid = losses.valid_weights(batch.valid_size, GRID, 32) > 0.5
    given = EMBEDDING, TEACHER_EMBEDDING, valid
    terms = losses.feature_error(*given), losses.channel_divergence(*given, 4.0), losses.correlation_error(*given)
    np.testing.assert_allclose(loss, np.dot([0.5, 2, 3], [t.mean() for t in terms]), rtol=1e-5)
    assert metrics.keys() == {"encoder", "pixel", "channel", "correlation"}
    alone = configured("distill.mode=encoder_only", "distill.loss.pixel=0", "distill.loss.channel=1")
    loss, metrics = feature_loss(EMBEDDING, TEACHER_EMBEDDING, batch, alone)
    np.testing.assert_allclose(loss, terms[1].mean(), rtol=1e-5)
    assert metrics == {"encoder": loss}


@pytest.mark.parametrize("extra", [(), ("distill.loss.attention=10.0", "distill.loss.query=1")])
def test_invalid_prompts_have_no_part(python_loop, extra):
    """Whatever stands in their rows."""
    config = configured("distill.rounds=1", *extra)
    rubbish = ~BATCH.prompt_valid[..., None]
    assert rubbish.any()
    changed = BATCH.replace(
        boxes=np.where(rubbish, np.float32(1), BATCH.boxes),
        points=np.where(rubbish, np.float32(31), BATCH.points),
    )
    a = loss_of(config, STUDENT["params"], EMBEDDING)[0]
    b = loss_of(config, STUDENT["params"], EMBEDDING, batch=changed)[0]
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert jnp.isfinite(a)
