"""Round trips, typed overrides, and the one-line errors of the config."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import CONFIGS

from edgesam_jax.config import (
    ArmConfig,
    Config,
    DataConfig,
    OptimConfig,
    RepVitConfig,
    SamConfig,
    UsageError,
    VitConfig,
    apply_overrides,
    from_json,
    load_config,
    to_json,
)
from edgesam_jax.data.readers.tars import tar_names


def strategy(hint):
    """Any value that a field of this type may hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{name: strategy(inner) for name, inner in hints.items()})
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if arg is type(None) else strategy(arg) for arg in args))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(strategy(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(strategy, args))
    return {
        int: st.integers(-(10**9), 10**9),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(max_size=8),
    }[hint]


@settings(max_examples=50, deadline=None)
@given(strategy(Config))
def test_json_round_trip(config):
    assert from_json(Config, to_json(config)) == config


def leaf_fields(config, prefix=""):
    """(path, type, value) of every plain field."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from leaf_fields(value, f"{prefix}{name}.")
        elif name not in ("study", "kind"):
            yield prefix + name, hint, value


def read(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_field_can_be_set_from_text(data):
    path, hint, _ = data.draw(st.sampled_from(list(leaf_fields(Config()))))
    value = data.draw(strategy(hint))
    if isinstance(value, str):
        value = value.strip()  # the text after "=" is stripped
    plain = [dataclasses.asdict(v) for v in value] if path == "data.mixture" else value
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else plain
    text = value if isinstance(value, str) else repr(plain)
    assert read(apply_overrides(Config(), [f"{path}={text}"]), path) == value


def test_a_field_of_what_is_not_there_says_how_to_get_it():
    with pytest.raises(UsageError, match=r"model\.proposals\.kept=5: there is none yet; set it as a whole before"):
        apply_overrides(Config(), ["model.proposals.kept=5"])
    assert apply_overrides(Config(), ["model.proposals={}", "model.proposals.kept=5"]).model.proposals.kept == 5


def test_overrides_apply_in_order_and_leave_the_rest():
    config = apply_overrides(
        Config(), ["train.steps=5", "optim.learning_rate=1", "train.steps = 7", "optim.scale_by_batch=true"]
    )
    expected = OptimConfig(learning_rate=1.0, scale_by_batch=True)
    assert (config.train.steps, config.optim, config.data) == (7, expected, Config().data)
    assert isinstance(config.optim.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.steps", "write it as a.b=value"),
        ("train.stepz=3", "no field 'stepz' in TrainConfig; it has steps"),
        ("nothing.steps=3", "no field 'nothing' in Config"),
        ("train.steps.more=3", "no field 'more' in int"),
        ("train.steps=many", "cannot read 'many'"),
        ("train.steps=1.5", "wants int"),
        ("train.steps=True", "wants int"),
        ("optim.learning_rate=None", "wants float"),
        ("optim.schedule=cosin", "must be one of cosine"),
        ("model.encoder.widths=(1,'a')", "wants int"),
        ("model.encoder.stem_strides=(1,2,3)", "wants 2 values"),
        ("model.encoder=3", "kind must be one of repvit, vit"),
        ("train=3", "wants named fields"),
    ],
)
def test_wrong_overrides_name_the_flag(text, says):
    with pytest.raises(UsageError) as caught:
        apply_overrides(Config(), [text])
    message = str(caught.value)
    assert text.split("=")[0].strip() in message and says in message and "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "wants named fields"),
        ('{"trane": {}}', "no field trane"),
        ('{"name": 3}', "wants str"),
    ],
)
def test_damaged_json_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        from_json(Config, text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("x = 1", "must define get_config"),
        ("def get_config():\n    return 3", "must define get_config"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_wrong_config_files_are_named(tmp_path, content, says):
    path = tmp_path / "c.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=says) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_config_from_json_file(tmp_path):
    config = Config(name="x", study=(ArmConfig("A", time_from=("B",)),), model=SamConfig(encoder=VitConfig()))
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert load_config(path) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_experiment_loads_and_round_trips(path):
    config = load_config(path)
    assert from_json(Config, to_json(config)) == config
    for arm in config.study:
        apply_overrides(config, arm.overrides)  # raises what is wrong
        assert {arm.init_from, *arm.time_from} - {""} <= {a.name for a in config.study}


def test_published_rates():
    for name, peak, floor in (("edgesam_stage1", 1.25e-2, 6.25e-7), ("edgesam_stage2", 1e-4, 1e-5)):
        config = load_config(CONFIGS / f"{name}.py")
        scale = config.data.batch_size / 512
        assert config.optim.learning_rate * scale == pytest.approx(peak)
        assert config.optim.min_learning_rate * scale == pytest.approx(floor)


@pytest.mark.parametrize("stage", [1, 2])
def test_shares_of_sa1b(stage):
    epochs, last = {1: 10, 2: 5}[stage], []
    for share, suffix in ((1, ""), (3, "_3pct"), (10, "_10pct")):
        config = load_config(CONFIGS / f"edgesam_stage{stage}{suffix}.py")
        (tars,) = config.data.subset
        names = tar_names(tars)
        assert len(names) == 10 * share and set(last) < set(names) and "sa_000130" not in names
        assert config.train.steps * config.data.batch_size == pytest.approx(epochs * 11_000 * len(names), rel=1e-3)
        assert config.optim.warmup_steps * 2 == (config.train.steps if stage == 1 else 0)
        assert config.train.init_from == ("" if stage == 1 else f"runs/edgesam_stage1{suffix}")
        last = names


def test_geometry():
    assert (SamConfig().grid, SamConfig().mask_size) == (64, 256)
    tiny = SamConfig(encoder=RepVitConfig(stem_strides=(2, 1)), image_size=128)
    assert (tiny.grid, tiny.mask_size) == (16, 64)


def test_config_needs_the_standard_library_only():
    code = "import sys, edgesam_jax.config; assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'too much imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_list_of_texts_needs_no_quotes():
    data = DataConfig()
    for text, value in (("a..b", ("a..b",)), ("a,b", ("a", "b")), ("('a', 'b,c')", ("a", "b,c")), ("", ())):
        assert apply_overrides(data, [f"subset={text}"]).subset == value


@pytest.mark.parametrize(
    "name",
    [
        *("train.steps", "train.checkpoint_every", "train.log_every", "train.keep_checkpoints", "train.accumulate"),
        *("data.batch_size", "data.max_prompts", "eval.batch_size"),
    ],
)
def test_numbers_that_no_run_can_have_are_one_line(name, capsys):
    from edgesam_jax.train import __main__ as train

    for value in (0, -1):
        flags = ["--config", "configs/quickstart.py", "--dry-run", "--set", f"{name}={value}"]
        assert train.main(flags) == 2
        assert capsys.readouterr().err == f"error: {name}={value}: must be at least 1\n"
    assert train.main(["--config", "configs/quickstart.py", "--dry-run", "--set", "train.prompt_chunk=-1"]) == 2
    assert capsys.readouterr().err == "error: train.prompt_chunk=-1: must be at least 0\n"
