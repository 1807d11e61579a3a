"""Metrics: equal to the published code, to scikit-image and to published scores."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from fakd.core import FakdError, list_images, read_image
from fakd.metrics import psnr_div2k, psnr_rgb, psnr_y, rgb_to_y, ssim_y

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
    assert psnr_div2k(sr_img, hr_img, scale) == pytest.approx(expected["psnr_rgb_shave_plus6"], abs=1e-10)
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
