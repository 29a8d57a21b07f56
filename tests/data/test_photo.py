"""Opening photos: formats, depths, ranges of pixels, and the true reason why a file can't be used."""

import contextlib
import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from edgesam_jax.config import DataConfig, UsageError
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.photo import load_image, load_photo
from edgesam_jax.data.pixels import parse_range
from edgesam_jax.data.readers.ranged import pixel_note
from edgesam_jax.data.schema import BadExample


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ramp(height=24, width=32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7 % 256, y * 9 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = ramp()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(upright)
    stored = image.transpose(undo[orientation]) if orientation > 1 else image
    data = encode(stored, exif=exif)
    assert (load_image(data) == upright).all()
    assert (np.asarray(load_photo(data, orient=False)) == np.asarray(stored)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None], 24, 0)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        assert image.mode == mode
    else:
        image = Image.fromarray(grey).convert("RGB")
        image = image.quantize() if mode == "P" else image.convert(mode)
    form = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    loaded = load_image(encode(image, form))
    assert loaded.shape == (24, 32, 3) and loaded.dtype == np.uint8
    if mode == "1":
        assert set(np.unique(loaded)) == {0, 255}
    else:
        assert np.abs(loaded.astype(int) - grey[..., None]).max() <= 3


@given(value=st.integers(0, 65535))
def test_sixteen_bits_are_scaled_not_cut(value):
    loaded = load_image(encode(Image.fromarray(np.full((2, 2), value, np.uint16))))
    assert loaded[0, 0, 0] == round(value / 257)


def test_alpha_is_dropped_not_composited():
    pixels = np.dstack([ramp(), np.zeros((24, 32), np.uint8)])
    assert (load_image(encode(Image.fromarray(pixels))) == ramp()).all()
    palette = Image.fromarray(ramp()).convert("P")
    loaded = load_image(encode(palette, transparency=bytes([0] * 256)))
    assert (loaded == np.asarray(palette.convert("RGB"))).all()


def test_a_damaged_exif_block_does_not_lose_the_photo():
    data = encode(Image.fromarray(ramp()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\x99" * 20)
    assert load_image(data).shape == (24, 32, 3)


def _bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"hello, I am a text", "not an image"),
        (_bomb(), "shrink it"),
        (encode(Image.fromarray(ramp(200, 200)), "JPEG")[:700], "damaged"),
        (encode(Image.fromarray(ramp(200, 200)))[:300], "damaged"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating"),
    ],
)
def test_bad_files_are_named(tmp_path, data, reason):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=reason) as caught:
        load_image(path)
    assert "holiday.jpg" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.jpg: no such file"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(UsageError, match="not a file"):
        load_image(tmp_path)


FORMS = ("JPEG", "PNG", "TIFF", "GIF", "JPEG2000", "WEBP", "BMP", "PPM")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 400), form=st.sampled_from(FORMS), ranged=st.booleans())
def test_no_bytes_escape_as_another_error(data, cut, form, ranged):
    intact = encode(Image.fromarray(ramp()), form)
    pixel_range, notes = "0,4095" if ranged else "auto", []
    for candidate in (data, intact[:cut] + data, intact[: cut + 100] + data[:8] + intact[cut + 108 :]):
        with contextlib.suppress(BadExample):
            assert load_image(candidate, pixel_range=pixel_range, notes=notes).dtype == np.uint8


# ----------------------------------------------------------------------------------------------------- ranges of pixels


def grey12(step: int = 16) -> np.ndarray:
    """The first channel of ``ramp`` as 12-bit values."""
    return ramp()[..., 0].astype(np.uint16) * step


def tiff(
    pixels: np.ndarray, photometric: int = 1, planar: int = 1, extra: tuple[int, ...] = (), order: str = "<"
) -> bytes:  # fmt: skip
    """A TIFF file of an array (h w) or (h w c) of any type, uncompressed, with layouts that Pillow doesn't write.

    Args:
      photometric: 1: grey, 2: RGB.
      planar: 2: a plane per channel, one after the other.
      extra: what the channels beyond the colours are; 0: unspecified.
      order: "<" or ">", the order of bytes.
    """
    height, width, channels = (*pixels.shape, 1)[:3]
    planes = channels if planar == 2 else 1
    stored = (pixels.transpose(2, 0, 1) if planar == 2 else pixels).astype(pixels.dtype.newbyteorder(order)).tobytes()
    size = len(stored) // planes
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (8 * pixels.itemsize,) * channels), 259: ("H", (1,)),
        262: ("H", (photometric,)), 273: ("I", tuple(8 + k * size for k in range(planes))), 277: ("H", (channels,)),
        278: ("I", (height,)), 279: ("I", (size,) * planes), 284: ("H", (planar,)), 338: ("H", extra),
        339: ("H", ({"u": 1, "i": 2, "f": 3}[pixels.dtype.kind],) * channels),
    }  # fmt: skip
    tags = {tag: entry for tag, entry in tags.items() if entry[1]}
    directory, rest = b"", b""
    for tag, (kind, values) in tags.items():
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:  # stored after the directory
            place = 8 + len(stored) + 2 + 12 * len(tags) + 4 + len(rest)
            content, rest = struct.pack(f"{order}I", place), rest + content
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + content.ljust(4, b"\0")
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(stored))
    return head + stored + struct.pack(f"{order}H", len(tags)) + directory + bytes(4) + rest


def notes_of(data: bytes, pixel_range: str = "auto") -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    return load_image(data, "a.tif", pixel_range, notes), notes


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_are_noted_and_a_range_restores_them(form):
    data = encode(Image.fromarray(grey12()), form)
    dark, [note] = notes_of(data)
    assert dark.max() == round(217 * 16 / 257)
    assert note == (
        "a.tif: 16-bit pixels from 0 to 3472, scaled as if from 0 to 65535; if they fill a smaller range, pass it:"
        " --pixel-range 0,4095 (train: --set data.pixel_range=0,4095)"
    )
    image, notes = notes_of(data, "0,4080")
    np.testing.assert_array_equal(image, np.repeat(ramp()[..., :1], 3, axis=2))
    assert not notes


def test_eight_bits_and_full_sixteen_bits_are_not_noted():
    for pixels in (ramp(), ramp()[..., 0], ramp()[..., 0].astype(np.uint16) * 257):
        assert notes_of(encode(Image.fromarray(pixels)))[1] == []


def test_a_narrow_range_of_high_values_is_noted():
    _, [note] = notes_of(encode(Image.fromarray(grey12(4) + np.uint16(40000))))
    assert "16-bit pixels from 40000 to 40868" in note and "--pixel-range 40000,40868 " in note


@given(value=st.floats(-300, 300), low=st.floats(-100, 100), width=st.floats(0.5, 200))
def test_a_range_is_mapped_linearly_and_clipped(value, low, width):
    data = encode(Image.fromarray(np.full((2, 2), value, np.float32)), "TIFF")
    expected = (float(np.float32(value)) - low) * 255 / width
    found = load_image(data, pixel_range=f"{low!r},{low + width!r}")
    assert abs(float(found[0, 0, 0]) - min(max(expected, 0), 255)) <= 0.51


def test_a_range_holds_for_eight_bits_too():
    image, notes = notes_of(encode(Image.fromarray(ramp())), "50,150")
    np.testing.assert_array_equal(image, np.rint(np.clip((ramp() - 50.0) * 2.55, 0, 255)).astype(np.uint8))
    assert not notes
    _, [note] = notes_of(encode(Image.fromarray(ramp())), "0,65535")
    assert note == "a.tif: pixels from 0 to 217 are nearly black with --pixel-range 0,65535"


@pytest.mark.parametrize(
    ("pixels", "reason", "remedy"),
    [
        (ramp()[..., 0].astype(np.int16) - 20, "signed pixels from -20 to 197", "--pixel-range=-20,197 "),
        (ramp()[..., 0].astype(np.int32) * 1000, "32-bit pixels from 0 to 217000", "--pixel-range 0,217000 "),
        (ramp()[..., 0] / np.float32(217), "floating-point pixels from 0 to 1", "--pixel-range 0,1 "),
        (ramp()[..., 0].astype(np.float32), "floating-point pixels from 0 to 217", "--pixel-range 0,255 "),
        (ramp()[..., 0] - np.float32(0.25), "floating-point pixels from -0.25 to 216.75", "--pixel-range=-0.25"),
    ],
)  # fmt: skip
def test_pixels_without_a_range_are_refused_with_the_true_reason(pixels, reason, remedy):
    data = tiff(pixels)
    with pytest.raises(BadExample) as caught:
        load_image(data, "a.tif")
    assert caught.value.kind == "photo unsupported" and "damaged" not in str(caught.value)
    assert f"a.tif: {reason} have no agreed range" in str(caught.value) and remedy in str(caught.value)
    wanted = str(caught.value).partition("data.pixel_range=")[2].partition(")")[0]
    low, high = parse_range(wanted)
    expected = np.rint(np.clip((pixels - np.float64(low)) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(load_image(data, pixel_range=wanted)[..., 0], expected)


def test_pixels_that_are_not_finite_are_refused():
    pixels = np.ones((4, 4), np.float32)
    pixels[1, 1] = np.nan
    for pixel_range in ("auto", "0,1"):
        with pytest.raises(BadExample, match="NaN or infinite"):
            load_image(tiff(pixels), pixel_range=pixel_range)


@pytest.mark.parametrize(
    "text", ["", "0", "1,0", "5,5", "a,b", "0,1,2", "nan,1", "0,inf", "-1e308,1e308", "0,1e-310", "Auto"]
)
def test_other_texts_are_no_range(text):
    with pytest.raises(UsageError, match=r"--pixel-range .*: expected auto or LO,HI"):
        parse_range(text)


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (h w c) or grey (h w), which Pillow can't write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    colour = {2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["png", "png with alpha", "tiff", "big-endian tiff", "compressed tiff"])
def test_sixteen_bit_colours_keep_all_bits_with_a_range(form, tmp_path):
    colours = ramp().astype(np.uint16) * 16 + 5
    if form == "png":
        data = png16(colours)
    elif form == "png with alpha":
        data = png16(np.dstack([colours, np.full(colours.shape[:2], 65535, np.uint16)]))
    elif form == "compressed tiff":
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", compression="zlib")
        data = (tmp_path / "a.tif").read_bytes()
    else:
        data = tiff(colours, photometric=2, order=">" if form == "big-endian tiff" else "<")
    dark, [note] = notes_of(data)
    np.testing.assert_array_equal(dark, colours >> 8)
    assert "16-bit colours from 0 to 3583" in note and "--pixel-range 0,4095 " in note
    image, notes = notes_of(data, "5,4085")
    np.testing.assert_array_equal(image, ramp())
    assert not notes


def test_grey_with_alpha_of_sixteen_bits_takes_no_range():
    data = png16(np.dstack([grey12(), grey12()]))
    with pytest.raises(BadExample, match="only the upper bytes") as caught:
        load_image(data, pixel_range="0,4095")
    assert caught.value.kind == "photo unsupported"


def test_a_range_keeps_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(grey12()).copy()
    data = encode(Image.fromarray(turned), exif=exif)
    np.testing.assert_array_equal(load_image(data, pixel_range="0,4080")[..., 0], ramp()[..., 0])


# --------------------------------------------------------------------------------------------- channels, pages, layouts


def test_channels_and_pages_that_are_left_out_are_noted():
    two = tiff(ramp()[..., :2], extra=(0,))
    image, notes = notes_of(two)
    assert notes == ["a.tif: has 2 channels; the first is used"]
    np.testing.assert_array_equal(image[..., 0], ramp()[..., 0])
    five = tiff(np.dstack([ramp(), ramp()[..., :2]]), photometric=2, extra=(0, 0))
    image, notes = notes_of(five)
    assert notes == ["a.tif: has 5 channels; the first three are used"]
    np.testing.assert_array_equal(image, ramp())
    pages = encode(Image.fromarray(ramp()), "TIFF", save_all=True, append_images=[Image.fromarray(ramp())] * 2)
    assert notes_of(pages)[1] == ["a.tif: has 3 pages; the first is used"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.dstack([ramp(), ramp()[..., :2]])), "a TIFF file with 5 channels of 8-bit integers"),
        (tiff(ramp()[..., 0].astype(np.float16)), "a TIFF file with 1 channel of 16-bit floating-point numbers"),
        (tiff(ramp().astype(np.uint16), photometric=2, planar=2), "16-bit channels in separate planes"),
    ],
)
def test_sound_files_that_pillow_cannot_read_are_not_called_damaged(data, reason):
    with pytest.raises(BadExample, match=reason) as caught:
        load_image(data)
    assert caught.value.kind == "photo unsupported" and "damaged" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ truncated files


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_a_cut_file_is_refused_unless_all_of_its_pixels_are_there(form):
    data = encode(Image.fromarray(ramp()), form)
    whole, accepted = load_image(data), []
    for length in range(len(data)):
        try:
            np.testing.assert_array_equal(load_image(data[:length]), whole)
        except BadExample as error:
            assert error.kind == "photo damaged", error
        else:
            accepted.append(length)
    # What follows the pixels of a PNG (checksum, end) and of a GIF (end) is not needed to read them.
    assert (len(data) - 1 in accepted) == (form in ("PNG", "GIF"))


# ------------------------------------------------------------------------------------------------------- plugins, paths


def test_avif_is_read_where_pillow_can(monkeypatch):
    pytest.importorskip("PIL._avif")
    data = encode(Image.fromarray(ramp()), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(load_image(data).astype(int) - ramp()).max() < 40
    monkeypatch.setattr("edgesam_jax.data.photo._has_plugin", lambda kind, module: False)
    with pytest.raises(BadExample, match=r"AVIF files can't be read; install Pillow 11\.3 or newer") as caught:
        load_image(data)
    assert caught.value.kind == "photo unsupported"


HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"heic") + b"pixels"


def test_heic_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(BadExample, match=r"a\.heic: HEIF files can't be read; .* pip install pillow-heif$"):
        load_image(HEIC, "a.heic")


def test_heic_is_read_through_its_plugin(monkeypatch):
    class Plugin(ImageFile.ImageFile):
        format, format_description = "HEIF", "a stand-in"

        def _open(self) -> None:
            self._mode, self._size = "RGB", (6, 4)

        def load(self) -> None:
            self.im = Image.new("RGB", (6, 4), (1, 2, 3)).im

    def register() -> None:
        Image.register_open("HEIF", Plugin, lambda head: head[4:8] == b"ftyp")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert load_image(HEIC).tolist() == [[[1, 2, 3]] * 6] * 4


def test_other_files_with_such_a_box_are_no_photos():
    with pytest.raises(BadExample, match="not an image in a supported format"):
        load_image(struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + b"a film")


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a/" * 3000 + "b.png", "a\0b.png"])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    with pytest.raises(BadExample) as caught:
        load_image(tmp_path / name)
    assert caught.value.kind == "file missing" and "\n" not in str(caught.value) and len(str(caught.value)) <= 2000


# ------------------------------------------------------------------------------------------------------------ data sets


def test_a_data_set_is_read_with_its_range(tmp_path):
    Image.fromarray(grey12()).save(tmp_path / "a.png")
    plain = open_source(DataConfig(source="images", root=str(tmp_path)), 64)
    ranged = open_source(DataConfig(source="images", root=str(tmp_path), pixel_range="0,4080"), 64)
    assert plain.load(0).image.max() < 16 and "--pixel-range 0,4095" in pixel_note(plain)
    np.testing.assert_array_equal(ranged.load(0).image[..., 0], ramp()[..., 0])
    assert pixel_note(ranged) == "" and ranged.names() == plain.names() and len(ranged) == 1
    assert plain.load(0).key != ranged.load(0).key  # an embedding is of pixels as they were read
    with pytest.raises(UsageError, match=r"data\.pixel_range 9: expected auto or LO,HI"):
        open_source(DataConfig(source="images", root=str(tmp_path), pixel_range="9"), 64)
