"What every network of NETS keeps, whatever is inside it; then what is special about SAN and EDSR."

import copy
import inspect
import itertools
import random
import re
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fakd.core import FakdError
from fakd.distil.taps import Taps, tap_shapes
from fakd.measure.cost import count_macs, count_params
from fakd.nets.edsr import EDSR
from fakd.nets.san import SAN, NonLocal, QuadrantNonLocal, SecondOrderAttention, covariance, matrix_sqrt
from fakd.nets.weights import load_net, save_weights
from fakd.nets.zoo import NETS, make_net, net_spec

SCALES = (2, 3, 4, 8)
by_network = pytest.mark.parametrize("name", NETS)


@pytest.fixture(autouse=True)
def one_thread():
    "The networks are too small to gain from more."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(name, scale=2, seed=0):
    "A mini student with all parameters away from 0, so that every part takes part."
    net = make_net(name, scale, "mini_student", seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def images(height=9, width=7, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()


@contextmanager
def shapes_only():
    "Networks made here have parameters without values, and spend no time on drawing them."
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, "reset_parameters", lambda layer: None)
        yield


def unused(name, parameter):
    return any(re.match(pattern, parameter) for pattern in getattr(NETS[name], "UNUSED", ()))


# The contract


@by_network
def test_named_sizes_are_keywords_and_are_kept(name):
    for role in ("teacher", "student", "mini_teacher", "mini_student"):
        with shapes_only():
            net = NETS[name](scale=2, **NETS[name].SIZES[role])
        assert NETS[name].SIZES[role].items() <= net.sizes.items()
        assert net.scale == 2
        assert net_spec(net).startswith(f"{name}(")


@by_network
def test_mini_sizes_are_mini(name):
    with shapes_only():
        teacher, student = (NETS[name](scale=4, **NETS[name].SIZES[role]) for role in ("mini_teacher", "mini_student"))
    assert 750_000 < count_params(teacher) < 900_000
    assert 150_000 < count_params(student) < 175_000


@pytest.mark.parametrize("height, width", [(4, 4), (5, 9), (12, 7)])
@pytest.mark.parametrize("scale", SCALES)
@by_network
def test_output_is_scale_times_the_input_at_odd_sizes(name, scale, height, width):
    with torch.inference_mode():
        sr_imgs = small(name, scale)(images(height, width))
    assert sr_imgs.shape == (2, 3, scale * height, scale * width)
    assert sr_imgs.isfinite().all()


@by_network
def test_other_scales_are_refused(name):
    with pytest.raises(ValueError, match=r"scale 5: choose 2, 3, 4 or 8\."):
        make_net(name, 5, "mini_student")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@by_network
def test_output_has_the_dtype_of_the_weights(name, dtype):
    net = small(name)
    with torch.inference_mode():
        wanted = net(images())
        found = net.to(dtype)(images().to(dtype))
    assert found.dtype == dtype
    assert found.isfinite().all()
    tolerance = 1e-3 if dtype == torch.float64 else 8.0
    assert (found.float() - wanted).abs().max() < tolerance


@by_network
def test_autocast_changes_little_and_gradients_stay_finite(name):
    net = small(name)
    wanted = net(images()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = net(images())
    assert found.dtype == torch.float32  # the last layer adds the mean colour, in full precision
    assert (found - wanted).abs().max() < 8
    found.mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@by_network
def test_forward_makes_no_tensor_on_another_device(name):
    "The meta device computes shapes and refuses tensors of any other."
    net = small(name).to("meta")
    assert net(images().to("meta")).shape == (2, 3, 18, 14)
    assert net(images().to("meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@by_network
def test_cuda_gives_the_values_of_the_cpu(name):
    net = small(name)
    with torch.inference_mode():
        wanted = net(images())
        found = net.cuda()(images().cuda())
    assert found.is_cuda
    assert (found.cpu() - wanted).abs().max() < 0.5  # TF32 convolutions


@by_network
def test_channels_last_gives_the_same(name):
    net = small(name)
    wanted = net(images())
    found = net.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    found.mean().backward()


@by_network
def test_all_parameters_learn_but_the_fixed_and_the_unused(name):
    net, lr_imgs = small(name), images().requires_grad_()
    net(lr_imgs).pow(2).mean().backward()
    for key, parameter in net.named_parameters():
        assert parameter.requires_grad != key.startswith(("sub_mean.", "add_mean.")), key
        if unused(name, key) or not parameter.requires_grad:
            assert parameter.grad is None, key
        else:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any() or key.endswith("phi.0.bias"), key  # that one moves nothing
    assert lr_imgs.grad.isfinite().all() and lr_imgs.grad.any()


@by_network
def test_every_image_of_a_batch_is_by_itself(name):
    net = small(name)
    with torch.inference_mode():
        torch.testing.assert_close(net(images())[1:], net(images()[1:]), atol=2e-3, rtol=0)


@by_network
def test_training_mode_changes_nothing(name):
    net = small(name)
    with torch.inference_mode():
        assert torch.equal(net.train()(images()), net.eval()(images()))


@by_network
def test_state_dict_round_trip(name, tmp_path):
    net, fresh = small(name), small(name, seed=1)
    assert not torch.equal(net(images()), fresh(images()))
    fresh.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(net(images()), fresh(images()))
    save_weights(net, tmp_path / "net.safetensors")
    loaded = load_net(tmp_path / "net.safetensors")
    assert net_spec(loaded) == net_spec(net)
    assert torch.equal(net(images()), loaded(images()))


@by_network
def test_the_same_seed_gives_the_same_network(name):
    first, again, other = (make_net(name, 2, "mini_student", seed) for seed in (0, 0, 1))
    assert torch.equal(first(images()), again(images()))
    assert not torch.equal(first(images()), other(images()))


@by_network
def test_taps_are_maps_of_lr_size_in_order_of_depth(name):
    net = small(name)
    for role in ("teacher", "student", "mini_teacher"):
        with shapes_only():
            assert len(NETS[name](scale=2, **NETS[name].SIZES[role]).tap_names()) == 4  # head, two between, last
    shapes = tap_shapes(net, list(net.tap_names()), 6)
    assert set(shapes.values()) == {(net.sizes["n_feats"], 6, 6)}
    with Taps(net, list(net.tap_names())) as taps:
        sr_imgs = net(images())
        gradients = torch.autograd.grad(sr_imgs.sum(), taps.maps)
    assert all(g.any() for g in gradients)


@by_network
def test_tapped_maps_are_not_changed_afterwards(name):
    net, kept = small(name), {}
    places = [place for place in net.tap_names().values() if not place.endswith(".input")]

    def keep(place):
        return lambda module, args, output: kept.update({place: output.clone()})

    handles = [net.get_submodule(place).register_forward_hook(keep(place)) for place in places]
    lr_imgs = images()
    with torch.no_grad(), Taps(net, list(net.tap_names())) as taps:
        net(lr_imgs)
        maps = dict(zip(net.tap_names().values(), taps.maps, strict=True))
    for place, value in kept.items():
        assert torch.equal(maps[place], value)
    assert torch.equal(lr_imgs, images())
    for handle in handles:
        handle.remove()


@by_network
def test_compiles(name):
    net = NETS[name](2, **min(some_sizes(name), key=lambda sizes: sum(sizes.values())))
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=True)
    for size in ((12, 9), (9, 13), (24, 24)):
        torch.testing.assert_close(compiled(images(*size)), net(images(*size)), atol=2e-3, rtol=0)
    compiled(images(12, 9)).mean().backward()
    torch.compiler.reset()


@by_network
def test_a_copy_is_equal_and_independent(name):
    net = small(name)
    twin = copy.deepcopy(net)
    assert torch.equal(net(images()), twin(images()))
    assert twin.sizes == net.sizes and net_spec(twin) == net_spec(net)
    with torch.no_grad():
        twin.head[0].weight.zero_()
    assert net.head[0].weight.any()


def ways(name):
    "Values of each size of a class: small ones for whole numbers, and none of its own choice for a size it derives."
    parameters = inspect.signature(NETS[name]).parameters
    kinds = {int: (1, 3, 9), float: (1.0, 0.1), type(None): (1, 3)}
    return {key: kinds[type(p.default)] for key, p in parameters.items() if key != "scale"}


def some_sizes(name, count=24):
    "Some combinations that the class accepts, always the same, and all that have a name."
    options = ways(name)
    every = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    random.Random(name).shuffle(every)
    found = []
    for sizes in every:
        with shapes_only(), suppress(FakdError):  # such as a reduction above the number of features
            NETS[name](scale=2, **sizes)
            found.append(sizes)
        if len(found) == count:
            break
    return found + list(NETS[name].SIZES.values())


@pytest.mark.parametrize("scale", SCALES)
@by_network
def test_sizes_are_read_from_the_weights(name, scale):
    "Combinations of a few sizes, each under our names."
    unreadable = getattr(NETS[name], "ASSUMED", ())
    for sizes in some_sizes(name):
        with shapes_only():
            net = NETS[name](scale=scale, **sizes)
        assert NETS[name].rename(net.state_dict()) == {k: k for k in net.state_dict()}  # our names stay
        found, wanted = NETS[name].infer_sizes(net.state_dict()), {"scale": scale, **net.sizes}
        assert found.keys() == wanted.keys()
        assert {k for k in found if found[k] != wanted[k]} <= {*unreadable}, sizes


# Sizes and costs of FAKD's networks: scale, parameters, 10^9 multiply-adds at LR 48x48 and at the LR pixels of 1280x720

COSTS = {
    ("san", "teacher"): [
        (2, 15_714_872, 36.051, 3605.1),
        (3, 15_899_512, 36.496, 1622.0),
        (4, 15_862_584, 37.458, 936.5),
        (8, 16_010_296, 43.086, 269.3),
    ],
    ("san", "student"): [
        (2, 4_849_906, 11.080, 1108.0),
        (3, 5_034_546, 11.525, 512.2),
        (4, 4_997_618, 12.487, 312.2),
        (8, 5_145_330, 18.115, 113.2),
    ],
    ("edsr", "teacher"): [
        (2, 40_729_627, 93.848, 9384.8),
        (3, 43_680_027, 100.722, 4476.5),
        (4, 43_089_947, 115.782, 2894.6),
        (8, 45_450_267, 203.521, 1272.0),
    ],
    ("edsr", "student"): [
        (2, 1_369_883, 3.163, 316.3),
        (3, 1_554_523, 3.607, 160.3),
        (4, 1_517_595, 4.570, 114.2),
        (8, 1_665_307, 10.198, 63.7),
    ],
}
ENTRIES = {("san", "teacher"): 967, ("san", "student"): 309, ("edsr", "teacher"): 142, ("edsr", "student"): 78}
HW = {2: (360, 640), 3: (320, 320), 4: (180, 320), 8: (90, 160)}  # 1280 * 720 / scale^2 pixels


@pytest.mark.parametrize("name, role", COSTS)
def test_sizes_and_costs_are_those_of_fakd(name, role):
    for scale, params, patch_macs, frame_macs in COSTS[name, role]:
        with shapes_only():
            net = NETS[name](scale=scale, **NETS[name].SIZES[role])
        assert count_params(net) == params
        assert count_params(net, trainable=True) == params - 24
        if role == "student" or scale == 4:
            assert count_macs(net, (48, 48)) / 1e9 == pytest.approx(patch_macs, abs=0.0006)
        if scale == 4:
            assert count_macs(net, HW[scale]) / 1e9 == pytest.approx(frame_macs, abs=0.06)
        if scale == 4:
            assert len(net.state_dict()) == ENTRIES[name, role]


# SAN


class Largest(TorchDispatchMode):
    "Notes the number of elements of the largest tensor that any operation makes."

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("width", [4, 8, 13])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_non_local_attention_never_holds_the_matrix_of_all_pairs(width, layout):
    block = QuadrantNonLocal(16, width)
    maps = torch.randn(1, 16, 64, 64).to(memory_format=layout).requires_grad_()
    with Largest() as seen:
        block(maps).sum().backward()
    assert seen.elements <= maps.numel()  # 65,536; a quadrant's matrix has 1024 x 256 = 262,144


def test_covariance_never_holds_a_matrix_of_positions():
    maps = torch.randn(1, 4, 60, 60, requires_grad=True)
    with Largest() as seen:
        SecondOrderAttention(4, 2)(maps).sum().backward()
    assert seen.elements == maps.numel()  # the published centring matrix has 3600 x 3600


@given(st.integers(1, 9), st.integers(4, 13), st.integers(4, 13), st.integers(0, 99))
def test_non_local_attention_is_the_plain_formula(width, height, columns, seed):
    torch.manual_seed(seed)
    block = NonLocal(6, width).double()
    nn.init.normal_(block.W.weight)
    maps = 3 * torch.randn(2, 6, height, columns, dtype=torch.float64)
    theta, phi, g = (part(maps).flatten(2) for part in (block.theta, block.phi, block.g))
    mixed = g @ (theta.mT @ phi).softmax(2).mT
    wanted = maps + block.W(mixed.unflatten(2, (height, columns)))
    torch.testing.assert_close(block(maps), wanted, atol=1e-10, rtol=1e-10)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_covariance_is_numpys(channels, height, width, seed):
    maps = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for found, one in zip(covariance(maps), maps, strict=True):
        wanted = np.atleast_2d(np.cov(one.flatten(1).numpy(), bias=True))
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_the_gradient_of_the_root_is_that_of_finite_differences():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: matrix_sqrt(covariance(m)).mean(1), maps)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 7.0, 255.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_features_give_a_defined_result_and_gradient(dtype, value):
    attention = SecondOrderAttention(8, 4).to(dtype)
    maps = torch.full((2, 8, 5, 7), value, dtype=dtype, requires_grad=True)
    out = attention(maps)
    out.sum().backward()
    assert out.isfinite().all() and maps.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("size", [1e-25, 1e-18, 1e-12, 1e-6])
def test_almost_constant_features_do_too(size):
    torch.manual_seed(0)
    maps = (size * torch.randn(2, 8, 5, 7)).requires_grad_()
    root = matrix_sqrt(covariance(maps))
    root.sum().backward()
    assert root.isfinite().all() and maps.grad.isfinite().all()


@pytest.mark.parametrize("colour", [0.0, 77.0])
def test_a_flat_image_trains(colour):
    net = small("san")
    net(torch.full((1, 3, 8, 8), colour)).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_second_order_attention_is_in_fp32_under_autocast():
    torch.manual_seed(0)
    attention, maps = SecondOrderAttention(8, 4), torch.randn(2, 8, 6, 6)
    wanted = attention(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(maps), wanted)
        assert attention(maps.bfloat16()).dtype == torch.bfloat16
        assert attention.double()(maps.double()).dtype == torch.float64


@pytest.mark.parametrize("side, start", [(999, 0), (1000, 0), (1001, 0), (1003, 1)])
def test_statistics_come_from_the_middle_thousand_pixels(side, start):
    "The published code takes a strip of 5 columns from 1000 x 990."
    torch.manual_seed(0)
    attention, maps = SecondOrderAttention(4, 2).double(), torch.randn(1, 4, side, 3, dtype=torch.float64)
    used = slice(start, start + min(side, 1000))
    torch.testing.assert_close(attention(maps)[:, :, used], attention(maps[:, :, used]))
    torch.testing.assert_close(attention(maps.mT)[..., used], attention(maps.mT[..., used]))


def test_both_widths_of_the_projections():
    assert SAN(2, 1, 1, 16, 8).sizes["nonlocal_width"] == 4  # FAKD's code
    assert SAN(2, 1, 1, 16, 8, nonlocal_width=2).sizes["nonlocal_width"] == 2  # the original repository


# EDSR


def test_res_scale_weighs_the_residual():
    maps = images()
    half, whole = (EDSR(2, 1, 8, res_scale) for res_scale in (0.5, 1.0))
    whole.load_state_dict(half.state_dict())
    with torch.inference_mode():
        assert not torch.equal(half(maps), whole(maps))
        head = whole.head(whole.sub_mean(maps))
        torch.testing.assert_close(half.body[0](head) - head, 0.5 * (whole.body[0](head) - head))
