"Fetching, unpacking and verifying sets, against a server on this machine that misbehaves on purpose."

import contextlib
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fakd.cli import main
from fakd.core import FakdError
from fakd.data import download
from fakd.data.degrade import degrade
from fakd.data.download import data_get, data_list, data_verify, fetch, unpack
from fakd.data.sets import SETS, Archive
from fakd.images import write_image

NAMES = ("baby", "bird", "butterfly", "head", "woman")


def offer(monkeypatch, archive):
    "Set5 comes from this archive."
    monkeypatch.setitem(SETS, "Set5", replace(SETS["Set5"], archive=archive))


class Server(ThreadingHTTPServer):
    "Serves `files`; `cuts` says after how many bytes an answer is cut off, one a request; `seen` keeps Range headers."

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.seen, self.fails, self.silent, self.length = {}, [], [], [], False, None
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.headers.get("Range"))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        body = self.server.files.get(self.path[1:])
        if body is None or self.server.fails:
            self.send_error(self.server.fails.pop(0) if body is not None else 404)
            return
        tag, start = f'"{hashlib.sha256(body).hexdigest()[:8]}"', 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        rest = body[start:]
        self.send_header("ETag", tag)
        if not self.server.silent:
            self.send_header("Content-Length", self.server.length or str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.cuts.pop(0)] if self.server.cuts else rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setattr(download, "_SCHEMES", ("http",))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with Server() as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web
        web.shutdown()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr("fakd.data.sets.places", lambda path: [tmp_path / "project" / path])
    monkeypatch.setattr("fakd.data.download.root", lambda: tmp_path / "project")
    return tmp_path / "sets"


def picture(seed, h=50, w=39):
    small = np.random.default_rng(seed).integers(0, 256, (h // 6 + 2, w // 6 + 2, 3)).astype(np.uint8)
    return np.kron(small, np.ones((6, 6, 1), np.uint8))[:h, :w]


def benchmark_tar(folder):
    for i, name in enumerate(NAMES):
        write_image(folder / "benchmark/Set5/HR" / f"{name}.png", picture(i))
        write_image(folder / "benchmark/Set5/LR_bicubic/X4" / f"{name}x4.png", degrade(picture(i), 4))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as bundle:
        bundle.add(folder / "benchmark", "benchmark")
    return file.getvalue()


def test_a_set_is_fetched_unpacked_found_and_right(server, project, tmp_path, monkeypatch):
    server.files["benchmark.tar"] = benchmark_tar(tmp_path / "made")
    offer(monkeypatch, Archive(server.url + "benchmark.tar", 1, 1, ""))
    folder = data_get("Set5", project, progress=False)
    assert folder == project / "benchmark" / "Set5"
    assert data_verify("Set5", progress=False) == []
    assert [p.name for p in project.iterdir()] == ["benchmark"]                 # no archive and no part is left
    assert data_get("Set5", project, progress=False) == folder and len(server.seen) == 1  # not fetched again
    row = next(row for row in data_list() if row["set"] == "Set5")
    assert (row["here"], row["folder"], row["download"]) == ("5", str(folder), "")


def test_a_cut_off_download_goes_on_where_it_stopped(server, tmp_path):
    body = np.random.default_rng(0).bytes(300_000)
    server.files["a.bin"], server.cuts = body, [131_072, 65_536]
    archive = Archive(server.url + "a.bin", 1, 1, "", hashlib.sha256(body).hexdigest())
    assert fetch(archive, tmp_path, progress=False).read_bytes() == body
    assert server.seen == [None, "bytes=131072-", "bytes=196608-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_has_arrived_is_used_by_the_next_call(server, tmp_path):
    body = np.random.default_rng(0).bytes(90_000)
    server.files["a.bin"], server.cuts = body, [65_536]
    archive = Archive(server.url + "a.bin", 1, 1, "")
    with pytest.raises(FakdError, match="could not be downloaded .*kept and used by the next attempt.*By hand"):
        fetch(archive, tmp_path, progress=False, attempts=1)
    assert not (tmp_path / "a.bin").exists()
    assert fetch(archive, tmp_path, progress=False).read_bytes() == body
    assert server.seen[1] == "bytes=65536-"


def test_a_file_that_changed_on_the_server_is_taken_from_the_start(server, tmp_path):
    server.files["a.bin"], server.cuts = b"a" * 90_000, [65_536]
    archive = Archive(server.url + "a.bin", 1, 1, "")
    with pytest.raises(FakdError):
        fetch(archive, tmp_path, progress=False, attempts=1)
    server.files["a.bin"] = b"b" * 40_000
    assert fetch(archive, tmp_path, progress=False).read_bytes() == b"b" * 40_000


def test_a_server_error_is_tried_again_and_a_missing_file_is_not(server, tmp_path):
    server.files["a.bin"], server.fails = b"whole", [503, 500]
    assert fetch(Archive(server.url + "a.bin", 1, 1, ""), tmp_path, progress=False).read_bytes() == b"whole"
    assert len(server.seen) == 3
    with pytest.raises(FakdError, match="404"):
        fetch(Archive(server.url + "lost.bin", 1, 1, ""), tmp_path, progress=False)
    assert len(server.seen) == 4


def test_a_wrong_checksum_is_refused_and_leaves_no_file(server, tmp_path):
    server.files["a.bin"] = b"other"
    with pytest.raises(FakdError, match="another checksum"):
        fetch(Archive(server.url + "a.bin", 1, 1, "", "0" * 64), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_what_to_do_and_a_file_put_there_by_hand_is_used(project, tmp_path, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    offer(monkeypatch, Archive("https://127.0.0.1:9/benchmark.tar", 1, 1, ""))
    with pytest.raises(FakdError, match="By hand: download that address .* to .*benchmark.tar and call this again"):
        data_get("Set5", project, progress=False)
    (project / "benchmark.tar").write_bytes(benchmark_tar(tmp_path / "made"))
    assert data_get("Set5", project, progress=False) == project / "benchmark" / "Set5"


def test_a_broken_archive_is_deleted_and_fetched_anew(server, project, tmp_path, monkeypatch):
    body = benchmark_tar(tmp_path / "made")
    server.files["benchmark.tar"] = body[:3000]
    offer(monkeypatch, Archive(server.url + "benchmark.tar", 1, 1, ""))
    with pytest.raises(FakdError, match="broken archive"):
        data_get("Set5", project, progress=False)
    assert list(project.iterdir()) == []
    server.files["benchmark.tar"] = body
    assert data_get("Set5", project, progress=False).is_dir()


def test_too_little_disk_and_sets_without_an_archive_are_said_first(server, project, monkeypatch):
    offer(monkeypatch, Archive(server.url + "a.tar", 10**9, 10**9, ""))
    with pytest.raises(FakdError, match="needs 2000000000 MB of disk"):
        data_get("Set5", project, progress=False)
    with pytest.raises(FakdError, match="BSDS400: its publisher offers no archive"):
        data_get("BSDS400", project)
    with pytest.raises(FakdError, match='Did you mean "Set5"'):
        data_get("Set55", project)
    assert server.seen == []


def tar_with(member, path):
    with tarfile.open(path, "w") as bundle:
        bundle.addfile(tarfile.TarInfo("fine.txt"), io.BytesIO())
        bundle.addfile(member, io.BytesIO(b"evil"))


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/fakd-out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_member_escapes(name, kind, tmp_path):
    file = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as pack:
            pack.writestr("fine.txt", "")
            pack.writestr(name, "evil")
    else:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar_with(member, file)
    with pytest.raises(FakdError, match="would leave its folder; nothing was unpacked"):
        unpack(file, tmp_path / "sets" / "deep")
    assert list((tmp_path / "sets" / "deep").iterdir()) == [] and not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc/passwd"
    tar_with(member, tmp_path / "bad.tar")
    with pytest.raises(FakdError, match="link or device"):
        unpack(tmp_path / "bad.tar", tmp_path / "sets")
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as pack:
        pack.writestr(info, "/etc/passwd")
    with pytest.raises(FakdError, match="is a link"):
        unpack(tmp_path / "bad.zip", tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_damaged_archives_leave_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("a/one.txt", np.random.default_rng(0).bytes(5000))
        pack.writestr("a/two.txt", np.random.default_rng(1).bytes(5000))
    whole = (tmp_path / "a.zip").read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 255                                                         # CRC
    for body in (whole[:-3000], bytes(flipped), b"not an archive", b""):
        (tmp_path / "a.zip").write_bytes(body)
        with pytest.raises(FakdError, match="broken archive"):
            unpack(tmp_path / "a.zip", tmp_path / "sets")
        assert list((tmp_path / "sets").iterdir()) == []


def test_unpacking_keeps_what_is_there(tmp_path):
    (tmp_path / "sets/Set5/HR").mkdir(parents=True)
    (tmp_path / "sets/Set5/HR/mine.txt").write_text("mine")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        for name in ("mine", "new"):
            pack.writestr(f"Set5/HR/{name}.txt", "theirs")
    unpack(tmp_path / "a.zip", tmp_path / "sets")
    texts = {p.name: p.read_text() for p in (tmp_path / "sets/Set5/HR").iterdir()}
    assert texts == {"mine.txt": "mine", "new.txt": "theirs"}


def test_verify_names_each_bad_file(project, tmp_path):
    benchmark_tar(project)
    lr_dir = project / "benchmark/Set5/LR_bicubic/X4"
    assert data_verify("Set5", progress=False) == []
    (lr_dir / "babyx4.png").write_bytes(b"nothing")
    write_image(lr_dir / "birdx4.png", degrade(picture(1), 2))
    write_image(lr_dir / "butterflyx4.png", degrade(picture(99), 4))
    (project / "benchmark/Set5/HR/head.png").write_bytes((project / "benchmark/Set5/HR/head.png").read_bytes()[:60])
    (project / "benchmark/Set5/HR/woman.png").unlink()
    faults = "\n".join(data_verify("Set5", progress=False))
    assert "4 images instead of 5" in faults
    for words in ("babyx4.png: not a readable", "birdx4.png: 19x25 pixels instead of 9x12", "butterflyx4.png: ",
                  "head.png: not a readable"):
        assert words in faults, faults
    assert faults.count("\n") == 4


def test_verify_sees_an_lr_image_that_is_shifted_by_one_pixel(project):
    "Or a set whose LR images start at another phase: sizes and contents look right, scores do not."
    rng = np.random.default_rng(5)
    hr_img = np.kron(rng.integers(0, 256, (30, 26, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    write_image(project / "benchmark/Set5/HR/baby.png", hr_img)
    for scale in (2, 4):
        lr_img = degrade(hr_img, scale)
        moved = np.roll(lr_img, (1, 0), (0, 1)) if scale == 4 else lr_img
        write_image(project / f"benchmark/Set5/LR_bicubic/X{scale}/babyx{scale}.png", moved)
    count, fault = data_verify("Set5", progress=False)
    assert "1 images instead of 5" in count
    assert "babyx4.png: is shifted against its HR image by about 1 rows and 0 columns" in fault


@pytest.mark.parametrize("url", ["http://example.org/a.tar", "ftp://example.org/a.tar", "file:///etc/passwd", "a.tar"])
def test_only_https_is_asked(url, tmp_path, monkeypatch):
    monkeypatch.setattr("requests.get", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FakdError, match="begin with https"):
        fetch(Archive(url, 1, 1, ""), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert all(images.archive.url.startswith("https://") for images in SETS.values() if images.archive)


def test_a_way_round_that_leaves_https_is_refused(server, tmp_path, monkeypatch):
    "Here http stands for https, and the other way round."
    class Answer:
        history, url = [], "https://elsewhere.example/a.bin"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("requests.get", lambda *_, **__: Answer())
    with pytest.raises(FakdError, match="elsewhere.example/a.bin: accepted are"):
        fetch(Archive(server.url + "a.bin", 1, 1, ""), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_way_round_within_the_scheme_is_taken(server, tmp_path):
    server.files["a.bin"] = b"whole"
    archive = Archive(f"{server.url}to/{server.url}a.bin", 1, 1, "")
    assert fetch(archive, tmp_path, progress=False).read_bytes() == b"whole"


@pytest.mark.parametrize("length", ["many", "-5", "9" * 5000])
def test_a_length_that_is_none_is_passed_over(server, tmp_path, length):
    server.files["a.bin"], server.length = b"whole", length
    assert fetch(Archive(server.url + "a.bin", 1, 1, ""), tmp_path, progress=False).read_bytes() == b"whole"


@pytest.mark.parametrize("silent,said", [(False, "file is larger than 1 MB"), (True, "more than 1 MB came")])
def test_a_download_stops_at_the_size_that_the_archive_can_have(server, tmp_path, silent, said):
    server.files["a.bin"], server.silent = bytes(9_000_000), silent
    with pytest.raises(FakdError, match=said):
        fetch(Archive(server.url + "a.bin", 1, 1, ""), tmp_path, progress=False)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".tag"]


def test_encrypted_nested_and_oversized_archives_are_refused(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as pack:
        pack.writestr("HR/a.png", "x")
    with tarfile.open(tmp_path / "nested.tar", "w") as bundle:
        member = tarfile.TarInfo("inner.zip")
        member.size = len(inner.getvalue())
        bundle.addfile(member, io.BytesIO(inner.getvalue()))
    unpack(tmp_path / "nested.tar", tmp_path / "sets")
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["inner.zip"]  # not what is in it
    locked = bytearray(inner.getvalue())
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(FakdError, match="HR/a.png is encrypted"):
        unpack(tmp_path / "locked.zip", tmp_path / "sets")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("a.bin", bytes(5_000_000))
    with pytest.raises(FakdError, match="need more room"):
        unpack(tmp_path / "bomb.zip", tmp_path / "sets", most=1_000_000)
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["inner.zip"]
    with pytest.raises(FakdError, match="folder"):
        unpack(tmp_path, tmp_path / "sets")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_bytes_of_an_archive_that_are_overwritten_end_in_one_kind_of_error(tmp_path, kind):
    noise = np.random.default_rng(3)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as pack:
            pack.writestr("a/one.txt", noise.bytes(400))
    else:
        with tarfile.open(tmp_path / f"a.{kind}", f"w:{kind[4:]}") as bundle:
            member = tarfile.TarInfo("a/one.txt")
            member.size = 400
            bundle.addfile(member, io.BytesIO(noise.bytes(400)))
    whole = (tmp_path / f"a.{kind}").read_bytes()
    for _ in range(150):
        body = bytearray(whole)
        for place in noise.integers(min(len(body), 1200), size=3):
            body[place] = noise.integers(256)
        (tmp_path / "b").write_bytes(body)
        with contextlib.suppress(FakdError):
            unpack(tmp_path / "b", tmp_path / "sets")


def test_names_of_members_that_are_none(tmp_path):
    for name in (".", "./", "a\0b"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
            info = zipfile.ZipInfo("x")
            info.filename = name
            pack.writestr(info, "evil")
        with contextlib.suppress(FakdError):
            unpack(tmp_path / "a.zip", tmp_path / "sets")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".unpacking")]


def test_verify_tells_which_lr_images_a_set_has(project, capsys):
    benchmark_tar(project)
    assert download.data_lr_sources("Set5") == (
        "LR images: x2, x3, x8 made from HR by MATLAB's bicubic; x4 own, of LR_bicubic/X4")
    write_image(project / "own/HR/a.png", picture(0))
    write_image(project / "own/LR_wild/x2/a.png", 255 - degrade(picture(0), 2))
    assert main(["data", "verify", str(project / "own")]) == 1
    said = capsys.readouterr().out
    assert "x2 own, of LR_wild/x2" in said and "does not show what its HR image shows" in said
