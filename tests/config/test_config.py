"""Round trips, typed overrides, and the one-line errors of the config."""

from __future__ import annotations

import dataclasses
import json
import re
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
    EfficientVitConfig,
    OptimConfig,
    ProposalConfig,
    RepVitConfig,
    SamConfig,
    TinyVitConfig,
    UsageError,
    VitConfig,
    apply_overrides,
    check_values,
    from_json,
    load_config,
    to_json,
)
from edgesam_jax.data.readers.tars import tar_names

IMPORT = "from edgesam_jax.config import Config, TrainConfig"


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
    with pytest.raises(UsageError, match=r"model\.proposals\.kept=5: this group is unset; set it to \{\} first"):
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
        ("train.steps=1.5", "expected int"),
        ("train.steps=True", "expected int"),
        ("optim.learning_rate=None", "expected float"),
        ("optim.schedule=cosin", "must be one of cosine"),
        ("model.encoder.widths=(1,'a')", "expected int"),
        ("model.encoder.stem_strides=(1,2,3)", "expected 2 values"),
        ("model.encoder=3", "kind must be one of repvit, vit"),
        ("train=3", "expected named fields"),
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
        ("[]", "expected named fields"),
        ('{"trane": {}}', "no field trane"),
        ('{"name": 3}', "expected str"),
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
        ("import sys\nsys.exit(0)", r"exits \(sys\.exit\(0\)\) instead of defining get_config"),
        ("def get_config():\n    raise SystemExit('done\\n')", r"sys\.exit\('done"),
        ("def get_config():\n    raise ValueError('one\\n  two\\x00')", r"ValueError: one two\\x00$"),
        (b"x = '\xff'", "SyntaxError"),
        (b"x = 1\0", "SyntaxError|ValueError"),
        ("x = " + "7" * 5000, "SyntaxError"),
        ("x = " + "(" * 500 + ")" * 500, "SyntaxError|MemoryError"),
        ("def get_config():\n    return get_config()", "RecursionError"),
        (f"{IMPORT}\ndef get_config(): return Config(train=TrainConfig(steps='many'))", "train.steps: expected int"),
        (f"{IMPORT}\ndef get_config(): return Config(model=None)", "SamConfig expected named fields, got None"),
        (f"{IMPORT}\ndef get_config(): return Config(name=[1])", r"name: expected str, got \(1,\)"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_wrong_config_files_are_named(tmp_path, content, says):
    path = tmp_path / "c.py"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=says) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff{}", b"[" * 100_000, b"null", b'{"train": {"steps": ' + b"7" * 5000 + b"}}", b'{"name": {}}',
        b'{"model": {"encoder": {"kind": [[1]]}}}', b'{"model": {"encoder": {}}}', b'{"study": {"a": 1}}',
        b'{"distill": {"mode": ["encoder_only"]}}', b'{"optim": {"learning_rate": 1' + b"0" * 400 + b"}}",
        b'{"data": {"subset": [["a"]]}}',
    ],
)  # fmt: skip
def test_wrong_json_files_are_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_names_that_are_no_config(tmp_path):
    for name in ("config", ".py", "c.txt", "c.PY"):
        (tmp_path / name).write_text("")
        with pytest.raises(UsageError, match=r"expected a \.py or \.json file$"):
            load_config(tmp_path / name)
    for path, says in (
        (tmp_path / f"{'x' * 5000}.py", "cannot be looked up"),
        (f"{'x' * 5000}.py:percent=3", "cannot be looked up"),
        (tmp_path / "a\0b.py", "cannot be looked up"),
        (tmp_path / "none\n.py", "no such file"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            load_config(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [("train.steps", "7" * 5000), ("data.seed", "0x" + "f" * 5000), ("data.subset", "[" * 5000), ("name", "a\nb"),
     ("model.encoder", "{'kind': []}"), ("model.encoder", "{1: 2, 'kind': 'vit'}"), ("optim.b1", "1e999"),
     ("optim.eps", "1" + "0" * 400)],
)  # fmt: skip
def test_overrides_that_no_field_takes_are_one_line(field, value):
    with pytest.raises(UsageError) as caught:
        check_values(apply_overrides(Config(), [f"{field}={value}"]))
    assert field in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 1200


# ------------------------------------------------------------------------------------------------------- ranges


def classes(hint):
    """Every dataclass that a field of this type may hold."""
    if dataclasses.is_dataclass(hint):
        yield hint
    inside = typing.get_type_hints(hint).values() if dataclasses.is_dataclass(hint) else typing.get_args(hint)
    for inner in inside:
        yield from classes(inner)


def numbers(hint):
    """The types of the numbers in a field of this type: of itself, or of the items of a tuple."""
    if typing.get_origin(hint) is typing.Annotated or hint in (int, float):
        return [hint]
    return [found for inner in typing.get_args(hint) for found in numbers(inner)]


NUMBERS = [
    (cls, name, number)
    for cls in dict.fromkeys(classes(Config))
    for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    if typing.get_origin(hint) is not typing.Literal
    for number in numbers(hint)[:1]
]


def test_every_number_of_the_schema_has_a_range():
    assert len(NUMBERS) > 110
    assert [(cls, name) for cls, name, number in NUMBERS if number in (int, float)] == []


@pytest.mark.parametrize(("cls", "name", "number"), NUMBERS, ids=[f"{c.__name__}.{name}" for c, name, _ in NUMBERS])
def test_numbers_outside_their_range_are_refused(cls, name, number):
    (allowed,) = number.__metadata__
    check_values(cls())
    for value in (float("inf"), float("-inf"), float("nan"), allowed.least - 1):
        wrong = (value,) if isinstance(getattr(cls(), name), tuple) else value
        with pytest.raises(UsageError, match=rf"^where {name}(\[0\])?=.*: must be ") as caught:
            check_values(dataclasses.replace(cls(), **{name: wrong}), "where ")
        assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(strategy(Config))
def test_any_config_is_usable_or_refused_with_its_field(config):
    try:
        check_values(config)
    except UsageError as error:
        assert re.match(r"[a-z_0-9.\[\]]+=.*: must ", str(error)) and str(error).isprintable()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_json_is_read_or_one_line(data):
    """Any value in the place of any other, and any damage to the text."""
    content = json.loads(to_json(Config(study=(ArmConfig("a"),), model=SamConfig(proposals=ProposalConfig()))))
    node, path = content, []
    while isinstance(node, dict | list) and node and (not path or data.draw(st.booleans())):
        path.append((node, data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))))
        node = node[path[-1][1]]
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    path[-1][0][path[-1][1]] = data.draw(anything)
    text = json.dumps(content)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 9)) :]
    try:
        check_values(from_json(Config, text))
    except UsageError as error:
        assert str(error).isprintable()


PARAMETERS = """
from typing import Literal
from edgesam_jax.config import Config
def get_config(percent: Literal[1, 3] = 1, name: str = "x", rate: float = 0.5, on: bool = False, depth: int = 2):
    assert (type(percent), type(name), type(rate), type(on), type(depth)) == (int, str, float, bool, int)
    return Config(name=f"{percent} {name} {rate} {on} {depth}")
"""


@pytest.fixture
def parameters(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(PARAMETERS)
    return path


def test_arguments_of_a_config_are_typed(parameters):
    assert load_config(parameters).name == "1 x 0.5 False 2"
    assert load_config(f"{parameters}:percent=3, name=y z,rate=2,on=true,depth=-1").name == "3 y z 2.0 True -1"
    assert load_config(parameters, percent=3, rate=1).name == "3 x 1.0 False 2"
    assert load_config(f"{parameters}:percent=3", name="y").name == "3 y 0.5 False 2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("percnt=3", "unknown argument 'percnt'; valid arguments: percent, name, rate, on, depth"),
        ("percent=2", "percent: must be one of 1, 3, got 2"),
        ("percent=three", "percent: must be one of 1, 3, got 'three'"),
        ("percent=true", "percent: must be one of 1, 3, got True"),
        ("percent=1.0", "percent: must be one of 1, 3, got 1.0"),
        ("depth=2.5", "depth: expected int, got 2.5"),
        ("depth=deep", "depth: cannot read 'deep' as int"),
        ("on=1", "on: expected bool, got 1"),
        ("percent=1,percent=3", "argument 'percent' is given twice"),
        ("percent", "write the arguments as FILE:name=value,name=value"),
        ("percent=3,", "write the arguments as FILE:name=value,name=value"),
        ("", "write the arguments as FILE:name=value,name=value"),
    ],
)
def test_wrong_arguments_are_one_line(parameters, text, says):
    with pytest.raises(UsageError) as caught:
        load_config(f"{parameters}:{text}")
    assert str(caught.value) == f"--config {parameters}:{text}: {says}"


def test_arguments_where_none_can_be(tmp_path):
    plain, saved, none = tmp_path / "plain.py", tmp_path / "saved.json", tmp_path / "none.py"
    plain.write_text("from edgesam_jax.config import Config\ndef get_config(): return Config()")
    saved.write_text(to_json(Config()))
    for path, says in (
        (f"{plain}:a=1", f"--config {plain}:a=1: unknown argument 'a'; this config takes none"),
        (f"{saved}:a=1", f"--config {saved}:a=1: a saved config takes no arguments; change its fields with --set"),
        (f"{none}:a=1", f"--config {none}: no such file"),
        (f"{saved}:", f"--config {saved}:: write the arguments as FILE:name=value,name=value"),
    ):
        with pytest.raises(UsageError) as caught:
            load_config(path)
        assert str(caught.value) == says
    with pytest.raises(UsageError, match="a saved config takes no arguments"):
        load_config(saved, a=1)
    with pytest.raises(UsageError, match="unknown argument 'b'; this config takes none"):
        load_config(plain, b=1)


@pytest.mark.parametrize("name", ["a:b.py", "a.json:b.json", "a.py:b=1.py", "dir:x=1/c.py"])
def test_a_file_whose_name_has_a_colon_is_that_file(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_json(Config()) if path.suffix == ".json" else PARAMETERS)
    assert isinstance(load_config(path), Config)
    if path.suffix == ".py":
        assert load_config(f"{path}:percent=3").name == "3 x 0.5 False 2"


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
        config = load_config(f"{CONFIGS}/edgesam_stage{stage}.py:percent={share}")
        (tars,) = config.data.subset
        names = tar_names(tars)
        assert len(names) == 10 * share and set(last) < set(names) and "sa_000130" not in names
        assert config.train.steps * config.data.batch_size == pytest.approx(epochs * 11_000 * len(names), rel=1e-3)
        assert config.optim.warmup_steps * 2 == (config.train.steps if stage == 1 else 0)
        assert config.train.init_from == ("" if stage == 1 else f"runs/edgesam_stage1{suffix}")
        last = names


def changes(config, base, prefix=""):
    """The fields in which two configs differ, with the value of the first."""
    fields = {}
    for field in dataclasses.fields(config):
        mine, theirs, path = getattr(config, field.name), getattr(base, field.name), prefix + field.name
        if type(mine) is type(theirs) and dataclasses.is_dataclass(mine):
            fields |= changes(mine, theirs, f"{path}.")
        elif mine != theirs:
            fields[path] = mine
    return fields


# All that differs between the configs of a stage, or of Table 5c and stage 1.
VARIANTS = {
    "edgesam_stage1.py:percent=1": {},
    "edgesam_stage1.py:percent=3": {
        "name": "edgesam_stage1_3pct", "data.subset": ("sa_000020..sa_000049",), "train.steps": 51_540,
        "optim.warmup_steps": 25_770,
    },
    "edgesam_stage1.py:percent=10": {
        "name": "edgesam_stage1_10pct", "data.subset": ("sa_000020..sa_000119",), "train.steps": 171_800,
        "optim.warmup_steps": 85_900,
    },
    "edgesam_stage2.py:percent=1": {},
    "edgesam_stage2.py:percent=3": {
        "name": "edgesam_stage2_3pct", "data.subset": ("sa_000020..sa_000049",), "train.steps": 103_125,
        "train.init_from": "runs/edgesam_stage1_3pct",
    },
    "edgesam_stage2.py:percent=10": {
        "name": "edgesam_stage2_10pct", "data.subset": ("sa_000020..sa_000119",), "train.steps": 343_750,
        "train.init_from": "runs/edgesam_stage1_10pct",
    },
    "table5c.py:encoder=repvit,neck=fpn": {"name": "table5c_repvit_fpn"},
    "table5c.py:encoder=repvit,neck=nodown": {"name": "table5c_repvit_nodown", "model.encoder.fuse": False},
    "table5c.py:encoder=tinyvit,neck=fpn": {"name": "table5c_tinyvit_fpn", "model.encoder": TinyVitConfig(fuse=True)},
    "table5c.py:encoder=tinyvit,neck=nodown": {
        "name": "table5c_tinyvit_nodown", "model.encoder": TinyVitConfig(fuse=False),
    },
    "table5c.py:encoder=efficientvit,neck=fpn": {
        "name": "table5c_efficientvit_fpn", "model.encoder": EfficientVitConfig(fuse=True),
    },
    "table5c.py:encoder=efficientvit,neck=nodown": {
        "name": "table5c_efficientvit_nodown", "model.encoder": EfficientVitConfig(fuse=False),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_arguments_change_these_fields_alone(name):
    base = load_config(CONFIGS / ("edgesam_stage2.py" if "stage2" in name else "edgesam_stage1.py"))
    assert (base.train.steps, base.optim.warmup_steps, base.data.subset, base.train.init_from) == (
        (34_375, 0, ("sa_000020..sa_000029",), "runs/edgesam_stage1")
        if "stage2" in name
        else (17_180, 8_590, ("sa_000020..sa_000029",), "")
    )
    config = load_config(f"{CONFIGS}/{name}")
    assert changes(config, base) == VARIANTS[name]
    assert from_json(Config, to_json(config)) == config


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


@pytest.mark.parametrize(
    "value",
    ["optim.learning_rate=inf", "optim.learning_rate=-1", "optim.learning_rate=1e999", "optim.min_learning_rate=-1e-9",
     "distill.loss.bce=nan", "distill.temperature=0", "distill.rounds=-1", "distill.box_share=1.5",
     "data.max_bad_share=-0.1", "data.seed=-1", "optim.b2=1", "model.encoder.widths=(0,8,8,8)"],
)  # fmt: skip
def test_a_dry_run_refuses_numbers_that_no_run_can_have(value, capsys):
    from edgesam_jax.train import __main__ as train

    value = value.replace("=inf", "=1e400").replace("=nan", "=1e400")  # as the command line reads numbers
    assert train.main(["--config", "configs/quickstart.py", "--dry-run", "--set", value]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {value.split('=')[0]}") and ": must be " in error and error.count("\n") == 1


@pytest.mark.parametrize("value", ["model.decoder.heads=3", "model.encoder.widths=()", "model.mask_in_chans=1"])
def test_a_dry_run_refuses_sizes_that_do_not_fit(value, capsys):
    from edgesam_jax.train import __main__ as train

    assert train.main(["--config", "configs/quickstart.py", "--dry-run", "--set", value]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model: its sizes don't fit each other (") and error.count("\n") == 1
