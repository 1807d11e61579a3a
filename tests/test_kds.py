"KDS: its golden values, its ten steps as its README has them, and what it says when steps are left out."
import itertools
import json
import re
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fakd.core import FakdError, root
from fakd.distil.loss import LOSSES
from fakd.distil.taps import Taps
from fakd.kds import KDS
from fakd.kds_loss import KdsError
from fakd.nets.value_range import probe_images
from fakd.nets.weights import fit_state, load_net
from fakd.nets.zoo import NETS, make_net

ROOT = Path(__file__).parents[1]
CASES = ["cleared_gradients", "cleared_no_SA", "as_published"]


class Collecting(nn.Module):
    "A network as KDS's step 2 wants it: a plain one whose maps are returned in front of the image."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with Taps(self.net, list(self.net.tap_names())) as taps:
            sr = self.net(x)
            return taps.maps, sr


def small(n_feats=8, seed=0, scale=2):
    return make_net(f"rcan(n_resgroups=3,n_resblocks=1,n_feats={n_feats},reduction=4)", scale, seed=seed)


def batch(seed=0, scale=2):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 8, 10, generator=rng) * 255, torch.rand(2, 3, 8 * scale, 10 * scale, generator=rng) * 255


def ready(student=None, teacher=None, **loss):
    "A KDS with all steps done."
    kds = KDS()
    kds.setDevice("cpu")
    kds.setTeacher(teacher or small(16, seed=1))
    kds.setStudent(student or small())
    kds.setLoss(**loss)
    return kds


def late():
    "A KDS whose optimiser was given before its student, and is of another network."
    kds = KDS()
    kds.setOptimizer(torch.optim.SGD(small(seed=9).parameters(), 0.1))
    kds.setStudent(small())


def weights(net):
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def changed(before, after):
    return max((before[k] - after[k]).abs().max().item() for k in before)


# Golden values


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "kds"
    return folder, np.load(folder / "kds.npz")


def golden_run(golden, case, wrap, dtype=torch.float64):
    "Three calls of train on the golden batches; the losses, and the student with its parameters."
    folder, values = golden
    sizes = json.loads((folder / "config.json").read_text())
    nets = {}
    for role in ("teacher", "student"):
        net = NETS["rcan"](**{k: v for k, v in sizes[role].items() if k != "network"})
        net.load_state_dict(fit_state(net, load_file(folder / f"{role}.safetensors")))
        nets[role] = net.to(dtype)
    kds = ready(wrap(nets["student"]), wrap(nets["teacher"]), SA=case != "cleared_no_SA")
    if case == "as_published":  # what KDS did: nobody cleared the gradients
        kds.optimizer.zero_grad = lambda set_to_none=True: None
    losses = []
    for i in range(sizes["steps"]):
        kds.train(*(torch.from_numpy(values[f"{kind}{i}"]).to(dtype) for kind in ("lr", "hr")))
        losses.append(kds.getLoss().item())
    return losses, nets["student"]


def golden_parameters(golden, case, net):
    "The student after three calls, with our names."
    prefix = f"{case}/param/"
    found = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in golden[1].items() if k.startswith(prefix)}
    return {new: found[old] for old, new in type(net).rename(list(found)).items()}


@pytest.mark.parametrize("wrap", [Collecting, lambda net: net], ids=["returns_maps", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_three_calls_equal_kds_in_float64(golden, case, wrap):
    losses, student = golden_run(golden, case, wrap)
    assert losses == pytest.approx(golden[1][f"{case}/loss_f64"], rel=1e-9)
    wanted = golden_parameters(golden, case, student)
    trained = {k: p for k, p in student.named_parameters() if p.requires_grad}
    assert trained.keys() <= wanted.keys()
    for name, parameter in trained.items():
        error = (parameter.detach() - wanted[name]).abs().max() / wanted[name].abs().max()
        assert error < 1e-9, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES[:2])
def test_three_calls_equal_kds_in_float32(golden, case):
    losses, _ = golden_run(golden, case, Collecting, torch.float32)
    assert losses == pytest.approx(golden[1][f"{case}/loss_f32"], rel=1e-5)


def test_gradients_that_add_up_change_the_training_from_the_second_call_on(golden):
    "The published code and the cleared one agree for two losses and part with the second update."
    (published, student), (cleared, other) = (golden_run(golden, case, Collecting) for case in CASES[::-2])
    assert published[:2] == pytest.approx(cleared[:2], rel=1e-12)
    assert abs(published[2] - cleared[2]) > 0.02
    assert changed(weights(student), weights(other)) > 1e-5


# The ten steps


def test_the_ten_steps_run_as_kds_wrote_them(tmp_path):
    teacher_model, student_model = Collecting(small(16, seed=1)), Collecting(small())  # step 2
    before, taught = weights(student_model), weights(teacher_model)
    kds = KDS()
    device = torch.device("cpu")
    kds.setDevice(device)
    kds.setTeacher(teacher_model)
    kds.setStudent(student_model)
    loader = torch.utils.data.DataLoader(list(zip(*batch(), strict=True)), batch_size=2)
    kds.setLoss(SA=True)
    optim = torch.optim.Adam(student_model.parameters(), lr=0.0001)
    kds.setOptimizer(optim)
    for lr, hr in loader:
        assert kds.train(lr, hr) is None
    kds.saveStudentModel(tmp_path / "student.pth")
    assert kds.getLoss().item() > 0 and not kds.getLoss().requires_grad
    assert kds.psnr > 0 and kds.timesec > 0
    saved = torch.load(tmp_path / "student.pth", weights_only=True)
    assert changed(saved, weights(student_model)) == 0 < changed(saved, before)
    assert changed(taught, weights(teacher_model)) == 0


def test_the_order_of_the_steps_does_not_matter():
    "Setting up in any order gives the same weights after two updates."
    results = []
    for order in itertools.permutations(range(4)):
        kds, student = KDS(), small()
        optim = torch.optim.SGD(student.parameters(), 1e-3)
        steps = [
            lambda kds=kds: kds.setDevice("cpu"),
            lambda kds=kds: kds.setTeacher(small(16, seed=1)),
            lambda kds=kds, student=student: kds.setStudent(student),
            lambda kds=kds, optim=optim: (kds.setLoss(SA=10), kds.setOptimizer(optim)),
        ]
        for i in order:
            steps[i]()
        assert kds.optimizer is optim
        for seed in range(2):
            kds.train(*batch(seed))
        results.append(weights(student))
    assert {changed(results[0], other) for other in results[1:]} == {0}


def test_default_optimiser_and_scheduler_are_those_of_kds():
    kds = ready()
    assert type(kds.optimizer) is torch.optim.Adam
    assert kds.optimizer.param_groups[0]["lr"] == 1e-4
    scheduler = kds.getScheduler()
    assert (scheduler.step_size, scheduler.gamma) == (150, 0.1)
    kds.train(*batch())
    assert scheduler.last_epoch == 0  # only its user steps it
    for _ in range(150):
        scheduler.step()
    assert kds.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_student_is_set_to_training_and_teacher_stays_frozen_in_evaluation():
    kds = ready()
    kds.student_model.eval()
    kds.train(*batch())
    assert kds.student_model.training and not kds.teacher_model.training
    assert not any(p.requires_grad or p.grad is not None for p in kds.teacher_model.parameters())


def test_uint8_batches_of_a_loader_are_accepted():
    kds = ready()
    lr, hr = batch()
    kds.train(lr.byte(), hr.byte())
    assert torch.isfinite(kds.getLoss())


# Losses


def test_weights_are_honoured():
    "KDS reads the 1 of 1*SA and does not use it."
    terms = {}
    for weight in (1, 10):
        kds = ready(SA=weight)
        kds.train(*batch())
        terms[weight] = kds.terms
    assert terms[10]["SA"] == pytest.approx(10 * terms[1]["SA"].item(), rel=1e-6)
    assert terms[10]["DS"] == terms[1]["DS"]


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("DS", "TS")])
def test_every_term_of_the_table_trains_the_student(name):
    "Also those that want equal channels, adapters, random draws or further looks at the networks."
    kds = ready(Collecting(small(seed=2)), Collecting(small(seed=1)), **({"SA": False} | {name: True}))
    two = [torch.nn.functional.interpolate(i, (side, side)) for i, side in zip(batch(), (16, 32), strict=True)]
    lr, hr = (torch.cat([imgs, imgs.flip(3)]) for imgs in two)  # RKD needs three images
    before = weights(kds.student_model)
    if name == "RKD":
        with pytest.raises(FakdError, match="RKD: it relates images and needs at least 3 at a time, got 2"):
            kds.train(*two)
    kds.train(lr, hr)
    assert list(kds.terms) == ["DS", "TS", name]
    assert all(torch.isfinite(term) for term in kds.terms.values())
    assert changed(before, weights(kds.student_model)) > 0


def test_change_loss_switches_terms_and_keeps_what_an_adapter_has_learned():
    kds = ready(SA=10, FitNet=0.1)
    kds.setOptimizer(torch.optim.Adam(kds.student_model.parameters(), lr=1e-3))
    kds.train(*batch())
    adapter = kds.criterion.terms["FitNet"][0].adapters[0].weight
    start = adapter.detach().clone()
    kds.train(*batch())
    learned = adapter.detach().clone()
    assert (learned - start).abs().max() > 0
    kds.changeLoss("FitNet", False)
    kds.changeLoss("SA", 2)
    kds.train(*batch())
    assert list(kds.terms) == ["DS", "TS", "SA"] and kds.criterion.weights["SA"] == 2
    assert torch.equal(adapter, learned)
    kds.changeLoss("FitNet", True)
    kds.changeLoss("CA", False)  # was off
    kds.train(*batch())
    assert kds.criterion.weights["FitNet"] == 0.1
    assert kds.criterion.terms["FitNet"][0].adapters[0].weight is adapter
    assert (adapter - learned).abs().max() > 0
    assert not any("adapter" in key for key in kds.student_model.state_dict())
    for _ in range(150):
        kds.getScheduler().step()  # the adapters do not confuse it


def test_a_new_student_starts_with_new_adapters():
    kds = ready(SA=False, FitNet=True)
    kds.train(*batch())
    old = kds.criterion.terms["FitNet"]
    kds.setStudent(small(seed=3))
    kds.train(*batch())
    assert kds.criterion.terms["FitNet"] is not old


# What is missing


STEPS = {
    "setDevice": ("3단계 기기 등록", "step 3, register the device", lambda kds: kds.setDevice("cpu")),
    "setTeacher": ("4단계 선생님 모델 등록", "step 4, register the teacher", lambda kds: kds.setTeacher(small(16))),
    "setStudent": ("5단계 학생 모델 등록", "step 5, register the student", lambda kds: kds.setStudent(small())),
    "setLoss": ("7단계 손실 선택", "step 7, choose the loss", lambda kds: kds.setLoss(SA=True)),
}


@pytest.mark.parametrize("left_out", [c for n in (1, 2, 4) for c in itertools.combinations(STEPS, n)], ids="-".join)
def test_every_step_left_out_is_named_in_both_languages(left_out):
    kds = KDS()
    for name, (_, _, call) in STEPS.items():
        if name not in left_out:
            call(kds)
    with pytest.raises(FakdError) as fault:
        kds.train(*batch())
    korean, english = str(fault.value).split("\n")
    for name, (in_korean, in_english, _) in STEPS.items():
        assert (in_korean in korean) == (in_english in english) == (name in left_out)
        assert (f"kds.{name}(" in korean) == (f"kds.{name}(" in english) == (name in left_out)


@pytest.mark.parametrize("fault", [
    lambda kds: kds.changeLoss("SAA", True),
    lambda kds: kds.setLoss(SA=False, DS=False, TS=False, CA=True),
    lambda kds: kds.setLoss(SA=-1),
    lambda kds: kds.setLoss(SA="5*SA+"),
    lambda kds: kds.setLoss(PSA="5*PSA(k=two)"),
    lambda kds: kds.setDevice("gpu"),
    lambda kds: kds.setDevice(torch.device("cuda:99")),
    lambda kds: kds.setTeacher(kds.student_model),
    lambda kds: kds.setTeacher(small(16), taps=[9]),
    lambda kds: kds.setOptimizer(torch.optim.SGD(small().parameters(), 0.1)),
    lambda kds: late(),
    lambda kds: kds.setStudent(small().requires_grad_(False)),
    lambda kds: kds.train(*batch(scale=4)),
    lambda kds: (kds.setTeacher(small(16), taps=[0]), kds.train(*batch())),
    lambda kds: (kds.setStudent(nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))), kds.train(*batch())),
    lambda kds: (kds.setStudent(Collecting(small())), kds.saveStudentModel("never.safetensors")),
])
def test_every_fault_is_told_in_both_languages(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FakdError) as told:
        fault(ready())
    korean, english = str(told.value).split("\n", 1)
    assert re.search("[가-힣]", korean) and re.search("[a-z]{3}", english)
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_carries_sizes_and_scale(tmp_path):
    kds = ready()
    kds.saveStudentModel(tmp_path / "student.safetensors")
    net = load_net(tmp_path / "student.safetensors")
    assert (net.scale, net.sizes) == (2, kds.student_model.sizes)
    assert changed(weights(net), weights(kds.student_model)) == 0


# A late device


def test_registering_the_device_again_changes_nothing():
    results = []
    for again in (False, True):
        kds = ready(SA=10, FitNet=0.1)
        for seed in range(3):
            kds.train(*batch(seed))
            if again:
                kds.setDevice("cpu")
        results.append(weights(kds.student_model))
    assert changed(*results) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the move itself is not checked here")
def test_a_late_device_moves_networks_adapters_and_the_optimisers_memory():
    kds = ready(SA=10, FitNet=0.1)
    kds.train(*batch())
    kds.setDevice("cuda")
    kds.train(*batch())
    assert kds.getLoss().is_cuda and kds.timesec > 0
    assert {p.device.type for p in kds.student_model.parameters()} == {"cuda"}
    kds.setDevice("cpu")
    kds.train(*batch())
    assert not kds.getLoss().is_cuda


def test_a_late_precision_of_the_networks_is_followed():
    kds = ready(small().double(), small(16, seed=1))  # a teacher in float32
    kds.train(*batch())
    assert kds.getLoss().dtype == torch.float64


# The Korean notebook


def test_the_korean_notebook_takes_all_ten_steps_and_says_so_in_both_languages():
    "It is executed with the other notebooks."
    nb = nbformat.read(ROOT / "nbs" / "kds_ko.ipynb", 4)
    prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    assert len(re.findall("[가-힣]", prose)) > len(re.findall("[A-Za-z]", prose))
    assert "In English" in prose
    assert [n for n in range(1, 11) if not re.search(rf"^#+ {n}단계", prose, re.M)] == []
    for call in ("from fakd.kds import KDS", "KDS()", "setDevice(", "setTeacher(", "setStudent(", "setLoss(SA=True)",
                 "setOptimizer(", "train(lr, hr)", "getLoss()", "getScheduler()", "saveStudentModel("):
        assert call in code, call


class In01(nn.Module):
    "A network of 0..255 as one of 0..1 that gives its maps too."

    def __init__(self, net, clamp):
        super().__init__()
        self.net, self.clamp = net, clamp

    def forward(self, imgs):
        sr = self.net(imgs * 255) / 255
        return [sr], sr.clamp(0, 1) if self.clamp else sr


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("value_range", [1, 255])
def test_a_teacher_of_another_range_than_the_batches_teaches_the_same(value_range, clamp):
    teacher, losses = load_net(root() / "data/weights/rcan-mini-x2.safetensors"), []
    lr, hr = (imgs[..., :side, :side] for imgs, side in zip(probe_images(2), (24, 48), strict=True))
    for net in (teacher, In01(teacher, clamp)):
        kds = KDS(value_range=value_range)
        kds.setDevice("cpu")
        kds.setTeacher(net, taps=[])
        kds.setStudent(small(), taps=[])
        kds.setLoss(SA=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kds.train(lr * value_range / 255, hr * value_range / 255)
        losses.append(float(kds.terms["TS"]))
        assert (kds.student.value_range, kds.teacher.value_range) == (255, 255 if net is teacher else 1)
    assert losses[1] == pytest.approx(losses[0], rel=0.02 if clamp else 1e-3)


def test_batches_of_another_range_than_told_are_refused():
    lr, hr = batch()
    for told, gain, right in ((255, 1 / 255, 1), (1, 1, 255)):
        kds = KDS(value_range=told)
        kds.setDevice("cpu")
        kds.setTeacher(small(16, seed=1))
        kds.setStudent(small())
        kds.setLoss(SA=True)
        with pytest.raises(KdsError, match=rf"Make KDS\(value_range={right}\)"):
            kds.train(lr * gain, hr * gain)
        assert kds.steps == 0
    kds = KDS()
    kds.setDevice("cpu"), kds.setTeacher(small(16, seed=1)), kds.setStudent(small()), kds.setLoss(SA=True)
    kds.train(torch.zeros_like(lr), torch.ones_like(hr))  # a black picture of 0..255
