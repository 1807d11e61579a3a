"RCAN and FAKD's loss against the values of the authors' code; more of them are checked where ../shared is present."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fakd.losses import DistillLoss
from fakd.nets import NETS
from fakd.taps import Taps, tap_shapes
from fakd.trainer import make_optimiser
from fakd.weights import fit_state, load_net

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden"
CASE = "rcan_x4"
FAKD_TAPS = [1, 2, 3]
LOSS = "0.5*DS+0.5*TS+10*SA"


def golden(role):
    "A network of the golden case with its weights."
    config = json.loads((GOLDEN / CASE / "config.json").read_text())
    sizes = {k: v for k, v in config[role].items() if k != "res_scale"}  # RCAN ignores it
    net = NETS[config["network"].lower()](scale=config["scale"], **sizes)
    net.load_state_dict(fit_state(net, load_file(GOLDEN / CASE / f"{role}.safetensors")))
    return net


def close(found, wanted, tolerance):
    "Largest difference relative to the wanted array's largest magnitude."
    found, wanted = (np.asarray(torch.as_tensor(a).detach().double()) for a in (found, wanted))
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_output_and_feature_maps_equal_the_authors(role):
    values = np.load(GOLDEN / CASE / "eval.npz")
    net = golden(role)
    with torch.inference_mode(), Taps(net, list(net.tap_names())) as taps:
        sr_imgs = net(torch.from_numpy(values["lr"]).float())
        maps = [m.clone() for m in taps.maps]
    close(sr_imgs, values[f"{role}_sr"], 1e-5)
    for i, found in enumerate(maps):
        close(found, values[f"{role}_feature{i}"], 1e-5)


def first_step(dtype):
    "Student, teacher, loss and batch of the golden training case."
    values = np.load(GOLDEN / CASE / "train.npz")
    student, teacher = golden("student").to(dtype), golden("teacher").to(dtype).requires_grad_(False)
    loss = DistillLoss(LOSS, tap_shapes(student, FAKD_TAPS, 24), tap_shapes(teacher, FAKD_TAPS, 24))
    lr_imgs, hr_imgs = (torch.from_numpy(values[k]).to(dtype) for k in ("lr", "hr"))

    def step():
        with torch.no_grad(), Taps(teacher, FAKD_TAPS) as seen:
            teacher_sr, teacher_maps = teacher(lr_imgs), [m.clone() for m in seen.maps]
        with Taps(student, FAKD_TAPS) as taps:
            return loss(student(lr_imgs), hr_imgs, teacher_sr, taps.maps, teacher_maps)

    return student, step, values


@pytest.mark.parametrize("dtype, of_value, of_gradient", [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-9, 1e-9)])
def test_losses_and_gradients_equal_the_authors(dtype, of_value, of_gradient):
    student, step, values = first_step(dtype)
    total, terms = step()
    suffix = "f64" if dtype == torch.float64 else "f32"
    for name, weight in (("DS", 0.5), ("TS", 0.5), ("SA", 10)):
        close(terms[name], torch.tensor(weight * values[f"{name}_{suffix}"][0]), of_value)
    close(total, torch.tensor(values[f"total_{suffix}"][0]), of_value)
    total.backward()
    wanted = fit_state(student, load_file(GOLDEN / CASE / "student_grad_f64.safetensors") | frozen(student))
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            close(parameter.grad, wanted[name], of_gradient)


def frozen(net):
    "The mean shifts, which the golden gradient and step files leave out."
    return {k: v for k, v in net.state_dict().items() if k.startswith(("sub_mean", "add_mean"))}


def test_five_adam_steps_equal_the_authors_in_float64():
    student, step, values = first_step(torch.float64)
    optimiser = make_optimiser([student], 1e-4)
    for k in range(5):
        total, _ = step()
        close(total, torch.tensor(values["total_f64"][k]), 1e-9)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    wanted = fit_state(student, load_file(GOLDEN / CASE / "student_step5_f64.safetensors") | frozen(student))
    for name, parameter in student.named_parameters():
        close(parameter, wanted[name], 1e-9)


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_other_scales_equal_the_authors(scale):
    folder = SHARED / f"rcan_x{scale}"
    if not folder.exists():
        pytest.skip("the golden values of the other scales are not in this clone")
    values = np.load(folder / "eval.npz")
    with torch.inference_mode():
        found = load_net(folder / "student.safetensors")(torch.from_numpy(values["lr"]).float())
    close(found, values["student_sr"], 1e-5)


@pytest.mark.parametrize("origin", ["fakd", "original", "basicsr", "original_trained_mean"])
def test_the_same_network_under_every_projects_names(origin):
    folder = SHARED / "keys"
    if not folder.exists():
        pytest.skip("the golden key variants are not in this clone")
    values = np.load(folder / "outputs.npz")
    net = load_net(folder / f"rcan_{origin}.safetensors")
    with torch.inference_mode():
        found = net(torch.from_numpy(values["lr"]).float())
    close(found, values["rcan_trained_mean/sr" if "trained" in origin else "rcan/sr"], 1e-5)
