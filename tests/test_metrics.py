"""Metrics: equal to the published code, to scikit-image and to published scores."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from fakd.core import FakdError
from fakd.images import list_images, read_image
from fakd.measure.metrics import luma_scores, psnr_rgb, psnr_y, rgb_to_y, ssim_y
from fakd.measure.perceptual import _learned, _stages, dists, lpips

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_metrics_equal_the_published_code(k, scale):
    sr_img, hr_img = GOLDEN[f"pair{k}/sr"], GOLDEN[f"pair{k}/hr"]
    expected = {name: float(GOLDEN[f"pair{k}/x{scale}/{name}"]) for name in (
        "psnr_y", "psnr_rgb_shave_plus6", "psnr_y_basicsr", "ssim_y_skimage", "ssim_y_basicsr")}
    assert psnr_y(sr_img, hr_img, scale) == pytest.approx(expected["psnr_y"], abs=1e-10)
    assert psnr_rgb(sr_img, hr_img, scale + 6) == pytest.approx(expected["psnr_rgb_shave_plus6"], abs=1e-10)
    assert ssim_y(sr_img, hr_img, scale) == pytest.approx(expected["ssim_y_skimage"], abs=1e-10)
    # BasicSR computes in float32 and with coefficients of other digits
    assert psnr_y(sr_img, hr_img, scale) == pytest.approx(expected["psnr_y_basicsr"], abs=1e-5)
    assert ssim_y(sr_img, hr_img, scale) == pytest.approx(expected["ssim_y_basicsr"], abs=1e-7)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_grey_images_count_as_three_equal_channels(scale):
    sr_img, hr_img = GOLDEN["grey/sr"], GOLDEN["grey/hr"]
    three, one = (float(GOLDEN[f"grey/x{scale}/{name}"]) for name in ("psnr_y_three_channels", "psnr_one_channel"))
    for shape in (sr_img.shape, (*sr_img.shape, 1)):
        assert psnr_y(sr_img.reshape(shape), hr_img.reshape(shape), scale) == pytest.approx(three, abs=1e-10)
        assert psnr_rgb(sr_img.reshape(shape), hr_img.reshape(shape), scale) == pytest.approx(one, abs=1e-10)
    assert ssim_y(sr_img, hr_img, scale) == ssim_y(np.dstack([sr_img] * 3), np.dstack([hr_img] * 3), scale)


@settings(max_examples=25, deadline=None)
@given(h=st.integers(11, 40), w=st.integers(11, 40), noise=st.floats(0.5, 80), seed=st.integers(0, 99))
def test_ssim_equals_scikit_image(h, w, noise, seed):
    draws = np.random.default_rng(seed)
    hr_img = draws.integers(256, size=(h, w, 3), dtype=np.uint8)
    sr_img = (hr_img + draws.normal(0, noise, hr_img.shape)).clip(0, 255).astype(np.uint8)
    expected = structural_similarity(rgb_to_y(sr_img), rgb_to_y(hr_img), data_range=255, gaussian_weights=True,
                                     sigma=1.5, use_sample_covariance=False)
    assert ssim_y(sr_img, hr_img, 0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs RCAN's published outputs in {DATA}")
@pytest.mark.parametrize("scale,psnr,ssim", [
    (2, 38.27, 0.9614), (3, 34.74, 0.9299), (4, 32.63, 0.9002), (8, 27.31, 0.7878)])
def test_published_outputs_of_rcan_give_its_published_scores(scale, psnr, ssim):
    scores = []
    sr_files = list_images(DATA / "sr_outputs" / "RCAN" / "Set5" / f"X{scale}")
    for hr_file in list_images(DATA / "benchmark" / "Set5" / "HR"):
        sr_file, = (f for f in sr_files if f.stem.startswith(hr_file.stem))
        sr_img = read_image(sr_file)
        hr_img = read_image(hr_file)[:sr_img.shape[0], :sr_img.shape[1]]
        scores.append((psnr_y(sr_img, hr_img, scale), ssim_y(sr_img, hr_img, scale)))
    mean = np.mean(scores, axis=0)
    assert len(scores) == 5 and abs(mean[0] - psnr) < 0.0051 and abs(mean[1] - ssim) < 0.000051


def test_identical_images_are_infinitely_good():
    img = GOLDEN["pair0/hr"]
    assert psnr_y(img, img, 2) == psnr_rgb(img, img, 2) == math.inf
    assert ssim_y(img, img, 2) == pytest.approx(1, abs=1e-12)


def test_values_are_not_cut_to_eight_bits_on_the_way():
    hr_img, sr_img = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 200, np.uint8)
    expected = pytest.approx(20 * math.log10(255 / 200), abs=1e-10)
    assert psnr_rgb(sr_img, hr_img, 0) == psnr_rgb(hr_img, sr_img, 0) == expected
    assert psnr_y(sr_img.astype(float), hr_img, 0) == psnr_y(sr_img, hr_img, 0)


@pytest.mark.parametrize("metric", [psnr_y, psnr_rgb, ssim_y])
def test_images_that_cannot_be_compared_are_refused(metric):
    img = np.zeros((20, 24, 3), np.uint8)
    with pytest.raises(FakdError, match="different shapes"):
        metric(img, img[:, 1:], 2)
    with pytest.raises(FakdError, match="leaves nothing"):
        metric(img, img, 10)
    with pytest.raises(FakdError, match="leaves nothing"):
        metric(img, img, -1)
    with pytest.raises(FakdError, match="expected RGB or grey"):
        metric(np.zeros((20, 24, 4)), np.zeros((20, 24, 4)), 2)
    with pytest.raises(FakdError, match="11x11"):
        ssim_y(img, img, 5)


def luma_of(sr_img, hr_img, shave):
    return luma_scores(sr_img[:, :, 0], hr_img[:, :, 0], shave)


@pytest.mark.parametrize("metric", [psnr_y, psnr_rgb, ssim_y, luma_of])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_score_is_given_for_values_that_are_not_finite(metric, value):
    hr_img = np.random.default_rng(0).integers(256, size=(40, 44, 3)).astype(float)
    for dtype, where in ((np.float64, (20, 20)), (np.float32, (0, 0)), (np.float16, (39, 43))):  # the border too
        holed = hr_img.astype(dtype)
        holed[where] = value
        for pair in ((holed, hr_img), (hr_img, holed), (holed, holed)):
            with pytest.raises(FakdError, match="not finite"):
                metric(*pair, 2)


@pytest.mark.parametrize("metric", [psnr_y, psnr_rgb, ssim_y, luma_of])
def test_other_scales_of_values_are_refused(metric):
    hr_img = np.random.default_rng(0).integers(256, size=(30, 34, 3)).astype(np.uint8)
    for other, says in ((hr_img / 255, "multiply both images by 255"), (hr_img.astype(np.uint16) * 257, "0..255"),
                        (hr_img.astype(np.float32) * 257, "0..255"), (hr_img.astype(int) - 128, "0..255"),
                        (hr_img > 9, "values of type bool")):
        with pytest.raises(FakdError, match=says):
            metric(other, other, 2)
    dark = (hr_img > 128).astype(float)  # whole numbers may be a very dark image
    metric(dark, dark, 2)
    metric(hr_img * 1.5 - 20, hr_img, 2)  # a result that is not clamped has its score


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    "AlexNet and VGG16 of random weights, in files as torchvision writes them, classifier and all."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbones")
    for kind in ("alex", "vgg"):
        state = {f"features.{key.partition('.')[2]}": value for key, value in _stages(kind).state_dict().items()}
        torch.save({**state, "classifier.6.bias": torch.zeros(9)}, folder / f"{kind}.pth")
    return folder


def pictures(h=67, w=81):
    draws = np.random.default_rng(h)
    hr_img = np.kron(draws.integers(256, size=(h // 5 + 1, w // 5 + 1, 3)), np.ones((5, 5, 1)))[:h, :w].astype(np.uint8)
    return (hr_img + draws.normal(0, 20, hr_img.shape)).clip(0, 255).astype(np.uint8), hr_img


def features(images, state, convolutions, smooth):
    "Plain loops over torchvision's layers, written apart from fakd: maps after each ReLU, as float64."
    maps, found = images.double(), []
    for number, (stride, padding, pool) in convolutions.items():
        if pool and smooth:
            window = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).double() / 16
            padded = torch.nn.functional.pad(maps**2, (1, 1, 1, 1))
            patches = padded.unfold(2, 3, 2).unfold(3, 3, 2)
            maps = ((patches * window).sum((-1, -2)) + 1e-12).sqrt()
        elif pool:
            maps = torch.nn.functional.max_pool2d(maps, pool, 2)
        weight, bias = (state[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
        maps = torch.nn.functional.conv2d(maps, weight, bias, stride, padding).clamp(min=0)
        found.append(maps)
    return found


ALEX = {0: (4, 2, 0), 3: (1, 2, 3), 6: (1, 1, 3), 8: (1, 1, 0), 10: (1, 1, 0)}
VGG = {k: (1, 1, 2 if k in (5, 10, 17, 24) else 0) for k in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
VGG_ENDS = (1, 3, 6, 9, 12)


def packaged(name):
    torchmetrics = pytest.importorskip("torchmetrics")
    file = Path(torchmetrics.__file__).parent / "functional" / "image" / name
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_follows_its_formula(kind, backbones):
    sr_img, hr_img = pictures()
    state, weights = torch.load(backbones / f"{kind}.pth", weights_only=True), packaged(f"lpips_models/{kind}.pth")
    images = torch.from_numpy(np.stack([sr_img, hr_img])).permute(0, 3, 1, 2).double() / 127.5 - 1
    for channel, (shift, scale) in enumerate(zip((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45), strict=True)):
        images[:, channel] = (images[:, channel] - shift) / scale
    found = features(images, state, ALEX if kind == "alex" else VGG, smooth=False)
    found = found if kind == "alex" else [found[k] for k in VGG_ENDS]
    expected = 0.0
    for k, maps in enumerate(found):
        x, y = (m / m.norm(dim=0) for m in maps + 1e-30)
        expected += ((x - y) ** 2 * weights[f"lin{k}.model.1.weight"].double()[0]).sum(0).mean().item()
    assert lpips(sr_img, hr_img, backbones / f"{kind}.pth") == pytest.approx(expected, rel=1e-4)
    assert lpips(hr_img, hr_img, backbones / f"{kind}.pth") == 0
    with pytest.raises(FakdError, match="not finite"):
        lpips(np.full(hr_img.shape, np.nan), hr_img, backbones / f"{kind}.pth")


def test_dists_follows_its_formula(backbones):
    sr_img, hr_img = pictures(70, 64)
    state, learned = torch.load(backbones / "vgg.pth", weights_only=True), packaged("dists_models/weights.pt")
    images = torch.from_numpy(np.stack([sr_img, hr_img])).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    found = features((images - mean) / std, state, VGG, smooth=True)
    alphas, betas = (learned[name].flatten().double().tolist() for name in ("alpha", "beta"))
    alike, channel = 0.0, 0
    for maps in [images, *(found[k] for k in VGG_ENDS)]:
        for x, y in zip(*maps.numpy(), strict=True):
            cov = np.cov(x.ravel(), y.ravel(), bias=True)
            alike += alphas[channel] * (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
            alike += betas[channel] * (2 * cov[0, 1] + 1e-6) / (cov[0, 0] + cov[1, 1] + 1e-6)
            channel += 1
    expected = 1 - alike / (sum(alphas) + sum(betas))
    assert channel == len(alphas) == 1475
    assert dists(sr_img, hr_img, backbones / "vgg.pth") == pytest.approx(expected, rel=1e-4)
    assert dists(hr_img, hr_img, backbones / "vgg.pth") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_equals_torchmetrics(kind, backbones, monkeypatch):
    "Its code asks torchvision for the layers; here it gets those of the file."
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    state, layers = torch.load(backbones / f"{kind}.pth", weights_only=True), []
    for number, (stride, padding, pooled) in (ALEX if kind == "alex" else VGG).items():
        weight = state[f"features.{number}.weight"]
        convolution = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
        convolution.load_state_dict({part: state[f"features.{number}.{part}"] for part in ("weight", "bias")})
        layers += [torch.nn.MaxPool2d(pooled, 2)] * bool(pooled) + [convolution, torch.nn.ReLU()]
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: layers)
    net = theirs._LPIPS(net=kind)
    batch = [torch.from_numpy(img).permute(2, 0, 1)[None].float() / 255 for img in pictures()]
    expected = net(*batch, normalize=True).item()
    assert lpips(*pictures(), backbones / f"{kind}.pth") == pytest.approx(expected, rel=1e-3)


def test_without_the_extra_it_is_named(backbones, monkeypatch):
    monkeypatch.setattr("fakd.measure.perceptual.find_spec", lambda _: None)
    _learned.cache_clear()
    with pytest.raises(FakdError, match=r"pip install fakd\[metrics\]"):
        lpips(*pictures(), backbones / "alex.pth")


def test_damaged_backbones_are_named(backbones, tmp_path):
    whole = torch.load(backbones / "alex.pth", weights_only=True)
    lacking = {key: value for key, value in whole.items() if key != "features.3.bias"}
    surplus = {**whole, "features.12.weight": torch.zeros(2)}
    for name, content in {"lacking": lacking, "surplus": surplus, "other": {"a": 1}, "list": [1]}.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(FakdError, match=f"{name}.pth: not a weights file of torchvision's AlexNet or VGG16"):
            lpips(*pictures(), tmp_path / f"{name}.pth")
    (tmp_path / "cut.pth").write_bytes((backbones / "alex.pth").read_bytes()[:5000])
    with pytest.raises(FakdError, match="cut.pth: not a weights file"):
        lpips(*pictures(), tmp_path / "cut.pth")
