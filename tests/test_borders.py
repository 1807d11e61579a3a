"A flat page stays flat up to its border, and what is scored is what is upscaled."

import numpy as np
import pytest
import torch

from fakd.core import FakdError, root
from fakd.data.pairs import ImagePair
from fakd.measure.evaluate import BORDER, choose_border, super_resolve
from fakd.measure.upscale import bordered, tiled, upscale
from fakd.nets.onnx import OnnxNet
from fakd.nets.weights import load_net, read_state, save_weights
from fakd.nets.zoo import make_net
from fakd.onnx import export_onnx

COLOURS = ((255, 255, 255), (0, 0, 0), (10, 200, 90))
STUDENT, TEACHER = "student-x4-distilled", "rcan-mini-x4"


def shipped(name):
    return load_net(root() / f"data/weights/{name}.safetensors")


def page(h, w, colour):
    return np.full((h, w, 3), colour, np.uint8)


@pytest.mark.parametrize("name, border", [(STUDENT, 8), ("student-x4-plain", 8), (TEACHER, 0), ("rcan-mini-x2", 0)])
def test_the_border_is_stored_with_the_weights(name, border):
    assert shipped(name).border == border


@pytest.mark.parametrize("h, w", [(40, 33), (1, 1), (2, 2), (1, 50), (9, 3)])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_students_flat_page_has_no_frame(colour, h, w):
    net = shipped(STUDENT)
    for made in (upscale(net, page(h, w, colour)), super_resolve(net, page(h, w, colour))):
        assert made.shape == (4 * h, 4 * w, 3) and np.abs(made.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("name", [TEACHER, "rcan-mini-x2", "rcan-mini-x3", "rcan-mini-x8"])
@pytest.mark.parametrize("h, w", [(1, 1), (2, 2)])
def test_images_of_a_few_pixels_come_out_right_with_any_network(name, h, w):
    net = shipped(name)
    for colour in COLOURS:
        assert np.abs(upscale(net, page(h, w, colour)).astype(int) - colour).max() <= 4


def test_a_students_frame_is_there_without_its_border():
    net = shipped(STUDENT)
    net.border = 0
    assert np.abs(upscale(net, page(40, 33, COLOURS[0])).astype(int) - 255).max() > 100


@pytest.mark.parametrize("name", [STUDENT, TEACHER])
@pytest.mark.parametrize("h, w", [(31, 44), (3, 20), (1, 1)])
def test_what_is_scored_is_what_is_upscaled(name, h, w):
    net, img = shipped(name), np.random.default_rng(0).integers(256, size=(h, w, 3), dtype=np.uint8)
    assert np.array_equal(super_resolve(net, img), upscale(net, img))


def test_tiles_have_the_border_of_the_whole_image():
    net = shipped(STUDENT)
    lr_imgs = torch.full((1, 3, 70, 60), 255.0)
    with torch.inference_mode():
        small, whole = tiled(net, lr_imgs, tile=48), bordered(net)(lr_imgs)
    assert (small - whole).abs().max() < 1 and (small - 255).abs().max() < 3


def test_the_border_is_kept_through_files(tmp_path):
    net = shipped(STUDENT)
    save_weights(net, tmp_path / "x.safetensors")
    assert load_net(tmp_path / "x.safetensors").border == 8
    assert read_state(tmp_path / "x.safetensors")[1]["border"] == "8"
    net.border = 99
    save_weights(net, tmp_path / "x.safetensors")
    with pytest.raises(FakdError, match='border "99": expected are 0 to 64'):
        load_net(tmp_path / "x.safetensors")
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    export_onnx(shipped(STUDENT), tmp_path / "x.onnx")
    found = OnnxNet(tmp_path / "x.onnx")
    assert found.border == 8 and np.abs(upscale(found, page(9, 9, COLOURS[0])).astype(int) - 255).max() <= 3


def test_a_border_is_chosen_where_it_mends_the_page_and_costs_nothing():
    hr_img = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)
    flat = [ImagePair("flat", np.full((96, 96, 3), 255, np.uint8), np.full((24, 24, 3), 255, np.uint8))]
    assert choose_border(shipped(STUDENT), flat) == BORDER
    untrained = make_net("rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)", 4)
    assert choose_border(untrained, [ImagePair("noise", hr_img, hr_img[::4, ::4])]) == 0
