"""Pages of a site in Chromium: serving, recording what a page says and asks for, and running the engine in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.web import serve

BLANK = "blank.html"  # not a file of the site
TIMEOUT = 60_000  # ms, for anything in the browser; the machine may be busy


@contextlib.contextmanager
def served(folder: Path, headers: bool = True, log: list[str] | None = None) -> Iterator[str]:
    """Serve a folder with ``convert.web.serve``, or without its headers as a plain static host; yield the address.

    ``log`` receives the path of each request, also of those that a service worker makes.
    """

    class Logging(serve.Handler):
        headers_sent = serve.HEADERS if headers else {}

        def do_GET(self) -> None:
            if log is not None:
                log.append(self.path.lstrip("/"))
            super().do_GET()

    server = serve.open_server(folder, 0, Logging)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Record:
    """What pages said and asked for."""

    allowed: tuple[str, ...] = ()  # parts of console errors that a test expects
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    def check(self) -> None:
        foreign = [
            url for url in self.requests
            if not url.startswith(("data:", "blob:")) and not any(url.startswith(origin) for origin in self.origins)
        ]  # fmt: skip
        assert not foreign, foreign
        unexpected = [text for text in self.errors if not any(part in text for part in self.allowed)]
        assert not unexpected, unexpected


@contextlib.contextmanager
def recorded_context(browser: Any, record: Record, **options: Any) -> Iterator[Any]:
    """Yield a new profile whose pages are recorded."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    context.on("request", lambda request: record.requests.append(request.url))
    context.on("console", lambda said: record.errors.append(said.text) if said.type == "error" else None)
    context.on("weberror", lambda error: record.errors.append(str(error.error)))
    yield context
    context.close()


def blank_page(context: Any, address: str) -> Any:
    """Open an empty page at an address, with the headers of the site, into which a test imports modules."""
    opened = context.new_page()
    body = '<!doctype html><link rel="icon" href="data:,"><title>blank</title>'
    headers = {**serve.HEADERS, "Content-Type": "text/html"}
    opened.route(address + BLANK, lambda route: route.fulfill(body=body, headers=headers))
    opened.goto(address + BLANK)
    return opened


HELPERS = """async (base) => {
  const names = ["session", "photo", "frame", "masks", "runs", "regions", "runtime", "crops"];
  globalThis.edge = {};
  for (const name of names) edge[name] = await import(`${base}js/${name}.js`);
  edge.bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  edge.text = (array) => {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    let out = "";
    for (let i = 0; i < bytes.length; i += 8192) out += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(out);
  };
  edge.sum = async (array) => {
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", array));
    return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  edge.open = (text, name = "photo") => edge.photo.openPhoto(new Blob([edge.bytes(text)]), name);
}"""


class Engine:
    """A page with the engine's modules in ``edge``, and the site's model in ``edge.model`` if it was opened."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        page.evaluate(HELPERS, address)

    def run(self, body: str, argument: Any = None) -> Any:
        """Run the body of an async function of ``x``; bytes travel as base64 (``edge.bytes``, ``edge.text``)."""
        return self.page.evaluate(f"async (x) => {{ {body} }}", argument)

    def open_model(self, **options: Any) -> dict[str, Any]:
        """Open the site's model; return its backend."""
        body = "edge.model = await edge.session.openModel(x.base, x.options); return edge.model.backend;"
        found: dict[str, Any] = self.run(body, {"base": self.address, "options": options})
        return found
