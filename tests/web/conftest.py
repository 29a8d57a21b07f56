"""One site from the bundled teacher, one server and one browser for all tests of the page.

Each page records what it says on the console and what it asks for: a test fails on an error there, and on a request to
another origin. Where Chromium, Playwright or npm are missing, the tests are skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-component-update", "--no-first-run"]
BLANK = "blank.html"  # not a file of the site
TIMEOUT = 60_000  # ms, for anything in the browser; the machine may be busy


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled teacher's site. Workers of one run share it; don't change it (``copied_site``)."""
    for module in ("torch", "onnx", "onnxscript", "onnxruntime", "playwright"):
        pytest.importorskip(module)
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    from convert import to_web
    from convert.web import runtime
    from edgesam_jax.config import UsageError

    try:
        runtime.prepare()
    except UsageError as error:
        pytest.skip(str(error))
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    target = shared / "web_site"
    with _one_at_a_time(shared / "web_site.lock"):
        if not target.exists():
            assert to_web.main(["tiny_teacher", "--output", str(target)]) == 0
    return target


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.unlink()


@pytest.fixture
def copied_site(site: Path, tmp_path: Path) -> Path:
    """A copy of the site that a test may damage; the large files are links."""
    target = tmp_path / "site"
    shutil.copytree(site, target, copy_function=os.link)
    for path in target.rglob("*"):  # writing into a link would change the original
        if path.is_file() and path.stat().st_size < 1 << 20:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    return target


@contextlib.contextmanager
def served(folder: Path, headers: bool = True) -> Iterator[str]:
    """Serve a folder with ``convert.web.serve``, or without its headers as a plain static host; yield the address."""
    from convert.web import serve

    class Plain(serve.Handler):
        headers_sent: dict[str, str] = {}  # noqa: RUF012

    server = serve.open_server(folder, 0, serve.Handler if headers else Plain)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The address of the served site."""
    with served(site) as url:
        yield url


@pytest.fixture(scope="session")
def browser(site: Path) -> Iterator[Any]:
    """Chromium."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        except Error as error:
            pytest.skip(f"Chromium does not start: {str(error).splitlines()[0]}")
        yield found
        found.close()


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


@pytest.fixture
def record() -> Record:
    """What the test's pages say and ask for; tests that expect a console error add to ``allowed``."""
    return Record()


@pytest.fixture
def page(browser: Any, record: Record) -> Iterator[Callable[..., Any]]:
    """A function that opens an address in a new profile: ``page(address, path="", **options of new_context)``.

    With ``context=`` it uses the profile of another page; the path ``BLANK`` is an empty page.
    """
    with contextlib.ExitStack() as stack:

        def new_page(address: str, path: str = "", context: Any = None, **options: Any) -> Any:
            context = context or stack.enter_context(recorded_context(browser, record, **options))
            record.origins.add(address)
            if path == BLANK:
                return blank_page(context, address)
            opened = context.new_page()
            opened.goto(address + path)
            return opened

        yield new_page
    record.check()


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
    from convert.web import serve

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


@pytest.fixture(scope="module")
def engine(browser: Any, address: str) -> Iterator[Engine]:
    """The engine with the model, on a page that the tests of a module share."""
    said = Record(origins={address})
    with recorded_context(browser, said) as context:
        found = Engine(blank_page(context, address), address)
        found.open_model()
        yield found
    said.check()
