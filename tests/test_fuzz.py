"""Two thousand broken inputs of every kind: each gives a right value or one FakdError, and nothing in them is run.

Half of the changes are random bytes, half know the format: they change a header, a shape, a name, a cell, a value.
`FAKD_FUZZ=20000 pytest tests/test_fuzz.py` tries more of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import resource
import struct
import tarfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import make_run_fixture
from PIL import Image
from safetensors.torch import save

from fakd.core import FakdError, parse_spec
from fakd.data.download import unpack
from fakd.data.pairs import ImageCache, ImagePair
from fakd.data.patches import Patches
from fakd.data.sets import image_set
from fakd.distil.loss import DistillLoss, check_spec, needs_of
from fakd.images import image_size, read_image
from fakd.look.maps import AffinityRows, read_affinity
from fakd.look.training import read_progress
from fakd.nets.foreign import load_any
from fakd.nets.zoo import make_net, net_spec, parse_net
from fakd.record import read_record
from fakd.run_folder import Run, find_runs, read_history
from fakd.study.config import EvaluateConfig, find_weights
from fakd.train.checkpoint import load_run, save_checkpoint
from fakd.train.config import DistillConfig, TeacherConfig
from fakd.train.schedules import learn_rate_at
from fakd.train.trainer import Trainer, restore, trainer_state

COUNT = int(os.environ.get("FAKD_FUZZ", 2000))
SEED = int(os.environ.get("FAKD_FUZZ_SEED", 0))
SPEC = "rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)"
MEMORY = 2 * 2**30  # what one input may take at most


class Door:
    "One way in: valid inputs, changes that know their form, and the call that takes a changed one."

    def __init__(self, name: str, share: float, make: Callable[[random.Random], Any], enter: Callable[[Any], Any]):
        self.name, self.share, self.make, self.enter = name, share, make, enter


# Changes


def shaken(data: bytes, draw: random.Random) -> bytes:
    "Some bytes of a file changed, moved, repeated, lost or cut off."
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            return b""
        a, b = sorted((draw.randrange(len(out) + 1), min(len(out), draw.randrange(len(out) + 1))))
        if draw.random() < 0.6:  # near the beginning, where headers are
            a, b = a % min(len(out), 256), a % min(len(out), 256) + draw.randrange(1, 9)
        kind = draw.randrange(7)
        if kind == 0:
            out[a % len(out)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[a:b] = draw.randbytes(b - a if b - a < 64 else 8)
        elif kind == 2:
            out[a:a] = draw.choice((b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"9" * 400, b"\n", b",", b'"'))
        elif kind == 3:
            out[a:a] = out[a:b][:4096]
        elif kind == 4:
            del out[a:b]
        elif kind == 5:
            out[a:b] = draw.choice((b"\0", b"\xff")) * (b - a)
        else:
            del out[a:]
    return bytes(out)


WEIRD = (
    None, True, 0, -1, 1, 2**31, 2**63, -(2**70), 10**30, 0.5, 1e300, "", "x", "9" * 30, "\0", "a/../../b", "\ud7ff",
    "1e999", [], {}, [[]], {"": None}, [0] * 9, {"a": {"b": [None]}}, 3.0, "NaN", "\U0001f986" * 50, list(range(5)),
)  # fmt: skip


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    "Every place in nested containers: the container and the key."
    found, waiting, seen = [], [tree], set()
    while waiting:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        pairs = here.items() if isinstance(here, dict) else enumerate(here)
        for key, value in list(pairs):
            found.append((here, key))
            if isinstance(value, (dict, list)):
                waiting.append(value)
    return found


def cloned(tree: Any, known: dict[int, Any] | None = None) -> Any:
    "Containers anew, also one inside itself; what is in them stays."
    known = {} if known is None else known
    if id(tree) in known:
        return known[id(tree)]
    if isinstance(tree, dict):
        new: Any = known.setdefault(id(tree), {})
        new.update({k: cloned(v, known) for k, v in tree.items()})
        return new
    if isinstance(tree, list):
        new = known.setdefault(id(tree), [])
        new.extend(cloned(v, known) for v in tree)
        return new
    return tree


def bent(tree: Any, draw: random.Random, values: tuple[Any, ...] = WEIRD) -> Any:
    "Nested values of which some are others, gone, doubled, wrapped or under another name."
    tree = cloned(tree)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = nodes(tree)
        if not places:
            return cloned(draw.choice(values))
        here, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind == 0:
            del here[key]
        elif kind == 1 and isinstance(here, dict):
            here[draw.choice(("x", f"{key}.", str(key).upper(), "", "0", f"module.{key}"))] = here.pop(key)
        elif kind == 2:
            here[key] = [here[key]]
        elif kind == 3:
            here[key] = cloned(draw.choice(places)[0])
        else:
            here[key] = cloned(draw.choice(values))
    return tree


def respelt(text: str, draw: random.Random) -> str:
    "A text with characters and pieces changed, as hands and programs do."
    pieces = (
        "(", ")", "[", "]", "+", "*", ",", "=", "-", ".", "e", "nan", "inf", "1e999", "None", "True", "0", "9" * 30,
        "{", "}", "'", '"', "\\", "\n", "\0", " ", "\xe9", "SA", "rcan", "(k=2)", "*" * 3, "((", "1e", "0x", "//", "~",
        "~nobody", "..", "/dev/zero", "a" * 300, "lambda:0", "__import__('os')", "(-1)", "k=", "\ud800", "%s", "$",
    )  # fmt: skip
    for _ in range(draw.choice((1, 1, 2, 3))):
        a = draw.randrange(len(text) + 1)
        b = min(len(text), a + draw.randrange(4))
        piece = draw.choice((draw.choice(pieces), draw.choice(pieces), text[a:b] * 2, ""))
        text = text[:a] + piece + text[draw.choice((a, b)):] if draw.random() < 0.9 else (2 * text)[:1000]
    return text


def odd_tensors() -> tuple[Any, ...]:
    "What a hostile file may hold where weights should be."
    inside: list[Any] = []
    inside.append(inside)
    return (
        torch.zeros(8, 3, 3, 3, device="meta"), torch.zeros(1).expand(10**5, 10**5), torch.zeros(3, 3).to_sparse(),
        torch.zeros(8, 3, 3, 3, dtype=torch.complex64), torch.zeros(8, 3, 3, 3, dtype=torch.int64), torch.zeros(()),
        torch.zeros(0), torch.zeros(0, 3, 3, 3), torch.full((8, 3, 3, 3), math.nan), torch.zeros(8, 3, 3, 3).double(),
        torch.zeros(8, 3, 3, 3).to(torch.float8_e5m2), torch.zeros(8, 3, 3, 3, dtype=torch.bool), inside,
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), torch.zeros(2**20)[:1], Canary(), *WEIRD,
    )  # fmt: skip


class Canary:
    "A pickle that would leave a file behind if it were run."

    path = ""

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)

# Doors


def weights_doors(folder: Path) -> list[Door]:
    state = dict(make_net(SPEC, 2).state_dict())
    notes = {"format": "fakd", "spec": SPEC, "scale": "2", "assumptions": "[]"}
    sound = save(state, notes)
    length = struct.unpack("<Q", sound[:8])[0]
    header, odd = json.loads(sound[8 : 8 + length]), odd_tensors()

    def tensors(draw: random.Random) -> bytes:
        if draw.random() < 0.4:
            return shaken(sound, draw)
        if draw.random() < 0.5:
            told = {k: respelt(v, draw) if draw.random() < 0.4 else v for k, v in notes.items()}
            text = json.dumps({**header, "__metadata__": told}).encode()
        else:
            text = json.dumps(bent(header, draw)).encode()
        return struct.pack("<Q", len(text)) + text + sound[8 + length :]

    def pickle(draw: random.Random) -> bytes:
        made = draw.choice((state, {"params": state}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}))
        buffer = io.BytesIO()
        zipped = draw.random() < 0.7
        made = bent(made, draw, odd) if draw.random() < 0.7 else made
        torch.save(made, buffer, _use_new_zipfile_serialization=zipped)
        data = buffer.getvalue()
        if zipped and draw.random() < 0.3:
            return shaken_zip(data, draw)
        return shaken(data, draw) if draw.random() < 0.3 else data

    def enter(suffix: str) -> Callable[[bytes], Any]:
        def read(data: bytes) -> Any:
            path = folder / f"w{suffix}"
            path.write_bytes(data)
            net = load_any(path)
            assert net.scale in (2, 3, 4, 8) and all(p.dtype == torch.float32 for p in net.parameters())
            assert all(p.isfinite().all() for p in net.parameters())
            return net_spec(net)

        return read

    return [Door("safetensors", 2, tensors, enter(".safetensors")), Door("pth", 2, pickle, enter(".pth"))]


def shaken_zip(data: bytes, draw: random.Random) -> bytes:
    "A zip of which one member is changed, with sums that hold."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        hit = draw.choice(members)
        for member in members:
            body = old.read(member)
            new.writestr(member.filename, shaken(body, draw) if member is hit else body,
                         draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def onnx_doors(folder: Path) -> list[Door]:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fakd.nets.onnx import OnnxNet

    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = [onnx.numpy_helper.from_array(np.full((12, 3, 3, 3), 0.01, np.float32), "w"),
               onnx.numpy_helper.from_array(np.zeros(12, np.float32), "b")]
    made = [h.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            h.make_node("DepthToSpace", ["c"], ["y"], blocksize=2)]
    ends = [h.make_tensor_value_info(name, floats, [1, 3, f"{name}h", f"{name}w"]) for name in "xy"]
    model = h.make_model(h.make_graph(made, "g", ends[:1], ends[1:], weights),
                         opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    h.set_model_props(model, {"scale": "2", "pixel_bytes": "5000"})
    path = folder / "n.onnx"

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return shaken(model.SerializeToString(), draw)
        new = onnx.ModelProto()
        new.CopyFrom(model)
        g = new.graph
        change = draw.randrange(8)
        if change == 0:
            draw.choice(g.node).op_type = draw.choice(("Loop", "If", "Scan", "Relu", "Tile", "NonZero", "", "Split"))
        elif change == 1:
            draw.choice(g.initializer).dims[:] = draw.choice(([0], [], [-1], [10**9, 10**9], [2**62, 4], [12, 3, 3, 2]))
        elif change == 2:
            draw.choice(new.metadata_props).value = respelt("2", draw).encode("utf-8", "replace").decode()
        elif change == 3:
            draw.choice(draw.choice(g.node).attribute).ints[:] = draw.choice(([], [-1], [2**40] * 4, [0, 0, 0, 0, 0]))
        elif change == 4:
            draw.choice(draw.choice(g.node).attribute).i = draw.choice((0, -2, 3, 2**40))
        elif change == 5:
            draw.choice(g.initializer).data_type = draw.randrange(25)
        elif change == 6:
            tensor = draw.choice(g.initializer)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=draw.choice(("/dev/zero", "../w", "n.onnx", "", "\0")))
        else:
            draw.choice(g.node).input[0] = draw.choice(("", "y", "w", "none"))
        return new.SerializeToString()

    def enter(data: bytes) -> Any:
        path.write_bytes(data)
        net = OnnxNet(path)
        assert net(torch.zeros(1, 3, 5, 4)).shape == (1, 3, 5 * net.scale, 4 * net.scale)
        return net.scale

    return [Door("onnx", 2, make, enter)]


def image_doors(folder: Path) -> list[Door]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 4), dtype=np.uint8)
    kinds = {".png": ("RGBA", "RGB", "L", "P"), ".jpg": ("RGB", "L", "CMYK"), ".bmp": ("RGB", "L"), ".ppm": ("RGB",),
             ".webp": ("RGB", "RGBA"), ".tif": ("RGB", "L", "RGBA", "1"), ".pgm": ("L",)}
    sound = []
    for suffix, modes in kinds.items():
        for mode in modes:
            Image.fromarray(pixels).convert("RGB").convert(mode).save(folder / f"i{suffix}")
            sound.append((suffix, (folder / f"i{suffix}").read_bytes()))
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    for suffix in (".png", ".tif"):
        deep.save(folder / f"i{suffix}")
        sound.append((suffix, (folder / f"i{suffix}").read_bytes()))

    def make(draw: random.Random) -> tuple[str, bytes]:
        suffix, data = draw.choice(sound)
        if draw.random() < 0.2:  # another format under this name
            data = draw.choice(sound)[1]
        return suffix, shaken(data, draw)

    def enter(given: tuple[str, bytes]) -> Any:
        path = folder / f"broken{given[0]}"
        path.write_bytes(given[1])
        img = read_image(path)
        assert img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3 and img.size
        assert image_size(path) == img.shape[:2]
        return img.shape

    return [Door("image", 3, make, enter)]


def folder_doors(folder: Path) -> list[Door]:
    "What a run leaves behind."
    run = make_run_fixture(folder / "sound")
    texts = {name: (run.dir / name).read_bytes() for name in ("record.json", "history.csv")}
    record = json.loads(texts["record.json"])
    record["rows"] = record["rows"][:4]
    lines = texts["history.csv"].decode().splitlines()[:6]
    with np.load(run.dir / "snapshots" / "affinity.npz") as file:
        affinity = {k: file[k] for k in file.files}
    n, taps = 3, len(affinity["taps"])
    progress = {"steps": np.arange(n), "distances": np.zeros((n, taps)), "query": np.array([1, 2]),
                "taps": affinity["taps"],
                **{f"rows/{i}": np.zeros((n, 8, 8), np.float16) for i in range(taps)},
                **{f"teacher/{i}": np.zeros((8, 8), np.float16) for i in range(taps)}}
    broken = Run(folder / "runs" / "broken")
    (broken.dir / "snapshots").mkdir(parents=True)
    (broken.dir / "weights").mkdir()
    (broken.dir / "weights" / "plain.safetensors").touch()

    def enter_record(data: bytes) -> Any:
        (broken.dir / "record.json").write_bytes(data)
        found = [r.id for r in find_runs(broken.dir.parent)]  # never fails for one bad record
        try:
            find_weights(str(broken.dir))
        finally:
            again = read_record(broken.dir / "record.json")
        assert found == ([broken.id] if again.state == "finished" else [])
        json.dumps(again.model_dump(), allow_nan=False)
        return again.run_id

    def make_record(draw: random.Random) -> bytes:
        if draw.random() < 0.3:
            return shaken(json.dumps(record).encode(), draw)
        return json.dumps(bent(record, draw), allow_nan=True).encode("utf-8", "surrogatepass")

    def make_history(draw: random.Random) -> bytes:
        cells = [line.split(",") for line in lines]
        cells = bent(cells, draw, ("", "nan", "inf", "x", "1e999", '"', '"a\nb"', "=1+1", "\0", "9" * 400, "é", "step"))
        rows = [",".join(map(str, c)) if isinstance(c, list) else str(c) for c in cells if isinstance(cells, list)]
        text = "\r\n".join(rows)
        data = (text + "\r\n" * draw.randrange(2)).encode("utf-8", "surrogatepass")
        return shaken(data, draw) if draw.random() < 0.4 else data

    def enter_history(data: bytes) -> Any:
        (broken.dir / "history.csv").write_bytes(data)
        rows = read_history(broken)
        assert all(isinstance(r["method"], str) and math.isfinite(r["step"]) for r in rows)
        return len(rows)

    def arrays(draw: random.Random, sound: dict[str, Any]) -> bytes:
        odd = (np.zeros(0), np.zeros((2, 2)), np.array("x"), np.array([{}], dtype=object), np.zeros((3, 3), complex),
               np.array([np.nan]), np.zeros((4, 4, 3), np.uint8), np.array([-1, 2**60]), np.zeros((1, 8, 8), ">f4"),
               np.array(["a"] * 3), np.zeros(3, [("a", "i4")]), np.full((3, 2), 10**9))  # fmt: skip
        made, out = dict(sound), io.BytesIO()
        for _ in range(draw.choice((0, 1, 1, 2))):
            key = draw.choice(list(made))
            made[key] = draw.choice(odd)
            if draw.random() < 0.3:
                del made[key]
        draw.choice((np.savez, np.savez_compressed))(out, **made)
        data = out.getvalue()
        kind = draw.random()
        return shaken_zip(data, draw) if kind < 0.25 else shaken(data, draw) if kind < 0.5 else data

    def enter_affinity(data: bytes) -> Any:
        (broken.dir / "snapshots" / "affinity.npz").write_bytes(data)
        rows = read_affinity(broken)
        assert isinstance(rows, AffinityRows) and rows.image.dtype == np.uint8
        assert all(m.ndim == 3 and len(m) == len(rows.queries) for maps in rows.maps.values() for m in maps)
        return rows.taps

    def enter_progress(data: bytes) -> Any:
        (broken.dir / "snapshots" / "progress-plain.npz").write_bytes(data)
        return list(read_progress(broken))

    return [Door("record", 3, make_record, enter_record), Door("history", 2, make_history, enter_history),
            Door("affinity", 1, lambda draw: arrays(draw, affinity), enter_affinity),
            Door("progress", 1, lambda draw: arrays(draw, progress), enter_progress)]


def checkpoint_doors(folder: Path) -> list[Door]:
    imgs = np.zeros((40, 40, 3), np.uint8)
    patches = Patches([ImagePair("a", imgs, imgs[::2, ::2].copy())], 2, 16)
    config = TeacherConfig(scale=2, steps=4, batch_size=2, patch_px=16, learn_rate=1e-3, schedule="constant",
                           clip_norm=0.0, ema=0.9, precision="fp32", device="cpu")
    student, loss, origin = make_net(SPEC, 2), DistillLoss("DS"), {"kind": "teacher"}
    trainer = Trainer(student, loss, patches, config, method="teacher", origin=origin)
    trainer.fit(2)
    state, path, odd = trainer_state(trainer), folder / "c.pt", odd_tensors()
    save_checkpoint(path, state)
    sound = path.read_bytes()

    def make(draw: random.Random) -> Any:
        return shaken(sound, draw) if draw.random() < 0.3 else bent(state, draw, odd)

    def enter(given: Any) -> Any:
        if isinstance(given, bytes):
            path.write_bytes(given)
        else:
            save_checkpoint(path, given if isinstance(given, dict) else {"state": given})
        load_run(path)
        restore(trainer, path)
        return trainer.step

    return [Door("checkpoint", 2, make, enter)]


def text_doors(folder: Path) -> list[Door]:
    specs = ("0.5*DS+0.5*TS+10*SA", "5*PSA(k=2,pool=avg)", SPEC, "edsr(res_scale=0.1)", "cosine(warmup=20)",
             "step(at=[1,2],gamma=0.5)", "constant", "DS+0.1*FSP+RKD", "san(n_feats=16,reduction=8)", "1e-3*VID")

    def enter_spec(text: str) -> Any:
        terms = parse_spec(text)
        for reads in ((parse_net,), (check_spec, needs_of), (lambda t: learn_rate_at(3, 10, 1e-3, t),)):
            with contextlib.suppress(FakdError):
                for read in reads:
                    read(text)
        assert all(math.isfinite(t.weight) for t in terms)
        return terms

    def make_config(draw: random.Random) -> tuple[Any, dict[str, Any]]:
        kind = draw.choice((DistillConfig, EvaluateConfig, TeacherConfig))
        values = {}
        for name in draw.sample(list(kind.model_fields), draw.choice((1, 1, 2, 3))):
            default = kind.model_fields[name].default
            text = default if isinstance(default, str) else draw.choice(("1", "None", "[1, 2]", *specs))
            odd = (*WEIRD, math.nan, -math.inf, b"x", 10**5000)
            values[name] = respelt(text, draw) if draw.random() < 0.6 else draw.choice(odd)
        return kind, values

    def enter_config(given: tuple[Any, dict[str, Any]]) -> Any:
        kind, values = given
        return kind(**values).resolve()

    return [Door("spec", 4, lambda draw: respelt(draw.choice(specs), draw), enter_spec),
            Door("config", 3, make_config, enter_config),
            Door("set", 1, lambda draw: respelt(draw.choice(("sample", "Set5+sample", str(folder))), draw), image_set)]


def archive_doors(folder: Path) -> list[Door]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    deflated = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(zipped, "w", deflated) as pack, tarfile.open(fileobj=tarred, mode="w:gz") as bundle:
        for name in ("Set5/HR/a.png", "Set5/HR/b.png", "Set5/LR/x2/a.png"):
            pack.writestr(name, bytes(200))
            member = tarfile.TarInfo(name)
            member.size = 200
            bundle.addfile(member, io.BytesIO(bytes(200)))

    def make(draw: random.Random) -> bytes:
        data = draw.choice((zipped, tarred)).getvalue()
        if draw.random() < 0.3:
            names = ("../x", "/x", "a/../../x", "C:x", "", ".", "a\0b", "a" * 300, "\xe9/x", "..\\x", "Set5")
            out, name = io.BytesIO(), draw.choice(names)
            with tarfile.open(fileobj=out, mode="w") as bundle:
                member = tarfile.TarInfo(name)
                kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
                member.type = draw.choice(kinds)
                member.linkname = "/etc"
                bundle.addfile(member)
            return out.getvalue()
        return shaken(data, draw)

    def enter(data: bytes) -> Any:
        (folder / "a.zip").write_bytes(data)
        before = {p for p in folder.rglob("*") if not p.is_relative_to(folder / "unpacked")}
        unpack(folder / "a.zip", folder / "unpacked")
        assert {p for p in folder.rglob("*") if not p.is_relative_to(folder / "unpacked")} == before
        assert not any(p.is_symlink() or p.is_fifo() for p in (folder / "unpacked").rglob("*"))

    return [Door("archive", 1, make, enter)]


def cache_doors(folder: Path) -> list[Door]:
    imgs = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    pair = ImagePair("a", imgs, imgs[::2, ::2].copy())
    ImageCache("k" * 32, folder).build(iter([pair]))
    cache = ImageCache("k" * 32, folder)
    files = {p: p.read_bytes() for p in cache.dir.iterdir()}
    index = next(p for p in files if p.suffix == ".json")

    def make(draw: random.Random) -> tuple[Path, bytes]:
        if draw.random() < 0.6:
            return index, json.dumps(bent(json.loads(files[index]), draw)).encode()
        path = draw.choice(list(files))
        return path, shaken(files[path], draw)

    def enter(given: tuple[Path, bytes]) -> Any:
        for path, data in files.items():
            path.write_bytes(given[1] if path == given[0] else data)
        if cache.complete:  # else it is built anew
            (found,) = cache.pairs()
            assert found.name == "a" and (found.hr_img == pair.hr_img).all() and (found.lr_img == pair.lr_img).all()

    return [Door("cache", 1, make, enter)]


MAKERS = (
    weights_doors, onnx_doors, image_doors, folder_doors, checkpoint_doors, text_doors, archive_doors, cache_doors,
)  # fmt: skip


@pytest.fixture()
def bounded(tmp_path):
    "Little memory, a quiet place, and a canary that no file may wake."
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * MEMORY, before[1]))
    Canary.path = str(tmp_path / "canary")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert not (tmp_path / "canary").exists(), "a file was run"
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # kB
    assert more < MEMORY / 1024, "an input took too much memory"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__.removesuffix("_doors"))
def test_broken_inputs_give_a_right_value_or_one_clear_error(maker, bounded, tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    raw: dict[str, list[str]] = {}
    for door in maker(place):
        draw = random.Random(f"{SEED} {door.name}")
        for i in range(round(COUNT * door.share / 31)):
            given = door.make(draw)
            try:
                door.enter(given)
            except FakdError as fault:
                assert str(fault).strip()
            except Exception as fault:  # what must not come out
                where = traceback.extract_tb(fault.__traceback__)
                last = next((f for f in reversed(where) if "fakd/" in f.filename), where[-1])
                key = f"{door.name}: {type(fault).__name__} in {last.name}:{last.lineno}"
                raw.setdefault(key, []).append(f"input {i}: {str(fault)[:200]} | {str(given)[:160]!r}")
    assert not raw, "\n" + "\n".join(f"{key}, {len(all_)} times\n    {all_[0]}" for key, all_ in sorted(raw.items()))
