"""What a user takes away of a mask: a cut-out, the mask, its outline, and the clipboard."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from web_interface import Interface, png, scene_photo

PHOTO = scene_photo(3)
SIZE = PHOTO.shape[0]
BLOCKED = {"service_workers": "block"}


@pytest.fixture
def interface(page, address) -> Interface:
    found = Interface(page(address, permissions=["clipboard-read", "clipboard-write"], **BLOCKED))
    found.open({"scene.png": png(PHOTO)})
    found.click(110, 150)
    return found


def exact_mask(interface: Interface) -> np.ndarray:
    """Return the page's mask of the prompt (h w) bool, from its run lengths."""
    counts = interface.app("return Array.from((await app.drafting.exact).counts);")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(SIZE, SIZE).T


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_the_cut_out_has_the_photos_pixels_and_the_masks_alpha(interface):
    mask = exact_mask(interface)
    assert 500 < mask.sum() < mask.size / 2
    assert (interface.mask() == mask).all()
    window = extent(mask)
    for crop in (True, False):
        interface.page.set_checked("#keep-crop", crop)
        picture = Image.open(io.BytesIO(interface.download("#keep-cut")))
        assert (picture.format, picture.mode) == ("PNG", "RGBA")
        pixels = np.asarray(picture)
        inside, photo = (mask[window], PHOTO[window]) if crop else (mask, PHOTO)
        assert pixels.shape[:2] == inside.shape
        assert (pixels[..., 3] == np.where(inside, 255, 0)).all()
        assert (pixels[inside][:, :3] == photo[inside]).all()
        assert not pixels[~inside].any()  # nothing of the photo around the object is in the file


def rasterised(page, svg: bytes, size: int) -> np.ndarray:
    """Draw an SVG file with the browser; return what is opaque (h w) bool. No pixel may be partly covered."""
    pixels = page.evaluate(
        "async ([text, size]) => {"
        "  const image = new Image();"
        "  image.src = URL.createObjectURL(new Blob([text], { type: 'image/svg+xml' }));"
        "  await image.decode();"
        "  const canvas = Object.assign(document.createElement('canvas'), { width: size, height: size });"
        "  const context = canvas.getContext('2d');"
        "  context.drawImage(image, 0, 0);"
        "  return Array.from(context.getImageData(0, 0, size, size).data.filter((_, i) => i % 4 === 3));"
        "}",
        [svg.decode(), size],
    )
    alpha = np.array(pixels).reshape(size, size)
    assert np.isin(alpha, [0, 255]).all()
    return alpha > 0


def test_the_outline_is_the_mask_to_the_pixel(interface):
    interface.page.fill("#label", "a < b & c")
    svg = interface.download("#keep-svg")
    root = ElementTree.fromstring(svg)
    assert root[0].text == "a < b & c" and root.get("viewBox") == f"0 0 {SIZE} {SIZE}"
    assert (rasterised(interface.page, svg, SIZE) == exact_mask(interface)).all()


def test_outlines_of_difficult_masks(interface):
    """Holes, islands within holes, pixels that touch at a corner, the photo's border, noise."""
    rng = np.random.default_rng(1)
    size = 23
    rings = np.zeros((size, size), bool)
    for inset in range(0, 11, 2):
        rings[inset : size - inset, inset : size - inset] = inset % 4 == 0
    checks = np.indices((size, size)).sum(0) % 2 == 0
    one = np.zeros((size, size), bool)
    one[-1, -1] = True
    masks = [rings, checks, one, np.ones((size, size), bool), *(rng.random((6, size, size)) < 0.5)]
    for mask in masks:
        counts, previous, run = [], False, 0
        for value in mask.T.ravel():
            if value != previous:
                counts.append(run)
                previous, run = bool(value), 0
            run += 1
        counts.append(run)
        columns, rows = extent(mask)[1], extent(mask)[0]
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        svg = interface.app(
            "const { maskSvg } = await import(new URL('js/export.js', document.baseURI).href);"
            "return maskSvg({ counts: Uint32Array.from(x.counts), box: x.box }, x.size, x.size, 'm').text();",
            {"counts": counts, "box": [int(v) for v in box], "size": size},
        )
        assert (rasterised(interface.page, svg.encode(), size) == mask).all()


def test_the_clipboard_has_the_cut_out(interface):
    interface.page.click("#keep-copy")
    interface.wait_for_message("The cut-out is on the clipboard")
    pixels = interface.app(
        "const [item] = await navigator.clipboard.read();"
        "const bitmap = await createImageBitmap(await item.getType('image/png'));"
        "const canvas = document.createElement('canvas');"
        "[canvas.width, canvas.height] = [bitmap.width, bitmap.height];"
        "const context = canvas.getContext('2d');"
        "context.drawImage(bitmap, 0, 0);"
        "const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);"
        "return { width: bitmap.width, data: Array.from(data) };"
    )
    mask = exact_mask(interface)
    window = extent(mask)
    found = np.array(pixels["data"]).reshape(-1, pixels["width"], 4)
    assert (found[..., 3] > 0).tolist() == mask[window].tolist()
    assert (found[..., :3][mask[window]] == PHOTO[window][mask[window]]).all()


def test_a_browser_without_a_clipboard_says_what_to_do(interface):
    interface.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    interface.page.click("#keep-copy")
    interface.wait_for_message("doesn’t let the page copy pictures")


def test_a_selected_object_is_saved_rather_than_the_prompt(interface):
    first = exact_mask(interface)
    interface.add("first one")
    interface.click(250, 60)
    second = exact_mask(interface)
    assert (first != second).any()
    assert (interface.mask() == second).all()
    interface.page.click("#objects .swatch-button")
    assert "first one" in interface.page.text_content("#keep-what")
    with interface.page.expect_download() as download:
        interface.page.click("#keep-mask")
    assert download.value.suggested_filename == "scene_first_one_mask.png"
    assert (interface.mask() == first).all()


def test_cleaning_fills_holes_and_drops_parts(interface):
    from edgesam_jax.portable.regions import clean

    interface.drag(10, 10, 300, 300)
    before = exact_mask(interface)
    interface.page.click("summary:has-text('Clean up')")
    interface.page.fill("#fill-holes", "2000")
    interface.page.fill("#drop-islands", "3000")
    interface.page.press("#drop-islands", "Tab")
    interface.settle()
    after = exact_mask(interface)
    assert (after == clean(before[None], 2000, 3000)[0]).all() and (after != before).any()
