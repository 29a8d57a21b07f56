"""Imports flow one way, and the package starts without torch, tensorflow or coremltools."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgesam_jax"

# The rooms in the order of the design.  Modules that are not named stand between `parallel` and the command lines.
RANKS = {
    "portable": 0, "config": 0, "types": 0,
    "data": 1, "models": 1,
    "prompts": 2, "losses": 2, "anchors": 2,
    "distill": 3, "optim": 3, "proposal_loss": 3,
    "train_step": 4,
    "parallel": 5,
    "train": 7, "eval": 7, "predict": 7, "ablate": 7,
}  # fmt: skip
SERVICES = 6
FOREIGN = {"torch", "torchvision", "tensorflow", "tensorflow_datasets", "coremltools"}


def modules(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def room(module: str) -> str:
    """edgesam_jax.models.sam -> models"""
    return module.split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from edgesam_jax import prompts` names a room, `from flax import linen` a library
            whole = node.module in ("edgesam_jax", "flax")
            yield from (f"{node.module}.{alias.name}" if whole else node.module for alias in node.names)


def inner_imports(path: Path) -> set[str]:
    found = {name for name in imports(path) if name.startswith("edgesam_jax.")}
    known = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    return {name for name in found if room(name) in known}


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":  # the public names, loaded lazily
        return
    rank = RANKS.get(here, SERVICES)
    for name in inner_imports(path):
        other = RANKS.get(room(name), SERVICES)
        inside = here == room(name) or (rank == other and rank != RANKS["data"] and rank != RANKS["train"])
        assert other < rank or inside, f"{path.name} imports {name}"
        if here in ("data", "models"):
            assert room(name) in ("config", "types", "portable", here), f"{here}/ imports {name}"
        if here == "portable":
            assert room(name) == here, "bundles carry portable/ alone"


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_keep_their_libraries(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    if path.parent.name != "data":  # data/ may read TensorFlow data sets, where they are asked for
        assert not tops & FOREIGN
    assert "convert" not in tops or path.name == "checkpoint.py"
    assert "tests" not in tops and "benchmarks" not in tops
    linen = {name for name in imports(path) if name.startswith("flax.linen")}
    assert not linen or path.parent.name == "models", "only models/ builds modules"
    if path.parent.name == "data":
        assert not tops & {"jax", "flax", "optax", "orbax"}, "data workers start without JAX"
    if path.name == "config.py":
        assert tops <= {*sys.stdlib_module_names, "edgesam_jax"}
    if path.parent.name == "portable":
        assert tops <= {*sys.stdlib_module_names, "edgesam_jax", "numpy", "PIL", "onnxruntime"}


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


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import edgesam_jax

    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgesam_jax.nonsense  # type: ignore[attr-defined]
