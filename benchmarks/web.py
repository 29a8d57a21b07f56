"""Times of the web page's model in Chromium, beside ONNX Runtime outside of it.

    python -m benchmarks.web [tiny_teacher] [edge_sam] [--rounds 7] [--threads 1 2] [--output DIR]

A model is a checkpoint, or ``edge_sam``: RepViT-M1 with the tests' deterministic weights.  For each one
``convert.to_web`` writes a site, which ``convert.web.serve`` serves on this machine.  Chromium opens it through the
page's own engine (``js/session.js``); the same files run natively with as many threads.  Both take turns, round by
round: medians of the times, and the ratio of the medians.

Also: the bytes that a first visit loads, and the seconds from opening an empty page to the first mask of a photo, on
the first visit and on a second one that finds everything in the browser's cache.  WebGPU is timed where the browser
has an adapter.

The floor is a product of two matrices of 1024 x 1024 in both: WebAssembly's vectors have 128 bits, and no instruction
multiplies and adds.  An encoder whose ratio is the product's wastes nothing in the browser.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.models import benchmark_model
from convert import to_web
from convert.web import serve
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.data.scenes.scene import held_out_seed, scene
from edgesam_jax.models.sam import MODELS
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.portable.onnx_model import OnnxDecoder, OnnxEncoder
from edgesam_jax.reporting.tables import table

SIDE = 1024  # px of the photo, a generated scene
CLICK = (512.0, 512.0)
PRODUCT = 1024  # rows and columns of the matrices that are multiplied
TIMED = ("encoder", "decoder", "product")
FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--enable-features=Vulkan"]
# In the page: a model, a photo and its embedding stay in ``window.bench`` between calls.
OPEN = """async ([backend, threads]) => {
  const { openModel } = await import("./js/session.js");
  const { openPhoto } = await import("./js/photo.js");
  const began = performance.now();
  const model = await openModel(document.baseURI, { backend, threads });
  const ready = performance.now();
  const blob = await (await fetch("photo.png")).blob();
  const photo = await openPhoto(blob, "photo.png");
  const embedding = await model.encode(photo);
  const first = await model.predict(embedding, { points: [[X, Y, 1]], box: null });
  window.bench = { model, photo, embedding };
  return { ready: ready - began, first: performance.now() - began, backend: model.backend, ms: first.ms };
}""".replace("X, Y", f"{CLICK[0]}, {CLICK[1]}")
ENCODE = """async () => {
  const { model, photo } = window.bench;
  const embedding = await model.encode(photo);
  model.release(embedding);
  return embedding.ms;
}"""
DECODE = f"""async () => {{
  const {{ model, embedding }} = window.bench;
  return (await model.predict(embedding, {{ points: [[{CLICK[0]}, {CLICK[1]}, 1]], box: null }})).ms;
}}"""

PREPARE = """async ([base, threads, side]) => {
  const ort = await import(`${base}ort/ort.wasm.min.mjs`);
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = `${base}ort/`;
  const file = new Uint8Array(await (await fetch("product.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  const x = new ort.Tensor("float32", new Float32Array(side * side).fill(1), [side, side]);
  await session.run({ x });
  window.product = { session, x };
}"""
MULTIPLY = """async () => {
  const { session, x } = window.product;
  const began = performance.now();
  await session.run({ x });
  return performance.now() - began;
}"""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a site; yield its address."""
    server = serve.open_server(site, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()


def write_site(name: str, folder: Path) -> Path:
    """Write a model's site, with the photo beside it."""
    checkpoint = name
    if name in MODELS:
        checkpoint = str(save_model_file(folder / f"{name}.msgpack", benchmark_model(name)))
    site = folder / "site"
    if to_web.main([checkpoint, "--output", str(site)]):
        raise SystemExit(1)
    Image.fromarray(scene(held_out_seed(7), 1, SIDE).image).save(site / "photo.png")
    write_product(site / "product.onnx")
    (site / "empty.html").write_text("<!doctype html><title>empty</title>")
    return site


def write_product(path: Path) -> None:
    """Write an ONNX file that multiplies its input (n n) by a constant matrix."""
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [PRODUCT, PRODUCT]) for name in ("x", "y")]
    node, constant = helper.make_node("MatMul", ["x", "matrix"], ["y"]), numpy_helper.from_array(matrix, "matrix")
    graph = helper.make_graph([node], "product", values[:1], values[1:], [constant])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


class Native:
    """The site's files in ONNX Runtime, with a number of threads."""

    def __init__(self, site: Path, threads: int) -> None:
        parts = json.loads((site / "model" / "model.json").read_text())["parts"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        files = {part: site / "model" / entry["file"] for part, entry in parts.items()}
        self.encoder, self.decoder = OnnxEncoder(files["encoder"]), OnnxDecoder(files["decoder"])
        for part in (self.encoder, self.decoder):
            path = str(files["encoder" if part is self.encoder else "decoder"])
            part._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        photo = np.asarray(Image.open(site / "photo.png"))
        self.frame, self.filled = into_frame(photo, self.encoder.image_size)
        click = scale_coords(np.array([CLICK]), (SIDE, SIDE), self.filled)
        self.click = click, np.ones(1, np.int32)
        self.embedding = self.encoder.embed(self.frame, self.filled)
        self.product = onnxruntime.InferenceSession(str(site / "product.onnx"), options)
        self.matrix = np.ones((PRODUCT, PRODUCT), np.float32)

    def multiply(self) -> None:
        """Run the matrix product."""
        self.product.run(None, {"x": self.matrix})

    def encode(self) -> None:
        """Run the encoder."""
        self.encoder.embed(self.frame, self.filled)

    def decode(self) -> None:
        """Run the decoder."""
        self.decoder.decode(self.embedding, *self.click)


def milliseconds(call: Callable[[], object]) -> float:
    """Time a call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def page_of(context: Any, address: str) -> tuple[Any, list[int]]:
    """Open an empty page of the site; also return the list that collects the bytes of its requests."""
    page, loaded = context.new_page(), []
    page.on("requestfinished", lambda request: loaded.append(request.sizes()["responseBodySize"]))
    page.goto(f"{address}empty.html")
    return page, loaded


def measure(site: Path, browser: Any, threads: int, rounds: int) -> list[tuple[str, ...]]:
    """Return the table's rows for a number of WebAssembly's threads."""
    native, rows = Native(site, threads), []
    with served(site) as address:
        context = browser.new_context()
        page, loaded = page_of(context, address)
        first = page.evaluate(OPEN, ["wasm", threads])
        megabytes = sum(loaded) / 1e6
        page.close()
        page, _ = page_of(context, address)
        again = page.evaluate(OPEN, ["wasm", threads])
        check = again["backend"]["check"]
        times: dict[str, list[float]] = {f"{who}{what}": [] for who in ("", "native ") for what in TIMED}
        page.evaluate(PREPARE, [address, threads, PRODUCT])
        for _ in range(rounds):
            times["product"].append(page.evaluate(MULTIPLY))
            times["native product"].append(milliseconds(native.multiply))
            times["encoder"].append(page.evaluate(ENCODE))
            times["native encoder"].append(milliseconds(native.encode))
            for _ in range(3):
                times["decoder"].append(page.evaluate(DECODE))
                times["native decoder"].append(milliseconds(native.decode))
        context.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    least = {name: min(values) for name, values in times.items()}
    for part in TIMED:
        ours, other = medians[part], medians[f"native {part}"]
        name = f"{part}, {threads} thread{'s' * (threads > 1)}"
        rows.append((name, f"{ours:.0f}", f"{least[part]:.0f}", f"{other:.0f}", f"{ours / other:.2f}"))
    print(
        f"{threads} thread(s): {megabytes:.1f} MB on the first visit; ready after {first['ready'] / 1e3:.2f} s,"
        f" first mask after {first['first'] / 1e3:.2f} s; second visit {again['ready'] / 1e3:.2f} and"
        f" {again['first'] / 1e3:.2f} s; check: {check['prompts']} prompts in {check['ms'] / 1e3:.2f} s, least overlap"
        f" {check['worstOverlap']:.5f}, logits {check['logitsError']:.1e}; isolated: {again['backend']['isolated']}",
        flush=True,
    )
    return rows


def webgpu(site: Path, browser: Any, rounds: int) -> str:
    """Return a line on WebGPU: its times, or why it isn't used."""
    with served(site) as address:
        context = browser.new_context()
        page, _ = page_of(context, address)
        if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
            return "WebGPU: this browser has no adapter"
        try:
            found = page.evaluate(OPEN, ["webgpu", 0])
        except Exception as error:  # Playwright's own types
            return f"WebGPU: {str(error).splitlines()[0]}"
        encoder, decoder = (
            statistics.median(page.evaluate(script) for _ in range(rounds)) for script in (ENCODE, DECODE)
        )
        check = found["backend"]["check"]
        context.close()
    return (
        f"WebGPU: encoder {encoder:.0f} ms, decoder {decoder:.0f} ms; least overlap {check['worstOverlap']:.5f},"
        f" logits {check['logitsError']:.1e}"
    )


def main() -> None:
    """Run the benchmark."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny_teacher", "edge_sam"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="keep the sites here")
    args = parser.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        print(f"Chromium {browser.version}, onnxruntime {onnxruntime.__version__}")
        for name in args.models:
            folder = (args.output or Path(temporary)) / Path(name).stem
            folder.mkdir(parents=True)
            site = write_site(name, folder)
            rows = [row for threads in args.threads for row in measure(site, browser, threads, args.rounds)]
            print(webgpu(site, browser, args.rounds))
            heading = (Path(name).stem, "in Chromium, ms", "least", "native, ms", "ratio")
            print(f"\n{table(heading, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
