"""One site from the bundled teacher, one server and one browser for all tests of the page.

Each page records what it says on the console and what it asks for: a test fails on an error there, and on a request to
another origin. Where Chromium, Playwright or npm are missing, the tests are skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web_pages import BLANK, Engine, Record, blank_page, recorded_context, served

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
# Names of other hosts lead nowhere, also for service workers, whose requests Playwright doesn't show.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
]


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


@pytest.fixture(scope="module")
def engine(browser: Any, address: str) -> Iterator[Engine]:
    """The engine with the model, on a page that the tests of a module share."""
    said = Record(origins={address})
    with recorded_context(browser, said) as context:
        found = Engine(blank_page(context, address), address)
        found.open_model()
        yield found
    said.check()
