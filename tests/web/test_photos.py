"""Photos and frames in the browser have Python's pixels."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from edgesam_jax.data.photo import load_image
from edgesam_jax.data.scenes.textures import photos
from edgesam_jax.portable.frame import into_frame, target_size

PHOTO = photos()[1][0][20:191, 30:251]  # 171 x 221 of the cat
SIZES = [
    (1, 1), (1, 7), (7, 1), (2, 3), (37, 53), (1000, 3), (3, 1000), (2500, 1), (129, 128), (128, 128), (64, 128),
    (127, 64), (480, 640), (853, 1280), (17, 4001), (1300, 600), (1300, 700),
]  # fmt: skip
COLUMNS_FIRST = tuple(map(int, PIL.__version__.split(".")[:2])) >= (12, 2)  # Pillow's order of passes for tall photos


@pytest.mark.parametrize("size", [128, 1024])
def test_frames_are_pillows_to_the_pixel(engine, size):
    rng = np.random.default_rng(size)
    for height, width in SIZES:
        rows, columns = target_size(height, width, size)
        if not COLUMNS_FIRST and height > rows and height - rows > 2 * (width - columns):
            continue  # older versions differ from newer ones, and the page follows the newer
        rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
        if height * width > 5000:  # extremes, where results are clipped
            rgba[: height // 3] = rng.choice([0, 255], (height // 3, width, 4)).astype(np.uint8)
        found = engine.run(
            "const builder = new edge.frame.FrameBuilder(x.width, x.height, x.size);"
            "const rgba = edge.bytes(x.rgba);"
            "const row = 4 * x.width;"
            "for (let y = 0, n = 1; y < x.height; y += n, n += 3) builder.add(rgba.subarray(y * row, (y + n) * row));"
            "const { pixels, filled } = builder.finish();"
            "return { sum: await edge.sum(pixels), filled };",
            {"rgba": base64.b64encode(rgba.tobytes()).decode(), "width": width, "height": height, "size": size},
        )
        frame, filled = into_frame(rgba[..., :3], size)
        assert tuple(found["filled"]) == filled, (height, width)
        pixels = np.ascontiguousarray(frame[: filled[0], : filled[1]])
        assert found["sum"] == hashlib.sha256(pixels).hexdigest(), (height, width)


def read(engine, content: bytes, band: int = 50) -> tuple[np.ndarray, list[str]]:
    """Open a photo in the browser; return its pixels (h w 3), read in bands, and its notes."""
    found = engine.run(
        "const photo = await edge.open(x.content);"
        "const bands = [];"
        "for (let y = 0; y < photo.height; y += x.band)"
        "  bands.push(edge.text(photo.rows(y, Math.min(photo.height, y + x.band)).slice()));"
        "const { width, height, notes } = photo;"
        "const drawn = [photo.bitmap.width, photo.bitmap.height];"
        "photo.close();"
        "return { bands, width, height, notes, drawn };",
        {"content": base64.b64encode(content).decode(), "band": band},
    )
    rgba = np.frombuffer(b"".join(map(base64.b64decode, found["bands"])), np.uint8)
    rgba = rgba.reshape(found["height"], found["width"], 4)
    assert (rgba[..., 3] == 255).all() and found["drawn"] == [found["width"], found["height"]]
    return rgba[..., :3], found["notes"]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: np.ndarray, interlaced: bool = False) -> bytes:
    """Write a PNG file of kinds that Pillow can't write. ``rows``: (h w c) values."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    data = b""
    for x, y, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        part = rows[y::dy, x::dx]
        for row in part if part.shape[1] else part[:0]:
            if depth == 16:
                data += b"\0" + row.astype(">u2").tobytes()
            elif depth == 8:
                data += b"\0" + row.astype(np.uint8).tobytes()
            else:
                bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
                data += b"\0" + np.packbits(bits.reshape(-1)).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def with_alpha(mode: str) -> Image.Image:
    """Colours everywhere, with alpha from 0 to 255: a canvas would lose the colours where alpha is small."""
    alpha = np.tile(np.linspace(0, 255, PHOTO.shape[1]).astype(np.uint8), (PHOTO.shape[0], 1))
    return Image.fromarray(np.dstack([PHOTO, alpha])).convert(mode)


def photo_files() -> dict[str, bytes]:
    image, rng = Image.fromarray(PHOTO), np.random.default_rng(0)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    h, w = PHOTO.shape[:2]
    sixteen = rng.integers(0, 1 << 16, (h, w, 4), np.uint16)
    eight = rng.integers(0, 256, (h, w, 4), np.uint8)
    return {
        "rgb": saved(image, "PNG"),
        "grey": saved(image.convert("L"), "PNG"),
        "one bit": saved(image.convert("1"), "PNG"),
        "palette": saved(palette, "PNG"),
        "palette with transparency": saved(palette, "PNG", transparency=bytes(range(256))),
        "rgb with a transparent colour": saved(image, "PNG", transparency=tuple(PHOTO[0, 0].tolist())),
        "rgba": saved(with_alpha("RGBA"), "PNG"),
        "grey with alpha": saved(with_alpha("LA"), "PNG"),
        "16-bit grey": saved(Image.fromarray(sixteen[..., 0]), "PNG"),
        "16-bit grey with alpha": png(w, h, 16, 4, sixteen[..., :2]),
        "16-bit rgb": png(w, h, 16, 2, sixteen[..., :3]),
        "16-bit rgba, interlaced": png(w, h, 16, 6, sixteen, interlaced=True),
        "rgba, interlaced": png(w, h, 8, 6, eight, interlaced=True),
        "rgba, 3 x 2, interlaced": png(3, 2, 8, 6, eight[:2, :3], interlaced=True),
        "rgb, interlaced": png(w, h, 8, 2, eight[..., :3], interlaced=True),
        "grey of 4 bits": png(w, h, 4, 0, eight[..., :1] >> 4),
        "a colour profile": saved(image, "PNG", icc_profile=profile()),
        "webp, lossless": saved(image, "WEBP", lossless=True),
        "bmp": saved(image, "BMP"),
        "gif": saved(palette, "GIF"),
        "jpeg": saved(image, "JPEG", quality=90),
        "jpeg, full colour": saved(image, "JPEG", quality=95, subsampling=0),
        "jpeg, progressive": saved(image, "JPEG", quality=80, progressive=True),
        "jpeg, grey": saved(image.convert("L"), "JPEG"),
        "jpeg, a colour profile": saved(image, "JPEG", quality=90, icc_profile=profile()),
        "jpeg, other data after its end": saved(image, "JPEG") + b"more" * 50,
    }


def profile() -> bytes:
    """A profile with other primaries than sRGB's, which a browser would apply if it were asked to manage colours."""
    from PIL import ImageCms

    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = struct.unpack(">I", content[128:132])[0]
    places = {}
    for i in range(tags):
        name, offset, size = struct.unpack(">4sII", content[132 + 12 * i : 144 + 12 * i])
        places[name] = slice(offset, offset + size)
    content[places[b"rXYZ"]], content[places[b"gXYZ"]] = content[places[b"gXYZ"]], content[places[b"rXYZ"]]
    return bytes(content)


FILES = photo_files()


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_pythons(engine, name):
    pixels, notes = read(engine, FILES[name])
    assert np.array_equal(pixels, load_image(FILES[name])) and not notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_once(engine, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(PHOTO)
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    files = {
        "jpeg": saved(image, "JPEG", exif=exif, quality=90),
        "png": saved(image, "PNG", exif=exif),
        "png with alpha": saved(with_alpha("RGBA"), "PNG", exif=exif),
        "webp": saved(image, "WEBP", exif=exif, lossless=True),
        "jpeg, xmp": saved(image, "JPEG", xmp=xmp),
    }
    for name, content in files.items():
        right = load_image(content)
        assert right.shape[0] == PHOTO.shape[1 if orientation > 4 else 0]
        pixels, _ = read(engine, content, band=7)
        assert np.array_equal(pixels, right), name


def test_transparent_pixels_of_other_kinds_are_on_white_and_noted(engine):
    content = saved(with_alpha("RGBA"), "WEBP", lossless=True, exact=True)
    pixels, notes = read(engine, content)
    alpha = np.asarray(with_alpha("RGBA"))[..., 3:].astype(float)
    on_white = (PHOTO * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(pixels - on_white).max() <= 2 and len(notes) == 1 and "transparent" in notes[0]


def test_fifty_megapixels_are_read_in_bands(engine):
    """The frame of a photo of 8192 x 6144 pixels, turned by EXIF, is Python's."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(PHOTO).resize((8192, 6144)), "JPEG", exif=exif, quality=70)
    body = (
        "const photo = await edge.open(x);"
        "const builder = new edge.frame.FrameBuilder(photo.width, photo.height, 128);"
        "const step = edge.photo.bandRows(photo.width);"
        "for (let y = 0; y < photo.height; y += step) builder.add(photo.rows(y, Math.min(photo.height, y + step)));"
        "const { pixels, filled } = builder.finish();"
        "const drawn = [photo.bitmap.width, photo.bitmap.height];"
        "photo.close();"
        "return { pixels: edge.text(pixels), filled, step, drawn, size: [photo.height, photo.width] };"
    )
    found = engine.run(body, base64.b64encode(content).decode())
    frame, filled = into_frame(load_image(content), 128)
    assert found["size"] == [8192, 6144] and found["step"] < 200 and tuple(found["filled"]) == filled
    assert found["drawn"] == [3072, 4096]  # what a canvas may hold on phones
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(*filled, 3)
    assert np.array_equal(pixels, frame[: filled[0], : filled[1]])


BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"these are words, not pixels", "not a photo"),
    "jpeg without its end": (FILES["jpeg"][:-2000], "its end is missing"),
    "jpeg, its start alone": (FILES["jpeg"][:300], "its end is missing"),
    "png without its end": (FILES["rgb"][:-2000], "its end is missing"),
    "webp without its end": (FILES["webp, lossless"][:-500], "its end is missing"),
    "rgba, damaged pixels": (FILES["rgba"][:5000] + bytes(64) + FILES["rgba"][5064:], "damaged"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(200), "can't read HEIC"),
    "tiff": (saved(Image.fromarray(PHOTO), "TIFF"), "can't read TIFF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_photo_gives_a_readable_message(engine, name):
    content, words = BROKEN[name]
    body = (
        "try { await edge.open(x, 'my photo.jpg'); return 'opened'; }"
        " catch (error) { return `${error.name}: ${error.message}`; }"
    )
    said = engine.run(body, base64.b64encode(content).decode())
    assert said.startswith("PhotoError: my photo.jpg: ") and words in said and "\n" not in said
