"""Evaluation: the published baseline, and networks that come back as they were."""

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from fixtures import STUDENT, make_run_fixture
from torch import nn

from fakd.core import FakdError
from fakd.data.degrade import imresize
from fakd.data.sets import image_set
from fakd.images import read_image, write_image
from fakd.measure.evaluate import bicubic_rows, evaluate, self_ensemble, super_resolve
from fakd.measure.metrics import luma_pair, luma_scores, psnr_y
from fakd.nets.weights import load_net, save_weights
from fakd.nets.zoo import make_net
from fakd.report.evaluation import evaluation_finding
from fakd.rows import Row, summarise
from fakd.study.config import EvaluateConfig
from fakd.study.evaluation import Way, measure_scores, prepare_evaluation

DATA = Path(__file__).parents[2] / "shared" / "data"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
PUBLISHED = Path(__file__).parents[1] / "data" / "published" / "bicubic.csv"


SETS = ("Set5", "Set14", "B100", "Urban100")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the benchmark images in {DATA}")


def published(name, scale):
    with open(PUBLISHED, encoding="utf-8") as file:
        row, = (r for r in csv.DictReader(file) if r["dataset"] == name and int(r["scale"]) == scale)
    return {k: float(v) for k, v in row.items() if v and k not in ("dataset", "source")}


@cache
def bicubic_of(name, scale):
    "Bicubic rows of a set, made once for the tests that look at them; never kept beyond the code that made them."
    return bicubic_rows([image_set(name)], scale)


@needs_data
@pytest.mark.parametrize("name,scale", [(n, s) for n in SETS for s in (2, 3, 4)] + [("Set5", 8), ("Set14", 8)])
def test_bicubic_gives_the_known_scores(name, scale, monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(DATA))
    images = image_set(name)
    mean = summarise(bicubic_of(name, scale))["bicubic"][images.name]
    known = published(images.name, scale)
    assert mean["images"] == known["images"]
    assert mean["psnr_y"] == pytest.approx(known["psnr_recomputed"], abs=1e-3)
    assert mean["ssim_y"] == pytest.approx(known["ssim_recomputed"], abs=1e-4)
    if "psnr_published" in known and scale < 8:
        psnr, ssim = (0.10, 0.003) if name == "Set14" else (0.02, 0.001)  # Set14: bridge is grey
        assert mean["psnr_y"] == pytest.approx(known["psnr_published"], abs=psnr)
        assert mean["ssim_y"] == pytest.approx(known["ssim_published"], abs=ssim)


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SETS)
def test_bicubic_gives_the_known_score_of_each_image(name, scale, monkeypatch):
    "Of Urban100 only a part is here: with the known scores of the others its mean is the published one."
    monkeypatch.setenv("FAKD_DATA", str(DATA))
    with open(DATA.parent / "published" / "bicubic_per_image.csv", encoding="utf-8") as file:
        known = {r["image"]: (float(r["psnr"]), float(r["ssim"])) for r in csv.DictReader(file)
                 if (r["dataset"], int(r["scale"])) == (name, scale)}
    found = {row.image: (row.psnr_y, row.ssim_y) for row in bicubic_of(name, scale)}
    assert set(found) <= set(known)
    for image, (psnr, ssim) in found.items():
        assert (psnr, ssim) == (pytest.approx(known[image][0], abs=1e-3), pytest.approx(known[image][1], abs=1e-4))
    if name == "Urban100":
        whole = published(name, scale)
        psnr, ssim = np.mean(list((known | found).values()), axis=0)
        assert len(known) == 100
        assert psnr == pytest.approx(whole["psnr_published"], abs=0.02)
        assert ssim == pytest.approx(whole["ssim_published"], abs=0.001)


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_on_luma_with_bridge_as_grey_gives_the_published_rows_of_set14(scale, monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(DATA))
    pairs = image_set("Set14").pairs(scale)
    scores = [luma_scores(*luma_pair(p.hr_img, scale, grey=p.name == "bridge"), scale) for p in pairs]
    known = published("Set14", scale)
    assert np.mean([psnr for psnr, _ in scores]) == pytest.approx(known["psnr_published"], abs=0.02)
    assert np.mean([ssim for _, ssim in scores]) == pytest.approx(known["ssim_published"], abs=0.001)


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


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs the golden values in {GOLDEN}")
def test_self_ensemble_equals_that_of_the_original_rcan():
    golden = np.load(GOLDEN / "chop" / "chop.npz")
    net = load_net(GOLDEN / "keys" / "rcan_original.safetensors")
    with torch.no_grad():
        sr_imgs = self_ensemble(net, torch.from_numpy(golden["lr"]).float())
        once = net(torch.from_numpy(golden["lr"]).float())
    assert np.abs(sr_imgs.numpy() - golden["sr_self_ensemble"]).max() < 5e-3
    assert np.abs(once.numpy() - golden["sr_full"]).max() < 5e-3
    assert np.abs(once - sr_imgs).max() > 0.1


def test_self_ensemble_rows_are_those_of_the_ensembled_image(small):
    torch.manual_seed(0)
    net = Tiny().eval()
    rows = evaluate({"n": net}, [small], 4, progress=False, ensemble=True)
    for row, pair in zip(rows, small.pairs(4), strict=True):
        assert row.psnr_y == psnr_y(super_resolve(net, pair.lr_img, ensemble=True), pair.hr_img, 4)
    assert rows != evaluate({"n": net}, [small], 4, progress=False)


def test_images_of_one_size_go_through_together_and_rows_keep_their_order(tmp_path):
    sizes = [(64, 80), (48, 48), (64, 80), (64, 80), (48, 48)]
    for k, size in enumerate(sizes):
        write_image(tmp_path / f"{k}.png", np.random.default_rng(k).integers(256, size=(*size, 3), dtype=np.uint8))
    images, seen = image_set(tmp_path), []
    torch.manual_seed(0)
    net = Tiny().eval()
    net.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    together = evaluate({"n": net}, [images], 4, progress=False, batch_px=2 * 16 * 20)
    assert seen == [(2, 3, 16, 20), (1, 3, 16, 20), (2, 3, 12, 12)]
    alone = evaluate({"n": net}, [images], 4, progress=False, batch_px=1)
    assert [r.image for r in together] == list("01234")
    assert [r.psnr_y for r in together] == pytest.approx([r.psnr_y for r in alone], abs=1e-3)


def test_the_finding_gives_the_least_and_the_largest_change_of_every_use(tmp_path):
    "Over all networks and sets: made-up scores whose differences can be read off."
    scores = {"bicubic": (20, 21), "a": (30, 31), "a, bf16": (29.9954, 30.9991), "a, tiles of 256": (30, 30.999),
              "b": (25, 26), "b, bf16": (25.001, 26), "b+": (25.1, 26.2)}
    ways = {"a": ("a", "", False, 0), "a, bf16": ("a", "bf16", False, 0), "a, tiles of 256": ("a", "", False, 256),
            "b": ("b", "", False, 0), "b, bf16": ("b", "bf16", False, 0), "b+": ("b", "", True, 0)}
    run = make_run_fixture(
        tmp_path, pictures=False, kind="evaluate", student={
            "nets": {name: {**STUDENT, "scale": 4} for name in "ab"},
            "ways": {k: Way(*way)._asdict() for k, way in ways.items()}},
        rows=[Row.of(m, name, "one", 4, value, 0.9) for m, both in scores.items()
              for name, value in zip(("Set5", "Set14"), both, strict=True)])
    changes = evaluation_finding(run.record).partition("the mean PSNR of a set changes with ")[2]
    assert changes == ("bf16 by \u22120.0046 to +0.0010 dB, with tiles of 256 by \u22120.0010 to 0.0000 dB, "
                       "with self-ensemble by +0.1000 to +0.2000 dB.")


def test_kept_images_are_those_that_were_scored_whatever_the_file_is_called(tmp_path):
    "At the first precision asked for; weights in hr.safetensors do not take the original's place."
    write_image(tmp_path / "set" / "one.png", skimage.data.astronaut()[:64, 180:244])
    save_weights(make_net("edsr(n_resblocks=1,n_feats=8)", 2, seed=1), tmp_path / "hr.safetensors")
    config = EvaluateConfig(weights=str(tmp_path / "hr.safetensors"), benchmarks=str(tmp_path / "set"), device="cpu",
                            precision="bf16+fp32", out_dir=str(tmp_path / "runs"))
    evaluation = prepare_evaluation(config.resolve())
    rows = {row.method: row for row in measure_scores(evaluation, progress=False)}
    assert list(rows) == ["bicubic", "hr (2)", "hr (2), fp32"]
    (folder,) = (evaluation.run.dir / "snapshots/images/x2").iterdir()
    hr_img, sr_img = read_image(folder / "hr.png"), read_image(folder / "hr%20%282%29.png")
    assert np.array_equal(hr_img, skimage.data.astronaut()[:64, 180:244])
    assert psnr_y(sr_img, hr_img, 2) == pytest.approx(rows["hr (2)"].psnr_y, abs=1e-6)
    assert rows["hr (2)"].psnr_y != rows["hr (2), fp32"].psnr_y
