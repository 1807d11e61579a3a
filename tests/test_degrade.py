"""Resizing: equal to MATLAB, to torch and to the formula, for any size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakd.core import FakdError
from fakd.data.degrade import degrade, imresize, modcrop
from fakd.images import list_images, read_image

SETS = Path(__file__).parents[2] / "shared" / "data" / "benchmark"
SCALES = (2, 3, 4, 8)


@pytest.mark.skipif(not SETS.is_dir(), reason=f"needs the benchmark images in {SETS}")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_degrade_equals_matlabs_lr_files_in_every_pixel(name, scale):
    files = list_images(SETS / name / "HR")
    assert len(files) == {"Set5": 5, "Set14": 14}[name]
    for file in files:
        expected = read_image(SETS / name / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
        np.testing.assert_array_equal(degrade(read_image(file), scale), expected, err_msg=file.stem)


def cubic(d):
    d = abs(d)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def resize_by_loops(values, factor, rule):
    "One axis of a 1-d signal, straight from the formula."
    n, stretch, out = len(values), min(factor, 1.0), []
    for i in range(int(np.ceil(round(n * factor, 6)))):
        centre = (i + 0.5) / factor - 0.5
        total = weights = 0.0
        for j in range(int(centre - 3 / stretch) - 3, int(centre + 3 / stretch) + 4):
            k = j
            while not 0 <= k < n:
                k = (-1 - k if k < 0 else 2 * n - 1 - k) if rule == "mirror" else min(max(k, 0), n - 1)
            weight = cubic(stretch * (centre - j))
            total, weights = total + weight * values[k], weights + weight
        out.append(total / weights)
    return np.array(out)


@pytest.mark.parametrize("rule", ["mirror", "edge"])
@pytest.mark.parametrize("factor", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 4, 8, 0.7, 1.5])
def test_float_images_follow_the_formula(factor, rule):
    img = np.random.default_rng(0).uniform(-50, 300, (13, 9))
    rows = np.stack([resize_by_loops(column, factor, rule) for column in img.T], axis=1)
    both = np.stack([resize_by_loops(row, factor, rule) for row in rows])
    np.testing.assert_allclose(imresize(img, factor, rule), both, rtol=0, atol=1e-10)


def shrink_rows_by_torch(img, scale):
    border = 4 * scale
    padded = np.pad(img, ((border, border), (0, 0), (0, 0)), mode="symmetric").transpose(2, 0, 1)[None]
    padded = torch.from_numpy(padded.astype(np.float64))
    size = (padded.shape[2] // scale, padded.shape[3])
    small = torch.nn.functional.interpolate(padded, size, mode="bicubic", antialias=True)
    return torch.floor(small + 0.5 + 1e-9).clamp(0, 255)[0, :, 4:-4].permute(1, 2, 0).numpy().astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(8, 60), w=st.integers(8, 60), scale=st.sampled_from(SCALES), seed=st.integers(0, 99))
def test_degrade_equals_torch_for_any_size(h, w, scale, seed):
    hr_img = np.random.default_rng(seed).integers(256, size=(h, w, 3), dtype=np.uint8)
    rows = shrink_rows_by_torch(modcrop(hr_img, scale), scale)
    both = shrink_rows_by_torch(rows.swapaxes(0, 1), scale).swapaxes(0, 1)
    lr_img = degrade(hr_img, scale)
    assert lr_img.shape == (h // scale, w // scale, 3)
    np.testing.assert_array_equal(lr_img, both)


def test_float_images_are_neither_rounded_nor_clipped():
    step = np.zeros((8, 8))
    step[:, 4:] = 255.0
    up = imresize(step, 4)
    assert up.dtype == np.float64 and up.min() < 0 and up.max() > 255
    assert (up != np.floor(up)).any()


def test_results_are_contiguous_and_leave_the_input_alone():
    img = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    before = img.copy()
    out = imresize(img[:, ::-1], 1 / 2)
    assert out.flags.c_contiguous and out.flags.writeable
    np.testing.assert_array_equal(img, before)


@pytest.mark.parametrize("shape,dtype", [
    ((4, 4), "int64"), ((4,), "uint8"), ((0, 4), "uint8"), ((2, 2, 2, 2), "float64")])
def test_what_is_no_image_is_refused(shape, dtype):
    with pytest.raises(FakdError, match="imresize: expected"):
        imresize(np.zeros(shape, dtype), 2)


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan")])
def test_impossible_factors_are_refused(factor):
    with pytest.raises(FakdError, match="positive number"):
        imresize(np.zeros((4, 4)), factor)


def test_the_edge_rule_and_the_float_path_follow_the_formula():
    img = np.random.default_rng(1).integers(256, size=(24, 21), dtype=np.uint8)
    padded = np.pad(img.astype(float), 24, mode="edge")
    whole = imresize(padded, 1 / 3)[8:-8, 8:-8]                                  # far from the padded border
    assert np.allclose(imresize(img.astype(float), 1 / 3, "edge"), whole, atol=1e-9)
    mirrored = imresize(np.pad(img.astype(float), 24, mode="symmetric"), 1 / 3)[8:-8, 8:-8]
    assert np.allclose(imresize(img.astype(float), 1 / 3), mirrored, atol=1e-9)
    assert np.allclose(imresize(img / 255, 2) * 255, imresize(img.astype(float), 2), atol=1e-9)  # im2double
