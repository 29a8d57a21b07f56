"""Missing and damaged files of a site give readable messages, and a backend that computes other masks is not used."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web_pages import BLANK, Engine, served

NOT_FOUND = "the server responded with a status of 404"


@pytest.fixture
def opened(copied_site: Path, page: Callable[..., Any]):
    """A function that changes the site and opens its model; it returns the error's name and message, or the backend."""

    def open_model(change: Callable[[Path], Any], **options: Any) -> Any:
        change(copied_site)
        with served(copied_site) as url:
            engine = Engine(page(url, BLANK), url)
            return engine.run(
                "return edge.session.openModel(x.base, x.options).then("
                " ({ backend }) => backend, (error) => `${error.name}: ${error.message}`);",
                {"base": url, "options": options},
            )

    return open_model


def replaced(path: Path, content: bytes) -> None:
    """Write a file anew: the original may be a link."""
    path.unlink()
    path.write_bytes(content)


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replaced(path, bytes(content))


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing encoder": ("model/tiny_teacher_encoder.onnx", Path.unlink, "missing on the server (status 404)"),
    "cut encoder": (
        "model/tiny_teacher_encoder.onnx", lambda p: replaced(p, p.read_bytes()[:-5000]), "damaged (378"
    ),
    "changed decoder": ("model/tiny_teacher_decoder.onnx", one_byte, "damaged (its checksum is another)"),
    "missing contract": ("model/model.json", Path.unlink, "missing on the server"),
    "damaged contract": ("model/model.json", lambda p: replaced(p, b"{"), "damaged (not JSON)"),
    "missing vectors": ("vectors/check.json", Path.unlink, "missing on the server"),
    "missing photo": ("vectors/photo_1.png", Path.unlink, "missing on the server"),
    "damaged photo": ("vectors/photo_1.png", lambda p: replaced(p, p.read_bytes()[:9000]), "its end is missing"),
    "missing runtime": ("ort/ort-wasm-simd-threaded.wasm", Path.unlink, "missing on the server"),
    "missing script": ("ort/ort.wasm.min.mjs", Path.unlink, "can't be loaded"),
    "missing worker": ("js/worker.js", Path.unlink, "can't be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_sites_files_is_named(opened, record, name):
    path, change, words = FAULTS[name]
    record.allowed = (NOT_FOUND,)
    said = opened(lambda site: change(site / path))
    assert said.startswith("ModelError: ") and path in said and words in said and "\n" not in said


def test_a_damaged_runtime_is_no_backend(opened, record):
    record.allowed = ("CompileError",)  # Emscripten's own words
    said = opened(lambda site: replaced(site / "ort" / "ort-wasm-simd-threaded.wasm", b"\0asm" + bytes(1000)))
    assert said.startswith("ModelError: this browser can't run the model. ") and "WebAssembly, 1 thread: " in said


def changed_vectors(site: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = site / "vectors" / "check.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def other_masks(content: dict[str, Any]) -> None:
    """The masks of another prompt: what a backend that computes nonsense looks like."""
    first, second, _ = content["prompts"]
    first["masks"], second["masks"] = second["masks"], first["masks"]


def other_logits(content: dict[str, Any]) -> None:
    """Logits 2 % too large, with the same masks."""
    for prompt in content["prompts"]:
        values = np.frombuffer(base64.b64decode(prompt["logits"]), "<f4")
        prompt["logits"] = base64.b64encode((values * np.float32(1.02)).tobytes()).decode()


def no_numbers(content: dict[str, Any]) -> None:
    values = np.full(64 // content["step"] * (64 // content["step"]) * 4, np.nan, "<f4")
    content["prompts"][-1]["logits"] = base64.b64encode(values.tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_masks, "masks differ (overlap 0."),
        (other_logits, "logits differ (by 0.0"),
        (no_numbers, "logits differ (by NaN"),
    ],
)
def test_a_backend_that_differs_from_the_vectors_is_rejected(opened, change, words):
    said = opened(lambda site: changed_vectors(site, change), threads=2)
    assert said.startswith("ModelError: this browser can't run the model. ")
    for backend in ("WebAssembly, 2 threads: ", "WebAssembly, 1 thread: "):
        assert backend + words in said, "each backend is tried, and rejected with its reason"
    assert "WebGPU: " in said


def test_a_backend_that_fails_is_followed_by_the_next(opened, record):
    """A worker that can't start threads."""
    worker = (
        'import { Runtime } from "./runtime.js";\n'
        "const { load } = Runtime;\n"
        "Runtime.load = (base, info, backend, threads, onProgress) => {\n"
        '  if (threads > 1) throw new Error("no threads here");\n'
        "  return load(base, info, backend, threads, onProgress);\n"
        "};\n"
    )

    def change(site: Path) -> None:
        path = site / "js" / "worker.js"
        path.write_text(worker + path.read_text().replace(", Runtime }", " }"))

    backend = opened(change, threads=2)
    assert backend["threads"] == 1 and backend["check"]["passed"]
    assert backend["rejected"][-1] == {"name": "WebAssembly, 2 threads", "reason": "no threads here"}


def test_webgpu_is_not_used_without_an_adapter(opened):
    said = opened(lambda site: None, backend="webgpu")
    assert said.startswith("ModelError: this browser can't run the model. WebGPU: ")


ADAPTER = """Object.defineProperty(navigator, "gpu", { value: {
  requestAdapter: async () => ({ info: { isFallbackAdapter: false }, features: new Set(FEATURES) }),
} });"""


@pytest.mark.parametrize(
    ("features", "tried"),
    [(["shader-f16"], ["WebGPU, files in float16", "WebGPU"]), ([], ["WebGPU"])],
)
def test_float16_is_tried_first_where_the_adapter_has_it(copied_site, page, features, tried):
    """An adapter that the page sees and the worker doesn't: each way to use it fails, and the next is tried."""
    with served(copied_site) as url:
        engine = Engine(page(url, BLANK), url)
        engine.page.evaluate(ADAPTER.replace("FEATURES", json.dumps(features)))
        backend = engine.run("return (await edge.session.openModel(x)).backend;", url)
    assert [entry["name"] for entry in backend["rejected"]] == tried
    assert backend["name"] == "wasm" and backend["check"]["passed"] and not backend["half"]


def test_a_site_without_float16_says_so(opened):
    def change(site: Path) -> None:
        path = site / "model" / "model.json"
        content = json.loads(path.read_text())
        del content["half"]
        path.write_text(json.dumps(content))

    assert opened(change, arithmetic="float16") == "ModelError: this site has no files in float16"
