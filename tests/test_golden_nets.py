"The networks and FAKD's loss against the values of the authors' code."

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fakd.distil.loss import DistillLoss
from fakd.distil.taps import Taps, tap_shapes
from fakd.distil.terms import Batch
from fakd.nets.weights import fit_state, load_net
from fakd.nets.zoo import NETS
from fakd.train.trainer import make_optimiser

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden"
FAKD_TAPS = [1, 2, 3]
LOSS = "0.5*DS+0.5*TS+10*SA"
PRECISIONS = [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-9, 1e-9)]  # and what values and gradients keep

by_network = pytest.mark.parametrize("network", NETS)


@pytest.fixture(autouse=True)
def one_thread():
    "The values were made with one thread; more add in another order."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def folder_of(case):
    "Golden values are large: one network's come with the code, all lie beside a developer's checkout."
    for place in (GOLDEN / case, SHARED / case):
        if place.is_dir():
            return place
    pytest.skip(f"the golden values {case} are not in this clone, nor beside it (../shared/golden)")


def golden(network, role):
    "A network of the golden x4 case with its weights."
    folder = folder_of(f"{network}_x4")
    config = json.loads((folder / "config.json").read_text())
    sizes = {k: v for k, v in config[role].items() if k != "res_scale" or network == "edsr"}  # the others ignore it
    net = NETS[network](scale=config["scale"], **sizes)
    net.load_state_dict(fit_state(net, load_file(folder / f"{role}.safetensors")))
    return net


def close(found, wanted, tolerance):
    "Largest difference relative to the wanted array's largest magnitude; absolute, where all of it is 0."
    found, wanted = (np.asarray(torch.as_tensor(a).detach().double()) for a in (found, wanted))
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def evaluation(case, role):
    "An input with SR and feature maps; the teacher's are left out of the values that come with the code."
    for values in (np.load(place / "eval.npz") for place in (GOLDEN / case, SHARED / case) if place.is_dir()):
        if f"{role}_sr" in values:
            return values
    pytest.skip(f"the {role}'s output of {case} is not in this clone, nor beside it (../shared/golden)")


@pytest.mark.parametrize("role", ["teacher", "student"])
@by_network
def test_output_and_feature_maps_equal_the_authors(network, role):
    net, values = golden(network, role), evaluation(f"{network}_x4", role)
    with torch.inference_mode(), Taps(net, list(net.tap_names())) as taps:
        sr_imgs = net(torch.from_numpy(values["lr"]).float())
        maps = [m.clone() for m in taps.maps]
        sr_f64 = net.double()(torch.from_numpy(values["lr"][:1]).double())
    close(sr_imgs, values[f"{role}_sr"], 1e-5)
    if f"{role}_sr_f64" in values:  # left out of the values that come with the code
        close(sr_f64, values[f"{role}_sr_f64"], 1e-9)
    for i, found in enumerate(maps):
        close(found, values[f"{role}_feature{i}"], 1e-5)


def first_step(network, dtype):
    "Student, the loss of one step as a function, and the values of the golden training case."
    values = np.load(folder_of(f"{network}_x4") / "train.npz")
    student, teacher = golden(network, "student").to(dtype), golden(network, "teacher").to(dtype).requires_grad_(False)
    loss = DistillLoss(LOSS, tap_shapes(student, FAKD_TAPS, 24), [tap_shapes(teacher, FAKD_TAPS, 24)])
    lr_imgs, hr_imgs = (torch.from_numpy(values[k]).to(dtype) for k in ("lr", "hr"))
    with torch.no_grad(), Taps(teacher, FAKD_TAPS) as seen:
        teacher_sr, teacher_maps = teacher(lr_imgs), [m.clone() for m in seen.maps]

    def step(sides=None):
        "`sides`: SR of student and teacher in float64, whose values the L1 terms then see; gradients are as ever."
        with Taps(student, FAKD_TAPS) as taps:
            sr_imgs, target = student(lr_imgs), teacher_sr
            if sides is not None:
                sr_imgs, target = sr_imgs + (sides[0] - sr_imgs).detach(), sides[1]
            return loss(Batch(sr_imgs, hr_imgs, lr_imgs, target, taps.maps, [teacher_maps]))

    return student, step, values


def outputs_in_float64(network):
    "SR of student and teacher. L1 has a kink at 0, and float32 may put a value on its wrong side, which 1e-4 shows."
    lr_imgs = torch.from_numpy(np.load(folder_of(f"{network}_x4") / "train.npz")["lr"]).double()
    with torch.no_grad():
        return [golden(network, role).double()(lr_imgs) for role in ("student", "teacher")]


def of_student(network, student, name):
    "A file of values for the student's parameters; those that are never used or frozen are not in it."
    state = load_file(folder_of(f"{network}_x4") / f"{name}.safetensors")
    renamed = NETS[network].rename(state)
    return {renamed[k]: v for k, v in state.items()}


def shift_of_a_softmax(name):
    "phi's bias adds the same to all products of a position: its true gradient is 0, what is stored is rounding."
    return name.endswith("phi.0.bias")


@pytest.mark.parametrize("dtype, of_value, of_gradient", PRECISIONS, ids=["fp32", "fp64"])
@by_network
def test_losses_and_gradients_equal_the_authors(network, dtype, of_value, of_gradient):
    student, step, values = first_step(network, dtype)
    total, terms = step()
    suffix = "f64" if dtype == torch.float64 else "f32"
    for name, weight in (("DS", 0.5), ("TS", 0.5), ("SA", 10)):
        close(terms[name], torch.tensor(weight * values[f"{name}_{suffix}"][0]), of_value)
    close(total, torch.tensor(values[f"total_{suffix}"][0]), of_value)
    step(outputs_in_float64(network))[0].backward()
    wanted = of_student(network, student, "student_grad_f64")
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad and p.grad is not None}
    assert trained.keys() == wanted.keys()
    largest = max(float(v.abs().max()) for v in wanted.values())
    for name, parameter in trained.items():
        if shift_of_a_softmax(name):
            assert parameter.grad.abs().max() < of_gradient * largest
        else:
            close(parameter.grad, wanted[name], of_gradient)


@by_network
def test_parameters_without_gradient_are_the_authors(network):
    config = json.loads((folder_of(f"{network}_x4") / "config.json").read_text())
    unused = {
        name
        for name, _ in golden(network, "student").named_parameters()
        if any(re.match(pattern, name) for pattern in getattr(NETS[network], "UNUSED", ()))
    }
    assert unused == set(config["no_gradient"])


def five_steps(network, dtype):
    "The student after five Adam steps, with the total before each."
    student, step, values = first_step(network, dtype)
    optimiser, totals = make_optimiser([student], 1e-4), []
    for _ in range(5):
        total, _ = step()
        totals.append(total.item())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return student, np.array(totals), values


@by_network
def test_five_adam_steps_equal_the_authors_in_float64(network):
    student, totals, values = five_steps(network, torch.float64)
    np.testing.assert_allclose(totals, values["total_f64"], rtol=1e-9)
    wanted = of_student(network, student, "student_step5_f64")
    parameters = dict(student.named_parameters())
    for name, value in wanted.items():
        close(parameters[name], value, 1e-9)


@by_network
def test_five_adam_steps_in_float32_stay_near_the_authors(network):
    "Adam divides gradients near zero by their own size, so a few parameters may differ by whole steps."
    student, totals, values = five_steps(network, torch.float32)
    np.testing.assert_allclose(totals, values["total_f32"], rtol=1e-5)
    wanted = of_student(network, student, "student_step5_f64")
    parameters = dict(student.named_parameters())
    errors = torch.cat([(parameters[name].double() - v).abs().flatten() for name, v in wanted.items()])
    assert (errors < 1e-6).double().mean() > 0.999
    assert errors.max() < 5e-4


@pytest.mark.parametrize("scale", [2, 3, 8])
@by_network
def test_other_scales_equal_the_authors(network, scale):
    folder = folder_of(f"{network}_x{scale}")
    values = np.load(folder / "eval.npz")
    sizes = {"res_scale": 1.0} if network == "edsr" else {}
    with torch.inference_mode():
        found = load_net(folder / "student.safetensors", **sizes)(torch.from_numpy(values["lr"]).float())
    close(found, values["student_sr"], 1e-5)
