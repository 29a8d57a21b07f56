"""Drives the page as a user does, with mouse, touch and keyboard, and reads back what it shows and saves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgesam_jax.data.scenes.scene import held_out_seed, scene

FILES = dict[str, bytes]
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".json": "application/json"}


def scene_photo(number: int, size: int = 320) -> np.ndarray:
    """Return a generated scene (size size 3) of our own, which no model was trained on."""
    return scene(held_out_seed(20), number, size).image


def png(photo: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG", compress_level=1)
    return file.getvalue()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


class Interface:
    """The page of a site.

    Args:
      page: Playwright's page, at the site's address.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.mouse, self.keyboard = page.mouse, page.keyboard
        page.wait_for_selector("#backend[data-backend]")

    def app(self, body: str, argument: Any = None) -> Any:
        """Run the body of an async function of ``app``, the page's state, and ``x``."""
        module = "const { app } = await import(new URL('js/app.js', document.baseURI).href);"
        return self.page.evaluate(f"async (x) => {{ {module} {body} }}", argument)

    def choose(self, files: FILES, chooser: str = "#file") -> None:
        """Choose files in the page's own dialog, without waiting."""
        payload = [{"name": n, "mimeType": KINDS[Path(n).suffix], "buffer": c} for n, c in files.items()]
        self.page.set_input_files(chooser, payload)

    def open(self, files: FILES) -> None:
        """Open photos, and wait until the first of them is encoded."""
        self.choose(files)
        self.wait_for_photo(next(iter(files)))

    def wait_for_photo(self, name: str) -> None:
        self.page.wait_for_selector(f'button.photo[aria-current][title^="{name}"]')
        self.page.wait_for_selector("#times:not(:empty)")
        self.page.wait_for_selector("#busy", state="hidden")

    def settle(self) -> None:
        """Wait until the mask of the prompt is there, exact to the pixel, and all is saved."""
        self.app("await app.drafting.settled; await app.drafting.exact;"
                 "while (app.saving.pending) await new Promise((next) => setTimeout(next, 5));"
                 "await new Promise(requestAnimationFrame);")  # fmt: skip

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where the middle of a photo's pixel is in the window."""
        left, top = self.app(
            "app.stage.canvas.scrollIntoView({ block: 'nearest' });"
            "const { left, top } = app.stage.canvas.getBoundingClientRect();"
            "const [dx, dy] = app.stage.view.toStage(x[0] + 0.5, x[1] + 0.5); return [left + dx, top + dy];",
            [float(x), float(y)],
        )
        return left, top

    def click(self, x: float, y: float, outside: bool = False, button: str = "left") -> None:
        if outside:
            self.keyboard.down("Shift")
        self.mouse.click(*self.at(x, y), button=button)
        if outside:
            self.keyboard.up("Shift")
        self.settle()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drag from the middle of one pixel to that of another."""
        self.mouse.move(*self.at(x0, y0))
        self.mouse.down()
        self.mouse.move(*self.at(x1, y1), steps=3)
        self.mouse.up()
        self.settle()

    def prompt(self) -> dict[str, Any]:
        """Return the points and the box of the prompt."""
        found: dict[str, Any] = self.app(
            "const { points, box } = app.work.state.draft; return { points: points.map((p) => [...p]), box };"
        )
        return found

    def download(self, button: str) -> bytes:
        """Click a button, and return the file that the page saves."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def mask(self) -> np.ndarray:
        """Save the mask as a picture; return it (h w) bool."""
        picture = Image.open(io.BytesIO(self.download("#keep-mask")))
        assert (picture.format, picture.mode) == ("PNG", "L")
        pixels = np.asarray(picture)
        assert np.isin(pixels, [0, 255]).all()
        return pixels > 0

    def add(self, label: str) -> None:
        """Add the mask as an object."""
        before = self.page.locator("#objects li").count()
        self.page.fill("#label", label)
        self.page.click("#add")
        self.page.wait_for_selector(f"#objects li:nth-child({before + 1})")
        self.settle()

    def messages(self) -> list[str]:
        return [text.strip() for text in self.page.locator("#toasts .toast p").all_text_contents()]

    def wait_for_message(self, part: str) -> None:
        self.page.locator("#toasts .toast p", has_text=part).first.wait_for()
