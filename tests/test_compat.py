"""SAM's interface: its two example flows, its signatures, and what its own predictor returns for the same weights."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import deterministic_weights
import jax
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from edgesam_jax import compat
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.compat import SamAutomaticMaskGenerator, SamModel, SamPredictor, sam_model_registry
from edgesam_jax.config import DecoderConfig, SamConfig, UsageError, VitConfig
from edgesam_jax.everything import EverythingGenerator
from edgesam_jax.models.sam import MODELS
from edgesam_jax.predict.predictor import Predictor

CONFIG = SamConfig(
    encoder=VitConfig(width=16, depth=2, heads=2, window_size=3, global_blocks=(1,), patch_size=4),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=64,
    embed_dim=16,
)
SIDE = CONFIG.mask_size


def model_of(config: SamConfig) -> Model:
    return Model(config, deterministic_weights.variables(config), {"score": "iou"})


@pytest.fixture(scope="module")
def sam() -> SamModel:
    return SamModel(model_of(CONFIG))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((80, 48), Image.Resampling.BICUBIC))


def parameters(function: Any) -> dict[str, Any]:
    """Return the names and defaults of a function's parameters, in their order."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}


# ------------------------------------------------------------------------------------------------ SAM's two examples


def test_the_flow_of_sams_predictor_example(sam: SamModel, image: np.ndarray) -> None:
    """Click, refine with the best mask, exclude, box, box with a point, and several boxes."""
    sam.to(device="cuda")
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    input_point, input_label = np.array([[40, 24]]), np.array([1])

    masks, scores, logits = predictor.predict(point_coords=input_point, point_labels=input_label, multimask_output=True)
    assert masks.shape == (3, 48, 80) and masks.dtype == bool
    assert scores.shape == (3,) and logits.shape == (3, SIDE, SIDE)
    assert all(x.flags.writeable for x in (masks, scores, logits, predictor.get_image_embedding()))
    one_click = logits

    input_point, input_label = np.array([[40, 24], [60, 30]]), np.array([1, 1])
    mask_input = logits[np.argmax(scores), :, :]
    masks, scores, logits = predictor.predict(
        point_coords=input_point, point_labels=input_label, mask_input=mask_input[None, :, :], multimask_output=False
    )
    assert masks.shape == (1, 48, 80) and scores.shape == (1,) and logits.shape == (1, SIDE, SIDE)
    _, _, unguided = predictor.predict(input_point, input_label, multimask_output=False)
    assert abs(logits - unguided).max() > 1e-3, "the mask is part of the prompt"

    _, _, excluded = predictor.predict(input_point, np.array([1, 0]), multimask_output=False)
    assert abs(excluded - unguided).max() > 1e-3, "labels matter"

    input_box = np.array([10, 5, 60, 40])
    masks, _, boxed = predictor.predict(
        point_coords=None, point_labels=None, box=input_box[None, :], multimask_output=False
    )
    assert masks.shape == (1, 48, 80)
    masks, _, both = predictor.predict(
        point_coords=np.array([[20, 10]]), point_labels=np.array([0]), box=input_box, multimask_output=False
    )
    assert masks.shape == (1, 48, 80) and abs(both - boxed).max() > 1e-3

    input_boxes = np.array([[10, 5, 60, 40], [0, 0, 80, 48], [30, 10, 50, 30]])
    looped = [predictor.predict(box=box, multimask_output=False) for box in input_boxes]
    native, _, _ = sam.predictor.predict_prompts(boxes=input_boxes, image=sam.predictor.set_image(image))
    np.testing.assert_array_equal([masks for masks, _, _ in looped], native)
    np.testing.assert_array_equal(looped[0][2], boxed)

    _, _, again = predictor.predict(np.array([[40, 24]]), np.array([1]))
    np.testing.assert_array_equal(again, one_click)


def test_the_flow_of_sams_automatic_mask_example(sam: SamModel, image: np.ndarray) -> None:
    mask_generator = SamAutomaticMaskGenerator(sam)
    assert isinstance(mask_generator.generate(image), list)  # defaults; random weights make no stable mask

    loose = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    mask_generator_2 = SamAutomaticMaskGenerator(
        model=sam,
        points_per_side=4,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=10,
        **loose,
    )
    masks = mask_generator_2.generate(image)
    assert masks, "without limits something is found"
    assert masks[0].keys() == {
        "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
    }  # fmt: skip
    ordered = sorted(masks, key=lambda record: record["area"], reverse=True)
    picture = np.ones((*ordered[0]["segmentation"].shape, 4))
    for record in ordered:
        assert record["segmentation"].sum() == record["area"]
        picture[record["segmentation"]] = 0.35
    assert picture.shape == (48, 80, 4)

    same = EverythingGenerator(
        sam.model, 4, crop_n_layers=1, crop_n_points_downscale_factor=2, min_mask_region_area=10, **loose
    ).generate(image)
    for ours, theirs in zip(masks, same, strict=True):
        np.testing.assert_array_equal(ours.pop("segmentation"), theirs.pop("segmentation"))
        assert ours == theirs


def test_generators_take_the_options_that_sam_lacks(sam: SamModel, image: np.ndarray) -> None:
    options = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    everything = SamAutomaticMaskGenerator(sam, **options).generate(image)
    assert len(everything) > 2
    assert len(SamAutomaticMaskGenerator(sam, **options, max_masks=2).generate(image)) == 2


# ----------------------------------------------------------------------------------------------------- names and values


def test_arguments_have_sams_names_order_and_defaults() -> None:
    assert parameters(SamPredictor) == {"sam_model": inspect.Parameter.empty}
    assert parameters(SamPredictor.set_image) == {
        "self": inspect.Parameter.empty, "image": inspect.Parameter.empty, "image_format": "RGB",
    }  # fmt: skip
    assert list(parameters(SamPredictor.predict).items())[1:] == [
        ("point_coords", None), ("point_labels", None), ("box", None), ("mask_input", None),
        ("multimask_output", True), ("return_logits", False),
    ]  # fmt: skip
    assert list(parameters(SamAutomaticMaskGenerator).items())[1:] == [
        ("points_per_side", 32), ("points_per_batch", 64), ("pred_iou_thresh", 0.88), ("stability_score_thresh", 0.95),
        ("stability_score_offset", 1.0), ("box_nms_thresh", 0.7), ("crop_n_layers", 0), ("crop_nms_thresh", 0.7),
        ("crop_overlap_ratio", 512 / 1500), ("crop_n_points_downscale_factor", 1), ("point_grids", None),
        ("min_mask_region_area", 0), ("output_mode", "binary_mask"),
    ]  # fmt: skip


def test_every_option_of_the_generator_is_passed_on(sam: SamModel) -> None:
    """Compare with the generator below, whose own options are named."""
    given = {
        "points_per_side": None, "points_per_batch": 7, "pred_iou_thresh": 0.11, "stability_score_thresh": 0.12,
        "stability_score_offset": 0.13, "box_nms_thresh": 0.14, "crop_n_layers": 1, "crop_nms_thresh": 0.15,
        "crop_overlap_ratio": 0.16, "crop_n_points_downscale_factor": 2,
        "point_grids": [np.full((3, 2), 0.5), np.full((2, 2), 0.25)], "min_mask_region_area": 5,
        "output_mode": "coco_rle",
    }  # fmt: skip
    assert list(given) == list(parameters(SamAutomaticMaskGenerator))[1:]
    below = vars(EverythingGenerator(sam.predictor, **given))
    for generator in (SamAutomaticMaskGenerator(sam, **given), SamAutomaticMaskGenerator(sam, *given.values())):
        assert {k: v for k, v in vars(generator).items() if k != "point_grids"} == {
            k: v for k, v in below.items() if k != "point_grids"
        }
        np.testing.assert_array_equal(np.concatenate(generator.point_grids), np.concatenate(below["point_grids"]))


def test_multimask_output_chooses_the_mask_tokens(sam: SamModel, image: np.ndarray) -> None:
    predictor, native = SamPredictor(sam), Predictor(sam.model)
    predictor.set_image(image)
    native.set_image(image)
    every = native.predict([[40, 24]], [1], num_masks=4)
    for multimask_output, tokens in ((True, slice(1, 4)), (False, slice(0, 1))):
        for found, all_tokens in zip(
            predictor.predict([[40, 24]], [1], None, None, multimask_output), every, strict=True
        ):
            np.testing.assert_array_equal(found, all_tokens[tokens])


def test_return_logits_gives_the_values_that_the_masks_threshold(sam: SamModel, image: np.ndarray) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, low = predictor.predict(box=[10, 5, 60, 40])
    logits, same_scores, same_low = predictor.predict(box=[10, 5, 60, 40], return_logits=True)
    assert logits.shape == (3, 48, 80) and logits.dtype == np.float32
    np.testing.assert_array_equal(logits > sam.mask_threshold, masks)
    np.testing.assert_array_equal(same_scores, scores)
    np.testing.assert_array_equal(same_low, low)


def test_bgr_photos_are_turned_into_rgb(sam: SamModel, image: np.ndarray) -> None:
    rgb, bgr, wrong = SamPredictor(sam), SamPredictor(sam), SamPredictor(sam)
    rgb.set_image(image)
    bgr.set_image(image[..., ::-1], image_format="BGR")
    wrong.set_image(image[..., ::-1])
    np.testing.assert_array_equal(rgb.get_image_embedding(), bgr.get_image_embedding())
    assert abs(rgb.get_image_embedding() - wrong.get_image_embedding()).max() > 1e-3


def test_the_state_of_a_predictor(sam: SamModel, image: np.ndarray) -> None:
    predictor = SamPredictor(sam)
    assert not predictor.is_image_set and predictor.features is None
    assert predictor.original_size is None and predictor.input_size is None
    predictor.set_image(image)
    assert predictor.is_image_set and predictor.original_size == (48, 80) and predictor.input_size == (38, 64)
    embedding = predictor.get_image_embedding()
    assert embedding.shape == (1, CONFIG.embed_dim, CONFIG.grid, CONFIG.grid)
    np.testing.assert_array_equal(embedding, predictor.features)
    np.testing.assert_array_equal(embedding[0].transpose(1, 2, 0), sam.predictor.set_image(image).values)
    assert predictor.device == sam.device and predictor.model is sam
    predictor.reset_image()
    assert not predictor.is_image_set and predictor.features is None


def test_predictors_of_a_model_share_its_weights_but_not_their_photos(sam: SamModel, image: np.ndarray) -> None:
    one, two = SamPredictor(sam), SamPredictor(sam)
    one.set_image(image)
    _, _, before = one.predict([[40, 24]], [1])
    two.set_image(image[::-1].copy())
    generator = SamAutomaticMaskGenerator(sam, points_per_side=1)
    generator.generate(image[:, ::-1].copy())
    _, _, after = one.predict([[40, 24]], [1])
    np.testing.assert_array_equal(before, after)
    assert one.model.predictor is two.model.predictor is generator.predictor


def test_a_loaded_model_is_taken_too(image: np.ndarray, sam: SamModel) -> None:
    predictor = SamPredictor(sam.model)
    predictor.set_image(image)
    assert predictor.predict([[40, 24]], [1])[0].shape == (3, 48, 80)


# ------------------------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize(
    ("name", "ours", "score"),
    [
        ("default", "sam_vit_h", "iou"), ("vit_h", "sam_vit_h", "iou"), ("vit_l", "sam_vit_l", "iou"),
        ("vit_b", "sam_vit_b", "iou"), ("vit_t", "mobile_sam", "iou"), ("edge_sam", "edge_sam", "stability"),
        ("edge_sam_m2", "edge_sam_m2", "stability"), ("edge_sam_m3", "edge_sam_m3", "stability"),
    ],
)  # fmt: skip
def test_names_and_their_models(name: str, ours: str, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "init_variables", lambda config: {"of": config})
    sam = sam_model_registry[name]()
    assert sam.model.config == MODELS[ours] and sam.model.variables == {"of": MODELS[ours]}
    assert sam.model.metadata["score"] == score
    assert sam.to("cpu") is sam.to(device="cuda:0") is sam.cuda() is sam.eval() is sam


def test_the_page_lists_every_name() -> None:
    page = (ROOT / "docs" / "compat.md").read_text()
    assert all(f"`{name}`" in page for name in sam_model_registry)


def test_builders_by_name_are_those_of_the_registry() -> None:
    assert compat.build_sam is compat.build_sam_vit_h is sam_model_registry["vit_h"]
    assert compat.build_sam_vit_l is sam_model_registry["vit_l"]
    assert compat.build_sam_vit_b is sam_model_registry["vit_b"]


def test_random_weights_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compat.CONFIGS, "vit_b", CONFIG)
    one, two = (compat._builder("vit_b")(checkpoint=None).model.variables for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    assert one["params"]["mask_decoder"]["iou_token"]["embedding"].std() > 0


def test_checkpoints_are_loaded_and_must_fit_the_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "small.msgpack"
    save_model_file(file, model_of(CONFIG))
    with pytest.raises(UsageError, match=r"sam_model_registry\['vit_b'\].*another model; use SamModel\(load_model"):
        sam_model_registry["vit_b"](checkpoint=file)
    with pytest.raises(UsageError, match=r"another model; use sam_model_registry\['tiny_teacher'\]"):
        sam_model_registry["edge_sam"]("tiny_teacher")
    with pytest.raises(UsageError, match="no such file"):
        sam_model_registry["vit_h"](checkpoint=str(tmp_path / "missing.pth"))
    bundled = sam_model_registry["tiny_teacher"]()
    assert bundled.model.config == sam_model_registry["tiny_teacher"]("tiny_teacher").model.config
    assert bundled.model.metadata["score"] == "iou"
    monkeypatch.setitem(compat.CONFIGS, "edge_sam", CONFIG)
    loaded = compat._builder("edge_sam")(checkpoint=str(file)).model
    np.testing.assert_array_equal(
        loaded.variables["params"]["mask_decoder"]["iou_token"]["embedding"],
        model_of(CONFIG).variables["params"]["mask_decoder"]["iou_token"]["embedding"],
    )


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors_of_the_user_are_one_line(sam: SamModel, image: np.ndarray) -> None:
    predictor = SamPredictor(sam)
    for call in (lambda: predictor.predict([[1, 2]], [1]), predictor.get_image_embedding):
        with pytest.raises(UsageError, match="no photo is set: call set_image first"):
            call()
    predictor.set_image(image)
    for call, message in (
        (lambda: predictor.set_image(image, "rgb"), "image_format: must be RGB or BGR, not 'rgb'"),
        (lambda: predictor.set_image(image[..., 0], "BGR"), "image: expected RGB"),
        (lambda: predictor.set_image([[1], [1, 2]], "BGR"), "image: expected RGB"),
        (lambda: predictor.set_image(image / 255), "image: expected RGB"),
        (lambda: predictor.predict(), "no prompt"),
        (lambda: predictor.predict([[1, 2]]), "point_coords and point_labels go together"),
        (lambda: predictor.predict(mask_input=np.zeros((1, SIDE, SIDE))), "mask_input: can't stand alone"),
        (lambda: predictor.predict([[500, 2]], [1]), "not on the photo"),
        (lambda: predictor.predict_torch(None, None, boxes=[[1, 2, 3, 4]]), "predict_torch: .*predict_prompts"),
        (lambda: predictor.set_torch_image(None, (1, 2)), "set_torch_image: .* set_image"),
        (lambda: predictor.transform.apply_coords([[1, 2]], (3, 4)), "transform: not needed"),
        (lambda: SamPredictor("vit_b"), "model: expected what sam_model_registry.*got a value of type str"),
        (lambda: SamAutomaticMaskGenerator(sam.predictor), "model: expected what sam_model_registry"),
        (lambda: SamAutomaticMaskGenerator(sam, pred_iou_thresh=2), "pred_iou_thresh: expected a number from 0 to 1"),
        (lambda: sam_model_registry["vit_g"], "no model 'vit_g'; choose one of default, vit_h"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            call()
    assert predictor.is_image_set, "a photo that is refused doesn't replace the one before"
    assert "vit_g" not in sam_model_registry and sam_model_registry.get("vit_g") is None


# --------------------------------------------------------------------------------------------- SAM's own implementation


@pytest.fixture
def segment_anything() -> ModuleType:
    """SAM's package if it is installed.

    All tests import it in the same way: it keeps the parts of torchvision, or their stand-ins, that it was first given.
    """
    pytest.importorskip("torch")
    from benchmarks import sam_peer

    if not sam_peer.is_installed():
        pytest.skip("segment-anything is not installed")
    return sam_peer.package()


def sams_predictor(model: Model) -> Any:
    """Return SAM's predictor with SAM's own modules, and the sizes and weights of a model with a ViT."""
    import torch
    from segment_anything import SamPredictor as TheirPredictor
    from segment_anything import modeling

    from convert.to_torch import state_dict

    config, encoder, decoder = model.config, model.config.encoder, model.config.decoder
    grid, size, width = (config.grid,) * 2, (config.image_size,) * 2, config.embed_dim
    sam = modeling.Sam(
        modeling.ImageEncoderViT(
            config.image_size, encoder.patch_size, 3, encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio,
            width, norm_layer=lambda n: torch.nn.LayerNorm(n, eps=1e-6), use_rel_pos=True,
            window_size=encoder.window_size, global_attn_indexes=encoder.global_blocks,
        ),
        modeling.PromptEncoder(width, grid, size, config.mask_in_chans),
        modeling.MaskDecoder(
            transformer_dim=width,
            transformer=modeling.TwoWayTransformer(decoder.depth, width, decoder.heads, decoder.mlp_dim),
            iou_head_hidden_dim=width,
        ),
    ).eval()  # fmt: skip
    weights = {name: torch.from_numpy(np.array(value)) for name, value in state_dict(model).items()}
    sam.load_state_dict(weights, strict=True)
    return TheirPredictor(sam)


def test_the_results_are_those_of_sams_own_predictor(
    segment_anything: ModuleType, sam: SamModel, image: np.ndarray
) -> None:
    for ours, theirs in (
        (SamPredictor.set_image, segment_anything.SamPredictor.set_image),
        (SamPredictor.predict, segment_anything.SamPredictor.predict),
        (SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator),
    ):
        assert list(parameters(ours).items()) == list(parameters(theirs).items())
    assert set(segment_anything.sam_model_registry) <= set(sam_model_registry)

    ours, theirs = SamPredictor(sam), sams_predictor(sam.model)
    for image_format in ("BGR", "RGB"):
        ours.set_image(image, image_format)
        theirs.set_image(image, image_format)
        expected = theirs.get_image_embedding().numpy()
        np.testing.assert_allclose(ours.get_image_embedding(), expected, atol=1e-4 * np.std(expected))
    assert ours.original_size == theirs.original_size and ours.input_size == theirs.input_size
    _, _, low = ours.predict(np.array([[40, 24]]), np.array([1]))
    click = {"point_coords": np.array([[40, 24], [60, 30.5]]), "point_labels": np.array([1, 0])}
    box = {"box": np.array([10, 5, 60, 40])}
    guide = {"mask_input": low[:1]}
    point = {name: value[:1] for name, value in click.items()}
    for prompt in (point, click, box, point | box, click | guide, box | guide, {"box": box["box"][None]}):
        for multimask_output in (True, False):
            for return_logits in (True, False):
                found = ours.predict(**prompt, multimask_output=multimask_output, return_logits=return_logits)
                wanted = theirs.predict(**prompt, multimask_output=multimask_output, return_logits=return_logits)
                for value, expected in zip(found, wanted, strict=True):
                    assert value.shape == expected.shape and value.dtype == expected.dtype
                    if expected.dtype == bool:
                        assert np.mean(value != expected) < 1e-3
                    else:
                        np.testing.assert_allclose(value, expected, atol=1e-3 * max(np.std(expected), 0.01))
