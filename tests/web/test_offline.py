"""The page works without the network after the first visit, and has threads where the host sends no headers.

The tests use an empty page of the site with the page's own modules, so they hold for any interface. With ``LIGHT`` it
opens no model.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from web_pages import served

from edgesam_jax.files import sha256_of

LIGHT = "?light"
START = """async () => {
  const { prepareOffline, keepOffline, onUpdate } = await import("./js/offline.js");
  window.state = await prepareOffline();
  const { openModel } = await import("./js/session.js");
  window.model = location.search ? {} : await openModel(document.baseURI, { backend: "wasm" });
  window.steps = [];
  window.kept = await keepOffline((step) => steps.push(step));
  window.updates = 0;
  onUpdate(() => updates++);
}"""
PAGE = (
    '<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>test</title>'
    f'<script type="module">({START})().catch((error) => {{ window.failed = String(error); }});</script></html>'
)


def with_test_page(site: Any) -> Any:
    """Put an empty page in place of the site's own."""
    (site / "index.html").write_text(PAGE)
    list_files(site)
    return site


def list_files(site: Any) -> None:
    """Write the list of files again, as ``convert.to_web`` does."""
    from convert.web.site import write_list

    for name in ("site.json", "site.js"):
        (site / name).unlink()
    write_list(site)


def state(page: Any) -> dict[str, Any]:
    """Wait until the page has started; return what it found."""
    page.wait_for_function("window.failed !== undefined || window.updates !== undefined")
    assert page.evaluate("window.failed") is None
    found: dict[str, Any] = page.evaluate(
        "() => ({ ...state, kept, steps, backend: model.backend, isolatedNow: crossOriginIsolated })"
    )
    return found


def wait_until(page: Any, condition: str) -> None:
    """Wait until an expression, which may await, is true; the page may be reloaded meanwhile."""
    from playwright.sync_api import Error

    for _ in range(600):
        with contextlib.suppress(Error):  # of a page that is being loaded
            if page.evaluate(f"async () => {condition}"):
                return
        time.sleep(0.1)
    raise AssertionError(condition)


def test_offline_after_the_first_visit(copied_site, page):
    log: list[str] = []
    with served(with_test_page(copied_site), log=log) as url:
        opened = page(url)
        found = state(opened)
        assert found["controlled"] and found["kept"] and found["isolatedNow"] and found["backend"]["isolated"]
        assert found["steps"][-1]["done"] == found["steps"][-1]["total"]
        kept = opened.evaluate(
            "async () => { const names = await caches.keys(); const cache = await caches.open(names[0]);"
            " return { names, files: (await cache.keys()).map((r) => r.url) }; }"
        )
        site = json.loads((copied_site / "site.json").read_text())
        files = {url + file["path"] for file in site["files"] if not file.get("optional")}
        assert len(kept["names"]) == 1 and site["version"] in kept["names"][0] and set(kept["files"]) == files
        large = sorted(path for path in log if path.endswith((".onnx", ".wasm")))
        assert large == [
            "model/tiny_teacher_decoder.onnx", "model/tiny_teacher_encoder.onnx", "model/tiny_teacher_image.onnx",
        "ort/ort-wasm-simd-threaded.wasm",
        ], "each is loaded once, and WebGPU's runtime not at all"  # fmt: skip
    # The server is gone now.
    again = page(url, context=opened.context)
    found = state(again)
    assert found["controlled"] and found["backend"]["check"]["passed"]
    assert found["backend"]["threads"] == min(8, again.evaluate("navigator.hardwareConcurrency"))


def test_threads_on_a_host_without_headers(copied_site, page, record):
    with served(with_test_page(copied_site), headers=False) as url:
        opened = page(url)
        opened.wait_for_function("crossOriginIsolated && window.updates !== undefined")
        found = state(opened)
        assert found["controlled"] and found["backend"]["isolated"] and found["backend"]["check"]["passed"]
        pages = [request for request in record.requests if request == url]
        assert len(pages) == 2, "one reload, no more"


def test_without_a_service_worker_there_is_one_thread_and_the_page_says_so(copied_site, page):
    with served(with_test_page(copied_site), headers=False) as url:
        found = state(page(url, service_workers="block"))
        assert not found["controlled"] and not found["kept"] and found["reason"]
        assert found["backend"]["threads"] == 1 and not found["backend"]["isolated"]
        assert found["backend"]["check"]["passed"]


def test_a_newer_version_is_kept_and_used_from_the_next_load_on(copied_site, page):
    log: list[str] = []
    with served(with_test_page(copied_site), log=log) as url:
        opened = page(url, LIGHT)
        state(opened)
        (copied_site / "examples" / "new.txt").write_text("a new file")
        (copied_site / "index.html").write_text(PAGE.replace("<title>test", "<title>newer"))
        list_files(copied_site)
        log.clear()
        second = page(url, LIGHT, context=opened.context)
        # It uses the newer version if that has been kept before the page's scripts run; otherwise the next load does.
        wait_until(
            second,
            "document.title === 'newer' || Boolean((await navigator.serviceWorker.getRegistration())?.waiting)",
        )
        for one in (opened, second):
            one.close()
        third = page(url, LIGHT, context=opened.context)
        third.wait_for_function("document.title === 'newer' && window.updates !== undefined")
        names = third.evaluate("caches.keys()")
        assert len(names) == 1 and json.loads((copied_site / "site.json").read_text())["version"] in names[0]
        assert "examples/new.txt" in log and not any(path.endswith((".onnx", ".wasm", ".jpg")) for path in log), (
            "only what changed is loaded"
        )
    assert state(page(url, LIGHT, context=opened.context))["kept"], "the newer version works offline"


def test_a_file_of_another_version_is_not_kept(copied_site, page):
    """The host has one file of another version than the list."""
    with_test_page(copied_site)
    (copied_site / "examples" / "examples.json").write_text("{}")
    with served(copied_site) as url:
        opened = page(url, LIGHT)
        found = state(opened)
        assert found["controlled"] and not found["kept"]


def test_the_list_of_files_is_that_of_the_folder(site):
    listed = json.loads((site / "site.json").read_text())
    paths = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()} - {"site.json", "site.js"}
    assert {file["path"] for file in listed["files"]} == paths
    for file in listed["files"]:
        path = site / file["path"]
        assert path.stat().st_size == file["bytes"] and sha256_of(path) == file["sha256"]
    assert (site / "site.js").read_text() == f"self.SITE = {json.dumps(listed)};\n"
