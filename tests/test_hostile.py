"Files and texts that lie, break off or never end: each is refused with a `FakdError` before it costs memory or time."
from __future__ import annotations

import json
import os
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from fixtures import make_run_fixture
from safetensors.torch import save_file

from fakd.core import FakdError, parse_spec
from fakd.data.sets import image_set
from fakd.look.explorer import ExploreConfig
from fakd.look.maps import read_affinity
from fakd.look.training import read_progress
from fakd.nets.foreign import load_any
from fakd.nets.onnx import OnnxNet
from fakd.nets.weights import load_net, read_state, save_weights
from fakd.nets.zoo import make_net
from fakd.record import read_record
from fakd.run_folder import Run, find_runs, read_history
from fakd.study.config import EvaluateConfig, find_weights
from fakd.study.evaluation import prepare_evaluation
from fakd.train.config import DistillConfig

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
    refused(lambda: load_any(path), "its tensors claim 78.1 GB, the file has 4.")


def test_a_pickle_cannot_ask_for_memory_or_declare_more_than_it_has(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as pack:
        count = (2**34).to_bytes(5, "little")
        pack.writestr("w/data.pkl", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + count + b"\x85R.")
        pack.writestr("w/version", "3\n")
    refused(lambda: read_state(path), "not a readable weights file")
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("w/data.pkl", b"\x80\x02X\x04")  # ends within a length
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
    torch.zeros(8, 3, 3, 3, dtype=torch.bool), torch.zeros(8, 3, 3, 3).to(torch.float8_e4m3fn),
    torch.zeros(8, 3, 3, 3).to(torch.float8_e5m2), torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64),
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


# Run folders


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run_fixture(tmp_path_factory.mktemp("runs")).dir


def changed(folder, **values):
    "The text of a record with other values."
    return json.dumps({**json.loads((folder / "record.json").read_text()), **values})


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "3", DEEP, "NaN", '{"given": NaN}', '{"steps": 1e999}', f'{{"bytes": {"9" * 5000}}}', "\xff",
])  # fmt: skip
def test_a_record_that_is_none_is_one_clear_error(text, tmp_path):
    (tmp_path / "record.json").write_bytes(text.encode("latin-1"))
    refused(lambda: read_record(tmp_path / "record.json"), "record.json", "record (")


@pytest.mark.parametrize("values, place", [
    ({"rows": 3}, "rows"), ({"student": {"taps": 3}}, "taps"), ({"teacher": {"nets": []}}, "nets"),
    ({"student": {"nets": {"a": {"params": "many"}}}}, "nets.a"), ({"teacher": "rcan"}, "teacher"),
    ({"environment": {"versions": [1]}}, "versions"),
    ({"environment": {"git": "main"}}, "git"), ({"history": {"plain": {"step": [1]}}}, "plain.step"),
    ({"summary": {"plain": {"Set5": {"psnr_y": "high"}}}}, "summary"), ({"run_id": "../../etc"}, "run_id"),
    ({"student": {"macs_input": [48]}}, "macs_input"), ({"more": 1}, "more"),
])  # fmt: skip
def test_details_of_the_wrong_type_are_named(values, place, run_folder, tmp_path):
    (tmp_path / "record.json").write_text(changed(run_folder, **values))
    refused(lambda: read_record(tmp_path / "record.json"), "not a valid record", place)


def test_a_record_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    good = make_run_fixture(tmp_path, pictures=False)
    (good.dir / "weights").mkdir()
    (good.dir / "weights" / "plain.safetensors").touch()
    for name, text in (("empty", ""), ("list", "[]"), ("latin", "\xfc")):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "weights" / "w.safetensors").touch()
        (tmp_path / name / "record.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "record.json")
    with pytest.warns(UserWarning, match="passed over: .*empty/record.json") as said:
        assert [run.id for run in find_runs(tmp_path)] == [good.id]
    named = {str(w.message).split("/record.json")[0].rsplit("/", 1)[1] for w in said}
    assert named == {"empty", "list", "latin", "pipe"}
    with pytest.warns(UserWarning, match="pipe/record.json: a pipe"):
        assert [p.parent.parent.name for p in find_weights(str(tmp_path))] == [good.id]


@pytest.mark.parametrize("text, why", [
    ("", "must name method"), ("a,b\n", "must name method"), ("method,step,step\n", "must name method"),
    ("method,step\nplain\n", "line 2 has 1 cells"), ("method,step\nplain,1,2\n", "line 2 has 3 cells"),
    ("method,step\nplain,one\n", "'one'"), ("method,step\nplain,\n", "line 2 has no step"),
    ("method,step\nplain,nan\n", "line 2 has no step"), ("method,step\nplain,\0\n", ""),
    ("method,step\nplain," + "1" * 200_000 + "\n", "field larger"), ("method,step\n\xff,1\n", "utf-8"),
])  # fmt: skip
def test_a_history_that_is_damaged_is_one_clear_error(text, why, tmp_path):
    (tmp_path / "history.csv").write_bytes(text.encode("latin-1"))
    refused(lambda: read_history(Run(tmp_path)), "history.csv", why)


def test_a_line_that_is_still_being_written_is_not_read_yet(tmp_path):
    (tmp_path / "history.csv").write_text("method,step,psnr_y\nplain,1,\nplain,2,30.5\ndistilled,1")
    assert read_history(Run(tmp_path)) == [{"method": "plain", "step": 1.0, "psnr_y": None},
                                           {"method": "plain", "step": 2.0, "psnr_y": 30.5}]


AFFINITY = {"image": np.zeros((8, 8, 3), np.uint8), "queries": np.array([[1, 2]]), "taps": np.array(["last=last"]),
            "plain/0": np.zeros((1, 8, 8), np.float16)}


@pytest.mark.parametrize("values, why", [
    ({"image": np.zeros((8, 8, 3))}, "array image is float64"), ({"image": np.zeros((8, 8), np.uint8)}, "array image"),
    ({"queries": np.array([[1, 9]])}, "queries"), ({"queries": np.array([[-1, 0]])}, "queries"),
    ({"queries": np.zeros((0, 2), int)}, "array queries"), ({"taps": np.array(["a", "b"])}, "no array plain/1"),
    ({"taps": np.array([1])}, "array taps"), ({"plain/0": np.zeros((2, 8, 8), np.float16)}, "array plain/0"),
    ({"plain/0": np.array([{}], dtype=object)}, "declares object"),
])  # fmt: skip
def test_rows_of_the_affinity_are_what_they_should_be(values, why, tmp_path):
    (tmp_path / "snapshots").mkdir()
    np.savez(tmp_path / "snapshots" / "affinity.npz", **{**AFFINITY, **values})
    refused(lambda: read_affinity(Run(tmp_path)), "affinity.npz", why)


def test_kept_arrays_declare_no_more_than_there_is(tmp_path):
    (tmp_path / "snapshots").mkdir()
    path = tmp_path / "snapshots" / "progress-plain.npz"
    np.savez_compressed(path, steps=np.zeros(2**20))
    with zipfile.ZipFile(path) as pack:
        size = struct.pack("<I", pack.infolist()[0].file_size)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", 2**32 - 2)))
    refused(lambda: read_progress(Run(tmp_path)), "it declares 4.0 GB, accepted are 2.0 GB")
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: read_progress(Run(tmp_path)), "not a readable")
    path.unlink()
    os.mkfifo(path)
    refused(lambda: read_progress(Run(tmp_path)), "a pipe")


# Settings


@pytest.mark.parametrize("scales", ["((", "abc", "9" * 5000, [], [2, [3]], "[2, 5]", 2.5, [True], {"a": 1}])
def test_scales_that_make_no_sense_are_refused(scales):
    refused(lambda: EvaluateConfig(scales=scales), "scales")


@pytest.mark.parametrize("field, value", [
    ("schedule", "cosine(("), ("schedule", "step(at={[1]:2})"), ("loss", "DS(" + "[" * 5000), ("taps", [[1]]),
    ("taps", {"a": 1}), ("student", "rcan(n_feats=1e999)"), ("steps", "many"), ("scale", [[]]), ("seed", float("nan")),
])  # fmt: skip
def test_settings_of_the_wrong_kind_are_refused(field, value):
    refused(lambda: DistillConfig(**{field: value}).resolve())


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "~nobody/x", "/dev/null"])
def test_names_that_no_file_can_have_are_no_run_and_no_set(name):
    refused(lambda: Run.open(name), "no such run folder")
    refused(lambda: image_set(name))
    refused(lambda: find_weights(name), "no weights file there")


def test_the_query_of_the_explorer_is_strict_json():
    for query in ("[" * 5000, "9" * 5000, "[1,,2]", "[[1, 2]]", "(("):
        refused(lambda query=query: ExploreConfig(query=query), "query")
    assert ExploreConfig(query="(20, 30)").query == [20, 30]


def test_an_input_that_exceeds_memory_is_refused_before_anything_is_measured(tmp_path):
    save_weights(make_net(SPEC, 2), tmp_path / "w.safetensors")
    asked = EvaluateConfig(weights=str(tmp_path / "w.safetensors"), benchmarks="sample-eval", input_px=10**6,
                           device="cpu", out_dir=str(tmp_path))
    refused(lambda: prepare_evaluation(asked.resolve()), "input_px=1000000 needs", "GB of memory")
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


# ONNX files


def onnx_file(path, nodes, functions=(), initializers=(), **notes):
    "A file that enlarges by two with `u`; `nodes` go from there to `y`."
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    ends = [h.make_tensor_value_info(name, floats, [1, 3, f"{name}h", f"{name}w"]) for name in "xy"]
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    twice = h.make_node("Resize", ["x", "", "scales"], ["u"], mode="nearest")
    graph = h.make_graph([twice, *nodes], "g", ends[:1], ends[1:], [scales, *initializers])
    opsets = [h.make_opsetid("", 18), h.make_opsetid("own", 1)]
    model = h.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)
    h.set_model_props(model, notes)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind, inputs, outputs, **attributes):
    return pytest.importorskip("onnx").helper.make_node(kind, inputs, outputs, **attributes)


def constant(name, values):
    onnx = pytest.importorskip("onnx")
    return node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(values), "v"))


def test_a_sound_onnx_file_is_read(tmp_path):
    assert OnnxNet(onnx_file(tmp_path / "n.onnx", [node("Identity", ["u"], ["y"])], scale="2")).scale == 2


@pytest.mark.parametrize("notes", [{"scale": "abc"}, {"scale": "0"}, {"scale": "nan"}, {"scale": "4"}, {"scale": ""},
                                   {"pixel_bytes": "-1"}, {"pixel_bytes": "inf"}, {"pixel_bytes": "9" * 400}])
def test_an_onnx_file_is_not_believed_about_itself(notes, tmp_path):
    path = onnx_file(tmp_path / "n.onnx", [node("Identity", ["u"], ["y"])], **notes)
    refused(lambda: OnnxNet(path), "n.onnx", "is noted as")


@pytest.mark.parametrize("kind", ["Loop", "Scan", "SequenceMap", "BeamSearch"])
@pytest.mark.parametrize("hidden", [False, True])
def test_onnx_files_with_loops_are_refused(kind, hidden, tmp_path):
    h = pytest.importorskip("onnx").helper
    body = h.make_graph([node("Identity", ["u"], ["b"])], "body", [], [])
    loop = node(kind, ["u"], ["y"], body=body)
    if hidden:
        inner = node("If", ["u"], ["y"], then_branch=h.make_graph([loop], "inner", [], []))
        loop = node("If", ["u"], ["y"], else_branch=h.make_graph([inner], "outer", [], []))
    refused(lambda: OnnxNet(onnx_file(tmp_path / "n.onnx", [loop])), "n.onnx", f"it holds {kind}")


def test_onnx_functions_that_multiply_or_call_themselves_are_refused(tmp_path):
    h = pytest.importorskip("onnx").helper
    opset = [h.make_opsetid("", 18), h.make_opsetid("own", 1)]

    def function(i, called):
        domain = {"domain": "own"} if called != "Relu" else {}
        calls = [node(called, ["a"], [name], **domain) for name in "pqrstuvwxy"]
        return h.make_function("own", f"f{i}", ["a"], ["y"], calls, opset)

    many = [function(i, f"f{i + 1}" if i < 9 else "Relu") for i in range(10)]
    call = node("f0", ["u"], ["y"], domain="own")
    refused(lambda: OnnxNet(onnx_file(tmp_path / "n.onnx", [call], many)), "10,000,000,001 nodes")
    refused(lambda: OnnxNet(onnx_file(tmp_path / "n.onnx", [call], [function(0, "f1"), function(1, "f0")])), "no end")


@pytest.mark.parametrize("nodes", [
    [("ConstantOfShape", ["shape"], ["c"])],
    [("Shape", ["x"], ["s"]), ("Mul", ["s", "shape2"], ["b"]), ("Expand", ["one", "b"], ["c"])],
], ids=["a constant", "of the image's size"])  # fmt: skip
def test_onnx_constants_that_exceed_memory_are_refused(nodes, tmp_path):
    made = [node(kind, ins, outs, **(more[0] if more else {})) for kind, ins, outs, *more in nodes]
    values = [constant("shape", [200_000, 200_000]), constant("shape2", [9000, 1, 400, 400]),
              constant("one", np.ones(1, np.float32))]
    ends = [node("ReduceMax", ["c"], ["m"], keepdims=0), node("Mul", ["u", "m"], ["y"])]
    refused(lambda: OnnxNet(onnx_file(tmp_path / "n.onnx", [*values, *made, *ends])), "bad_alloc")


@pytest.mark.parametrize("place", ["/etc/hostname", "../secret", "link", "pipe", "absent", "."])
def test_onnx_weights_outside_the_folder_are_refused(place, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    kind = onnx.TensorProto
    tensor = kind(name="t", dims=[1], data_type=kind.FLOAT, data_location=kind.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    path = onnx_file(folder / "n.onnx", [node("Mul", ["u", "t"], ["y"])], initializers=[tensor])
    outside = place in ("/etc/hostname", "../secret", "link")
    refused(lambda: OnnxNet(path), "n.onnx", "outside its folder" if outside else "file of the network's weights")


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_sparse_onnx_weights_outside_the_folder_are_refused(where, tmp_path):
    onnx = pytest.importorskip("onnx")
    floats, sparse = onnx.TensorProto.FLOAT, onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(onnx.TensorProto(name="t", dims=[4], data_type=floats, data_location="EXTERNAL"))
    sparse.values.external_data.add(key="location", value="../secret")
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.arange(4)))
    made = [node("Constant", [], ["t"], sparse_value=sparse)] if where == "attribute" else []
    path = onnx_file(tmp_path / "n.onnx", [*made, node("Mul", ["u", "t"], ["y"])])
    if where == "initializer":
        model = onnx.load(path)
        model.graph.sparse_initializer.append(sparse)
        path.write_bytes(model.SerializeToString())
    refused(lambda: OnnxNet(path), "n.onnx", "outside its folder")


def test_an_onnx_file_of_mostly_holes_is_refused_unread(tmp_path):
    path = onnx_file(tmp_path / "n.onnx", [node("Identity", ["u"], ["y"])])
    os.truncate(path, 2**31)
    refused(lambda: OnnxNet(path), "n.onnx", "larger than 2 GB")


@pytest.mark.parametrize("size", ["of the image", "constant"])
def test_an_onnx_file_that_computes_for_ever_is_stopped(size, tmp_path, monkeypatch):
    "A thousand products of 1000 x 1000 take a minute or more."
    monkeypatch.setattr("fakd.nets.onnx.OPENING_S", 0.2)
    zero = [constant("0", np.float32(0)), node("ReduceMax", ["x"], ["z"], keepdims=0), node("Mul", ["z", "0"], ["add"])]
    begin = node("ConstantOfShape", ["shape"], ["m0"])
    middle = [node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(1000)]
    if size == "of the image":  # cannot be computed beforehand
        begin = node("ConstantOfShape", ["shape"], ["m"])
        middle = [*zero, node("Add", ["m", "add"], ["m0"]), *middle]
    ends = [node("ReduceMax", ["m1000"], ["m_"], keepdims=0), node("Mul", ["u", "m_"], ["y"])]
    path = onnx_file(tmp_path / "n.onnx", [constant("shape", [1000, 1000]), begin, *middle, *ends])
    began = time.monotonic()
    refused(lambda: OnnxNet(path), "n.onnx", "takes longer than 0.2 s for an image of")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("nodes", [[("Identity", ["x"], ["y"])], [("ReduceMax", ["u"], ["y"])],
                                   [("Concat", ["u", "u"], ["y"], {"axis": 1})],
                                   [("Concat", ["u", "u"], ["y"], {"axis": 2})]])
def test_onnx_files_that_make_no_larger_image_are_refused(nodes, tmp_path):
    path = onnx_file(tmp_path / "n.onnx", [node(k, i, o, **(more[0] if more else {})) for k, i, o, *more in nodes])
    refused(lambda: OnnxNet(path), "scale 1" if nodes[0][0] == "Identity" else "the file makes")
