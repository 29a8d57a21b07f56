"""Granularity priors from end to end: training by the command, predictor, evaluation, exports."""

from __future__ import annotations

import dataclasses
import json

import deterministic_weights
import numpy as np
import pytest
import tiny
from paths import CONFIGS
from PIL import Image

from edgesam_jax import Predictor, UsageError
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import DataConfig, ProposalConfig
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.scenes.textures import photos
from edgesam_jax.data.schema import OBJECT, PART
from edgesam_jax.eval import __main__ as eval_command
from edgesam_jax.eval.heldout import evaluate
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.models.anchors import anchors_of, make_anchors, propose
from edgesam_jax.models.init import abstract_variables
from edgesam_jax.models.sam import MODELS
from edgesam_jax.portable.onnx_model import OnnxEncoder
from edgesam_jax.portable.priors import merge, select
from edgesam_jax.predict import __main__ as predict
from edgesam_jax.predict import compiled

# Random weights score about 1/2: everything is a proposal.
CONFIG = dataclasses.replace(tiny.PROPOSALS, decoder=dataclasses.replace(tiny.CONV.decoder, depth=2))
PHOTO = photos()[1][0]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, deterministic_weights.variables(CONFIG), {"score": "stability"})


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save_model_file(tmp_path_factory.mktemp("checkpoint") / "small.msgpack", model)


def test_the_proposal_network_has_the_published_size():
    config = dataclasses.replace(MODELS["edge_sam"], proposals=ProposalConfig())
    leaves = abstract_variables(config)["params"]["proposals"]
    count = {part: sum(int(np.prod(x.shape)) for x in _leaves(leaves[part])) for part in ("fpn", "rpn_head")}
    assert count == {"fpn": 222_393, "rpn_head": 36_333}  # more_model_facts, section 4


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize("name", ["edge_sam_tiny_vit", "edge_sam_efficient_vit", "tiny_teacher", "tiny_student"])
def test_every_encoder_with_maps_of_three_sizes_can_have_a_proposal_network(name):
    import jax

    from edgesam_jax.models.sam import Sam

    config = dataclasses.replace(MODELS[name], proposals=ProposalConfig())
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    variables = abstract_variables(config)
    embedding, logits, codes = jax.eval_shape(lambda v, x: Sam(config).apply(v, x, method="propose"), variables, image)
    count = len(anchors_of(config))
    assert embedding.shape == (1, config.grid, config.grid, config.embed_dim)
    assert logits.shape == (1, count) and codes.shape == (1, count, 4)


# ------------------------------------------------------------------------------------------------------- the predictor


def test_a_click_gets_the_merged_box_and_everything_else_is_as_without(model):
    plain, ours = Predictor(model), Predictor(model, priors="nearest")
    plain.set_image(PHOTO)
    embedding = ours.set_image(PHOTO)
    boxes, scores = embedding.proposals
    assert (scores > 0).sum() > 10
    clicks = np.array([[[40.0, 30.0]], [[200.0, 150.0]]])
    one = np.ones((2, 1), np.int32)
    scale = np.array(embedding.input_size[::-1]) / PHOTO.shape[1::-1]
    merged = merge(clicks[:, 0] * scale, boxes, scores, "nearest") / np.tile(scale, 2)
    np.testing.assert_allclose(ours.prior_boxes(clicks[:, 0]), merged, rtol=1e-4)
    with_box = plain.predict_prompts(np.clip(merged, 0, np.tile(PHOTO.shape[1::-1], 2)), clicks, one)
    found = ours.predict_prompts(None, clicks, one)
    np.testing.assert_allclose(found[2], with_box[2], atol=1e-3)
    assert not np.allclose(found[2], plain.predict_prompts(None, clicks, one)[2], atol=1e-2)
    for prompt in (
        {"point_coords": [[40, 30], [50, 60]], "point_labels": [1, 1]},
        {"point_coords": [[40, 30]], "point_labels": [0]},
        {"box": [10, 10, 90, 80]},
        {"box": [10, 10, 90, 80], "point_coords": [[40, 30]], "point_labels": [1]},
    ):
        np.testing.assert_array_equal(ours.predict(**prompt)[0], plain.predict(**prompt)[0])


def test_without_proposals_a_click_stays_a_click(model):
    silent = dataclasses.replace(CONFIG, proposals=dataclasses.replace(CONFIG.proposals, min_score=1.0))
    silent_model = dataclasses.replace(model, config=silent)
    plain, ours = Predictor(model), Predictor(silent_model, priors="published")
    plain.set_image(PHOTO)
    ours.set_image(PHOTO)
    assert np.isnan(ours.prior_boxes([[40, 30]])).all()
    np.testing.assert_array_equal(ours.predict([[40, 30]], [1])[0], plain.predict([[40, 30]], [1])[0])


def test_clicks_with_and_without_a_box_in_one_call(model, monkeypatch):
    ours = Predictor(model, priors="nearest")
    ours.set_image(PHOTO)
    clicks, one = np.array([[[40.0, 30.0]], [[200.0, 150.0]], [[90.0, 99.0]]]), np.ones((3, 1), np.int32)
    scale = np.array(ours.embedding.input_size[::-1]) / PHOTO.shape[1::-1]
    priors = ours._prior_boxes(clicks[:, 0] * scale, ours.embedding)
    assert not np.isnan(priors).any()
    each = [ours.predict(clicks[i], [1])[2] for i in (0, 2)]
    priors[1] = np.nan
    monkeypatch.setattr(ours, "_prior_boxes", lambda points, image: priors)
    mixed = ours.predict_prompts(None, clicks, one)[2]
    plain = Predictor(model)
    plain.set_image(PHOTO)
    np.testing.assert_allclose(mixed[1], plain.predict(clicks[1], [1])[2], atol=1e-4)
    np.testing.assert_allclose(mixed[[0, 2]], each, atol=1e-4)


def test_errors(model, tmp_path, checkpoint, capsys):
    bare = Model(tiny.CONV, deterministic_weights.variables(tiny.CONV))
    with pytest.raises(UsageError, match="priors: the checkpoint has no proposal network; train one"):
        Predictor(bare, priors="nearest")
    with pytest.raises(UsageError, match="priors: must be one of off, nearest, published, not 'best'"):
        Predictor(model, priors="best")
    plain, ours = Predictor(model), Predictor(model, priors="nearest")
    with pytest.raises(UsageError, match="made without priors"):
        ours.set_image(PHOTO, plain.set_image(PHOTO))
    for flags, message in (
        (["--checkpoint", str(checkpoint), "--prompt", "box"], "--priors nearest: priors apply to clicks only"),
        (["--checkpoint", "tiny_teacher", "--prompt", "center"], "--priors: tiny_teacher: the checkpoint has no prop"),
    ):
        arguments = ["--dataset", "scenes", "--limit", "2", "--priors", "nearest", *flags]
        assert eval_command.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_predict_draws_and_reports_the_box(checkpoint, tmp_path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    arguments = ["--checkpoint", str(checkpoint), "--image", str(tmp_path / "photo.png"), "--point", "40,30,1"]
    assert predict.main([*arguments, "--output", str(tmp_path / "with"), "--priors", "nearest"]) == 0
    assert predict.main([*arguments, "--output", str(tmp_path / "without")]) == 0
    found = [json.loads((tmp_path / n / "predictions.json").read_text())["prompts"][0] for n in ("with", "without")]
    assert len(found[0]["prior_box"]) == 4 and "prior_box" not in found[1] and "box" not in found[0]
    assert (tmp_path / "with" / "overlay_0.png").read_bytes() != (tmp_path / "without" / "overlay_0.png").read_bytes()


# ---------------------------------------------------------------------------------------------------- the evaluation


def test_the_evaluation_uses_the_predictors_priors(model):
    source = open_source(DataConfig(limit=3), CONFIG.image_size, "heldout")
    scenes = [source.load(i) for i in range(3)]
    scores = {
        rule: evaluate(model, scenes, Settings("point", refine=1, priors=rule))
        for rule in ("off", "nearest", "published")
    }
    from edgesam_jax.eval.metrics import mask_iou

    for rule in ("nearest", "published"):
        predictor, want = Predictor(model, priors=rule), []
        for scene in scenes:
            predictor.set_image(scene.image)
            one = np.ones((len(scene), 1), np.int32)
            masks = predictor.predict_prompts(None, scene.points[:, None], one)[0][:, 0]
            want.append(mask_iou(masks, scene.masks))
        np.testing.assert_allclose(scores[rule].iou[:, 0], np.concatenate(want), atol=0.02)
        assert not np.allclose(scores[rule].iou, scores["off"].iou)


def test_the_report_says_that_priors_were_on(checkpoint, tmp_path):
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "scenes", "--limit", "3", "--prompt", "center"]
    flags = ["--priors", "nearest", "--no-pictures", "--output", str(tmp_path / "r.json")]
    assert eval_command.main([*arguments, *flags]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report[0] if isinstance(report, list) else report)["priors"] == "nearest"
    assert "granularity priors, the paper's rule" in (tmp_path / "r.md").read_text()


def test_scenes_of_one_granularity_are_the_same_scenes():
    whole = open_source(DataConfig(), 64)
    for name, wanted in (("objects", OBJECT), ("parts", PART)):
        own = open_source(DataConfig(scene_granularity=name), 64)
        replaced = 0
        for index in range(30):
            some, every = own.load(index), whole.load(index)
            assert len(some) and (some.granularity == wanted).all() and some.image_id == index
            if (every.granularity == wanted).any():
                np.testing.assert_array_equal(some.image, every.image)
                np.testing.assert_array_equal(some.masks, every.masks[every.granularity == wanted])
            else:
                replaced += 1
        assert replaced == 0 if name == "objects" else replaced < 15


# -------------------------------------------------------------------------------------------------------- the exports


def test_exports_select_the_models_proposals(model):
    rng = np.random.default_rng(0)
    for iou in (0.5, 1.0):
        config = dataclasses.replace(CONFIG.proposals, nms_iou=iou, kept=20, min_score=0.4)
        anchors = make_anchors(32, 2, config)
        codes = rng.normal(size=(len(anchors), 4)).astype(np.float32)
        logits = rng.normal(size=len(anchors)).astype(np.float32)
        boxes, scores = propose(logits, codes, anchors, np.array([30.0, 20.0]), config)
        from edgesam_jax.models.anchors import decode

        free = decode(anchors, codes, np.array([np.inf, np.inf]))
        low = anchors[:, :2] + (anchors[:, 2:] - anchors[:, :2]) * (0.5 + codes[:, :2])
        half = (anchors[:, 2:] - anchors[:, :2]) * np.exp(np.clip(codes[:, 2:], -4.135, 4.135)) / 2
        free = np.concatenate([low - half, low + half], 1)
        found = select(free, 1 / (1 + np.exp(-logits)), (30, 20), 0.4, config.before_nms, iou, 20)
        count = int((np.asarray(scores) > 0).sum())
        assert len(found[0]) == count > 5
        np.testing.assert_allclose(found[0], boxes[:count], atol=1e-3)
        np.testing.assert_allclose(found[1], scores[:count], atol=1e-5)


@pytest.mark.parametrize("name", ["repvit", "conv"])
def test_the_torch_twin_proposes_the_same(name):
    torch = pytest.importorskip("torch")
    from convert.torch_twin.loading import load_twin
    from edgesam_jax.models.sam import Sam

    base = CONFIG if name == "repvit" else dataclasses.replace(tiny.CONV, proposals=CONFIG.proposals)
    for size in (32, 48):  # 48: a level of three cells, padded on both sides
        config = dataclasses.replace(base, image_size=size)
        own = Model(config, deterministic_weights.variables(config))
        image = deterministic_weights.image(size)
        ours = Sam(config).apply(own.variables, image, method="propose")
        planes = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            theirs = load_twin(own).propose(planes)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-4)


def test_a_model_with_proposals_goes_to_torch_and_back(model, tmp_path):
    pytest.importorskip("torch")
    from convert.to_torch import save_published
    from edgesam_jax.checkpoints.published.read import load_published

    for suffix in ("safetensors", "pth"):
        path = save_published(tmp_path / f"model.{suffix}", model)
        if suffix == "pth":  # nothing in it tells the widths of our tiny network
            continue
        back = load_published(path)
        assert back.config == model.config
        found, want = back.variables["params"]["proposals"], model.variables["params"]["proposals"]
        np.testing.assert_array_equal(
            found["rpn_head"]["class_out"]["pointwise_conv"]["bias"],
            want["rpn_head"]["class_out"]["pointwise_conv"]["bias"],
        )


@pytest.mark.slow
def test_onnx_with_priors_is_the_predictor(model, checkpoint, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from convert import to_onnx
    from edgesam_jax import OnnxPredictor

    assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "plain"), "--part", "encoder"]) == 0
    assert to_onnx.main([str(checkpoint), "--output", str(tmp_path / "out"), "--priors"]) == 0
    assert "proposal boxes: worst" in capsys.readouterr().out
    pair = tmp_path / "out" / "small_encoder.onnx", tmp_path / "out" / "small_decoder.onnx"
    for rule in ("off", "nearest", "published"):
        ours, theirs = Predictor(model, priors=rule), OnnxPredictor(*pair, priors=rule)
        ours.set_image(PHOTO)
        theirs.set_image(PHOTO)
        np.testing.assert_allclose(theirs.predict([[40, 30]], [1])[2], ours.predict([[40, 30]], [1])[2], atol=0.02)
    with pytest.raises(UsageError, match=r"returns no proposals for priors; export it with --priors"):
        OnnxPredictor(tmp_path / "plain" / "small_encoder.onnx", pair[1], priors="nearest")
    flags = ["--dataset", "scenes", "--limit", "2", "--prompt", "center", "--priors", "nearest", "--no-boundary"]
    assert eval_command.main([*flags, "--onnx", *map(str, pair)]) == 0
    from convert import bundle

    # X-AnyLabeling's encoder has one output, whatever the rest of the bundle has.
    labelling = ["--name", "label", "--priors", "--formats", "x-anylabeling"]
    assert bundle.main([str(checkpoint), "--output", str(tmp_path / "bundle"), *labelling]) == 0
    encoder = OnnxEncoder(tmp_path / "bundle" / "x-anylabeling" / "label_labelling_encoder.onnx")
    assert not encoder.proposes and len(encoder.outputs(np.zeros((32, 32, 3), np.uint8), (20, 32))) == 1
    bare = save_model_file(tmp_path / "bare.msgpack", Model(tiny.CONV, deterministic_weights.variables(tiny.CONV)))
    assert to_onnx.main([str(bare), "--output", str(tmp_path / "no"), "--priors"]) == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_core_ml_with_priors_passes_its_gate(checkpoint, tmp_path, capsys):
    pytest.importorskip("coremltools")
    from convert import to_coreml

    flags = ["--part", "encoder", "--priors", "--precision", "float32"]
    assert to_coreml.main([str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 0
    assert "proposal scores: worst" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "small_coreml.json").read_text())
    assert content["proposals"]["iou"] == CONFIG.proposals.nms_iou


def test_training_by_the_command(tmp_path):
    """Train a few steps on objects; the loaded model has proposals, and its masks are bit for bit as before."""

    from edgesam_jax.train import __main__ as train

    config = CONFIGS / "proposals_scenes_objects.py"
    small = {"channels": 8, "repeats": 1, "head_convs": 1}
    overrides = [f"model.proposals={small}", "train.steps=3", "data.batch_size=2", "optim.warmup_steps=1"]
    assert train.main(["--config", str(config), "--workdir", str(tmp_path / "run"), "--set", *overrides]) == 0
    trained, before = load_model(tmp_path / "run"), load_model("tiny_teacher")
    assert trained.config.proposals == ProposalConfig(**small)
    for collection in ("params", "constants"):
        for part, tree in before.variables[collection].items():
            for a, b in zip(_leaves(tree), _leaves(trained.variables[collection][part]), strict=True):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    variables = compiled.for_inference(trained.config, trained.variables)
    _, boxes, scores = compiled.proposer(trained.config)(
        variables, np.zeros((1, 128, 128, 3), np.uint8), np.array([[128, 128]])
    )
    assert boxes.shape == (1, 100, 4) and scores.shape == (1, 100)
