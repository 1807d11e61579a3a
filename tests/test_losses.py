"Every loss term: the authors' values, and what must hold for each line of LOSSES."

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import prepared
from torch import nn

from fakd.core import FakdError
from fakd.data.degrade import imresize
from fakd.distil.affinity import pairs_l1, spatial_affinity, unit_maps
from fakd.distil.features import MGD
from fakd.distil.images import VGG19, bicubic, vgg_features
from fakd.distil.loss import LOSSES, DistillLoss, check_spec, needs_of
from fakd.distil.relations import RBF
from fakd.distil.taps import Taps, features_of
from fakd.distil.terms import Batch, MapTerm
from fakd.distil.trial import loss_memory, measure_losses, refuse_idle, stand_ins
from fakd.distil.upcycle import Upcycle
from fakd.draws import torch_rng
from fakd.memory import peak_memory
from fakd.train.trainer import make_optimiser

# The authors' values: inputs and values are in the repository, gradients only beside the developers' checkout.

VALUES = np.load(Path(__file__).parent / "golden" / "losses.npz")
GOLDEN = sorted({tuple(key.split("/")[:2]) for key in VALUES if "/value_" in key})


def term_of(text):
    "The term of a golden key: SA, PSA_avg_k2, RBF_max_k1_P4_gamma1."
    name, *options = text.split("_")
    words = {"k": int, "P": int, "gamma": float}
    found = {w: kind(o[len(w):]) for o in options for w, kind in words.items() if o.startswith(w)}
    found |= {"pool": options[0]} if options else {}
    return LOSSES[{"fitnet": "FitNet"}.get(name, name)].cls(**found)


def golden_maps(case, dtype):
    "Maps of student (with gradient) and teacher."
    n = sum(key.startswith(f"{case}/student") for key in VALUES)
    student, teacher = ([torch.tensor(VALUES[f"{case}/{who}{i}"]).to(dtype) for i in range(n)] for who in WHO)
    return [m.requires_grad_() for m in student], teacher


WHO = ("student", "teacher")


@pytest.mark.parametrize("case, term", GOLDEN)
@pytest.mark.parametrize("dtype, suffix, tolerance", [(torch.float64, "f64", 1e-9), (torch.float32, "f32", 1e-5)])
def test_value_equals_the_authors(case, term, dtype, suffix, tolerance):
    key = f"{case}/{term}/value_{suffix}"
    if key not in VALUES:
        key = f"{case}/{term}/value_f64"  # the reference's fp32 value was not kept for every set
    value = term_of(term)(*golden_maps(case, dtype))
    assert value.dtype == dtype
    assert value.item() == pytest.approx(float(VALUES[key]), rel=tolerance)


@pytest.mark.parametrize("case, term", GOLDEN)
def test_gradient_equals_the_authors_and_is_zero_where_theirs_is_nan(case, term, shared):
    wanted = np.load(shared / "golden" / "losses" / "losses.npz")
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        student, teacher = golden_maps(case, dtype)
        found = torch.autograd.grad(term_of(term)(student, teacher), student, allow_unused=True)
        assert all(g.isfinite().all() for g in found if g is not None)
        for i, g in enumerate(found):
            if (key := f"{case}/{term}/grad{i}_f64") in wanted:
                target = wanted[key]
                dead = np.isnan(target)
                assert (g.numpy()[dead] == 0).all()
                error = np.abs(g.numpy() - target)[~dead].max()
                assert error <= tolerance * np.abs(target[~dead]).max(), f"{key}: {error:.1e}"


def test_positions_of_zeros_get_no_gradient_in_any_term_on_maps():
    student, teacher = golden_maps("zero_position", torch.float64)
    dead = (student[0].detach() == 0).all(1, keepdim=True).expand_as(student[0])
    assert dead.any()
    for name in ("SA", "PSA", "RBF"):
        (grad,) = torch.autograd.grad(LOSSES[name].cls()(student, teacher), student)
        assert grad.isfinite().all() and (grad[dead] == 0).all(), name


# What holds for every term


class Toy(nn.Module):
    "A network of scale 2 with two places to tap."

    def __init__(self, channels, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Conv2d(3, channels, 3, padding=1)
            self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))
            self.tail = nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, lr_imgs):
        return 255 * torch.sigmoid(self.tail(self.body(self.head(lr_imgs / 255))))


TAPS = ["head", "body"]
MAPS = [name for name, term in LOSSES.items() if issubclass(term.cls, MapTerm)]
LOOKING = [name for name, term in LOSSES.items() if {"teacher", "features"} & {*term.cls.reads}]
DRAWING = [name for name, term in LOSSES.items() if "rng" in term.cls.reads]
PLAIN = {"ZoomIn": "ZoomIn(invert=0)", "Invert": "Invert(invert=0)"}  # the plain input too: zero for equal networks


def batch(b=3, side=16, seed=0):
    "LR and HR images."
    rng = torch_rng(seed, "images")
    return (torch.rand((b, 3, n, n), generator=rng).mul(255).round() for n in (side, 2 * side))


def loss_of(spec, student, teacher, seed=0):
    "The loss of one term, with what its taps need."
    ours, theirs = ({name: (net.head.out_channels, 16, 16) for name in TAPS} for net in (student, teacher))
    name = spec.split("(")[0]
    return DistillLoss(f"DS+{spec}" if name in MAPS else spec, ours, [theirs], seed=seed), name


def on_maps(student_maps, teacher_maps):
    "A batch for losses of which only the terms on maps are looked at."
    one = torch.zeros(1)
    return Batch(one, one, student_maps=student_maps, teachers_maps=[teacher_maps])


def run(spec, student, teacher, hr_is_sr=False, step=0, loss=None):
    "Value of one term for two networks, and the teacher's tensors, which ask for a gradient."
    loss, name = (loss, spec.split("(")[0]) if loss is not None else loss_of(spec, student, teacher)
    teacher.requires_grad_(False)
    lr_imgs, hr_imgs = batch()
    with Taps(teacher, TAPS) as taps:
        seen = [m.clone().requires_grad_() for m in (teacher(lr_imgs), *taps.maps)]

    def frozen(imgs):
        return teacher(imgs), []

    with Taps(student, TAPS) as taps:
        sr_imgs = student(lr_imgs)
        _, terms = loss(Batch(
            sr_imgs, sr_imgs.detach() if hr_is_sr else hr_imgs, lr_imgs, seen[0], taps.maps, [seen[1:]],
            student=student, teacher=frozen, features=features_of(teacher, TAPS), step=step,
        ))
    return terms[name], seen


def pair(name):
    "A narrow student and a teacher, as wide as the term allows."
    return Toy(6, 1), Toy(6 if LOSSES[name].cls.channels == "equal" else 9, 2)


@pytest.mark.parametrize("name", LOSSES)
def test_student_gets_a_finite_gradient_and_the_teacher_none(name):
    student, teacher = pair(name)
    value, seen = run(name, student, teacher)
    value.backward()
    assert value.isfinite() and value.dtype == torch.float32 and value.shape == ()
    grads = [p.grad for p in student.head.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert sum(g.abs().sum() for g in grads) > 0
    assert all(t.grad is None for t in seen)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_smallest_value_where_student_equals_teacher(name):
    teacher = Toy(6, 2)
    student = copy.deepcopy(teacher)
    spec = PLAIN.get(name, name)
    if name == "MGD":
        spec = "MGD(mask=0)"
    loss, _ = loss_of(spec, student, teacher)
    least = 0.0
    if name == "MGD":  # a generator that changes nothing gives 0; its ReLU must not cut, so its inputs are lifted
        for generator in loss.terms[name][0].generators:
            for layer, lift in ((generator[0], 1e3), (generator[2], -1e3)):
                nn.init.dirac_(layer.weight)
                nn.init.constant_(layer.bias, lift)
    if name == "VID":  # foretold exactly, the logarithm of the variance is left
        least = sum(0.5 * torch.log(nn.functional.softplus(a) + 1e-5).mean().item() for a in loss.terms[name][0].alphas)
        for mean in loss.terms[name][0].means:
            mean.forward = lambda maps: maps
    value, _ = run(spec, student, teacher, hr_is_sr=name == "DS", loss=loss)
    assert value.item() == pytest.approx(least, abs=1e-5 if name != "MGD" else 1e-3)
    other, _ = run(spec, Toy(6, 1), teacher, loss=loss)
    assert other > value + 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_computed_in_fp32_inside_autocast(name):
    student, teacher = pair(name)
    loss, _ = loss_of(name, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = run(name, student, teacher, loss=loss)
    assert value.dtype == torch.float32 and value.isfinite()
    if name in LOOKING:
        return  # their networks ran in bf16 as the caller wished; only the comparison is in fp32
    rng = torch_rng(0, "halves")
    images = [(255 * torch.rand((3, 3, 32, 32), generator=rng)).bfloat16() for _ in range(3)]
    maps = [[torch.randn((3, net.head.out_channels, 16, 16), generator=rng).bfloat16() for _ in TAPS]
            for net in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(Batch(*images[:2], None, images[2], maps[0], maps[1:]))[1][name]
    images, maps = [i.float() for i in images], [[m.float() for m in ms] for ms in maps]
    full = loss(Batch(*images[:2], None, images[2], maps[0], maps[1:]))[1][name]
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def scaled(maps):
    return 3.5 * maps


def shifted(maps):
    return maps + 2.5


def turned(maps):
    "Channels rotated among themselves."
    q = torch.linalg.qr(torch.randn(maps.shape[1], maps.shape[1], generator=torch_rng(0, "q"), dtype=maps.dtype))[0]
    return torch.einsum("dc,bchw->bdhw", q, maps)


def shuffled(maps):
    return maps[:, torch.randperm(maps.shape[1], generator=torch_rng(0, "order"))]


def weighted(maps):
    "Each channel with a factor of its own, some negative."
    factors = torch.linspace(-2, 3.5, maps.shape[1], dtype=maps.dtype)
    return maps * factors[:, None, None]


def lifted(maps):
    "Each channel with a constant of its own."
    return maps + torch.arange(maps.shape[1], dtype=maps.dtype)[:, None, None]


INVARIANCES = {
    "SA": [scaled, turned], "PSA": [scaled, shuffled], "RBF": [scaled, turned], "MMD": [shifted, shuffled],
    "CA": [scaled], "IA": [scaled, turned], "SP": [scaled, turned], "PKT": [scaled, turned],
    "RKD": [scaled, shifted, turned], "AT": [scaled, turned, torch.neg], "CWD": [lifted], "NST": [weighted, shuffled],
    "FSP": [], "FitNet": [], "VID": [], "MGD": [],
}


@pytest.mark.parametrize("name", MAPS)
def test_invariances_that_are_claimed(name):
    rng = torch_rng(0, "maps")
    student, teacher = ([torch.randn((4, 6, 5, 7), generator=rng, dtype=torch.float64) for _ in range(2)] for _ in WHO)
    shapes = {str(i): (6, 5, 7) for i in range(2)}
    loss = DistillLoss(f"DS+{name}", shapes, [shapes]).double()
    value = loss(on_maps(student, teacher))[1][name]
    for change in INVARIANCES[name]:
        same = loss(on_maps([change(m) for m in student], teacher))[1][name]
        assert same.item() == pytest.approx(value.item(), rel=1e-6), change.__name__
    moved = loss(on_maps([m.roll(1, 3) for m in student], teacher))[1][name]
    blind = name in ("CA", "FSP", "IA", "SP", "PKT", "RKD")  # relations of channels and images know no positions
    assert (moved.item() == pytest.approx(value.item(), rel=1e-6)) == blind


def test_fft_does_not_mind_where_both_images_are():
    (_, a), (_, b), fft = batch(seed=1), batch(seed=2), DistillLoss("FFT")
    around = [imgs.roll((3, 5), (2, 3)) for imgs in (a, b)]
    here, there = (Batch(sr_imgs, a, teacher_sr_imgs=wanted) for sr_imgs, wanted in ((a, b), around))
    assert fft(there)[0].item() == pytest.approx(fft(here)[0].item(), rel=1e-5)


def maps_of(*rows):
    "A map of one image: a row a channel, a number a position."
    return [torch.tensor(rows, dtype=torch.float64)[None, :, None, :]]


def images_of(*numbers):
    "Maps of one channel and one position, a number an image."
    return [torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1, 1)]


FLAT, NONE = torch.full((1, 1, 8, 8), 3.0), torch.zeros(1, 1, 8, 8)
ORTHOGONAL, PARALLEL = maps_of([1, 0], [0, 1]), maps_of([1, 2], [1, 2])
BY_HAND = {  # term, what it is called with, value; the notebooks work most of them out
    "DS": ("DS", (FLAT, NONE), 3),
    "TS": ("TS", (FLAT, NONE), 3),
    "SA": ("SA", (ORTHOGONAL, PARALLEL), 1 / 2),
    "PSA": ("PSA(k=2,pool=avg)", (maps_of([1, 0, 0], [0, 1, 1]), maps_of([1, 1, 1], [1, 1, 1])), (1 - 0.5**0.5) / 2),
    "MMD": ("MMD", (maps_of([0, 2], [0, 4]), maps_of([1, 2])), 1),
    "RBF": ("RBF(P=1,gamma=0.5)", (ORTHOGONAL, PARALLEL), math.exp(-1) / 2),
    "CA": ("CA", (maps_of([1, 0], [0, 5]), maps_of([1, 1], [2, 2])), 1 / 2),
    "IA": ("IA", (images_of(3, 4), images_of(1, 0)), 0.65),
    "SP": ("SP", (images_of(3, 4), images_of(1, 0)), 1.8 / 4),
    "PKT": ("PKT", ([torch.eye(2).reshape(2, 2, 1, 1)], [torch.ones(2, 2, 1, 1)]), math.log(9 / 8) / 4),
    "RKD": ("RKD", (images_of(0, 1, 3), [torch.eye(3).reshape(3, 3, 1, 1)]), 1 / 12 + 2 * 1.25 / 3),
    "AT": ("AT", (maps_of([1, 0]), maps_of([1, -1])), 1 / 2),
    "FSP": ("FSP", (maps_of([1, 2]) + maps_of([3, 4]), maps_of([1, 1]) * 2), 4.5),
    "FitNet": ("FitNet", (maps_of([1, 2]), maps_of([3, 5])), 2.5),
    "CWD": ("CWD(temperature=1)", (maps_of([0, 0]), maps_of([math.log(3), 0])), 0.75 * math.log(3) - math.log(2)),
    "NST": ("NST", (maps_of([1, 0]), maps_of([0, 3], [0, -2])), 2),
    "VID": ("VID", (maps_of([3, 3]), maps_of([1, 1])), (4 / 5 + math.log(5)) / 2),
    "MGD": ("MGD(mask=0)", (maps_of([3, 3]), maps_of([1, 1])), 4),
    "Wavelet": ("Wavelet(levels=2)", (FLAT, NONE), 12),
    "FFT": ("FFT", (FLAT, NONE), 24 / 64),
    "CSD": ("CSD", ([FLAT], [FLAT + 2], [FLAT + 4]), 1 / 2),
    "ZoomIn": ("ZoomIn", (FLAT, NONE), 3),
    "ZoomOut": ("ZoomOut(truth=2)", (FLAT, NONE, FLAT + 1), 3 + 2 * 1),
    "Invert": ("Invert", (FLAT, NONE), 3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_worked_out_by_hand(name):
    spec, given, wanted = BY_HAND[name]
    shapes = {str(i): (1, 2, 2) for i in range(len(given[0]) if "maps" in needs_of(spec) else 0)}
    term = DistillLoss(f"DS+{spec}" if name in MAPS else spec, shapes, [shapes]).terms[name][0].double()
    if name in ("VID", "MGD"):  # learned parts that hand on what they get
        for layer in (m for m in term.modules() if isinstance(m, nn.Conv2d)):
            nn.init.dirac_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    given += (torch_rng(0),) if name == "MGD" else ()
    assert term(*given).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in MAPS if n not in ("SA", "PSA", "MMD", "RBF", "CA", "IA", "AT", "FSP")])
def test_gradient_is_the_one_of_finite_differences(name):
    rng = torch_rng(0, "small")
    student, teacher = (torch.randn((3, 2, 2, 3), generator=rng, dtype=torch.float64) for _ in WHO)
    shapes = {"0": (2, 2, 3)}
    loss = DistillLoss(f"DS+{name}", shapes, [shapes]).double()

    def value(maps):
        return loss(on_maps([maps], [teacher]))[1][name]

    assert torch.autograd.gradcheck(value, student.requires_grad_(), atol=1e-6)


# Adapters and draws


def test_adapters_are_trained_and_saved_with_the_loss_and_left_out_of_the_student():
    student, teacher = Toy(6, 1), Toy(9, 2)
    names = set(student.state_dict())
    loss, _ = loss_of("FitNet", student, teacher, seed=5)
    before = copy.deepcopy(loss.state_dict())
    optimiser = make_optimiser([student, loss], 1e-2)
    value, _ = run("FitNet", student, teacher, loss=loss)
    value.backward()
    optimiser.step()
    assert set(student.state_dict()) == names
    assert any(not torch.equal(before[k], v) for k, v in loss.state_dict().items())
    again, _ = loss_of("FitNet", student, teacher, seed=5)
    assert all(torch.equal(before[k], v) for k, v in again.state_dict().items())  # the start depends on the seed alone
    again.load_state_dict(loss.state_dict())
    assert run("FitNet", student, teacher, loss=again)[0] == run("FitNet", student, teacher, loss=loss)[0]


def test_making_a_loss_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    for name in ("FitNet", "CWD", "VID", "MGD"):
        loss_of(name, Toy(6, 1), Toy(9, 2))
    run("MGD", Toy(6, 1), Toy(9, 2))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_a_function_of_seed_and_step(name):
    student, teacher = pair(name)
    spec = {"CSD": "CSD(crop=16)", "ZoomOut": "ZoomOut(invert=0.5)"}.get(name, name)
    values = [run(spec, student, teacher, step=step)[0].item() for step in (3, 3, 4)]
    assert values[0] == values[1] != values[2]
    loss, _ = loss_of(spec, student, teacher, seed=1)
    loss.load_state_dict(loss_of(spec, student, teacher)[0].state_dict())
    assert run(spec, student, teacher, step=3, loss=loss)[0].item() != values[0]


def test_mgd_erases_the_share_that_is_asked_for():
    term = MGD(mask=0.25, student_channels=[1], teacher_channels=[1])
    seen = []
    term.generators[0].forward = lambda maps: seen.append(maps) or maps
    term([torch.ones(8, 1, 32, 32)], [torch.ones(8, 1, 32, 32)], torch_rng(0))
    assert seen[0].mean().item() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("zoom", ["in", "out", "none"])
def test_upcycled_inputs_are_pieces_of_the_batch(zoom):
    lr_imgs, hr_imgs = batch()
    made, chosen = Upcycle(zoom, 0.5)(lr_imgs, hr_imgs, torch_rng(0))
    assert made.shape == ((3, 3, 8, 8) if zoom == "out" else (3, 3, 16, 16)) and chosen.shape == (3, 4)
    if zoom == "in":
        for i in range(3):
            windows = hr_imgs[i].unfold(1, 16, 1).unfold(2, 16, 1)
            assert (windows == made[i][:, None, None]).all((0, 3, 4)).any()


# Helpers of the terms


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_batches_equal_imresize(scale):
    lr_imgs, _ = batch(b=2, side=24)
    for factor in (scale, 1 / scale):
        wanted = [imresize(img.permute(1, 2, 0).numpy().astype(np.uint8), factor) for img in lr_imgs]
        found = bicubic(lr_imgs, factor).permute(0, 2, 3, 1).numpy()
        assert (found != np.stack(wanted)).mean() < 1e-3 and np.abs(found - np.stack(wanted)).max() <= 1


@pytest.mark.parametrize("name", ["SA", "PSA", "MMD", "RBF"])
def test_no_n_x_n_matrix_is_held(name):
    found = measure_losses([name], batch_size=1, channels=4, side=64, repeats=1)
    assert found[name][0] < 64**4 * 4 / 3


def test_strips_of_any_height_give_the_same():
    rng = torch_rng(0, "strips")
    s, t = (torch.randn((2, 3, 35), generator=rng, dtype=torch.float64) for _ in WHO)
    kernel = RBF(P=3, gamma=0.7).kernel
    s.requires_grad_()
    plain = (torch.stack([kernel(u, u) for u in s]) - torch.stack([kernel(u, u) for u in t])).abs().mean()
    (wanted,) = torch.autograd.grad(plain, s)
    for tile in (1, 4, 35, 100):
        value = pairs_l1(s, t, kernel, tile)
        (found,) = torch.autograd.grad(value, s)
        assert abs(value - plain) < 1e-14 and (found - wanted).abs().max() < 1e-14


def test_channel_affinity_is_the_spatial_one_turned_round():
    maps = golden_maps("rect", torch.float64)[1][0]
    unit = unit_maps(maps.flatten(2).transpose(1, 2))
    assert torch.equal(spatial_affinity(maps.flatten(2).transpose(1, 2)), unit.transpose(1, 2) @ unit)


def save_vgg(folder):
    "Random weights under torchvision's names and file name."
    state, i, c_in = {}, 0, 3
    rng = torch_rng(0, "vgg")
    for c_out in VGG19:
        if c_out:
            state[f"features.{i}.weight"] = torch.randn((c_out, c_in, 3, 3), generator=rng) * (2 / 9 / c_in) ** 0.5
            state[f"features.{i}.bias"] = torch.zeros(c_out)
            c_in = c_out
        i += 2 if c_out else 1
    state |= {"features.30.weight": torch.zeros(1), "classifier.0.weight": torch.zeros(1)}  # not needed
    folder.mkdir(parents=True)
    torch.save(state, folder / "vgg19-00000000.pth")


def test_csd_takes_vgg_features_where_the_weights_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FakdError, match="features=vgg: no vgg19-"):
        check_spec("DS+CSD(features=vgg)")
    save_vgg(tmp_path / "checkpoints")
    imgs = torch.rand(2, 3, 32, 32).mul(255).requires_grad_()
    maps = vgg_features()(imgs)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert needs_of("DS+CSD(features=vgg)") == {"teacher"}
    student, teacher = pair("CSD")
    loss, _ = loss_of("CSD(features=vgg,crop=32)", student, teacher)
    value, _ = run("CSD", student, teacher, loss=loss)
    value.backward()
    assert value > 0 and student.head.weight.grad.abs().sum() > 0


# The spec and the tables


@pytest.mark.parametrize("name", LOSSES)
def test_every_line_of_the_table_is_complete(name):
    line, term = LOSSES[name], LOSSES[name].cls()
    assert line.formula and line.source and line.cls.__doc__
    assert line.cls.channels in ("any", "equal", "adapter")
    assert term.reads and {*term.reads} <= {field.name for field in dataclasses.fields(Batch)}


@pytest.mark.parametrize("name", MAPS)
def test_unequal_channels_are_refused_adapted_or_taken_as_the_table_says(name):
    narrow, wide = ({str(i): (c, 5, 5) for i in range(2)} for c in (4, 6))
    if LOSSES[name].cls.channels == "equal":
        said = f"{name} needs equal channels; the student's 0 has 4, the teacher's 0 has 6"
        with pytest.raises(FakdError, match=said):
            DistillLoss(f"DS+{name}", narrow, [wide])
    else:
        learned = list(DistillLoss(f"DS+{name}", narrow, [wide]).parameters())
        assert bool(learned) == (LOSSES[name].cls.channels == "adapter")


@pytest.mark.parametrize("name", LOSSES)
def test_memory_counted_on_shapes_alone_is_that_of_a_real_trial(name):
    shapes = {str(i): (16, 32, 32) for i in range(2)}
    loss = DistillLoss("DS" if name == "DS" else f"DS+{name}", shapes, [shapes, shapes])
    batch, leaves = stand_ins(loss, 4, 32, 4)
    wanted = [*leaves, *loss.parameters()]
    measured = peak_memory(lambda: torch.autograd.grad(loss(batch)[0], wanted, allow_unused=True))
    assert loss_memory(loss, 4, 32, 4) == pytest.approx(measured, rel=0.02)
    assert all(not p.is_meta for p in loss.parameters())
    one_at_a_time = loss_memory(loss, 4, 32, 4, together=False)
    assert one_at_a_time <= measured * 1.02


@pytest.mark.parametrize(
    "spec, fault",
    [
        ("DS+Fitnet", 'unknown loss "Fitnet". Did you mean "FitNet"?'),
        ("DS+psa", 'unknown loss "psa". Did you mean "PSA"?'),
        ("DS+PSA(k=two)", "PSA's k is 'two'; give a whole number from 1, such as 1."),
        ("DS+PSA(k=True)", "PSA's k is True; give a whole number"),
        ("DS+RBF(gamma=-1)", "RBF's gamma is -1; give a number from 0, such as 5.0."),
        ("DS+MGD(mask=1)", "MGD, mask 1: give the share of positions to erase"),
        ("DS+MGD(student_channels=3)", 'MGD has no option "student_channels". Known: mask.'),
        ("DS+CWD(temperature=0)", "CWD, temperature 0: it must be positive"),
        ("DS+RKD(distance=0,angle=0)", "RKD: distance and angle are both 0"),
        ("DS+FFT(target=student)", 'unknown target "student"'),
        ("ZoomIn(invert=2)", "invert 2: give a probability"),
        ("CSD(crop=8)", "crop 8: a window needs at least 16 pixels"),
        ("FitNet+SA", "no term on the image"),
    ],
)
def test_faults_of_a_spec_are_named_before_anything_runs(spec, fault):
    with pytest.raises(FakdError) as found:
        check_spec(spec)
    assert fault in str(found.value) and str(found.value).startswith(f"loss {spec}: ")


def test_the_options_of_the_issue_are_understood():
    loss = DistillLoss("5*PSA(k=2,pool=avg)+0.5*TS", {"a": (4, 5, 5)}, [{"a": (4, 5, 5)}])
    (psa,) = loss.terms["PSA"]
    assert (psa.k, psa.pool, loss.weights) == (2, "avg", {"PSA": 5.0, "TS": 0.5})


# Terms that would do nothing


def gradient(name, images, positions, channels):
    "How far a student's map of a size moves a term on maps: its gradient, relative to its value."
    rng = torch_rng(0, "few")
    student, teacher = ([torch.rand((images, channels, 1, positions), generator=rng, dtype=torch.float64) + 0.1]
                        for _ in WHO)
    value = LOSSES[name].cls()(student := [student[0].requires_grad_()], teacher)
    (grad,) = torch.autograd.grad(value, student)
    return grad.norm().item()


COUNTED = [(name, thing) for name in MAPS for thing, least in LOSSES[name].cls.least.items() if least > 1]


@pytest.mark.parametrize("name, thing", COUNTED)
def test_a_term_is_constant_below_what_it_declares_and_not_from_there_on(name, thing):
    enough = {"images": 4, "positions": 6, "channels": 3}
    least = LOSSES[name].cls.least[thing]
    assert gradient(name, **enough | {thing: least - 1}) < 2e-5
    assert gradient(name, **enough | {thing: least}) > (1e-7 if name == "RBF" else 1e-4)


def test_terms_on_images_are_known_to_need_two_or_three():
    assert {name: LOSSES[name].cls.least["images"] for name in MAPS if LOSSES[name].cls.least["images"] > 1} == {
        "IA": 2, "SP": 2, "PKT": 2, "RKD": 3}


@pytest.mark.parametrize("name", LOSSES)
def test_every_term_passes_its_trial_at_ordinary_sizes(name):
    shapes = {str(i): (6, 16, 16) for i in range(2)}
    refuse_idle(DistillLoss(f"{name}+DS" if name != "DS" else name, shapes, [shapes]), images=3, lr_px=16, scale=2)


SMALL = {"student": "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)", "benchmarks": "sample-eval",
         "data": "sample", "device": "cpu", "precision": "fp32", "steps": 2, "batch_size": 4, "patch_px": 8}


IDLE = [  # loss, images at a time, what is said of it with patches of 8 LR pixels at scale 4
    ("DS+RKD", 2, "RKD: it relates images and needs at least 3 at a time, got 2. Use 3 or more (batch_size divided by"),
    ("DS+RKD(distance=0.0)", 1, "at least 3 at a time, got 1"),
    ("DS+IA", 1, "IA: it relates images and needs at least 2 at a time, got 1"),
    ("DS+SP", 1, "SP: it relates images and needs at least 2 at a time, got 1"),
    ("DS+PKT", 1, "PKT: it relates images and needs at least 2 at a time, got 1"),
    ("DS+PSA(k=8)", 4, "PSA: it needs at least 2 positions, and maps of 8x8 pooled by 8x8 have 1. Use k=7 or less"),
    ("DS+MMD(k=9)", 4, "MMD: it needs at least 2 positions"),
    ("DS+RBF(k=16,pool=avg)", 4, "RBF: it needs at least 2 positions"),
    ("DS+RBF(gamma=200)", 4, "RBF(gamma=200): it would teach nothing: on random images of the run's sizes its value"),
    ("DS+1e-50*TS", 4, "1e-50*TS: it would teach nothing"),
    ("DS+MGD(mask=0.9999999)", 4, "MGD(mask=0.9999999): it would teach nothing"),
    ("DS+TS+ZoomOut", 4, "shrink to 2x2 at scale 4; at least 4x4 are needed. Use patch_px=16"),
    ("DS+CSD(negatives=3)", 2, "negatives 3: a batch of 2 has no more than that"),
]


@pytest.mark.parametrize("spec, images, message", IDLE)
def test_terms_that_would_do_nothing_are_refused(spec, images, message):
    shapes = {str(i): (6, 8, 8) for i in range(3)}
    with pytest.raises(FakdError) as found:
        refuse_idle(DistillLoss(spec, shapes, [shapes]), images, lr_px=8, scale=4)
    assert message in str(found.value)


def test_a_loss_called_directly_refuses_them_too():
    shapes = {"a": (6, 8, 8)}
    for name, images in (("RKD", 2), ("IA", 1), ("SP", 1), ("PKT", 1)):
        maps = [torch.rand(images, 6, 8, 8)]
        with pytest.raises(FakdError, match=f"loss {name}: it relates images"):
            DistillLoss(f"DS+{name}", shapes, [shapes])(on_maps(maps, maps))
        with pytest.raises(FakdError, match=f"loss {name}: it relates images"):  # with two teachers
            both = dataclasses.replace(on_maps(maps, maps), teachers_maps=[maps, None])
            DistillLoss(f"DS+{name}", shapes, [shapes, shapes])(both)


@pytest.mark.parametrize(
    "loss, more, message",
    [
        ("DS+RKD", {"accumulate": 2}, "at least 3 at a time, got 2. Use 3 or more (batch_size divided by accumulate)"),
        ("DS+PSA(k=8)", {}, "maps of 8x8 pooled by 8x8 have 1"),
        ("DS+SA", {"taps": ["sub_mean=1"]}, "sub_mean of the student: nothing before them is trained"),
        ("DS+TS+ZoomOut", {"scale": 8, "patch_px": None},  # the mini preset's own patch
         "LR patches of 24x24 pixels shrink to 3x3 at scale 8; at least 4x4 are needed. Use patch_px=32 or more"),
    ],
)
def test_a_run_refuses_them_before_it_has_a_folder(loss, more, message, tmp_path):
    with pytest.raises(FakdError) as found:
        prepared(**SMALL | more, loss=loss, out_dir=str(tmp_path))
    assert message in str(found.value)
    assert not list(tmp_path.iterdir())
