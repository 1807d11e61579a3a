"""Image files: right in every pixel or refused by name, and never more memory than was said."""

import io
import os
import re
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from fakd.core import FakdError
from fakd.images import Picture, image_size, list_images, read_image, read_picture, write_picture

PHOTO = data.astronaut()[50:114, 200:280]
GREY = np.ascontiguousarray(PHOTO[:, :, 0])
DEEP = PHOTO.astype(np.uint16) * 257
THREE = np.repeat(GREY[:, :, None], 3, axis=2)


def tiff(path, pixels, **kind):
    tifffile.imwrite(path, pixels, **kind)
    return path


RIGHT = {
    "16-bit planar": (np.moveaxis(DEEP, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, PHOTO),
    "16-bit tiles": (DEEP, {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}, PHOTO),
    "16-bit white is zero": (65535 - GREY.astype(np.uint16) * 257, {"photometric": "miniswhite"}, THREE),
    "16-bit grey": (GREY.astype(np.uint16) * 257, {"photometric": "minisblack"}, THREE),
    "16-bit alpha": (np.dstack([DEEP, DEEP[:, :, 0]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, PHOTO),
    "16-bit, fourth unspecified": (
        np.dstack([DEEP, DEEP[:, :, 0]]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, PHOTO),
    "8-bit planar": (np.moveaxis(PHOTO, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, PHOTO),
    "8-bit white is zero": (255 - GREY, {"photometric": "miniswhite"}, THREE),
    "8-bit grey and alpha": (np.dstack([GREY, GREY]), {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
                             THREE),
    "1-bit": (GREY > 99, {"photometric": "minisblack"}, (THREE > 99) * np.uint8(255)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_tiff_kinds_are_right_for_training_and_for_the_command_alike(tmp_path, name):
    pixels, kind, truth = RIGHT[name]
    file = tiff(tmp_path / "x.tif", pixels, **kind)
    np.testing.assert_array_equal(read_image(file), truth)
    exact = read_picture(file).pixels
    unit = 257 if exact.dtype == np.uint16 else 1
    np.testing.assert_array_equal(exact[:, :, :1], truth[:, :, :1].astype(int) * unit)
    assert image_size(file) == truth.shape[:2]


@pytest.mark.parametrize("pixels,kind", [
    ((GREY / 255).astype(np.float32), {"photometric": "minisblack"}),
    ((GREY / 255).astype(np.float16), {"photometric": "minisblack"}),
    (GREY / 255, {"photometric": "minisblack"}),
    (GREY.view(np.int8), {"photometric": "minisblack"}),
    (GREY.astype(np.int16), {"photometric": "minisblack"}),
    (GREY.astype(np.uint32), {"photometric": "minisblack"}),
    (np.dstack([PHOTO, GREY, GREY]), {"photometric": "rgb", "extrasamples": ["unassalpha", "unspecified"]}),
    (np.dstack([DEEP, DEEP[:, :, 0]]), {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    (np.stack([GREY, GREY]), {"photometric": "minisblack"}),
])
def test_tiff_kinds_without_a_known_meaning_are_refused_everywhere(tmp_path, pixels, kind):
    file = tiff(tmp_path / "x.tif", pixels, **kind)
    for read in (read_image, read_picture):
        with pytest.raises(FakdError, match="x.tif: not a readable image"):
            read(file)


def test_16_bits_are_scaled_and_rounded(tmp_path):
    values = np.array([0, 128, 129, 385, 386, 65406, 65407, 65535], np.uint16)
    for suffix in (".png", ".tif"):
        write_picture(tmp_path / f"x{suffix}", Picture(np.repeat(values[None, :, None], 3, axis=2)))
        expected = np.floor(values / 257 + 0.5)
        np.testing.assert_array_equal(read_image(tmp_path / f"x{suffix}")[0, :, 0], expected)


def test_eps_hidden_in_a_png_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    Image.fromarray(PHOTO).save(buffer := io.BytesIO(), "EPS")
    gif = io.BytesIO()
    Image.fromarray(PHOTO).save(gif, "GIF")
    for k, content in enumerate((buffer.getvalue(), gif.getvalue(), b"", b"\x89PNG\r\n\x1a\n", b"II*\0", b"P6\n")):
        (tmp_path / f"{k}.png").write_bytes(content)
        for read in (read_image, image_size):
            with pytest.raises(FakdError, match=f"{k}.png: not a readable image"):
                read(tmp_path / f"{k}.png")


def test_every_opening_by_pillow_names_its_formats():
    sources = [p for p in (Path(__file__).parents[1] / "fakd").rglob("*.py") if "Image.open(" in p.read_text()]
    assert [p.name for p in sources] == ["images.py"]
    assert all("formats=" in call for call in re.findall(r"Image\.open\([^\n]*", sources[0].read_text()))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(tmp_path / "s.png"))
        (tmp_path / "device.png").symlink_to("/dev/zero")
        (tmp_path / "lost.png").symlink_to("/no/such/place")
        for file in list_images(tmp_path):
            for read in (read_image, read_picture, image_size):
                with pytest.raises(FakdError, match="no ordinary file|no such image file"):
                    read(file)
    with pytest.raises(FakdError, match="no such image file"):
        read_image(tmp_path / "pipe.png" / "x.png")
    with pytest.raises(FakdError, match="null"):
        read_image("a\0.png")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, data):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def patch_tiff(path, **values):
    "Overwrite tags of the first page in place."
    with tifffile.TiffFile(path) as file:
        tags = {name: (file.pages[0].tags[name].valueoffset, file.pages[0].tags[name].dtype) for name in values}
    body = bytearray(path.read_bytes())
    for name, value in values.items():
        struct.pack_into({3: "<H", 4: "<I"}[tags[name][1]], body, tags[name][0], value)
    path.write_bytes(body)


def peak_kb():
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory counters")
@pytest.mark.parametrize("name", ["deep.tif", "shallow.tif", "tile.tif", "deep.png", "inflated.png", "inflated.tif",
                                  "grey.png", "x.bmp", "x.ppm"])
def test_small_files_that_claim_much_are_refused_before_they_are_decoded(tmp_path, name):
    "Each claims or unpacks to 300 MB or more, and 100 MB may be taken."
    file, empty = tmp_path / name, zlib.compress(bytes(300 << 20), 9)
    if name.endswith("tif"):
        pixels = PHOTO if name == "shallow.tif" else DEEP
        tile = {"tile": (8192, 8192)} if name == "tile.tif" else {"rowsperstrip": 64}
        tifffile.imwrite(file, pixels, photometric="rgb", compression="zlib", **tile)
        if name == "inflated.tif":  # 64 x 80 pixels, whose data unpack to 300 MB
            patch_tiff(file, StripOffsets=file.stat().st_size, StripByteCounts=min(len(empty), 65535))
            file.write_bytes(file.read_bytes() + empty)
        elif name != "tile.tif":
            patch_tiff(file, ImageWidth=8000, ImageLength=8000)
    elif name == "x.bmp":
        Image.fromarray(PHOTO).save(file)
        body = bytearray(file.read_bytes())
        struct.pack_into("<ii", body, 18, 12000, 12000)
        file.write_bytes(body)
    elif name == "x.ppm":
        file.write_bytes(b"P6 12000 12000 255\n" + bytes(100))
    else:
        sides, depth, colour = {"deep.png": (8000, 16, 2), "grey.png": (13000, 8, 0), "inflated.png": (8, 16, 2)}[name]
        file.write_bytes(png(sides, sides, depth, colour, empty))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kb()
    with pytest.raises(FakdError, match="MB to decode|more data than its size says"):
        read_picture(file, memory_mb=100)
    assert peak_kb() - before < 60_000


@pytest.mark.parametrize("name, why", [("lzma.tif", "compressed by"), ("layers.tif", "16 layers"),
                                       ("holes.png", "a file of .* MB"), ("holes.bmp", "a file of .* MB")])
def test_what_nothing_bounds_is_refused_by_its_header(tmp_path, name, why):
    "LZMA of small pictures that unpacks to gigabytes, layers that no size counts, files that are mostly holes."
    file = tmp_path / name
    if name == "lzma.tif":
        tifffile.imwrite(file, DEEP, photometric="rgb", compression="lzma")
    elif name == "layers.tif":
        tifffile.imwrite(file, np.zeros((16, 16, 16), np.uint16), photometric="minisblack", volumetric=True,
                         tile=(16, 16, 16))
    else:
        Image.fromarray(PHOTO).save(file)
        os.truncate(file, 2**42)
    for read in (read_picture, read_image) if name.endswith("tif") else (read_picture, read_image, image_size):
        with pytest.raises(FakdError, match=why):
            read(file)


def test_a_flipped_bit_in_a_png_is_seen(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    whole, draw = (tmp_path / "x.png").read_bytes(), np.random.default_rng(0)
    for place in [*draw.integers(len(whole) * 8, size=200), (len(whole) - 28) * 8, (len(whole) - 60) * 8]:
        body = bytearray(whole)
        body[place // 8] ^= 1 << (place % 8)
        (tmp_path / "x.png").write_bytes(body)
        try:
            np.testing.assert_array_equal(read_image(tmp_path / "x.png"), PHOTO)
        except FakdError as fault:
            assert "not a readable image" in str(fault)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".ppm"])
def test_a_cut_off_file_is_refused(tmp_path, suffix):
    file = tmp_path / f"x{suffix}"
    Image.fromarray(PHOTO).save(file)
    assert read_image(file).shape == PHOTO.shape
    whole = file.read_bytes()
    for share in (0.3, 0.6, 0.9):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FakdError, match="not a readable image"):
            read_image(file)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_several_pictures_in_a_file_are_refused_and_a_phones_preview_is_left(tmp_path, suffix):
    first, second = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())
    first.save(tmp_path / f"x{suffix}", save_all=True, append_images=[second])
    for read in (read_image, read_picture):
        with pytest.raises(FakdError, match="it holds 2 pictures"):
            read(tmp_path / f"x{suffix}")
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(read_image(tmp_path / "phone.jpg").astype(int) - PHOTO).mean() < 3


def test_modes_of_eight_bits_and_less(tmp_path):
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    for mode, truth in {"LA": np.dstack([THREE, alpha]), "RGBA": np.dstack([PHOTO, alpha])}.items():
        part = truth if mode == "RGBA" else truth[:, :, 2:]
        Image.fromarray(part).save(tmp_path / "x.png")
        np.testing.assert_array_equal(read_image(tmp_path / "x.png"), truth[:, :, :3])
        np.testing.assert_array_equal(read_picture(tmp_path / "x.png").pixels, part)
    Image.fromarray(GREY > 99).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), (THREE > 99) * 255)
    few = Image.fromarray(PHOTO).quantize(7)
    few.save(tmp_path / "p.png", transparency=2)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(few.convert("RGB")))
    assert read_picture(tmp_path / "p.png").pixels.shape[2] == 4


def test_an_upright_size_is_that_of_the_upright_pixels(tmp_path):
    for note in range(1, 9):
        exif = Image.Exif()
        exif[274] = note
        for suffix in (".jpg", ".png", ".tif", ".webp"):
            Image.fromarray(PHOTO).save(tmp_path / f"x{suffix}", exif=exif)
            assert image_size(tmp_path / f"x{suffix}") == read_image(tmp_path / f"x{suffix}").shape[:2]


def test_what_a_killed_write_left_is_no_image(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    for name in (".a-x1y2z3.png", "._a.png"):
        (tmp_path / name).write_bytes(b"half")
    assert [p.name for p in list_images(tmp_path)] == ["a.png"]
