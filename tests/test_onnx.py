"Networks as ONNX files: equal to PyTorch at sizes the export has not seen."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fakd.core import FakdError
from fakd.measure.upscale import upscale
from fakd.nets.onnx import OnnxNet
from fakd.nets.zoo import make_net
from fakd.onnx import export_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A network, its file, and the difference that the export reported."
    torch.manual_seed(0)
    net = make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=24,reduction=4)", 4).train()
    path = tmp_path_factory.mktemp("onnx") / "made" / "net.onnx"
    return net, path, export_onnx(net, path)


def test_the_package_onnx_is_not_shadowed():
    import onnx

    import fakd.onnx

    assert onnx is not fakd.onnx and hasattr(onnx, "load")


def test_a_network_in_training_is_exported_and_not_changed(exported):
    net, path, worst = exported
    assert worst < 1e-3 and net.training and all(p.requires_grad for p in net.head.parameters())
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (4, 3, 5, 90), (1, 3, 130, 33)])
def test_batch_height_and_width_are_free(exported, shape):
    net, path, _ = exported
    lr_imgs = torch.rand(shape) * 255
    with torch.inference_mode():
        torch.testing.assert_close(OnnxNet(path)(lr_imgs), net.eval()(lr_imgs), rtol=0, atol=1e-3)
    net.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_is_not_exported(value, tmp_path):
    net = make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)", 2)
    with torch.no_grad():
        net.head[0].weight[0, 0, 0, 0] = value
    with pytest.raises(FakdError, match=r"was not written: .*head\.0\.weight holds values that are not finite"):
        export_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_upscale_runs_on_the_file(exported):
    net, path, _ = exported
    img = np.random.default_rng(0).integers(256, size=(80, 60, 4), dtype=np.uint8)
    assert np.abs(upscale(OnnxNet(path), img).astype(int) - upscale(net, img)).max() <= 1


def test_a_file_of_another_project_tells_its_scale_when_it_is_run(exported, tmp_path):
    import onnx

    model = onnx.load(exported[1])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    assert OnnxNet(tmp_path / "bare.onnx").scale == 4


def test_a_file_with_two_inputs_is_refused(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "sum", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(FakdError, match="expected one float image"):
        OnnxNet(tmp_path / "two.onnx")


def test_a_network_that_cannot_be_exported_leaves_no_file(tmp_path):
    class Judges(nn.Module):
        scale = 1

        def forward(self, lr_imgs):
            return lr_imgs + 1 if lr_imgs.max() > 3 else lr_imgs  # decided by the image, so not at export

    with pytest.raises(FakdError, match="net.onnx was not written: PyTorch cannot export this network"):
        export_onnx(Judges(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FakdError, match=rf"^export_onnx needs {package}: pip install fakd\[onnx\]$"):
        export_onnx(nn.Identity(), tmp_path / "net.onnx")


PEAK = """
import sys
import numpy as np
from fakd.nets.onnx import OnnxNet
from fakd.measure.upscale import upscale

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

net, img = OnnxNet(sys.argv[1]), np.zeros((384, 384, 3), np.uint8)
upscale(net, img[:32, :32])
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest mark starts anew
upscale(net, img, memory_mb=70)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure the peak of a process")
def test_a_large_image_stays_within_the_memory_that_was_stated(exported):
    command = [sys.executable, "-c", PEAK, str(exported[1])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert 10 < float(run.stdout) <= 70
