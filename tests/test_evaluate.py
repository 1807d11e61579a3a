"""Evaluation: the published baseline, and networks that come back as they were."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fakd.benchmarks import image_set
from fakd.core import FakdError, write_image
from fakd.degrade import imresize
from fakd.evaluate import bicubic_rows, evaluate, super_resolve
from fakd.metrics import psnr_y
from fakd.record import summarise

DATA = Path(__file__).parents[2] / "shared" / "data"
PUBLISHED = Path(__file__).parents[1] / "data" / "published" / "bicubic.csv"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the benchmark images in {DATA}")
@pytest.mark.parametrize("name,scale", [
    *((name, scale) for name in ("Set5", "Set14") for scale in (2, 3, 4, 8)), ("B100", 4), ("Urban100", 4)])
def test_bicubic_gives_the_known_scores(name, scale, monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(DATA))
    images = image_set(name)
    with open(PUBLISHED, encoding="utf-8") as file:
        row, = (r for r in csv.DictReader(file) if r["dataset"] == images.name and int(r["scale"]) == scale)
    mean = summarise(bicubic_rows([images], scale))["bicubic"][images.name]
    assert mean["images"] == int(row["images"])
    assert mean["psnr_y"] == pytest.approx(float(row["psnr_recomputed"]), abs=1e-3)
    assert mean["ssim_y"] == pytest.approx(float(row["ssim_recomputed"]), abs=1e-4)


class Tiny(nn.Module):
    "A network with every kind of state: weights, running statistics, dropout."

    def __init__(self, scale=4):
        super().__init__()
        self.head = nn.Conv2d(3, 3 * scale**2, 3, padding=1)
        self.norm, self.drop, self.up = nn.BatchNorm2d(3 * scale**2), nn.Dropout(0.5), nn.PixelShuffle(scale)

    def forward(self, lr_imgs):
        return self.up(self.drop(self.norm(self.head(lr_imgs)))) * 20 + 128


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    for k, size in enumerate([(64, 80), (71, 53)]):
        write_image(folder / f"{k}.png", np.random.default_rng(k).integers(256, size=(*size, 3), dtype=np.uint8))
    return image_set(folder)


def test_rows_hold_what_the_metrics_say_of_the_quantised_image(small):
    torch.manual_seed(0)
    net = Tiny().eval()
    rows = evaluate({"plain": net}, [small], 4, progress=False)
    assert [(r.method, r.set, r.image, r.scale) for r in rows] == [("plain", small.name, name, 4) for name in "01"]
    for row, pair in zip(rows, small.pairs(4), strict=True):
        with torch.no_grad():
            sr_img = net(torch.from_numpy(pair.lr_img).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0).numpy()
        expected = psnr_y(np.floor(sr_img.clip(0, 255) + 0.5).astype(np.uint8), pair.hr_img, 4)
        assert row.psnr_y == pytest.approx(expected, abs=1e-9)


def test_a_network_in_training_comes_back_as_it_was(small):
    torch.manual_seed(0)
    net = Tiny()
    net.norm.eval()  # frozen while the rest trains
    before = {k: v.clone() for k, v in net.state_dict().items()}
    evaluate({"a": net, "b": net}, [small], 4, progress=False)  # the same one twice
    assert (net.training, net.head.training, net.norm.training, net.drop.training) == (True, True, False, True)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(p.is_inference() or p.grad is not None for p in net.parameters())
    net(torch.rand(1, 3, 8, 8)).mean().backward()  # and can be trained on
    assert net.head.weight.grad is not None


def test_a_fault_in_the_network_leaves_it_as_it_was_and_is_named(small):
    class Broken(Tiny):
        def forward(self, lr_imgs):
            return super().forward(lr_imgs) * float("nan")

    net = Broken().train()
    with pytest.raises(FakdError, match=f"distilled on {small.name}/0: .*not finite"):
        evaluate({"plain": Tiny().eval(), "distilled": net}, [small], 4, progress=False)
    assert net.training and net.drop.training


def test_a_network_of_another_scale_is_refused(small):
    with pytest.raises(FakdError, match="40x32 pixels instead of 80x64: is it made for scale 4"):
        evaluate({"plain": Tiny(scale=2)}, [small], 4, progress=False)


def test_images_too_small_for_ssim_are_named(tmp_path):
    write_image(tmp_path / "stamp.png", np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(FakdError, match="bicubic on .*/stamp: SSIM needs 11x11"):
        bicubic_rows([image_set(tmp_path)], 8)


def test_identical_images_get_a_row_that_json_can_hold(tmp_path):
    write_image(tmp_path / "flat.png", np.full((48, 48, 3), 90, np.uint8))
    row, = bicubic_rows([image_set(tmp_path)], 4)
    assert row.psnr_y is None and row.ssim_y == pytest.approx(1) and "inf" in row.note


def test_bf16_is_near_fp32_and_the_result_is_still_eight_bit():
    torch.manual_seed(0)
    net, lr_img = Tiny().eval(), np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)
    full, half = (super_resolve(net, lr_img, precision=p).astype(int) for p in ("fp32", "bf16"))
    assert np.abs(full - half).max() > 0 and np.abs(full - half).mean() < np.abs(full - full.mean()).mean() / 10
    with pytest.raises(FakdError, match="unknown precision"):
        super_resolve(net, lr_img, precision="half")


def test_a_network_without_parameters_can_be_evaluated(small):
    class Bicubic(nn.Module):
        def forward(self, lr_imgs):
            img = lr_imgs[0].permute(1, 2, 0).numpy().astype(np.uint8)
            return torch.from_numpy(imresize(img, 4)).permute(2, 0, 1)[None].float()

    rows = evaluate({"bicubic": Bicubic()}, [small], 4, progress=False)
    assert rows == bicubic_rows([small], 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_agrees_with_cpu_and_the_network_goes_back(small, precision):
    torch.manual_seed(0)
    net = Tiny().eval()
    on_cpu = evaluate({"n": net}, [small], 4, progress=False)
    on_cuda = evaluate({"n": net}, [small], 4, "cuda", precision, progress=False)
    assert net.head.weight.device.type == "cpu"
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert a.psnr_y == pytest.approx(b.psnr_y, abs=0.02)
