"""Flags that are given twice are refused, because one of the values would be lost."""

from __future__ import annotations

import importlib

import pytest

from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError


def parser() -> Parser:
    made = Parser(prog="test")
    made.add_argument("--image", required=True)
    made.add_argument("--several", nargs="+")
    made.add_argument("--box", action="append", default=[])
    made.add_argument("--quiet", action="store_true")
    made.add_argument("name", nargs="*")
    made.add_argument_group("group").add_argument("--grouped", type=int, default=3)
    return made


def test_flags_keep_their_meaning() -> None:
    flags = ["a", "b", "--image", "x", "--several", "1", "2", "--box", "3", "--box", "4", "--quiet", "--quiet"]
    made = parser()
    for _ in range(2):  # parsing again starts afresh
        found = made.parse_args(flags)
        assert (found.image, found.several, found.box, found.quiet) == ("x", ["1", "2"], ["3", "4"], True)
        assert found.name == ["a", "b"] and found.grouped == 3


@pytest.mark.parametrize("flag", ["--image", "--several", "--grouped"])
def test_a_flag_given_twice_is_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=rf"^argument {flag}: given more than once; pass (one|all values)"):
        parser().parse_args([flag, "1", "--box", "2", f"{flag}=3"])


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("edgesam_jax.predict.__main__", ["--image", "a.png", "--image", "b.png", "--output", "o"]),
        ("edgesam_jax.train.__main__", ["--config", "a.py", "--config", "b.py"]),
        ("edgesam_jax.eval.__main__", ["--dataset", "coco", "--prompt", "box", "--prompt", "point"]),
        ("edgesam_jax.prepare", ["--source", "coco", "--output", "a", "--output", "b"]),
        ("edgesam_jax.embed", ["--teacher", "a", "--teacher", "b", "--source", "coco", "--root", "r", "--output", "o"]),
        ("edgesam_jax.ablate.__main__", ["--table", "5a", "--table", "5b"]),
        ("convert.download", ["edge_sam", "--output", "a", "--output", "b"]),
        ("convert.from_torch", ["a.pth", "--output", "a", "--output", "b"]),
    ],
)
def test_every_command_refuses_it(module: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(module).main(flags) == 2
    assert "given more than once" in capsys.readouterr().err
