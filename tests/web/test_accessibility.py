"""The page for people who can't see it well, or use a keyboard or a screen reader. https://www.w3.org/TR/WCAG22/"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web_interface import Interface, png, scene_photo

AXE = "4.14.1"  # of axe-core, from npm
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"  # of axe.min.js
BLOCKED = {"service_workers": "block"}
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 375, "height": 700}


def opened(page: Any, address: str, **options: Any) -> Interface:
    """The page with a photo, two objects, one of them selected, a mask in progress, four choices, and a message."""
    interface = Interface(page(address, **BLOCKED, **options))
    interface.open({"scene.png": png(scene_photo(3))})
    for x, y, label in ((110, 150, "cup"), (220, 60, "")):
        interface.click(x, y)
        interface.add(label)
    interface.page.click("#objects .swatch-button >> nth=0")
    interface.page.check("input[name=amount][value='4']", force=True)
    interface.click(60, 250)
    for summary in interface.page.locator("summary").all():
        summary.click()
    interface.choose({"bad.json": b"{"})
    interface.wait_for_message("bad.json")
    return interface


CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e).backgroundColor;
      const colour = numbers(style);
      if (colour.length < 4 || colour[3] === 1) return colour;
      if (colour[3] !== 0) throw new Error(`half transparent background of ${e.outerHTML.slice(0, 80)}`);
    }
    throw new Error("no background");
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const found = [];
  const check = (element, colour, text) => {
    const value = ratio(luminance(numbers(colour)), luminance(background(element)));
    found.push([Math.round(100 * value) / 100, text.trim().slice(0, 60)]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("option, datalist, noscript")) continue;
    check(element, getComputedStyle(element).color, node.data);
  }
  for (const element of document.querySelectorAll("input[type=text], input[type=number]")) {
    if (!element.checkVisibility()) continue;
    check(element, getComputedStyle(element).color, element.value || "value");
    check(element, getComputedStyle(element, "::placeholder").color, element.placeholder);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(page, address, scheme):
    interface = opened(page, address, color_scheme=scheme, reduced_motion="reduce")
    backgrounds = set()
    for switched in (False, True):  # by the system, then by the page's own switch to the other scheme
        texts = interface.page.evaluate(CONTRAST)
        assert len(texts) > 80
        low = [(ratio, text) for ratio, text in texts if ratio < 4.5]
        assert not low, low
        backgrounds.add(interface.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if not switched:
            for _ in range({"dark": 1, "light": 2}[scheme]):  # system, light, dark
                interface.page.click("#theme")
    assert len(backgrounds) == 2
    interface.page.reload()  # the choice is kept
    Interface(interface.page)
    assert interface.page.get_attribute("html", "data-theme") == {"dark": "light", "light": "dark"}[scheme]


FOCUSABLE = """[...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")].filter((e) =>
  e.checkVisibility({ visibilityProperty: true }) && !e.disabled && e.closest("dialog:not([open])") === null)"""


def test_the_tabulator_reaches_everything_and_leads_out(page, address):
    interface = opened(page, address, viewport=WIDE)
    opened_page = interface.page
    # Of radio buttons with the same name, the chosen one is reached; arrow keys reach the others.
    opened_page.evaluate(f"""() => {{
      let number = 0;
      for (const element of {FOCUSABLE}) {{
        if (element.type === "radio" && !element.checked) continue;
        element.dataset.tab = number++;
      }}
    }}""")
    wanted = int(opened_page.evaluate("document.querySelectorAll('[data-tab]').length"))
    assert wanted > 40
    opened_page.focus(".skip")
    reached, hidden = ["0"], []
    for _ in range(wanted + 5):
        interface.keyboard.press("Tab")
        found = opened_page.evaluate(
            "() => { const e = document.activeElement;"
            " if (e === document.body) return null;"
            " const box = e.getBoundingClientRect();"
            " const around = e.closest('label') ?? (e.id === 'stage' ? e.parentElement : e);"
            " const visible = ['outlineStyle', 'boxShadow'].some((p) => [e, around].some((x) =>"
            "   getComputedStyle(x)[p] !== 'none')) && box.bottom > 0 && box.top < innerHeight;"
            " return [e.dataset.tab ?? e.outerHTML.slice(0, 80), visible]; }"
        )
        if found is None:
            break  # out of the page, into the browser's own controls
        reached.append(found[0])
        if not found[1]:
            hidden.append(found[0])
    else:
        pytest.fail(f"the focus does not leave the page: {reached[-8:]}")
    missed = {str(i) for i in range(wanted)} - set(reached)
    names = [
        opened_page.evaluate(f"document.querySelector('[data-tab=\"{i}\"]').outerHTML").strip()[:90] for i in missed
    ]
    assert not missed, names
    assert reached == sorted(reached, key=int)  # in the order of the document
    assert not hidden, [
        opened_page.evaluate(f"document.querySelector('[data-tab=\"{i}\"]').outerHTML")[:90] for i in hidden
    ]


def test_every_control_has_a_name(page, address):
    interface = opened(page, address)
    session = interface.page.context.new_cdp_session(interface.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "checkbox", "radio", "slider", "spinbutton", "link", "application",
             "progressbar", "img", "image", "dialog", "DisclosureTriangle", "searchbox"}  # fmt: skip
    seen = []
    for node in nodes:
        if node.get("ignored") or node["role"]["value"] not in roles:
            continue
        seen.append(node["role"]["value"])
        assert node.get("name", {}).get("value", "").strip(), node
    assert len(seen) > 40 and {"application", "slider", "spinbutton", "radio"} <= set(seen)


def test_what_happens_is_told_to_screen_readers(page, address):
    interface = Interface(page(address, **BLOCKED))
    opened_page = interface.page
    interface.open({"scene.png": png(scene_photo(3))})
    said = lambda: opened_page.text_content("#live")  # noqa: E731
    assert opened_page.get_attribute("#live", "aria-live") == "polite"
    interface.click(110, 150)
    assert said().startswith("Point inside at 110, 150. The mask covers") and "0." in said()
    interface.add("cup")
    assert said() == "Added: cup"
    opened_page.click("#undo")
    interface.settle()
    assert "Undo" in said()
    interface.choose({"bad.json": b"{"})
    interface.wait_for_message("bad.json")
    assert opened_page.get_attribute("#toasts .toast", "role") == "alert"


def test_dialogs_can_be_left_and_give_the_focus_back(page, address):
    interface = Interface(page(address, **BLOCKED))
    opened_page = interface.page
    for button, dialog in (("#help", "#help-dialog"), ("#examples", "#examples-dialog")):
        opened_page.focus(button)
        interface.keyboard.press("Enter")
        opened_page.wait_for_selector(f"{dialog}[open]")
        for _ in range(12):
            interface.keyboard.press("Tab")
            inside = f"document.activeElement === document.body || document.activeElement.closest('{dialog}') !== null"
            assert opened_page.evaluate(inside)
        interface.keyboard.press("Escape")
        opened_page.wait_for_selector(dialog, state="hidden")
        assert f"#{opened_page.evaluate('document.activeElement.id')}" == button
    opened_page.focus("#stage")
    interface.keyboard.press("?")
    opened_page.wait_for_selector("#help-dialog[open]")
    assert "Shift + click" in opened_page.text_content("#help-content")
    opened_page.uncheck("#single-keys")  # for people who dictate
    interface.keyboard.press("Escape")
    opened_page.focus("#stage")
    interface.keyboard.press("b")
    interface.keyboard.press("?")
    assert opened_page.is_checked("input[value='inside']") and opened_page.is_hidden("#help-dialog")


def test_nothing_moves_if_motion_is_not_wanted(page, address):
    interface = opened(page, address, reduced_motion="reduce")
    moving = interface.page.evaluate(
        "[...document.querySelectorAll('*')].map((e) => getComputedStyle(e)).filter((s) =>"
        " s.transitionDuration.split(', ').some((t) => parseFloat(t) > 0) || s.animationName !== 'none').length"
    )
    assert moving == 0


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """axe-core's script, fetched by npm and compared with its checksum."""
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        [npm, "pack", f"axe-core@{AXE}", "--silent"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"npm can't fetch axe-core: {done.stderr.strip()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(next(Path(folder).glob("*.tgz")).read_bytes())) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        script = member.read()
    assert hashlib.sha256(script).hexdigest() == AXE_SHA256
    yield script.decode()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, address, axe, viewport, scheme):
    interface = Interface(page(address, viewport=viewport, color_scheme=scheme, **BLOCKED))
    run = f"async () => {{ {axe}; return (await axe.run(document, {{ runOnly: x }})).violations; }}"
    tags = '{ type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }'

    def check(state: str) -> None:
        violations = interface.page.evaluate(run.replace("runOnly: x", f"runOnly: {tags}"))
        short = [(v["id"], v["help"], [node["html"][:120] for node in v["nodes"]][:4]) for v in violations]
        assert not short, (state, short)

    check("empty")
    interface.page.close()
    interface = opened(page, address, viewport=viewport, color_scheme=scheme)
    check("annotated")
    for button, dialog in (("#help", "#help-dialog"), ("#examples", "#examples-dialog")):
        interface.page.click(button)
        interface.page.wait_for_selector(f"{dialog}[open]")
        check(dialog)
        interface.keyboard.press("Escape")


def test_the_page_has_no_address_of_another_server(site):
    """Nothing could be loaded from elsewhere; names of XML's kinds of documents are no addresses."""
    allowed = {"www.w3.org"}
    for path in [site / "index.html", site / "style.css"]:
        for url in re.findall(r"[a-z]*://[^\s\"'<>]+", path.read_text()):
            assert urllib.parse.urlsplit(url).hostname in allowed, (path.name, url)
