"Files and texts that lie, break off or never end: each is refused with a `FakdError` before it costs memory or time."
from __future__ import annotations

import json
import os
import resource
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from fakd.core import FakdError, parse_spec
from fakd.foreign import load_any
from fakd.nets import make_net
from fakd.weights import load_net, read_state, save_weights

SPEC = "rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)"


@pytest.fixture(autouse=True)
def no_room():
    "What is believed before it is checked fails here: the process may take 3 GB more than it has."
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 3 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def state():
    return make_net(SPEC, 2).state_dict()


def refused(call, *words):
    "The message of the error that a call raises."
    with pytest.raises(FakdError) as fault:
        call()
    for word in words:
        assert word in str(fault.value), fault.value
    return str(fault.value)


# Sizes that are claimed


@pytest.mark.parametrize("spec, words", [
    ("rcan(n_feats=20000)", ("weights", "the file holds")),
    ("edsr(n_resblocks=900000,n_feats=64)", ("weights", "the file holds")),
    ("san(n_resgroups=99999,n_resblocks=99999)", ("weights", "the file holds")),
])  # fmt: skip
def test_a_noted_size_is_compared_with_the_file_before_anything_is_built(spec, words, state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({k: v.clone() for k, v in state.items()}, path, {"format": "fakd", "spec": spec, "scale": "2"})
    refused(lambda: load_net(path), *words)


@pytest.mark.parametrize("spec", ["rcan(n_feats=100000)", "edsr(n_resblocks=999999)", "san(n_resgroups=999999)",
                                  "rcan(n_resgroups=9999,n_resblocks=9999,n_feats=4,reduction=4)"])
def test_a_network_larger_than_memory_is_refused_with_its_need(spec):
    refused(lambda: make_net(spec, 4), spec, "GB of memory", "are left")


def test_a_tensor_is_no_larger_than_what_is_stored(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({**state, "head.0.weight": torch.zeros(1, 1, 1, 1).expand(300_000, 300_000, 1, 1)}, path)
    refused(lambda: load_net(path), "claims 335.3 GB, 4 bytes are stored")
    torch.save({f"layer.{i}": x for i, x in enumerate([torch.zeros(2**20)] * 20_000)}, path)
    refused(lambda: load_any(path))


def test_a_pickle_cannot_ask_for_memory_or_declare_more_than_it_has(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as pack:
        count = (2**34).to_bytes(5, "little")
        pack.writestr("w/data.pkl", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + count + b"\x85R.")
        pack.writestr("w/version", "3\n")
    refused(lambda: read_state(path), "not a readable weights file")
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(lambda: read_state(tmp_path / "w.safetensors"), "not a readable weights file")


# Files that are none


def test_pipes_devices_and_folders_are_no_weights(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    os.mkfifo(tmp_path / "w.safetensors")
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors", "/dev/zero", tmp_path, tmp_path / ("x" * 5000)):
        refused(lambda path=path: read_state(path), "weights file")


def test_a_state_dict_that_contains_itself_is_refused(tmp_path):
    inner: dict = {}
    outer = {"state_dict": {"model": inner}}
    inner["params"] = outer
    torch.save(outer, tmp_path / "w.pth")
    refused(lambda: load_any(tmp_path / "w.pth"), "it contains itself")
    one: list = []
    one.append(one)
    torch.save({"a": torch.zeros(1), "b": one}, tmp_path / "w.pth")
    refused(lambda: read_state(tmp_path / "w.pth"), "it contains itself")


@pytest.mark.parametrize("odd", [
    torch.empty(8, 3, 3, 3, device="meta"), torch.zeros(8, 3, 3, 3).to_sparse(), torch.zeros(8, 3, 3, 3).cfloat(),
    torch.quantize_per_tensor(torch.zeros(8, 3, 3, 3), 1.0, 0, torch.qint8), torch.zeros(8, 3, 3, 3, dtype=torch.int8),
    torch.zeros(8, 3, 3, 3, dtype=torch.bool),
], ids=lambda x: f"{'meta' if x.is_meta else x.layout} {x.dtype}")  # fmt: skip
def test_tensors_that_are_no_weights_are_refused(odd, state, tmp_path):
    torch.save({**state, "head.0.weight": odd}, tmp_path / "w.pth")
    refused(lambda: load_any(tmp_path / "w.pth"))


# Notes in a file


@pytest.mark.parametrize("notes", [
    {"scale": "abc"}, {"scale": "-2"}, {"scale": "9" * 5000}, {"scale": ""}, {"scale": "2.0"}, {"spec": ""},
    {"spec": "rcan(("}, {"spec": "rcan+rcan"}, {"spec": "rcan(n_feats=[[[)"}, {"spec": f"rcan(n_feats={'-' * 9000}1)"},
    {"spec": "rcan(n_feats={{}:1})"}, {"spec": "+" * 10**6}, {"assumptions": "{"}, {"assumptions": "[" * 10**5},
])  # fmt: skip
def test_notes_that_make_no_sense_are_refused(notes, state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({k: v.clone() for k, v in state.items()}, path, {"format": "fakd", "spec": SPEC, "scale": "2", **notes})
    assert len(refused(lambda: load_any(path), "w.safetensors" if "assumptions" not in notes else "note")) < 20_000


def test_thousands_of_upsampling_steps_are_no_number_of_thousands_of_digits(state, tmp_path):
    more = {f"tail.0.{i}.weight": torch.zeros(1) for i in range(1, 15_000)}
    torch.save({**state, **more}, tmp_path / "w.pth")
    refused(lambda: load_net(tmp_path / "w.pth"), "scale")


def test_a_spec_is_read_in_time_that_its_length_allows():
    refused(lambda: parse_spec("1e+" * 10**5), "characters, at most")
    refused(lambda: parse_spec("DS(" * 3000), "brackets do not close")
    refused(lambda: parse_spec("DS(a=" + "(" * 900 + ")" * 900 + ")"), "no value")


def test_a_sound_file_still_loads(state, tmp_path):
    save_weights(make_net(SPEC, 2), tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(load_net(tmp_path / "w.safetensors").state_dict().values(),
                                                 make_net(SPEC, 2).state_dict().values(), strict=True))
