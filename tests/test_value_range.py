"Networks of 0..1 and of 0..255: read from the file, found by probing, or refused; never used in the wrong range."

import copy

import pytest
import torch
from fixtures import prepared
from torch import nn

from fakd.core import FakdError, root
from fakd.nets.foreign import load_any
from fakd.nets.onnx import OnnxNet, open_net
from fakd.nets.value_range import probe_images, try_views
from fakd.nets.weights import load_net
from fakd.nets.wrapped import as_net, unwrapped
from fakd.nets.zoo import make_net
from fakd.train.teacher import Teacher

FILES = ["rcan-mini-x2", "rcan-mini-x4", "student-x4-distilled"]
SMALL = "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class From01(nn.Module):
    "A network of 0..255 as one of 0..1, or of -1..1; perhaps with its output cut off."

    def __init__(self, net, low=0.0, clamp=False):
        super().__init__()
        self.net, self.low, self.clamp = net, low, clamp

    def forward(self, imgs):
        gain = 255 / (1 - self.low)
        sr_imgs = self.net((imgs - self.low) * gain) / gain + self.low
        return sr_imgs.clamp(self.low, 1) if self.clamp else sr_imgs


def shipped(name):
    return load_net(root() / f"data/weights/{name}.safetensors")


def same(net, other, atol=0.02):
    lr_imgs = probe_images(other.scale)[0]
    with torch.inference_mode():
        assert torch.allclose(net(lr_imgs), other(lr_imgs), atol=atol, rtol=0)


def state_of_range_1(net, mean):
    "The tensors of the same network, trained with 0..1; its mean shifts stored, or taken into the convolutions."
    state = {k: v.clone() for k, v in net.state_dict().items()}
    if not mean:
        shift = state["add_mean.bias"]
        state["head.0.bias"] -= (state["head.0.weight"] * shift[:, None, None]).sum((1, 2, 3))
        state["tail.1.bias"] += shift
        state = {k: v for k, v in state.items() if "_mean" not in k}
    state["head.0.weight"] *= 255
    for name in state:
        if name.startswith("tail.1.") or name.endswith("_mean.bias"):
            state[name] /= 255
    return state


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_module_of_0_to_1_is_found_and_adapted(name, clamp):
    net = shipped(name)
    found = as_net(From01(net, clamp=clamp))
    lr_imgs = probe_images(net.scale)[0]
    with torch.inference_mode():
        wanted = net(lr_imgs).clamp(0, 255) if clamp else net(lr_imgs)
        assert torch.allclose(found(lr_imgs), wanted, atol=0.02)
    assert found.spec == "from01(value_range=1)" and found.assumptions[0].startswith("value_range=1: found by probing")


class Ends(nn.Module):
    "A network of 0..255 that takes and gives images of other ranges."

    def __init__(self, net, taken, given):
        super().__init__()
        self.net, self.taken, self.given = net, taken, given

    def forward(self, imgs):
        return self.given(self.net(self.taken(imgs)))


@pytest.mark.parametrize(("taken", "given", "said"), [
    (lambda x: x, lambda y: (y / 255).clamp(0, 1), "0..255 and gives images of 0..1"),
    (lambda x: 255 * x, lambda y: y.clamp(0, 255), "0..1 and gives images of 0..255"),
    (lambda x: 127.5 * (x + 1), lambda y: y / 255, "-1..1 and gives images of 0..1"),
])  # fmt: skip
def test_a_module_whose_ends_are_of_two_ranges_is_refused(taken, given, said):
    net = Ends(shipped("rcan-mini-x4"), taken, given)
    with pytest.raises(FakdError, match=f"takes images of {said}"):
        as_net(net)


def test_a_network_of_fakd_that_was_filled_from_a_file_of_0_to_1_is_told_by_its_mean_shift():
    net = shipped("rcan-mini-x4")
    filled = copy.deepcopy(net)
    filled.load_state_dict(state_of_range_1(net, mean=True))
    found = Teacher(filled).net
    same(found, net)
    assert found.assumptions == ["value_range=1: told by its mean shift"]


@pytest.mark.parametrize("name", FILES)
def test_a_module_of_0_to_255_is_left_as_it_is(name):
    net = shipped(name)
    found = as_net(nn.Sequential(net))
    assert found.gain == 1 and found.spec == "sequential"
    assert Teacher(net).net is net


@pytest.mark.parametrize("name", FILES[1:])
def test_a_module_of_minus_1_to_1_is_refused(name):
    with pytest.raises(FakdError, match=r"works with images of -1\.\.1 .* Wrap it"):
        as_net(From01(shipped(name), low=-1.0))


class Around(nn.Module):
    "An untrained network with a path around its layers."

    def __init__(self, norm=False, zero=False):
        super().__init__()
        middle = nn.BatchNorm2d(8) if norm else nn.Identity()
        last = nn.Conv2d(8, 48, 3, padding=1)
        if zero:
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), middle, nn.ReLU(), last, nn.PixelShuffle(4))

    def forward(self, imgs):
        return nn.functional.interpolate(imgs, scale_factor=4, mode="bicubic") + self.body(imgs)


class Rest(nn.Module):
    "What a trained network adds to bicubic; zero times it, if asked."

    def __init__(self, net, times=1.0):
        super().__init__()
        self.net, self.times = net, times

    def forward(self, imgs):
        return self.times * (self.net(imgs) - nn.functional.interpolate(imgs, scale_factor=4, mode="bicubic"))


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(make_net(SMALL, 4)),
    lambda: nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4)),
    Around, lambda: Around(norm=True), lambda: Around(zero=True), lambda: Around(True, True),
    lambda: Rest(shipped("rcan-mini-x4")), lambda: Rest(shipped("rcan-mini-x4"), 0.0),
    lambda: nn.Upsample(scale_factor=4, mode="bicubic"),
])
@pytest.mark.parametrize("seed", range(2))
def test_what_gives_no_picture_is_not_adapted(make, seed):
    torch.manual_seed(seed)
    net = make()
    before = copy.deepcopy(net.state_dict())
    found = as_net(net)
    assert found.gain == 1 and all("value_range=255" in line for line in found.assumptions)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and net.training


def test_what_a_module_says_of_itself_is_believed():
    net = nn.Sequential(make_net(SMALL, 4))
    net.value_range = 1
    assert as_net(net).gain == 255 and as_net(net).assumptions == []
    assert as_net(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.Sigmoid())).gain == 255
    assert as_net(net, value_range=255).gain == 1


@pytest.mark.parametrize("name", FILES[:1])
def test_a_file_of_0_to_1_is_told_by_its_mean_shift(name, tmp_path):
    net = shipped(name)
    torch.save(state_of_range_1(net, mean=True), tmp_path / "x.pth")
    found = load_any(tmp_path / "x.pth")
    same(found, net)
    assert found.assumptions == ["value_range=1: told by its mean shift; turned into a network of 0..255"]
    with pytest.raises(FakdError, match=r"value_range=255 was given, but its mean shift is that of 1\."):
        load_any(tmp_path / "x.pth", value_range=255)


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_mean_layers_is_read_as_what_gives_the_best_picture(name, tmp_path):
    net = shipped(name)
    torch.save({"params": state_of_range_1(net, mean=False)}, tmp_path / "redux.pth")
    found, lr_imgs = load_any(tmp_path / "redux.pth"), probe_images(net.scale)[0]
    assert found.assumptions[0].startswith("value_range=1, without mean: found by probing")
    with torch.inference_mode():  # zero padding is another colour without mean: the border differs
        difference = (found(lr_imgs) - net(lr_imgs))[..., 40:-40, 40:-40].abs()
    assert difference.mean() < 1
    constant = {k: v for k, v in net.state_dict().items() if "_mean" not in k}
    torch.save(constant, tmp_path / "constant.pth")
    same(load_any(tmp_path / "constant.pth", value_range=255), net)


def test_a_basicsr_file_means_the_constant_in_either_range(tmp_path):
    net = shipped("rcan-mini-x4")
    rules = {"head.0.": "conv_first.", "tail.0.": "upsample.", "tail.1.": "conv_last.", "body.3.": "conv_after_body."}
    for value_range in (255, 1):
        state = net.state_dict() if value_range == 255 else state_of_range_1(net, mean=True)
        state = {k: v for k, v in state.items() if "_mean" not in k}
        for old, new in rules.items():
            state = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in state.items()}
        torch.save(state, tmp_path / "x.pth")
        found = load_any(tmp_path / "x.pth")
        same(found, net)
        assert [line[:13] for line in found.assumptions] == ([] if value_range == 255 else ["value_range=1"])


def test_an_onnx_file_of_0_to_1_is_found_and_adapted(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = shipped("student-x4-distilled")
    torch.onnx.export(From01(net).eval(), (torch.rand(1, 3, 32, 32),), dynamo=True, opset_version=18, verbose=False,
                      dynamic_shapes=({2: "h", 3: "w"},)).save(tmp_path / "unit.onnx")
    found = open_net(tmp_path / "unit.onnx")
    assert found.assumptions[0].startswith("value_range=1: found by probing")
    same(found, net, atol=0.05)
    with torch.inference_mode():  # the file takes one image at a time
        assert found(probe_images(4)[0].repeat(3, 1, 1, 1)).shape[0] == 3
    assert OnnxNet(tmp_path / "unit.onnx", value_range=255).gain == 1


# What is made ready in `prepare`


@pytest.fixture
def small(tmp_path):
    return {"student": SMALL, "benchmarks": "sample-eval", "steps": 2, "batch_size": 2, "patch_px": 16,
            "out_dir": str(tmp_path), "precision": "fp32", "loss": "DS+TS"}


class OneChannel(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, imgs):
        return self.body(imgs)


def broken(value):
    net = make_net(SMALL, 4)
    with torch.no_grad():
        net.body[0].body[0].body[0].weight[0, 0, 0, 0] = value
    return net


class Endless(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make_net(SMALL, 4)

    def forward(self, imgs):
        return self.net(imgs) * float("nan")


def changed():
    net = make_net(SMALL, 4)
    net.head = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2))
    return net


BAD = {
    "another scale": (lambda: make_net(SMALL, 2), "is for scale 2, the run for scale 4"),
    "grey": (OneChannel, r"does not take RGB images"),
    "NaN in a weight": (lambda: broken(float("nan")), r"body\.0\.body\.0\.body\.0\.weight holds values that are"),
    "infinity in a weight": (lambda: broken(float("inf")), "not finite"),
    "NaN in the output": (Endless, "its output holds values that are not finite"),
    "no values yet": (lambda: make_net(SMALL, 4).to("meta"), "has no values yet"),
    "another layer": (changed, "is not as in this network"),
}


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("fault", BAD)
def test_a_network_that_cannot_work_is_refused_before_training(fault, role, small):
    make, said = BAD[fault]
    with pytest.raises(FakdError, match=rf"^{role}.*{said}"):
        prepared(**small | {role: make()})


def test_a_student_file_of_another_scale_is_refused(small, tmp_path):
    torch.save(make_net(SMALL, 2).state_dict(), tmp_path / "x2.pth")
    with pytest.raises(FakdError, match="student .* is for scale 2, the run for scale 4"):
        prepared(**small | {"student": str(tmp_path / "x2.pth")})


@pytest.mark.parametrize("wrap", [
    nn.DataParallel, lambda net: torch.compile(net, backend="eager"), torch.optim.swa_utils.AveragedModel,
    lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
])
def test_wrappers_are_taken_off(wrap, small):
    net = make_net(SMALL, 4, seed=3)
    assert type(unwrapped(wrap(net))) is type(net)
    setup = prepared(**small | {"student": wrap(net), "teacher": wrap(net)})
    assert type(setup.student) is type(setup.teachers[0].net) is type(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_single(dtype, small):
    net = make_net(SMALL, 4, seed=3).to(dtype)
    for _ in range(2):  # the network that was given is not changed
        setup = prepared(**small | {"student": net, "teacher": net})
        for ready in (setup.student, setup.teachers[0].net):
            assert {p.dtype for p in ready.parameters()} == {torch.float32}
            assert f"given in {str(dtype)[6:]}, computed in float32" in ready.assumptions[-1]
        assert {p.dtype for p in net.parameters()} == {dtype}


class OnlyOf48(nn.Module):
    "A student of fixed size, as those with learned positions are."

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(3, 48, 48))

    def forward(self, imgs):
        return nn.functional.interpolate(imgs + self.position, scale_factor=4)


def test_a_student_that_cannot_take_the_runs_patches_is_refused(small):
    with pytest.raises(FakdError, match="student onlyof48: it cannot be trained on patches of 16x16"):
        prepared(**small | {"student": OnlyOf48()})


def test_two_ranges_of_equal_pictures_and_equal_levels_are_not_guessed():
    "One view is as much too bright as the other is too dark, in alternate pixels."
    def view(sign):
        def enlarge(imgs):
            sr_imgs = nn.functional.interpolate(imgs.float(), scale_factor=2, mode="bicubic")
            board = torch.arange(sr_imgs.shape[2])[:, None] + torch.arange(sr_imgs.shape[3]) & 1
            return sr_imgs + sign * (2 * board - 1)
        return enlarge

    found = try_views({255: view(1), 1: view(-1)}, 2)
    assert found.best is None and not found.alike and set(found.tied) == {255, 1}
