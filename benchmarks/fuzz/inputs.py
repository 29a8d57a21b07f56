"""Photos, prompts, checkpoints, configs and overrides: read in this process, most of them through the Python API."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz.cases import Case, command
from benchmarks.fuzz.damage import UNUSUAL, WRONG, damaged_bytes, paths, removed, replaced
from edgesam_jax import Predictor, load_model
from edgesam_jax.checkpoints.save import save_model, save_model_file
from edgesam_jax.config import Config, apply_overrides, check_values, load_config, to_json
from edgesam_jax.data.scenes.textures import photos
from edgesam_jax.predict import __main__ as predict

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SIDE = 64


def picture() -> Image.Image:
    """A small photo."""
    return Image.fromarray(photos()[1][0]).resize((SIDE + 16, SIDE))


def images(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Damaged files given to ``predict --image``; a cut file must be refused, a flipped bit may go unnoticed."""
    folder.mkdir()
    sound = {}
    for name in FORMATS:
        file = io.BytesIO()
        picture().save(file, name)
        sound[name] = file.getvalue()
    number = 0
    while True:
        name = rng.choice(FORMATS)
        kind, content = damaged_bytes(rng, sound[name])
        path, output = folder / f"{number}.{name.lower()}", folder / f"out{number}"
        number += 1
        content = content if rng.random() > 0.02 else rng.randbytes(rng.randrange(200))
        path.write_bytes(content)
        flags = ["--image", str(path), "--box", "8,8,40,40", "--output", str(output)]
        # Half of a file can't hold a photo, in any of these formats.
        wrong = len(content) < len(sound[name]) // 2
        yield Case(f"{name}, {kind}", lambda flags=flags: _predicts(flags), wrong, (output,))


def _predicts(flags: list[str]) -> bool:
    ended = command(predict.main, flags)
    return "note" in ended.err or "warning" in ended.err


def _objects(rng: random.Random) -> Any:
    """Anything a caller may hand over as a prompt."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(WRONG),
        lambda: rng.choice(UNUSUAL),
        lambda: np.array(rng.choice(WRONG), dtype=object),
        lambda: [[rng.choice(WRONG), 1.0]],
        lambda: [rng.uniform(-10, 90) for _ in range(rng.randrange(7))],
        lambda: np.full((rng.randrange(3), rng.randrange(3), rng.randrange(4)), rng.uniform(-1e3, 1e3)),
        lambda: np.ma.masked_array([10.0, 10.0, 30.0, 30.0], mask=[0, 1, 0, 0]),
        lambda: np.array([10, 10, 30, 30 + 1j]),
        lambda: np.array(["10", "10", "30", "30"]),
        lambda: [[10.0, 10.0], [20.0]],
        lambda: [5, 5, 30, 30],
        lambda: [[10, 10], [12.5, 40]],
        lambda: np.array([1, -1]),
        lambda: rng.choice((1, 3, 4)),
        lambda: (x for x in [1, 2, 3, 4]),
        lambda: {1, 2, 3, 4},
        lambda: b"10,10,30,30",
        lambda: 10**400,
        lambda: [10**400, 0, 1, 1],
        lambda: np.zeros((4, 64, 64)),
        lambda: type("Odd", (), {"__array__": lambda self, *a, **k: 1 / 0})(),
    )
    return rng.choice(makers)()


def prompts(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Arbitrary objects as prompts and photos of the Python API; nothing may end in another error than ours."""
    predictor = Predictor(load_model("tiny_teacher"))
    photo = np.asarray(picture())
    predictor.set_image(photo)
    names = ("point_coords", "point_labels", "box", "mask_input", "num_masks")
    sound: dict[str, Any] = {"point_coords": [[10, 10]], "point_labels": [1], "box": [5, 5, 30, 30], "num_masks": 1}
    while True:
        if rng.random() < 0.1:
            odd = _objects(rng)
            yield Case(f"set_image({_show(odd)})", lambda odd=odd: bool(predictor.set_image(odd)), wrong=False)
            predictor.set_image(photo)
            continue
        arguments = {name: sound[name] for name in names if name in sound and rng.random() < 0.6}
        for name in rng.sample(names, rng.randrange(1, 3)):
            arguments[name] = _objects(rng)
        shown = ", ".join(f"{name}={_show(value)}" for name, value in arguments.items())
        yield Case(f"predict({shown})", lambda a=arguments: _masks(predictor, a), wrong=False)


def _masks(predictor: Predictor, arguments: dict[str, Any]) -> bool:
    masks, scores, logits = predictor.predict(**arguments)
    assert masks.dtype == bool and np.isfinite(scores).all() and np.isfinite(logits).all(), "not finite"
    return False


def _show(value: Any) -> str:
    return repr(value)[:60].encode("ascii", "replace").decode()


def checkpoints(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Damaged model files and folders; checksums find every changed byte of ours."""
    import torch
    from safetensors.numpy import save_file

    from convert.to_torch import save_published

    folder.mkdir()
    model = load_model("tiny_teacher")
    sound = {
        "msgpack": save_model_file(folder / "sound.msgpack", model).read_bytes(),
        "safetensors": save_published(folder / "sound.safetensors", model).read_bytes(),
        "pth": save_published(folder / "sound.pth", model).read_bytes(),
    }
    save_model(folder / "model", model)
    config = json.loads((folder / "model" / "config.json").read_text())
    places = list(paths(config))
    entries = {"a.weight": np.zeros((2, 2), np.float32)}
    number = 0
    while True:
        number += 1
        kind = rng.choice(("msgpack", "safetensors", "pth", "config", "entries", "tensors"))
        if kind == "config":
            path, value = rng.choice(places), rng.choice(WRONG)
            changed = replaced(config, path, value) if rng.random() < 0.7 else removed(config, path)
            text = json.dumps(changed)
            (folder / "model" / "config.json").write_text(text)
            optional = path[0] == "metadata" or changed == config
            yield Case(f"config.json, {path}: {_show(value)}", lambda: not load_model(folder / "model"), not optional)
            (folder / "model" / "config.json").write_text(json.dumps(config))
            continue
        if kind == "entries":
            file = folder / f"{number}.safetensors"
            save_file(entries, file)
        elif kind == "tensors":
            file = folder / f"{number}.pth"
            odd = rng.choice((
                torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse(), 3, "text", [torch.zeros(1)], None,
                torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), torch.zeros(2, dtype=torch.complex64),
            ))  # fmt: skip
            torch.save({"mask_decoder.iou_token.weight": odd}, file)
        else:
            file = folder / f"{number}.{kind}"
            did, content = damaged_bytes(rng, sound[kind])
            file.write_bytes(content)
            kind = f"{kind}, {did}"
        # A flipped bit in the numbers of a published file is a valid file: the format has no checksum.
        wrong = kind.startswith(("msgpack", "entries", "tensors", "safetensors, cut", "pth, cut"))
        yield Case(kind, lambda file=file: not load_model(file), wrong and file.read_bytes() not in sound.values())
        file.unlink()


def configs(rng: random.Random, folder: Path) -> Iterator[Case]:
    """Config files in Python and JSON: damaged text, and values of wrong types and ranges."""
    folder.mkdir()
    base = json.loads(to_json(Config()))
    places = [path for path in paths(base) if not isinstance(_at(base, path), dict)]
    lines = (
        "import sys; sys.exit(0)\n", "raise SystemExit\n", "raise ValueError('a\\nb')\n", "get_config = 3\n", "(" * 500,
        "def get_config(): return 3\n", "def get_config(): raise KeyError('x')\n", "import nothing_of_this_name\n",
        "def get_config(a): return a\n", "x = " + "9" * 5000 + "\n", "import os; os.close(2)\n" * 0, "\0", "é = (\n",
    )  # fmt: skip
    number = 0
    while True:
        number += 1
        kind = rng.choice(("python", "bytes", "json", "name"))
        if kind == "python":
            file, text = folder / f"{number}.py", rng.choice(lines)
            file.write_text(text)
            yield Case(f"python, {text[:30]!r}", lambda file=file: _checked(load_config(file)))
        elif kind == "bytes":
            file = folder / f"{number}.json"
            did, content = damaged_bytes(rng, to_json(Config()).encode())
            file.write_bytes(content)
            yield Case(f"json, {did}", lambda file=file: _checked(load_config(file)), wrong=False)
        elif kind == "json":
            file, path, value = folder / f"{number}.json", rng.choice(places), rng.choice(WRONG)
            file.write_text(json.dumps(replaced(base, path, value)))
            accepted = _fits(_at(base, path), value)
            yield Case(f"json, {path}: {_show(value)}", lambda file=file: _checked(load_config(file)), not accepted)
        else:
            name = rng.choice(("x" * 5000, "none.json", "none", "", ".", "a\nb.py", "\x1b.py", "none.yaml", "x.py:a"))
            yield Case(f"name {name[:20]!r}", lambda name=name: _checked(load_config(name)))


def _checked(config: Config) -> bool:
    """Check a config as the commands do; it has nothing to report."""
    check_values(config)
    return False


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _fits(old: Any, new: Any) -> bool:
    """Whether a field that holds ``old`` may hold ``new``: a text, a list, a switch, or an unset group."""
    return old is None or isinstance(old, str | list | bool) or (isinstance(new, float) and 0 <= new < float("inf"))


def overrides(rng: random.Random, folder: Path) -> Iterator[Case]:
    """``--set`` with arbitrary fields and values."""
    base = json.loads(to_json(Config()))
    names = [".".join(map(str, path)) for path in paths(base) if not any(isinstance(key, int) for key in path)]
    values = (
        "",
        "nan",
        "-1",
        "inf",
        "1e999",
        "[",
        "((",
        "None",
        "'a",
        "{}",
        "{'a':1}",
        "0.5",
        "true",
        "x" * 4000,
        "\x1b",
    )
    while True:
        name = (
            rng.choice(names) if rng.random() < 0.8 else rng.choice(("", ".", "model.", "a.b", "model.encoder.kind.x"))
        )
        text = f"{name}{rng.choice(('=', '=', '=', '', '=='))}{rng.choice(values)}"
        yield Case(f"--set {text[:60]!r}", lambda text=text: _checked(apply_overrides(Config(), [text])), wrong=False)
