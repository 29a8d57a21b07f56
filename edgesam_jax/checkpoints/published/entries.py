"""Read the entries of files with weights as numpy arrays, without running code that a file may contain."""

from __future__ import annotations

import argparse
import json
import pickle
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_jax.checkpoints.published.pickles import Thing, outline
from edgesam_jax.checkpoints.published.unwrap import WRAPPERS, clean_names, is_array, weight_sets
from edgesam_jax.checkpoints.suffixes import PICKLED, PUBLISHED, any_of
from edgesam_jax.config import UsageError
from edgesam_jax.files import is_file, short

Arrays = dict[str, np.ndarray]
MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")  # since NumPy 2, and before


def read_flat(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Return the entries of a file by their names without prefixes, and the header of a .safetensors file.

    Raises:
      UsageError: the file doesn't exist, is damaged, of another kind, would run code, or contains no single set of
        weights; the message has the command that makes a readable file of it, where there is one.
    """
    if not is_file(path, "checkpoint"):
        raise UsageError(f"{short(path)}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix not in PUBLISHED:
        raise UsageError(f"{path}: not a {any_of(PUBLISHED)} file")
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty")
    header: dict[str, str] = {}
    if path.suffix in PICKLED:
        entries = _read_pickle(path)
    elif path.suffix == ".npz":
        entries = _read_npz(path)
    else:
        entries, header = _read_safetensors(path)
    return clean_names(entries, str(path)), header


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as handle:
            entries = {name: _plain(handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118 (not a dict)
            return entries, handle.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise UsageError(f"{path}: damaged, or not a .safetensors file ({_first_line(error)})") from error


def _read_npz(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path}: damaged, or not an .npz file; write one with numpy.savez(FILE, **weights)")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return {name: _plain(content[name]) for name in content.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UsageError(
                f"{path}: contains pickled objects, which can run code when they are opened; write plain arrays with"
                " numpy.savez(FILE, **weights)"
            ) from None
        raise UsageError(f"{path}: damaged, or not an .npz file ({_first_line(error)})") from error
    except Exception as error:  # zipfile and zlib raise their own types
        raise UsageError(f"{path}: damaged, or not an .npz file ({_first_line(error)})") from error


# ------------------------------------------------------------------------------------------------ files of torch.save


def _read_pickle(path: Path) -> Arrays:
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{path}: reading this file needs PyTorch: pip install 'edgesam-jax[convert]'") from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # of unusual pickle protocols, and of formats still in development
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own types
        raise UsageError(f"{path}: {_why_refused(path, error)}") from error

    found = weight_sets(content)
    if len(found) > 1:
        listed = ", ".join(".".join(keys) for keys in found)
        fix = _command(path, f"c{_index(next(iter(found)))}", by_torch=True)
        raise UsageError(f"{path}: contains several sets of weights ({listed}); save the one to use: {fix}")
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: contains a {type(content).__name__}, not the weights of a model")
    weights = next(iter(found.values()), content)
    others = [name for name, value in weights.items() if not is_array(value)]
    if others:
        inside = [name for name in others if isinstance(name, str) and weight_sets(weights[name])]
        fix = ""
        if inside:
            fix = f"; save the weights alone: {_command(path, f'c{_index((inside[0],))}', by_torch=True)}"
        elif len(others) < len(weights):
            fix = f"; save the tensors alone: {_command(path, f'c{_index(next(iter(found)))}', by_torch=True)}"
        names = short(", ".join(map(str, others[:5])))
        raise UsageError(f"{path}: not the weights of a model; these entries are not tensors: {names}{fix}")
    arrays, faults = {}, []
    for name, value in weights.items():
        try:
            arrays[str(name)] = _plain(_to_numpy(value))
        except (TypeError, RuntimeError, ValueError, MemoryError, NotImplementedError):
            faults.append(f"{name} ({_kind(value)})")
    if faults:
        raise UsageError(
            f"{path}: {len(faults)} entries are not dense arrays of numbers: {', '.join(faults[:5])}; save the model's"
            " dense float weights instead"
        )
    return arrays


def _harmless() -> list[Any]:
    """Return what ``torch.load(weights_only=True)`` may create besides tensors: NumPy's arrays, parsed flags.

    None of these runs code from the file: arrays of objects contain only what the list allows as well.
    """
    functions: list[Any] = [np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]]
    renamed = [(f, f"{module}.{f.__name__}") for f in functions for module in MULTIARRAY]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"} | {np.dtype, np.ndarray}
    return [*renamed, *types, argparse.Namespace]


def _to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            raise TypeError
        return np.asarray(value)
    if value.is_meta or value.is_quantized or value.is_sparse or "strided" not in str(value.layout):
        raise TypeError
    value = value.detach()
    array: np.ndarray = (value.float() if value.is_floating_point() else value).numpy(force=True)
    return array


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"of type {value.dtype}"
    if value.is_meta:
        return "without values, on torch's meta device"
    if value.is_quantized:
        return "quantised"
    return "sparse" if "strided" not in str(value.layout) else f"{value.dtype}, {list(value.shape)}"


def _plain(array: np.ndarray) -> np.ndarray:
    """Convert half-precision types to float32; return others unchanged."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind not in "iu" else array


# ------------------------------------------------------------------------------------------- files that may run code


def _why_refused(path: Path, error: Exception) -> str:
    """Return why ``torch.load(weights_only=True)`` refused a file, and what its owner can do."""
    found = outline(path)
    if found is None or (found.by_torch and not isinstance(error, pickle.UnpicklingError)):
        # Torch's own message about an unpickling error advises to execute the code in the file.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({_first_line(error)})"
        return f"damaged, or not a PyTorch file{reason}"
    fix = _command(path, *_expression(found.thing), by_torch=found.by_torch)
    if not found.thing.is_mapping:
        return (
            f"contains a whole model ({short(found.thing.kind)}) instead of its weights; loading would execute code in"
            f" this file. If you trust the file, save its weights, in the environment that wrote it: {fix}"
        )
    kind = "" if found.by_torch else "a plain pickle; "
    return (
        f"{kind}loading would execute code in this file (training checkpoints often pickle their config). If you trust"
        f" the file, save only its weights, in the environment that wrote it: {fix}"
    )


def _expression(thing: Thing, keys: tuple[str, ...] = ()) -> tuple[str, bool]:
    """Return the Python expression of the weights in the loaded object ``c``, and whether that is a module's dict."""
    if not thing.is_mapping:
        return f"c{_index(keys)}.state_dict()", True
    for key in WRAPPERS:
        inner = thing.items.get(key)
        if isinstance(inner, Thing) and (not inner.is_mapping or inner.items) and not inner.kind.startswith("torch._"):
            return _expression(inner, (*keys, key))
    return f"c{_index(keys)}", False


def _index(keys: tuple[str, ...]) -> str:
    return "".join(f"[{json.dumps(key)}]" for key in keys)


def _command(path: Path, weights: str, module: bool = False, by_torch: bool = True) -> str:
    """Return the command that saves the arrays of an expression to a new file, and the new file's name."""
    if not module:
        weights = f'{{k: v for k, v in {weights}.items() if hasattr(v, "shape")}}'
    old, new = json.dumps(str(path)), path.with_name(f"{path.stem}_weights.{'pth' if by_torch else 'npz'}")
    if by_torch:
        code = (
            f'import torch; c = torch.load({old}, map_location="cpu", weights_only=False);'
            f" torch.save({weights}, {json.dumps(str(new))})"
        )
    else:
        code = (
            f"import numpy, pathlib, pickle; c = pickle.loads(pathlib.Path({old}).read_bytes());"
            f" numpy.savez({json.dumps(str(new))}, **{weights})"
        )
    return f"python -c {shlex.quote(code)}, and use {new}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {short((str(error).splitlines() or [''])[0], 150)}"
