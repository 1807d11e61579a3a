"Networks of a class that only their owner has: trained, read back, evaluated, enlarged and exported."

import numpy as np
import pytest
import torch
from fixtures import prepared
from torch import nn

from fakd.core import FakdError
from fakd.measure.upscale import upscale
from fakd.nets.onnx import OnnxNet
from fakd.nets.weights import MisfitError, load_weights, save_weights
from fakd.nets.zoo import make_net
from fakd.onnx import export_onnx
from fakd.runs import distill
from fakd.study.evaluation import evaluate_weights

SMALL = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Mine(nn.Module):
    "A small network of 0..1."

    value_range = 1

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, imgs):
        return nn.functional.interpolate(imgs, scale_factor=2, mode="bicubic") + 0.1 * self.body(imgs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return distill(student=Mine(), scale=2, data="sample", benchmarks="sample-eval", steps=2, batch_size=2, patch_px=16,
                   loss="DS", precision="fp32", device="cpu", out_dir=str(tmp_path_factory.mktemp("runs")))


def evaluated(tmp_path, nets=None, **given):
    given |= {"benchmarks": "sample-eval", "repeats": 0, "device": "cpu", "out_dir": str(tmp_path / "out")}
    return evaluate_weights(nets=nets, **given)


def test_its_weights_are_read_evaluated_enlarged_and_exported(run, tmp_path):
    path = run.dir / "weights/plain.safetensors"
    net = load_weights(Mine(), path)
    record = evaluated(tmp_path, {"mine": net}).record
    assert record.summary["mine"]["sample-eval"] == run.record.summary["plain"]["sample-eval"]
    assert record.student["nets"]["mine"]["spec"] == "mine(value_range=1)"
    img = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    sr_img = upscale(net, img)
    assert sr_img.shape == (40, 60, 3)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    export_onnx(net, tmp_path / "mine.onnx")
    assert np.abs(upscale(OnnxNet(tmp_path / "mine.onnx"), img).astype(int) - sr_img).max() <= 1
    scored = evaluated(tmp_path, weights=str(tmp_path / "mine.onnx")).record
    assert scored.summary["mine"]["sample-eval"]["psnr_y"] == pytest.approx(
        record.summary["mine"]["sample-eval"]["psnr_y"], abs=0.01)


def test_its_weights_do_not_fit_another_class(run):
    with pytest.raises(MisfitError, match=r"does not fit Conv2d: 2 missing \(weight, bias\); 2 unexpected"):
        load_weights(nn.Conv2d(3, 12, 3), run.dir / "weights/plain.safetensors")


def test_files_of_a_folder_that_cannot_be_read_are_passed_over_by_name(run, tmp_path):
    save_weights(make_net(SMALL, 2), tmp_path / "fine.safetensors")
    (tmp_path / "odd.pth").write_bytes(b"noise")
    (tmp_path / "mine.safetensors").write_bytes((run.dir / "weights/plain.safetensors").read_bytes())
    with pytest.warns(UserWarning) as said:
        record = evaluated(tmp_path, weights=str(tmp_path)).record
    assert set(record.summary) == {"bicubic", "fine"}
    passed = [str(w.message) for w in said if "passed over" in str(w.message)]
    assert len(passed) == 2 and any("odd.pth" in line for line in passed) and any(
        "mine.safetensors: weights of mine" in line and "a module of your own" in line for line in passed)
    with pytest.raises(FakdError, match=r"odd\.pth"):
        evaluated(tmp_path, weights=str(tmp_path / "odd.pth"))


def test_an_onnx_file_teaches_and_does_not_learn(tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    export_onnx(make_net(SMALL, 2), tmp_path / "teacher.onnx")
    given = {"scale": 2, "data": "sample", "benchmarks": "sample-eval", "steps": 2, "batch_size": 2, "patch_px": 16,
             "precision": "fp32", "device": "cpu", "out_dir": str(tmp_path), "loss": "DS+TS"}
    setup = prepared(**given, student=SMALL, teacher=str(tmp_path / "teacher.onnx"))
    assert setup.teachers[0].net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 16, 16)
    with pytest.raises(FakdError, match="an ONNX file cannot be trained"):
        prepared(**given, student=str(tmp_path / "teacher.onnx"))


@pytest.mark.parametrize("given", [{"teacher": ""}, {"teacher": " "}, {"student": ""}, {"teacher": "rcan+"}])
def test_empty_names_are_refused(given, tmp_path):
    with pytest.raises(FakdError, match="teacher|student|net"):
        prepared(**{"student": SMALL, "out_dir": str(tmp_path)} | given)
