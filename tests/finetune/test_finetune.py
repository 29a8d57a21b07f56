"""Fine-tuning: what it finds, how it splits, what it picks, and that it learns and says so."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_data import coco_folder
from tiny import CONV

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import UsageError
from edgesam_jax.finetune import __main__ as finetune
from edgesam_jax.finetune import recipe, run, scores
from edgesam_jax.finetune.split import FEWEST_TO_CHOOSE, split
from edgesam_jax.finetune.survey import Photo, survey
from edgesam_jax.models import lora
from edgesam_jax.models.init import init_variables
from edgesam_jax.predict import compiled


def photos(count: int, same: int = 0) -> list[Photo]:
    """Photos of which the first ``same`` are one file."""
    return [Photo(f"v{i // 3}_{i}", "x" if i < same else f"{i}", (10, 10), (5,)) for i in range(count)]


def pairs_folder(folder, count):
    """Write photos of grey discs on noise, which models of scenes outline badly, with their masks beside them."""
    folder.mkdir()
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:64, :64]
    for number in range(count):
        picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
        x, y = rng.integers(16, 42, 2)
        disc = (columns - x) ** 2 + (rows - y) ** 2 <= 144
        picture[disc] = 128
        Image.fromarray(picture).save(folder / f"{number:02}.jpg", quality=95)
        Image.fromarray(disc.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


# -------------------------------------------------------------------------------------------------------------- survey


def test_a_survey_of_coco_names_classes_and_duplicates(tmp_path):
    folder = coco_folder(tmp_path / "coco", 4)
    content = json.loads((folder / "instances.json").read_text())
    (folder / "003.jpg").write_bytes((folder / "001.jpg").read_bytes())  # other sizes: its masks don't fit any more
    found = survey(folder)
    assert found.data.source == "coco" and found.categories == {"thing": 9} and len(found.photos) == 3
    assert "COCO's JSON" in found.text() and "1 classes: thing 9" in found.text() and "are not used" in found.text()
    content["images"][2] |= {key: content["images"][0][key] for key in ("height", "width")}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3 or a["id"] == 30]
    (folder / "instances.json").write_text(json.dumps(content))
    found = survey(folder)
    assert (
        found.duplicates == [("001", "003")] and "2 files are 1 photos, stored twice or more: 001, 003" in found.text()
    )


def test_a_survey_of_pairs_and_of_masks_that_fill_the_photo(tmp_path):
    folder = pairs_folder(tmp_path / "pairs", 3)
    Image.fromarray(np.ones((64, 64), np.uint8)).save(folder / "00.png")
    text = survey(folder).text()
    assert "pictures of masks (3)" in text and "1 masks fill more than 95%" in text


@pytest.mark.parametrize("what", ["missing", "bare", "several"])
def test_folders_that_cannot_be_used_are_one_line(tmp_path, what, capsys):
    folder = tmp_path / "data"
    if what == "bare":
        pairs_folder(folder, 1)
        (folder / "00.png").unlink()
    elif what == "several":
        coco_folder(folder)
        (folder / "other.json").write_text((folder / "instances.json").read_text())
    code = finetune.main(["--checkpoint", "tiny_teacher", "--data", str(folder), "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    words = {"missing": "no such folder", "bare": "no photo in it has annotations", "several": "pass one with"}[what]
    assert code == 2 and words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------------- split


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 5), st.booleans())
def test_every_photo_has_one_part_and_groups_stay_together(count, share, seed, grouped):
    listed = photos(count, same=min(2, count - 1))
    if grouped and count < 4:
        return  # one group
    parts = split(listed, share, seed, "^v[0-9]+" if grouped else "")
    where = {i: name for name, ids in vars(parts).items() for i in ids}
    assert sorted(where) == sorted(photo.id for photo in listed)
    assert sum(map(len, vars(parts).values())) == count and parts.train and parts.held_out
    if grouped:
        assert len({(i.split("_")[0], part) for i, part in where.items()}) == len({i.split("_")[0] for i in where})
    elif count > 2:
        assert where[listed[0].id] == where[listed[1].id], "one file, stored twice"
    assert bool(parts.choose) <= (count >= FEWEST_TO_CHOOSE)
    assert split(listed, share, seed, "^v[0-9]+" if grouped else "") == parts


def test_a_single_photo_is_refused():
    with pytest.raises(UsageError, match="one photo can't be both trained on and held out"):
        split(photos(1))
    assert split(photos(1), share=0.0).train == ("v0_0",)
    with pytest.raises(UsageError, match="not a regular expression"):
        split(photos(3), group="(")


# -------------------------------------------------------------------------------------------------------------- recipe


def test_the_recipe_follows_from_the_number_of_photos():
    few, many = recipe.choose(10, 8), recipe.choose(100, 8)
    assert (few.trained, many.trained) == ("decoder", "all") and few.steps < many.steps <= recipe.MOST_STEPS
    assert recipe.choose(3, 8).batch == 3
    asked = recipe.choose(10, 2, "lora", 7, 0.5)
    assert (asked.trained, asked.steps, asked.learning_rate) == ("lora", 7, 0.5)


def test_merged_updates_are_the_same_model():
    config = dataclasses.replace(CONV, decoder=dataclasses.replace(CONV.decoder, lora_rank=2))
    variables = init_variables(config, 0)
    rng = np.random.default_rng(0)

    def filled(tree):
        if not isinstance(tree, dict):
            return tree
        return {k: rng.normal(size=v.shape).astype(np.float32) if k == "lora_B" else filled(v) for k, v in tree.items()}

    variables = {**variables, "params": filled(variables["params"])}
    plain, params = lora.merged(config, variables["params"])
    assert plain == CONV
    image = rng.integers(0, 255, (1, CONV.image_size, CONV.image_size, 3), np.uint8)
    outputs = []
    for made, weights in ((config, variables), (plain, {**variables, "params": params})):
        folded = compiled.for_inference(made, weights)
        size = np.full((1, 2), CONV.image_size, np.int32)
        embedding = compiled.encoder(made)(folded, image, size)
        box = np.array([[[4.0, 4.0, 30.0, 30.0]]], np.float32)[0]
        outputs.append(np.asarray(compiled.decoder(made)(folded, embedding[0], box, None, None, None).logits))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=2e-4, atol=2e-4)


# ----------------------------------------------------------------------------------------------------------- the words


def test_no_gain_and_a_loss_are_said_plainly():
    gains = [
        scores.Gain("box", 0.5, 0.51, (-0.02, 0.04)),
        scores.Gain("centre click", 0.5, 0.4, (-0.2, -0.05), True),
        scores.Gain("clicks to an IoU of 0.9 (NoC@90)", 8.0, 7.5),
    ]
    said = scores.verdict(gains, 12)
    assert "no gain that 12 photos could show with a box (+1.0), A LOSS of 10.0 with a centre click." in said
    text = scores.table(gains)
    assert "no gain shown" in text and "LOSS" in text and " 8.0 " in text


# ------------------------------------------------------------------------------------------------------ from end to end


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "gain"), [("all", 0.1), ("lora", 0.005)])
def test_a_model_learns_from_pairs_and_says_so(tmp_path, capsys, monkeypatch, trained, gain):
    monkeypatch.setattr(run, "SCENES", 3)
    monkeypatch.setattr(scores, "REFINE", {"box": 0, "center": 1})
    start = save_model_file(
        tmp_path / "start.msgpack",
        dataclasses.replace(load_model("tiny_teacher"), metadata={"licence": "theirs", "score": "stability"}),
    )
    data, output = pairs_folder(tmp_path / "pairs", 36), tmp_path / "mine"
    command = ["--checkpoint", str(start), "--data", str(data), "--output", str(output), "--train", trained]
    command += ["--steps", "20", "--batch-size", "4", "--learning-rate", "1e-3", "--held-out", "0.3"]
    assert finetune.main([*command, "--survey"]) == 0 and not output.exists()
    assert finetune.main(command) == 0
    said = capsys.readouterr().out
    assert "36 photos can be used" in said and "Forgetting, 3 generated scenes:" in said
    assert "On the held-out photos: a gain of " in said
    model = load_model(output / "model")
    assert model.config == load_model(start).config and model.metadata["licence"] == "theirs"
    report = json.loads((output / "report" / "box.json").read_text())
    before, after = (system["miou"][0] for system in report["systems"])
    assert after > before + gain
    card = (output / "model" / "MODEL_CARD.md").read_text()
    assert "On the held-out photos" in card and str(tmp_path) not in card and ", masks " in card
    with Image.open(output / "report" / "cases.png") as sheet:
        assert sheet.height > 1000
    lists = {name: (output / f"{name}.txt").read_text() for name in ("train", "choose", "held_out")}
    assert finetune.main(command) == 0, "again: nothing is trained twice"
    assert "compiling" not in capsys.readouterr().err
    assert {name: (output / f"{name}.txt").read_text() for name in lists} == lists
    assert finetune.main([*command, "--seed", "3"]) == 2
    assert "has a run on other photos; choose a new folder" in capsys.readouterr().err
