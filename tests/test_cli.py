"The command `fakd`: files of every kind, and what happens to those that fail."

import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps
from torch import nn

import fakd
from fakd.cli import find_jobs, main, upscale_files
from fakd.core import FakdError
from fakd.images import Picture, read_image, read_picture, write_image, write_picture
from fakd.nets.weights import save_weights
from fakd.nets.zoo import make_net

RAMP = np.arange(9 * 7 * 4, dtype=np.uint8).reshape(9, 7, 4)
DEEP = np.random.default_rng(0).integers(65536, size=(9, 7, 4), dtype=np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_weights(make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)", 2), path)
    return str(path)


@pytest.fixture
def album(tmp_path, monkeypatch):
    "A folder of many kinds of images, one of them broken; the current folder is the one above."
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "album"
    for channels in (1, 2, 3, 4):
        write_picture(folder / f"eight{channels}.png", Picture(RAMP[:, :, :channels], PROFILE))
        write_picture(folder / f"deep{channels}.png", Picture(DEEP[:, :, :channels]))
    write_picture(folder / "deep.tif", Picture(DEEP))
    Image.fromarray(RAMP[:, :, :3]).save(folder / "photo.jpg")
    data = (folder / "eight3.png").read_bytes()
    (folder / "broken.png").write_bytes(data[: len(data) // 2])
    return folder


def test_one_bad_file_is_named_and_the_rest_is_done(album, weights, capsys):
    assert main(["upscale", "album", "-o", "out", "-w", weights]) == 1
    said = capsys.readouterr().out
    assert "failed: album/broken.png: not a readable image" in said and "10 upscaled, 0 skipped, 1 failed; x2, " in said
    made = {p.name: read_picture(p) for p in Path("out").iterdir()}
    assert sorted(made) == sorted(f"{p.stem}.png" for p in album.iterdir() if p.stem != "broken") and len(made) == 10
    for name, picture in made.items():
        source = read_picture(next(p for p in album.iterdir() if p.stem == Path(name).stem))
        assert picture.pixels.shape == (18, 14, source.pixels.shape[2]) and picture.profile == source.profile
        assert picture.pixels.dtype == source.pixels.dtype


def test_what_exists_is_skipped_and_made_anew_only_if_asked(album, weights, capsys):
    (album / "broken.png").unlink()
    command = ["upscale", "album/e*.png", "-o", "out", "-w", weights]
    assert main(command) == 0
    Path("out/eight1.png").write_bytes(b"mine")
    Path("out/eight2.png").unlink()
    assert main([*command, "--skip-existing"]) == 0
    assert "1 upscaled, 3 skipped (result exists; --overwrite makes it anew), 0 failed" in capsys.readouterr().out
    assert Path("out/eight1.png").read_bytes() == b"mine"
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert read_picture("out/eight1.png").pixels.shape == (18, 14, 1) and capsys.readouterr().out == ""


def test_ctrl_c_keeps_what_is_done_and_leaves_nothing_half_done(album):
    def net(lr_imgs):
        if Path("out/deep2.png").exists():
            raise KeyboardInterrupt
        return lr_imgs

    net.scale = 1
    tally = upscale_files(net, find_jobs(["album/deep?.png"], "out"), progress=False)
    assert tally.stopped and "stopped by Ctrl-C" in str(tally)
    assert sorted(p.name for p in Path("out").iterdir()) == ["deep1.png", "deep2.png"]


def test_a_write_that_fails_leaves_nothing(album, monkeypatch):
    def full(path, picture):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fakd.images._save_png16", full)
    tally = upscale_files(nn.Upsample(scale_factor=2), find_jobs(["album/deep3.png"], "out"), progress=False)
    assert "No space left" in tally.failed[Path("album/deep3.png")] and list(Path("out").iterdir()) == []


@pytest.mark.parametrize("command,said", [
    (["absent.png", "-o", "out"], "absent.png: no such file or folder"),
    (["album", "-o", "album"], "would replace an image that goes in"),
    (["album/eight1.png", "-o", "album/eight1.png"], "would replace an image that goes in"),
    (["album", "-o", "out.png"], "one file cannot hold 11 results"),
    (["album/eight1.png", "-o", "out.bmp"], 'out.bmp: cannot write ".bmp". Known: .png .tif'),
    (["album/eight1.png", "-o", "out", "--device", "gpu"], 'unknown device "gpu"'),
])
def test_wrong_use_stops_before_work(album, weights, capsys, command, said):
    (album / "deep.tif").unlink()
    (album / "more.png").write_bytes((album / "deep1.png").read_bytes())
    assert main(["upscale", *command, "-w", weights]) == 2
    assert said in capsys.readouterr().err and not Path("out").exists()


def test_results_that_would_share_a_place_are_refused(album, weights, capsys):
    (album / "eight1.jpg").write_bytes((album / "photo.jpg").read_bytes())
    assert main(["upscale", "album", "-o", "out", "-w", weights]) == 2
    assert "album/eight1.jpg and album/eight1.png would both become out/eight1.png" in capsys.readouterr().err


def test_wrong_weights_are_named(album, capsys, tmp_path):
    assert main(["upscale", "album", "-o", "out", "-w", "absent.safetensors"]) == 2
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    assert main(["upscale", "album/eight1.png", "-o", "out", "-w", "noise.onnx"]) == 2
    said = capsys.readouterr().err
    assert "absent.safetensors: no such weights file" in said and "noise.onnx: not a readable ONNX file" in said


def test_onnx_runs_on_the_command_line(album, weights, tmp_path):
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    ends = [helper.make_tensor_value_info(name, 1, [None, 3, None, None]) for name in "ab"]
    sizes = helper.make_tensor("s", 1, [4], [1, 1, 3, 3])
    resize = helper.make_node("Resize", ["a", "", "s"], ["b"])
    graph = helper.make_graph([resize], "thrice", ends[:1], ends[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "thrice.onnx").write_bytes(model.SerializeToString())
    assert main(["upscale", "album/deep3.png", "-o", "large.tif", "-w", "thrice.onnx", "-q"]) == 0
    assert (read_picture("large.tif").pixels == np.kron(DEEP[:, :, :3], np.ones((3, 3, 1), np.uint16))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_are_turned_upright(tmp_path, orientation, suffix):
    img, exif = Image.fromarray(RAMP[:, :, :3]), Image.Exif()
    exif[274] = orientation
    img.save(tmp_path / f"x{suffix}", exif=exif)
    with Image.open(tmp_path / f"x{suffix}") as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    assert (read_picture(tmp_path / f"x{suffix}").pixels == expected).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_deep_tiff_files_are_turned_upright_as_shallow_ones(tmp_path, orientation):
    tifffile.imwrite(tmp_path / "x.tif", DEEP[:, :, :3], photometric="rgb", byteorder=">",
                     extratags=[(274, "H", 1, orientation, True)])
    expected = {1: DEEP, 3: DEEP[::-1, ::-1], 6: np.rot90(DEEP, -1)}[orientation]
    assert (read_picture(tmp_path / "x.tif").pixels == expected[:, :, :3]).all()


def test_deep_tiff_files_with_one_plane_a_channel_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.moveaxis(DEEP[:, :, :3], 2, 0), photometric="rgb", planarconfig="separate")
    assert (read_picture(tmp_path / "x.tif").pixels == DEEP[:, :, :3]).all()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_one_transparent_colour_of_a_deep_png_becomes_alpha(tmp_path):
    write_picture(tmp_path / "x.png", Picture(DEEP[:, :, :3]))
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[:33] + _chunk(b"tRNS", struct.pack(">HHH", *DEEP[2, 3, :3])) + data[33:])
    pixels = read_picture(tmp_path / "x.png").pixels
    assert (pixels[:, :, :3] == DEEP[:, :, :3]).all() and pixels[2, 3, 3] == 0 and pixels[2, 4, 3] == 65535


@pytest.mark.parametrize("mode,channels", [("1", 1), ("P", 3), ("CMYK", 3), ("YCbCr", 3), ("I;16", 1)])
def test_other_modes_are_converted(tmp_path, mode, channels):
    img = Image.fromarray(RAMP[:, :, 0].astype(np.uint16) * 257 if mode == "I;16" else RAMP[:, :, :3])
    (img if mode == "I;16" else img.convert(mode)).save(tmp_path / "x.tif", icc_profile=PROFILE)
    picture = read_picture(tmp_path / "x.tif")
    assert picture.pixels.shape == (9, 7, channels)
    assert picture.profile == (None if mode in ("CMYK", "YCbCr") else PROFILE)


def test_a_palette_with_a_transparent_entry_has_alpha(tmp_path):
    img = Image.fromarray(RAMP[:, :, :3]).quantize(8)
    img.save(tmp_path / "x.png", transparency=3)
    pixels = read_picture(tmp_path / "x.png").pixels
    assert (pixels[:, :, 3] == np.where(np.asarray(img) == 3, 0, 255)).all()


def test_what_would_lose_something_is_refused(tmp_path):
    frames = [Image.fromarray(RAMP[:, :, 0]), Image.fromarray(RAMP[:, :, 1])]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(RAMP[:, :, 0].astype(np.float32)).save(tmp_path / "float.tif")
    tifffile.imwrite(tmp_path / "cmyk.tif", DEEP, photometric="separated")
    (tmp_path / "deep.ppm").write_bytes(b"P6 # made by hand\n2 1\n65535\n" + bytes(12))
    told = {"two.tif": "it holds 2 pictures", "float.tif": "float32", "cmyk.tif": "SEPARATED of type uint16",
            "deep.ppm": "of 16-bit colour, PNG and TIFF"}
    for name, said in told.items():
        with pytest.raises(FakdError, match=said):
            read_picture(tmp_path / name)
    for name, pixels, said in (("x.jpg", RAMP, "transparency"), ("x.webp", DEEP, "16 bits"), ("x.gif", RAMP, "Known")):
        with pytest.raises(FakdError, match=said):
            write_picture(tmp_path / name, Picture(pixels))


@pytest.mark.parametrize("cut", [40, 80, 200])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_cut_off_deep_files_are_not_readable(tmp_path, suffix, cut):
    write_picture(tmp_path / f"x{suffix}", Picture(DEEP))
    data = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(data[:cut])
    with pytest.raises(FakdError, match="not a readable image"):
        read_picture(tmp_path / f"x{suffix}")


def test_sets_are_listed_and_verified(capsys):
    assert main(["data", "list"]) == 0
    assert "Urban100" in capsys.readouterr().out
    assert main(["data", "verify", "sample-eval"]) == 0
    assert capsys.readouterr().out.endswith("sample-eval: no faults\n")
    assert main(["data", "get", "Set6"]) == 2
    assert 'Did you mean "Set5"' in capsys.readouterr().err


def test_faults_of_a_set_are_told(tmp_path, capsys):
    for name in "ab":
        write_picture(tmp_path / "set" / f"{name}.png", Picture(RAMP[:, :, :3]))
    (tmp_path / "set" / "a.png").write_bytes(b"noise")
    assert main(["data", "verify", str(tmp_path / "set")]) == 1
    assert "a.png" in capsys.readouterr().out


def test_the_command_starts_without_any_extra():
    "With the packages of the extras out of reach."
    extras = "['onnx', 'onnxruntime', 'onnxscript', 'spandrel']"
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); from fakd.cli import main; main(['--version'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, f"fakd {fakd.__version__}\n"), run.stderr


def test_unknown_commands_and_missing_options_show_the_usage(capsys):
    for command in (["upscal"], ["upscale", "x.png"], []):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2 and "usage: fakd" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_named(album, weights, monkeypatch, capsys):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("fakd.cli.list_images", refuse)
    assert main(["upscale", "album", "-o", "out", "--weights", str(weights)]) == 2
    assert capsys.readouterr().err == "fakd: album: Permission denied\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_leaves_whole_results_and_goes_on(tmp_path, weights):
    noise = np.random.default_rng(0).integers(256, size=(6, 160, 160, 3), dtype=np.uint8)
    for k, img in enumerate(noise):
        write_image(tmp_path / "in" / f"{k}.png", img)
    command = [sys.executable, "-c", "import sys; from fakd.cli import main; sys.exit(main())"]
    command += ["upscale", "in", "-o", "out", "--weights", weights]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (done := list((tmp_path / "out").glob("[0-9].png"))) and run.poll() is None:
        time.sleep(0.002)
    run.kill()
    run.wait()
    assert done and all(read_image(path).shape == (320, 320, 3) for path in (tmp_path / "out").glob("[0-9].png"))
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert " skipped (result exists" in again.stdout and ", 0 failed; x2, " in again.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("[0-9].png")) == [f"{k}.png" for k in range(6)]
