"""Model cards: what they say, what they leave out, and who carries them along."""

from __future__ import annotations

import json

import pytest
from tiny import CONV

from edgesam_jax import card
from edgesam_jax.checkpoints import provenance
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model, save_model_file
from edgesam_jax.config import Config, DataConfig, DistillConfig, EvalConfig, TrainConfig
from edgesam_jax.files import sha256_of
from edgesam_jax.models.init import init_variables
from edgesam_jax.train.run import fit

NON_COMMERCIAL = "S-Lab License 1.0 (non-commercial)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step from a model with a non-commercial licence, and the file that it started from."""
    folder = tmp_path_factory.mktemp("card")
    metadata = {"source": "theirs", "score": "stability", "licence": NON_COMMERCIAL}
    start = save_model_file(folder / "secret_place" / "start.msgpack", Model(CONV, init_variables(CONV, 3), metadata))
    config = Config(
        name="small",
        model=CONV,
        data=DataConfig(batch_size=1, max_prompts=1),
        distill=DistillConfig(targets="ground_truth", rounds=0),
        train=TrainConfig(steps=1, picture_every=0, devices=1, init_from=str(start)),
        eval=EvalConfig(images=0),
    )
    fit(config, folder / "run", quiet=True)
    return folder / "run", start


def test_a_trained_model_says_where_it_comes_from(trained):
    run, start = trained
    text = (run / "model" / provenance.CARD).read_text()
    assert f"start: start.msgpack, SHA-256 `{sha256_of(start)}`, licence: {NON_COMMERCIAL}" in text
    assert f"**Licence of the weights**: {NON_COMMERCIAL}" in text and "teacher: none" in text
    assert "training: generated scenes, seed 0" in text and "\n1 steps, " in text and "- jax " in text
    assert "secret_place" not in text and str(run.parent) not in text


@pytest.mark.parametrize("what", ["model", "."])
def test_the_licence_is_inherited_by_the_model_and_by_the_running_checkpoint(trained, what):
    model = load_model(trained[0] / what)
    assert model.metadata["licence"] == NON_COMMERCIAL
    assert model.metadata["provenance"]["started_from"]["name"] == "start.msgpack"
    assert model.metadata["provenance"]["steps"] == 1 and str(trained[0].parent) not in provenance.card(model)


def test_the_command_prints_the_card_and_its_metadata(trained, capsys):
    assert card.main([str(trained[0] / "model")]) == 0
    assert "## Trained from" in capsys.readouterr().out
    assert card.main([str(trained[0] / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == NON_COMMERCIAL
    assert card.main([str(trained[0] / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_model_of_unknown_origin_says_so(tmp_path):
    model = Model(CONV, init_variables(CONV, 0), {})
    save_model(tmp_path / "model", model)
    text = (tmp_path / "model" / provenance.CARD).read_text()
    assert "not recorded" in text and "How these weights were trained is not recorded." in text


def test_licences_are_named_once_each():
    origins = [{"licence": "A"}, None, {"licence": "B"}, {"licence": "A"}]
    assert provenance.inherited_licence(origins) == "A; B" and provenance.inherited_licence([None]) == ""


def test_paths_lose_their_folders():
    content = {"a": "/home/me/photos/x/", "b": ["c:\\secret\\data", "plain"], "c": 3, "d": ""}
    assert provenance.without_paths(content) == {"a": "x", "b": ["data", "plain"], "c": 3, "d": ""}


def test_the_bundled_student_is_complete():
    student, teacher = load_model("tiny_student"), load_model("tiny_teacher")
    assert set(student.variables["params"]) == set(teacher.variables["params"])
    assert student.metadata["licence"] == "Apache-2.0"
    decoder = (model.variables["params"]["mask_decoder"]["iou_token"]["embedding"] for model in (student, teacher))
    assert (next(decoder) == next(decoder)).all()
