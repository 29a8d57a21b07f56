"""The order of the rooms, the absence of import circles, and which library each room may use (docs/architecture.md)."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "edgesam_jax"

# From the ground up.  A room may import those of the floors below it, and itself; rooms of one floor don't know each
# other.  A new room has to be given its floor here.
FLOORS = (
    ("types", "portable", "files"),
    ("config", "reporting"),
    ("cli", "models", "data"),
    ("learning", "checkpoints"),
    ("planning", "predict", "prepare", "card"),
    ("batching", "embed", "everything"),
    ("compat", "eval"),
    ("train",),
    ("ablate", "finetune"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FOREIGN = {"torch", "torchvision", "tensorflow", "tensorflow_datasets", "coremltools"}
STANDARD = set(sys.stdlib_module_names)


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def name_of(path: Path) -> str:
    """edgesam_jax/models/sam.py -> edgesam_jax.models.sam; a package's __init__ is the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for folder in ("edgesam_jax", "convert", "configs") for path in files_of(ROOT / folder)}
PATHS = [path for name, path in MODULES.items() if name.startswith("edgesam_jax")]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(module: str) -> str:
    """edgesam_jax.models.sam -> models"""
    return module.split(".")[1]


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Full names of all modules that a file imports, also inside functions and under TYPE_CHECKING."""

    def found() -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                # `from edgesam_jax.models import prompts` names a module, `from edgesam_jax.types import Batch` a class
                yield from (n if n in MODULES or node.module == "flax" else node.module for n in names)

    return frozenset(found())


@pytest.mark.parametrize("path", PATHS, ids=label)
def test_imports_point_down(path: Path) -> None:
    if name_of(path) == "edgesam_jax":  # the public names, loaded lazily
        return
    here = room(name_of(path))
    assert here in FLOOR, f"{here} is a new room: give it a floor in FLOORS"
    for name in imports(path):
        if not name.startswith("edgesam_jax"):
            continue
        assert name != "edgesam_jax", f"{label(path)} imports the package's face: import the module itself"
        other = room(name)
        if name == "edgesam_jax.portable.errors" and here == "files":  # the one error class that all rooms raise
            continue
        assert other == here or FLOOR[other] < FLOOR[here], f"{label(path)} imports {name}, which is not below it"


def test_no_module_imports_itself_in_a_circle() -> None:
    state: dict[str, str] = {}

    def visit(name: str, above: list[str]) -> None:
        if state.get(name) == "done":
            return
        assert state.get(name) != "open", " -> ".join([*above[above.index(name) :], name])
        state[name] = "open"
        for other in sorted(imports(MODULES[name])):
            if other in MODULES and other != "edgesam_jax":
                visit(other, [*above, name])
        state[name] = "done"

    for name in MODULES:
        if name != "edgesam_jax":
            visit(name, [])


@pytest.mark.parametrize("path", PATHS, ids=label)
def test_rooms_keep_their_libraries(path: Path) -> None:
    here = room(f"{name_of(path)}.")
    tops = {name.split(".")[0] for name in imports(path)}
    # data/ reads TensorFlow data sets where they are asked for; published .pth files need torch's reader.
    assert here == "data" or label(path).endswith("published/entries.py") or not tops & FOREIGN
    assert not tops & {"convert", "configs", "tests", "benchmarks"}
    linen = {name for name in imports(path) if name.startswith("flax.linen")}
    assert not linen or here == "models", "only models/ builds modules"
    if here == "data":
        assert not tops & {"jax", "flax", "optax", "orbax"}, "data workers start without JAX"
    if here == "config":
        assert tops <= {*STANDARD, "edgesam_jax"}
    if here == "portable":
        libraries = {"numpy", "PIL", "onnxruntime"} | ({"pycocotools"} if label(path).endswith("lengths.py") else set())
        assert tops <= {*STANDARD, "edgesam_jax", *libraries}
        inner = {name for name in imports(path) if name.startswith("edgesam_jax")}
        assert all(room(name) == "portable" for name in inner), "bundles carry portable/ alone"


def test_convert_uses_no_command() -> None:
    for name, path in MODULES.items():
        if name.startswith("convert"):
            rooms = {room(found) for found in imports(path) if found.startswith("edgesam_jax.")}
            assert not rooms & {"train", "eval", "ablate", "embed", "prepare"}, label(path)


def test_test_files_have_names_of_their_own() -> None:
    # pytest imports them by their names alone, and stops at the second file of one name.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_folder_is_a_package() -> None:
    """A folder without __init__.py would be left out of what is installed."""
    for folder in {path.parent for path in MODULES.values()} - {ROOT / "configs"}:
        assert (folder / "__init__.py").is_file(), label(folder)


def test_the_package_and_every_public_name_load_no_foreign_framework() -> None:
    code = (
        "import sys, edgesam_jax\n"
        "assert not {'jax', 'flax', 'numpy'} & set(sys.modules), 'import edgesam_jax must be cheap'\n"
        "for name in edgesam_jax.__all__: getattr(edgesam_jax, name)\n"
        f"found = {FOREIGN!r} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["train", "eval", "predict", "prepare", "embed", "ablate", "card"])
def test_help_loads_no_jax(command: str) -> None:
    code = (
        "import importlib.util, runpy, sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try: runpy.run_module('edgesam_jax." + command + "', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'jax', 'flax', 'orbax', 'torch'} & set(sys.modules), 'a wrong flag must be answered at once'\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={"GLIBC_TUNABLES": "", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import edgesam_jax

    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgesam_jax.nonsense  # type: ignore[attr-defined]
