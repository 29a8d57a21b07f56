"""What a person does on the page: open photos, prompt by mouse, keyboard and touch, see Python's masks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from web_interface import Interface, overlap, png, scene_photo
from web_pages import TIMEOUT

PHOTO = scene_photo(3)
SIZE = PHOTO.shape[0]
NAME = "scene.png"
BLOCKED = {"service_workers": "block"}  # they have tests of their own


@pytest.fixture(scope="module")
def predictor() -> Any:
    from edgesam_jax import Predictor, load_model

    found = Predictor(load_model("tiny_teacher"))
    found.set_image(PHOTO)
    return found


@pytest.fixture
def interface(page, address) -> Interface:
    """The page with a generated scene, encoded."""
    found = Interface(page(address, **BLOCKED))
    found.open({NAME: png(PHOTO)})
    return found


def expected(
    predictor: Any, prompt: dict[str, Any], num_masks: int = 1, mask_input: Any = None
) -> tuple[Any, Any, Any]:
    """Return Python's masks (n h w) bool, scores (n) and logits (n s s) of a prompt as the page shows it."""
    points = np.array(prompt["points"]).reshape(-1, 3)
    given: dict[str, Any] = {"box": prompt["box"]} if prompt["box"] else {}
    if len(points):
        given |= {"point_coords": points[:, :2], "point_labels": points[:, 2].astype(int)}
    found: tuple[Any, Any, Any] = predictor.predict(**given, num_masks=num_masks, mask_input=mask_input)
    return found


def test_points_and_boxes_give_pythons_masks(interface, predictor):
    middle = SIZE // 2
    steps = [
        (lambda: interface.click(middle, middle), [[middle, middle, 1]], None),
        (lambda: interface.click(250, 60, outside=True), [[middle, middle, 1], [250, 60, 0]], None),
        (lambda: interface.click(60, 250, button="right"), [[middle, middle, 1], [250, 60, 0], [60, 250, 0]], None),
        (lambda: interface.page.click("#clear"), [], None),
        (lambda: interface.drag(80, 90, 229, 239), [], [80, 90, 230, 240]),
        (lambda: interface.click(middle, middle), [[middle, middle, 1]], [80, 90, 230, 240]),
    ]
    for act, points, box in steps:
        act()
        interface.settle()
        prompt = interface.prompt()
        assert prompt == {"points": points, "box": box}
        if points or box:
            mask, reference = interface.mask(), expected(predictor, prompt)[0][0]
            assert 100 < reference.sum() < reference.size
            assert overlap(mask, reference) >= 0.99, prompt


def test_undo_and_redo(interface):
    interface.click(100, 100)
    first = interface.mask()
    interface.click(220, 220)
    second = interface.mask()
    assert overlap(first, second) < 0.99
    interface.page.click("#undo")
    interface.settle()
    assert interface.prompt()["points"] == [[100, 100, 1]] and (interface.mask() == first).all()
    interface.keyboard.press("Control+z")
    interface.settle()
    assert interface.prompt()["points"] == [] and interface.page.is_disabled("#keep-mask")
    assert interface.page.is_disabled("#undo")
    interface.keyboard.press("Control+Shift+z")
    interface.page.click("#redo")
    interface.settle()
    assert len(interface.prompt()["points"]) == 2 and (interface.mask() == second).all()
    interface.page.click("#clear")
    interface.keyboard.press("Control+z")  # clearing, too
    interface.settle()
    assert (interface.mask() == second).all()


@pytest.mark.parametrize("amount", [3, 4])
def test_several_masks_to_choose_from(interface, predictor, amount):
    interface.page.check(f"input[name=amount][value='{amount}']", force=True)
    interface.click(110, 150)
    masks, scores, _ = expected(predictor, interface.prompt(), amount)
    choices = interface.page.locator(".choice")
    assert choices.count() == amount
    for i in range(amount):
        assert f"{scores[i]:.2f}" in choices.nth(i).inner_text()
    best = choices.locator("input:checked")
    assert best.count() == 1 and best.get_attribute("aria-label").startswith(f"Mask {np.argmax(scores) + 1},")
    for i in (amount - 1, 0):
        choices.nth(i).click()
        interface.settle()
        assert overlap(interface.mask(), masks[i]) >= 0.99
    interface.page.focus("#stage")
    interface.keyboard.press("2")
    interface.settle()
    assert overlap(interface.mask(), masks[1]) >= 0.99
    assert len(interface.prompt()["points"]) == 1


def test_refining_uses_the_chosen_mask(interface, predictor):
    interface.click(110, 150)
    prompt = interface.prompt()
    _, _, low = expected(predictor, prompt)
    interface.page.click("#refine")
    interface.settle()
    reference = expected(predictor, prompt, mask_input=low[0])[0][0]
    refined = interface.mask()
    assert overlap(refined, reference) >= 0.99
    interface.click(200, 60, outside=True)  # the mask stays an input
    reference = expected(predictor, interface.prompt(), mask_input=low[0])[0][0]
    assert overlap(interface.mask(), reference) >= 0.99
    interface.page.click("#undo")
    interface.page.click("#refine-stop")
    interface.settle()
    assert overlap(interface.mask(), expected(predictor, prompt)[0][0]) >= 0.99


def test_the_keyboard_is_enough(interface, predictor):
    page, keyboard = interface.page, interface.keyboard
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):  # from the top of the page
        keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "stage":
            break
    else:
        pytest.fail("the stage can't be reached")
    keyboard.press("ArrowRight")  # shows the crosshair in the middle
    step = interface.app("return Math.max(1, Math.round(12 / app.stage.view.scale));")
    keyboard.press("ArrowLeft")
    keyboard.press("Shift+ArrowDown")
    keyboard.press("Enter")
    interface.settle()
    x, y = SIZE // 2 - step, SIZE // 2 + 1
    assert interface.prompt()["points"] == [[x, y, 1]]
    assert f"Point inside at {x}, {y}. The mask covers" in page.text_content("#live")
    assert overlap(interface.mask(), expected(predictor, interface.prompt())[0][0]) >= 0.99
    page.focus("#stage")
    for _ in range(5):
        keyboard.press("ArrowUp")
    keyboard.press("Shift+Enter")
    keyboard.press("ArrowRight")
    keyboard.press("o")
    keyboard.press(" ")
    interface.settle()
    y -= 5 * step
    assert interface.prompt()["points"][1:] == [[x, y, 0], [x + step, y, 0]]
    for key in ("c", "k", *["ArrowDown"] * 8, *["ArrowRight"] * 6, "k"):
        keyboard.press(key)
    interface.settle()
    assert interface.prompt() == {"points": [], "box": [x + step, y, x + 7 * step + 1, y + 8 * step + 1]}
    assert overlap(interface.mask(), expected(predictor, interface.prompt())[0][0]) >= 0.99
    page.focus("#stage")
    for key in ("k", "ArrowUp", "Escape"):  # a box that is given up
        keyboard.press(key)
    assert interface.prompt()["box"] and interface.app("return app.stage.rubber;") is None
    keyboard.press("a")
    keyboard.type("cup")  # letters are no shortcuts while one types
    keyboard.press("Enter")
    page.wait_for_selector("#objects li")
    assert page.input_value("#objects li input") == "cup" and page.is_checked("input[value='outside']")


def test_touch(page, address, predictor):
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    interface = Interface(page(address, **phone, **BLOCKED))
    interface.open({NAME: png(PHOTO)})
    opened = interface.page
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    small = "[...document.querySelectorAll('button, select, .segments label')].filter((e) => e.checkVisibility())"
    sizes = opened.evaluate(f"{small}.map((e) => [e.id || e.className, e.offsetWidth, e.offsetHeight])")
    assert all(width >= 24 and height >= 24 for _, width, height in sizes), sizes  # WCAG 2.5.8
    assert all(width >= 40 and height >= 40 for name, width, height in sizes if name != "icon"), sizes
    opened.touchscreen.tap(*interface.at(110, 150))
    opened.click("label:has(input[value='outside'])")
    opened.touchscreen.tap(*interface.at(250, 60))
    interface.settle()
    assert interface.prompt()["points"] == [[110, 150, 1], [250, 60, 0]]
    assert overlap(interface.mask(), expected(predictor, interface.prompt())[0][0]) >= 0.99
    touch = Touch(interface)
    opened.click("label:has(input[value='box'])")
    touch.drag([(80, 90)], [(229, 239)])
    interface.settle()
    assert interface.prompt()["box"] == [80, 90, 230, 240]
    scale = interface.app("return app.stage.view.scale;")
    touch.drag([(140, 160), (180, 160)], [(100, 160), (220, 160)])
    zoomed = interface.app("return app.stage.view.scale;")
    assert zoomed == pytest.approx(3 * scale, rel=0.05)
    opened.click("label:has(input[value='inside'])")
    before = interface.prompt()
    place = interface.at(150, 150)
    touch.drag([(150, 150)], [(160, 140)])  # moves the photo
    after = interface.at(150, 150)
    assert np.subtract(after, place) == pytest.approx([10 * zoomed, -10 * zoomed], abs=1)
    assert interface.prompt() == before
    opened.touchscreen.tap(*interface.at(151, 161))
    interface.settle()
    assert interface.prompt()["points"][-1] == [151, 161, 1]


class Touch:
    """Fingers on the stage; positions are pixels of the photo."""

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self.session = interface.page.context.new_cdp_session(interface.page)

    def drag(self, start: list[tuple[float, float]], end: list[tuple[float, float]]) -> None:
        starts, ends = [[self.interface.at(*place) for place in places] for places in (start, end)]
        for i in range(1, len(starts) + 1):
            self.send("touchStart", starts[:i])
        for t in np.linspace(0.1, 1, 10):
            self.send("touchMove", ((1 - t) * np.array(starts) + t * np.array(ends)).tolist())
        self.send("touchEnd", [])

    def send(self, kind: str, places: list[Any]) -> None:
        points = [{"x": float(x), "y": float(y), "id": i} for i, (x, y) in enumerate(places)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def colour_at(interface: Interface, x: int, y: int) -> np.ndarray:
    """Return the colour (3) of the screen at a pixel of the photo."""
    shot = interface.page.screenshot()
    left, top = interface.at(x, y)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[int(top), int(left)].astype(int)


def test_the_mask_on_the_screen_has_an_edge_an_opacity_and_holes(interface):
    interface.click(110, 150)
    mask = interface.mask()
    inner = mask.copy()
    for shift in range(1, 16):  # away from the edge and from the point
        for axis in (0, 1):
            for sign in (-shift, shift):
                inner &= np.roll(mask, sign, axis)
    inner[150 - 30 : 150 + 30, 110 - 30 : 110 + 30] = False
    inner[:16], inner[-16:], inner[:, :16], inner[:, -16:] = False, False, False, False
    y, x = np.argwhere(inner)[inner.sum() // 2]
    interface.mouse.move(2, 2)
    shown = {}
    for opacity in (0, 100, 50):
        interface.page.fill("#opacity", str(opacity))
        interface.settle()
        shown[opacity] = colour_at(interface, x, y)
    blue = np.array([64, 140, 255])
    assert np.abs(shown[0] - PHOTO[y, x]).max() <= 40  # the photo, enlarged
    assert np.abs(shown[100] - blue).max() <= 2
    assert np.abs(shown[50] - (shown[0] + blue) / 2).max() <= 3
    hollow = interface.app(
        "const { outlines, toPath } = await import(new URL('js/contours.js', document.baseURI).href);"
        "const mask = Uint8Array.from({ length: 49 }, (_, i) => (i === 24 ? 0 : 1));"
        "const path = toPath(outlines(mask, 7, 7));"
        "const context = document.createElement('canvas').getContext('2d');"
        "return [[3.5, 3.5], [1.5, 3.5], [7.5, 3]].map(([a, b]) => context.isPointInPath(path, a, b, 'evenodd'));"
    )
    assert hollow == [False, True, False]


def test_prompts_keep_their_pixels_when_the_view_changes(interface):
    interface.mouse.move(*interface.at(240, 70))
    place = interface.at(240, 70)
    for _ in range(4):
        interface.mouse.wheel(0, -240)
    interface.settle()
    scale = interface.app("return app.stage.view.scale;")
    assert interface.app("return app.stage.view.fitScale;") < scale / 3
    assert interface.at(240, 70) == pytest.approx(place, abs=scale)
    interface.click(240, 70)
    interface.click(243, 66)
    interface.page.click("label:has(input[value='move'])")
    interface.drag(240, 70, 230, 76)
    assert np.subtract(interface.at(240, 70), place) == pytest.approx([-10 * scale, 6 * scale], abs=2 * scale)
    interface.page.click("label:has(input[value='inside'])")
    interface.click(236, 64)
    interface.page.set_viewport_size({"width": 900, "height": 700})
    interface.settle()
    interface.click(238, 72)
    interface.page.focus("#stage")
    for key in ("-", "0"):
        interface.keyboard.press(key)
    interface.settle()
    interface.click(20, 300)
    expected_points = [[240, 70, 1], [243, 66, 1], [236, 64, 1], [238, 72, 1], [20, 300, 1]]
    assert interface.prompt()["points"] == expected_points
    interface.page.fill("#opacity", "0")
    interface.mouse.move(2, 2)
    interface.settle()
    for x, y, _ in expected_points[3:]:  # the white plus sign is where the click was; these two don't overlap
        assert colour_at(interface, x, y).min() > 200, (x, y)


def test_the_preview_shows_what_a_click_would_give(interface):
    interface.mouse.move(*interface.at(100, 100))
    interface.mouse.move(*interface.at(110, 150))
    interface.app("while (!app.stage.preview) await new Promise((next) => setTimeout(next, 20));")
    inside = interface.app("return app.stage.context.isPointInPath(app.stage.preview, 0, 0, 'evenodd');")
    assert inside is False
    points = [(x, y) for x in range(4, SIZE, 12) for y in range(4, SIZE, 12)]
    count = (
        "const c = document.createElement('canvas').getContext('2d');"
        "return x.map(([a, b]) => c.isPointInPath(app.stage[%s], a + 0.5, b + 0.5, 'evenodd'));"
    )
    preview = interface.app(count % "'preview'", points)
    interface.click(110, 150)
    drafted = interface.app(count % "'draft'", points)
    assert np.mean(np.array(preview) == np.array(drafted)) > 0.99 and any(drafted)
    interface.mouse.move(2, 2)
    assert interface.app("return app.stage.preview;") is None


def test_broken_photos_have_readable_messages(page, address):
    interface = Interface(page(address, **BLOCKED))
    interface.choose({"notes.png": b"this is no picture", "cut.png": png(PHOTO)[:3000], NAME: png(PHOTO)})
    interface.wait_for_photo(NAME)
    told = interface.messages()
    assert any("notes.png" in text for text in told) and any("cut.png" in text for text in told), told
    assert all(len(text) < 300 and "undefined" not in text and "Error" not in text for text in told), told
    assert interface.page.locator("button.photo").count() == 1
    interface.choose({"bad.json": b'{"images": 3}'})
    interface.wait_for_message("bad.json: neither COCO")


DROP = """([kind, files]) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


def test_drop_paste_and_examples(page, address):
    interface = Interface(page(address, **BLOCKED))
    opened = interface.page
    assert opened.is_visible("#welcome") and opened.locator("#welcome-examples img").count() >= 3
    content = base64.b64encode(png(PHOTO)).decode()
    opened.evaluate(DROP, ["dragenter", [["a.png", content]]])
    assert opened.is_visible("#drop")
    opened.evaluate(DROP, ["drop", [["a.png", content], ["b.png", content]]])
    interface.wait_for_photo("a.png")
    assert opened.is_hidden("#drop") and opened.is_hidden("#welcome")
    opened.evaluate(DROP, ["paste", [["image.png", content]]])
    interface.wait_for_photo("pasted-")
    opened.click("#examples")
    opened.click("#example-list li:nth-child(2) button")
    interface.wait_for_photo("scene_2")
    assert opened.locator("button.photo").count() == 4
    interface.choose({"a.png": png(PHOTO[:, ::-1])})  # another photo with a name that is taken
    interface.wait_for_photo("a-2.png")
    assert opened.locator("button.photo .name").all_text_contents()[-1] == "a-2.png"
    opened.focus("#stage")
    interface.keyboard.press("[")
    interface.wait_for_photo("scene_2")


def test_the_camera(browser, address, record):
    from conftest import ARGUMENTS, CHROMIUM
    from web_pages import recorded_context

    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    launched = browser.browser_type.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *fake])
    try:
        record.origins.add(address)
        with recorded_context(launched, record, permissions=["camera"], **BLOCKED) as context:
            opened = context.new_page()
            opened.goto(address)
            interface = Interface(opened)
            opened.click("#camera")
            opened.wait_for_selector("#camera-dialog[open]")
            interface.app(
                "const v = document.getElementById('video'); while (!v.videoWidth) await new Promise(setTimeout);"
            )
            opened.click("#shoot")
            interface.wait_for_photo("camera-")
            assert opened.is_hidden("#camera-dialog")
            assert interface.app("return app.photo.width;") >= 320
            live = interface.app("return document.getElementById('video').srcObject.getTracks()[0].readyState;")
            assert live == "ended"
    finally:
        launched.close()
    record.check()


def test_without_a_camera_the_page_says_so(page, address):
    interface = Interface(page(address, **BLOCKED))
    interface.page.click("#camera")
    interface.wait_for_message("The camera can’t be used here")


def test_fifty_megapixels(page, address):
    height, width = 6144, 8192
    small = Image.fromarray(scene_photo(5, 1024))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.NEAREST).save(file, "JPEG", quality=80)
    interface = Interface(page(address, **BLOCKED))
    interface.page.set_default_timeout(3 * TIMEOUT)
    interface.open({"large.jpg": file.getvalue()})
    interface.click(width // 2, height // 2)
    mask = interface.mask()
    assert mask.shape == (height, width)
    from edgesam_jax import Predictor, load_model

    own = Predictor(load_model("tiny_teacher"))
    own.set_image(np.asarray(Image.open(file)))
    assert overlap(mask, expected(own, interface.prompt())[0][0]) >= 0.99


def test_everything_mode(interface):
    opened = interface.page
    opened.select_option("#grid", "32")
    opened.click("#everything")
    opened.wait_for_selector("#everything-running:not([hidden])")
    opened.click("#everything-cancel")
    opened.wait_for_selector("#everything-setup:not([hidden])")
    opened.select_option("#grid", "8")
    opened.click("#everything")
    opened.wait_for_selector("#everything-found:not([hidden])")
    masks = interface.app("return app.candidates.map(({ mask }) => ({ area: mask.area }));")
    assert len(masks) > 1 and all(mask["area"] > 0 for mask in masks)
    chosen = "return app.candidates.filter(({ chosen }) => chosen).length;"
    assert interface.app(chosen) == len(masks)
    hit = interface.app(
        "const { path, mask } = app.candidates.at(-1); const c = document.createElement('canvas').getContext('2d');"
        "const [x0, y0, w, h] = mask.box;"
        "for (let b = y0; b < y0 + h; b++) for (let a = x0; a < x0 + w; a++)"
        "  if (c.isPointInPath(path, a + 0.5, b + 0.5, 'evenodd')) return [a, b];"
    )
    interface.click(*hit)
    assert interface.app(chosen) == len(masks) - 1 and interface.prompt()["points"] == []
    opened.fill("#label", "thing")
    opened.click("#everything-add")
    assert opened.locator("#objects li").count() == len(masks) - 1
    opened.click("#undo")
    assert opened.locator("#objects li").count() == 0
    assert opened.is_visible("#everything-setup")


def test_the_page_says_what_runs_and_that_nothing_is_uploaded(page, address):
    interface = Interface(page(address))
    opened = interface.page
    text = opened.text_content("#backend")
    assert "WebAssembly with" in text and "smallest overlap with Python’s masks 1.0000" in text
    assert "WebGPU" in opened.text_content("#rejected")
    assert "Nothing is uploaded" in opened.text_content("footer")
    opened.wait_for_selector("#offline.ready")
    assert "Works offline now" in opened.text_content("#offline")
    interface.open({NAME: png(PHOTO)})
    interface.click(100, 100)
    assert "Encoder" in opened.text_content("#times") and "decoder" in opened.text_content("#times")
    opened.context.set_offline(True)
    opened.reload()
    interface = Interface(opened)
    interface.wait_for_photo(NAME)  # the photo and its prompt are there without the network
    interface.settle()
    assert interface.mask().any()


def test_a_missing_model_has_a_readable_message(copied_site, page, record):
    from web_pages import served

    record.allowed = ("404",)
    next((copied_site / "model").glob("*encoder*.onnx")).unlink()
    with served(copied_site) as url:
        opened = page(url, **BLOCKED)
        opened.locator("#toasts .toast.error").first.wait_for()
        text = opened.text_content("#backend")
        assert "The model could not be started" in text and "encoder" in text, text


SEND = """async () => {
  const refused = new Promise((resolve) => {
    self.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
  });
  const name = await fetch("http://localhost:9/x").then(() => "sent", (error) => error.name);
  return [name, await Promise.race([refused, new Promise((resolve) => setTimeout(resolve, 5000, "allowed"))])];
}"""


@pytest.mark.parametrize("headers", [True, False], ids=["own server", "plain host"])
def test_other_servers_are_refused_to_the_page_and_its_worker(site, page, record, headers):
    from web_pages import served

    record.allowed = ("Content Security Policy", "Refused to connect", "violates")
    with served(site, headers=headers) as url:
        opened = page(url)
        opened.wait_for_selector("#backend[data-backend]")
        if not headers:  # the service worker adds the header from the first load that it controls
            opened.reload()
            opened.wait_for_selector("#backend[data-backend]")
        [worker] = [worker for worker in opened.workers if worker.url.endswith("/js/worker.js")]
        for place in (opened, worker):
            assert place.evaluate(SEND) == ["TypeError", "connect-src"]
    record.requests = [url for url in record.requests if ":9/" not in url]
