"Whole images in tiles: seams, memory, every size and kind of image."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fakd.core import FakdError
from fakd.data.degrade import imresize
from fakd.data.sets import image_set
from fakd.images import to_batch, to_images
from fakd.measure.metrics import psnr_y
from fakd.measure.upscale import _ramps, _windows, fit_tile, pixel_bytes, tiled, upscale
from fakd.nets.weights import load_net
from fakd.nets.zoo import NETS, make_net

WEIGHTS = Path(__file__).parents[1] / "data" / "weights"


@settings(max_examples=300)
@given(n=st.integers(1, 500), tile=st.integers(1, 90), part=st.floats(0, 1 / 3), scale=st.integers(1, 4))
def test_windows_cover_an_axis_and_their_weights_add_up_to_one(n, tile, part, scale):
    overlap = int(tile * part)
    side, starts = _windows(n, tile, overlap)
    assert side <= tile and starts[0] == 0 and starts[-1] + side == n
    assert all(a + side - b >= overlap for a, b in zip(starts, starts[1:], strict=False))
    sums = torch.zeros(n * scale)
    for start, weights in zip(starts, _ramps(side, starts, scale), strict=True):
        assert weights.min() >= 0
        sums[start * scale : (start + side) * scale] += weights
    torch.testing.assert_close(sums, torch.ones(n * scale), rtol=0, atol=1e-5)


class Cubic(nn.Module):
    "Rings at edges, as networks do."

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, lr_imgs):
        return nn.functional.interpolate(lr_imgs, scale_factor=self.scale, mode="bicubic")


class Near(nn.Module):
    "Looks at four pixels around, no farther."

    def __init__(self, scale=2):
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Upsample(scale_factor=scale))

    def forward(self, lr_imgs):
        return self.layers(lr_imgs) * 5 + 128


@settings(max_examples=25)
@given(h=st.integers(1, 130), w=st.integers(1, 130), b=st.integers(1, 2), tile=st.integers(48, 80))
def test_tiles_of_a_network_that_looks_near_leave_no_seam(h, w, b, tile):
    net, lr_imgs = Near(), torch.rand(b, 3, h, w) * 255
    with torch.no_grad():
        whole = net(lr_imgs)
    torch.testing.assert_close(tiled(net, lr_imgs, tile), whole, rtol=0, atol=1e-3)


def test_tiles_without_overlap_leave_seams():
    net, lr_imgs = Near(), torch.rand(1, 3, 100, 100) * 255
    assert (tiled(net, lr_imgs, 50, 0) - tiled(net, lr_imgs, 50, 16)).abs().max() > 1


@pytest.mark.parametrize("network", NETS)
@pytest.mark.parametrize("size", [(1, 1), (2, 70), (3, 5)])
def test_every_network_takes_every_size(network, size):
    net = make_net(network, 3, "mini_student")
    img = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    assert upscale(net.eval(), img).shape == (3 * size[0], 3 * size[1], 3)


def test_all_65536_values_of_16_bits_survive_a_network_that_changes_nothing():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (upscale(nn.Identity(), np.dstack([values, values.T, values[::-1]]))[:, :, 0] == values).all()


def test_out_of_range_values_are_clipped_not_wrapped():
    class Loud(nn.Module):
        scale = 1

        def forward(self, lr_imgs):
            return (lr_imgs - 128) * 10 + 128

    img = np.full((9, 9, 3), 200, np.uint8)
    assert (upscale(Loud(), img) == 255).all() and (upscale(Loud(), 255 - img) == 0).all()
    assert (upscale(Loud(), img.astype(np.uint16) * 257) == 65535).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("under", [0, 1, 0.3])
def test_colour_under_alpha_0_does_not_reach_what_is_visible(dtype, colours, under):
    "A disc of one colour stays of one colour, whatever lies outside of it and however the tiles fall."
    top = np.iinfo(dtype).max
    y, x = np.mgrid[:100, :90]
    inside = (y - 50) ** 2 + (x - 45) ** 2 < 30**2
    colour = (np.array([0.9, 0.2, 0.6])[:colours] * top).astype(dtype)
    img = np.dstack([np.where(inside[..., None], colour, dtype(under * top)), inside * dtype(top)]).astype(dtype)
    net = Cubic(2)
    net.pixel_bytes = 30_000
    for limit in (None, 16 + int(img.nbytes * 4 / 2**20) + 100):
        result = upscale(net, img, limit)
        seen = result[:, :, -1] > 0
        assert np.abs(result[seen][:, :-1].astype(int) - colour.astype(int)).max() <= top // 255
    np.testing.assert_array_equal(img[0, 0, :-1], dtype(under * top))  # the caller's image is as it was


def test_an_image_of_which_nothing_is_visible_is_enlarged_as_it_is():
    img = np.dstack([np.full((20, 20, 3), 77, np.uint8), np.zeros((20, 20), np.uint8)])
    assert (upscale(Cubic(2), img) == [77, 77, 77, 0]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_bicubic_even_across_tiles(dtype):
    "Up to ties: values are blended in single precision before they are rounded."
    top = np.iinfo(dtype).max
    img = np.random.default_rng(0).integers(top, size=(200, 150, 4), dtype=dtype)
    net = Near(4)
    net.pixel_bytes = 30_000
    limit = 16 + int(img.nbytes * 16 / 2**20) + 100
    assert fit_tile(net, img, limit) < 100
    alpha = np.floor(imresize(img[:, :, 3].astype(float), 4).clip(0, top) + 0.5).astype(int)
    differs = np.abs(upscale(net, img, limit)[:, :, 3].astype(int) - alpha)
    assert differs.max() <= 1 and differs.mean() < 0.01
    img[:, :, 3] = top
    assert (upscale(net, img, limit)[:, :, 3] == top).all()  # opaque stays opaque


def test_an_image_of_another_layout_in_memory_is_no_matter():
    img = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    expected = upscale(Near(), np.ascontiguousarray(img[::-1, ::2]))
    assert (upscale(Near(), img[::-1, ::2]) == expected).all()
    img.setflags(write=False)
    assert upscale(Near(), img).shape == (60, 80, 3)


@pytest.mark.parametrize("shape,dtype", [
    ((4, 4, 3), float), ((4, 4, 5), np.uint8), ((0, 4, 3), np.uint8), ((2, 4, 4, 3), np.uint8), ((4,), np.uint8)])
def test_what_is_no_image_is_refused(shape, dtype):
    with pytest.raises(FakdError, match="expected uint8 or uint16 of shape"):
        upscale(Near(), np.zeros(shape, dtype))


def test_memory_is_refused_before_work_if_it_cannot_be_enough():
    with pytest.raises(FakdError, match="memory_mb=50: 2000x2000 pixels at x2 need at least .. MB; the result alone"):
        upscale(Near(), np.zeros((2000, 2000, 3), np.uint8), memory_mb=50)


def test_more_memory_never_means_smaller_tiles():
    net = make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=16,reduction=4)", 4)
    img = np.zeros((700, 500, 3), np.uint8)
    sides = [fit_tile(net, img, limit) for limit in (100, 200, 400, 800, 10_000)]
    assert sides == sorted(sides) and sides[-1] >= 700


def test_counting_memory_keeps_no_tensor_alive():
    net = make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)", 2)
    assert pixel_bytes(net) == pixel_bytes(net) > 0


PEAK = """
import sys
import numpy as np
from fakd.nets.zoo import make_net
from fakd.measure.upscale import fit_tile, upscale

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

limit, channels, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
net = make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=24,reduction=4)", 4).eval()
img = np.random.default_rng(0).integers(256, size=(512, 512, channels)).astype(dtype)
upscale(net, img[:32, :32])
assert fit_tile(net, img, limit) < 300
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest mark starts anew
assert upscale(net, img, limit).shape[:2] == (2048, 2048)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure the peak of a process")
@pytest.mark.parametrize("limit,channels,dtype", [(100, 3, "uint8"), (200, 4, "uint16")])
def test_four_megapixels_stay_within_the_memory_that_was_stated(limit, channels, dtype):
    "In a fresh process, above what it had with the network loaded and warm."
    command = [sys.executable, "-c", PEAK, str(limit), str(channels), dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert limit / 4 < float(run.stdout) <= limit


@pytest.mark.parametrize("scale,tile,names", [(2, 256, ["ppt3", "zebra"]), (4, 128, ["comic", "ppt3"])])
def test_tiles_cost_at_most_a_hundredth_of_a_decibel_on_set14(shared, monkeypatch, scale, tile, names):
    "On images larger than a tile; at x4 Set14 has none for the default tile, so half of it is tried."
    weights = WEIGHTS / f"rcan-mini-x{scale}.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights.name} is not there yet")
    monkeypatch.setenv("FAKD_DATA", str(shared / "data"))
    net, costs = load_net(weights), []
    for pair in image_set("Set14").pairs(scale):
        if pair.name in names:
            lr_imgs = to_batch([pair.lr_img])
            with torch.inference_mode():
                whole = to_images(net(lr_imgs))[0]
            sr_img = to_images(tiled(net, lr_imgs, tile))[0]
            assert (whole != sr_img).any() or max(lr_imgs.shape) <= tile
            costs.append(psnr_y(whole, pair.hr_img, scale) - psnr_y(sr_img, pair.hr_img, scale))
            if pair.name == "comic":  # what `upscale` does by itself: one tile, no cost
                assert (upscale(net, pair.lr_img) == whole).all()
    assert len(costs) == len(names) and np.mean(costs) <= 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_what_the_cpu_gives():
    img = np.random.default_rng(0).integers(256, size=(90, 70, 4), dtype=np.uint8)
    net = Near(3).eval()
    on_cpu = upscale(net, img).astype(int)
    assert np.abs(upscale(net.cuda(), img).astype(int) - on_cpu).max() <= 1
