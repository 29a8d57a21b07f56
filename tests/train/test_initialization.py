"""Which weights a run starts from, and what is refused."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import CONV, REPVIT, configured

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    MixtureConfig,
    SamConfig,
    TrainConfig,
    UsageError,
    VitConfig,
    apply_overrides,
)
from edgesam_jax.data.opening import open_parts
from edgesam_jax.data.source import Part
from edgesam_jax.learning import checks
from edgesam_jax.models.init import init_variables
from edgesam_jax.train import initialization, inputs, workdir

ENCODER_ONLY = DistillConfig(mode="encoder_only")


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_decoder_comes_from_the_teacher_and_the_encoder_does_not():
    teacher = Model(REPVIT, init_variables(REPVIT, 5))
    config = Config(model=CONV, teacher="t", distill=ENCODER_ONLY)
    got, fresh = initialization.initial_variables(config, teacher, None), init_variables(CONV, 0)
    for part in ("mask_decoder", "prompt_encoder"):
        assert same(got["params"][part], teacher.variables["params"][part])
    assert same(got["constants"], teacher.variables["constants"]) and not same(got["constants"], fresh["constants"])
    assert same(got["params"]["image_encoder"], fresh["params"]["image_encoder"])
    alone = dataclasses.replace(config, distill=dataclasses.replace(ENCODER_ONLY, init_decoder_from_teacher=False))
    assert same(initialization.initial_variables(alone, teacher, None), fresh)


def test_init_from_goes_before_the_teacher_and_may_be_a_part():
    teacher, other = Model(CONV, init_variables(CONV, 5)), init_variables(CONV, 6)
    config = Config(model=CONV, teacher="t", train=TrainConfig(init_from="x"))
    whole = initialization.initial_variables(config, teacher, Model(CONV, other))
    assert same(whole, other)
    encoder = {"params": {"image_encoder": other["params"]["image_encoder"]}}
    part = initialization.initial_variables(config, teacher, Model(CONV, encoder))
    assert same(part["params"]["image_encoder"], other["params"]["image_encoder"])
    assert same(part["params"]["mask_decoder"], teacher.variables["params"]["mask_decoder"])


def test_what_does_not_fit_is_listed():
    config = Config(model=CONV, train=TrainConfig(init_from="weights/x.pth"))
    with pytest.raises(UsageError, match=r"train.init_from=weights/x.pth: .*missing: .*unexpected: ") as caught:
        initialization.initial_variables(config, None, Model(REPVIT, init_variables(REPVIT, 0)))
    assert "\n" not in str(caught.value)
    wide = dataclasses.replace(CONV, mask_in_chans=8)
    with pytest.raises(UsageError, match=r"wrong shape: params/prompt_encoder/mask_downscaling"):
        initialization.initial_variables(config, None, Model(wide, init_variables(wide, 0)))


def test_a_decoder_of_another_shape_is_noted_or_refused():
    wide = dataclasses.replace(CONV, mask_in_chans=8)
    teacher = Model(wide, init_variables(wide, 0))
    notes = []
    initialization.initial_variables(Config(model=CONV, teacher="t"), teacher, None, notes)
    assert len(notes) == 1 and "starts from random weights" in notes[0]
    with pytest.raises(UsageError, match="teacher=t"):
        initialization.initial_variables(Config(model=CONV, teacher="t", distill=ENCODER_ONLY), teacher, None)


def test_lora_starts_afresh_on_weights_without_it():
    lora = dataclasses.replace(CONV, decoder=dataclasses.replace(CONV.decoder, lora_rank=2))
    got = initialization.initial_variables(
        Config(model=lora, train=TrainConfig(init_from="x")), None, Model(CONV, init_variables(CONV, 3))
    )
    paths = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(got["params"])}
    assert {"lora_A", "lora_B"} <= paths
    assert same(got["params"]["image_encoder"], init_variables(CONV, 3)["params"]["image_encoder"])


@pytest.mark.parametrize(("field", "value"), [("image_size", 64), ("embed_dim", 32)])
def test_a_teacher_of_another_frame_is_refused(field, value):
    config = Config(model=CONV, teacher="t", distill=ENCODER_ONLY)
    checks.check_teacher(config, CONV)
    with pytest.raises(UsageError, match=rf"teacher=t: its {field} is {value}"):
        checks.check_teacher(config, dataclasses.replace(CONV, **{field: value}))


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (("distill.loss.attention=1",), "decoder.heads", 4),
        (("distill.loss.attention=1",), "decoder.depth", 2),
        (("distill.loss.features=1",), "embed_dim", 32),
        (("distill.loss.query=1",), "embed_dim", 32),
        (("distill.loss.encoder=1",), "embed_dim", 32),
    ],
)
def test_a_teacher_whose_decoder_can_not_be_matched_is_refused(overrides, field, value):
    other = apply_overrides(CONV, [f"{field}={value}"])
    checks.check_teacher(configured("teacher=t"), other)
    with pytest.raises(UsageError, match=rf"teacher=t: its {field} is {value}"):
        checks.check_teacher(configured("teacher=t", *overrides), other)


def test_cosines_between_cells_need_no_equal_width():
    only = ("distill.mode=encoder_only", "distill.loss.pixel=0", "distill.loss.correlation=1")
    checks.check_teacher(configured("teacher=t", *only), dataclasses.replace(CONV, embed_dim=32))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("distill.targets=ground_truth", "distill.loss.attention=1"), "distill.loss.attention"),
        (("distill.targets=ground_truth", "distill.loss.query=1"), "no teacher's decoder"),
        (("distill.mode=encoder_only", "distill.loss.pixel=0"), "at least one must be above 0"),
        (("distill.loss.channel_temperature=0",), "channel_temperature=0.0: must be above 0"),
    ],
)
def test_losses_that_can_not_be_computed_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        checks.check_distillation(configured("teacher=t", *overrides))
    checks.check_distillation(configured("teacher=t"))


def test_workdir_notes_its_config_and_names_differences(tmp_path):
    def claim(config: Config, name: str = "new") -> None:
        with workdir.claim_workdir(config, tmp_path / name):
            pass

    config = Config(name="a")
    claim(Config(name="fixed"))  # no checkpoint to resume from
    claim(config)
    (tmp_path / "new" / "checkpoints" / "1").mkdir(parents=True)
    claim(dataclasses.replace(config, train=TrainConfig(log_every=1, devices=2)))
    with pytest.raises(UsageError, match=r"name \('a' there, 'b' here\)"):
        claim(dataclasses.replace(config, name="b"))
    with pytest.raises(UsageError, match=r"model.encoder.width \(None there, 768 here\)"):
        claim(dataclasses.replace(config, model=SamConfig(encoder=VitConfig())))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write there"):
        claim(config, "file/run")


def test_a_run_that_fails_before_its_first_checkpoint_gives_the_folder_back(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), workdir.claim_workdir(Config(name="wrong"), folder):
        assert (folder / "config.json").exists()
        1 / 0  # noqa: B018
    assert not folder.exists()
    with pytest.raises(ZeroDivisionError), workdir.claim_workdir(Config(name="right"), folder):
        (folder / "checkpoints" / "1").mkdir(parents=True)
        1 / 0  # noqa: B018
    with pytest.raises(UsageError, match="name"), workdir.claim_workdir(Config(name="wrong"), folder):
        pass


def test_photos_without_annotations_can_not_be_prompted(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    config = Config(teacher="t", data=DataConfig(source="images", root=str(tmp_path)))

    def check(config):
        inputs.check_data(config, open_parts(config.data, 64))

    with pytest.raises(UsageError, match=r"data\.root=.*no photo in it has annotations"):
        check(config)
    mixed = dataclasses.replace(config.data, mixture=(MixtureConfig("scenes"), MixtureConfig(root=str(tmp_path))))
    with pytest.raises(UsageError, match=r"data\.mixture\[1\]\.root=.*no photo in it has annotations"):
        check(dataclasses.replace(config, data=mixed))
    check(dataclasses.replace(config, distill=ENCODER_ONLY))
    (tmp_path / "a.json").write_text('{"image": {"height": 10, "width": 20}, "annotations": []}')
    check(config)


def test_guessed_masks_are_no_ground_truth():
    class Guessed:
        annotated, true_masks = True, False

    check = functools.partial(inputs.check_data, parts=[Part(Guessed())])
    check(Config(teacher="t"))
    with pytest.raises(UsageError, match=r"has no ground-truth masks, which distill\.targets=ground_truth needs"):
        check(Config(distill=DistillConfig(targets="ground_truth")))
