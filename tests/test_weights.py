"Weights of every origin come in whole or not at all."

import json
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fakd.core import FakdError
from fakd.nets.weights import (
    MisfitError,
    fit_state,
    guess_net,
    load_net,
    load_weights,
    net_digest,
    read_state,
    save_weights,
)
from fakd.nets.zoo import NETS, make_net, net_spec

SPECS = {
    "rcan": "rcan(n_resgroups=3,n_resblocks=2,n_feats=8,reduction=4)",
    "edsr": "edsr(n_resblocks=7,n_feats=8,res_scale=1.0)",
    "san": "san(n_resgroups=2,n_resblocks=2,n_feats=16,reduction=8,nonlocal_width=2)",
}
by_network = pytest.mark.parametrize("name", SPECS)  # those that other projects have too


def small(name, scale=2, seed=0):
    return make_net(SPECS[name], scale, seed=seed).eval()


def images():
    return torch.randint(0, 256, (1, 3, 9, 8), generator=torch.Generator().manual_seed(0)).float()


def renamed(state, *rules):
    "Each key with the first rule that fits its beginning; a name of None leaves the key out."
    out = {}
    for key, value in state.items():
        rule = next(((p, r) for p, r in rules if re.match(p, key)), None)
        if rule is None:
            out[key] = value
        elif rule[1] is not None:
            out[re.sub(f"^{rule[0]}", rule[1], key)] = value
    return out


BASICSR = (
    ("(sub|add)_mean", None), (r"head\.0", "conv_first"), (r"tail\.0", "upsample"), (r"tail\.1", "conv_last"),
)  # fmt: skip
STRETCHES = {0: "body1.0", 1: "body1.1", 2: "body2.0", 3: "body2.1", 4: "body3.0", 5: "body3.1", 6: "body3.2"}
ORIGINS = {
    ("rcan", "own"): (),
    ("rcan", "fakd"): ((r"body\.3", "body_tail"), (r"body\.(\d)", r"body_group\1")),
    ("rcan", "basicsr"): (
        *BASICSR,
        (r"body\.3", "conv_after_body"),
        (r"body\.(\d)\.body\.2", r"body.\1.conv"),
        (r"body\.(\d)\.body\.(\d)\.body\.3\.conv_du\.0", r"body.\1.residual_group.\2.rcab.3.attention.1"),
        (r"body\.(\d)\.body\.(\d)\.body\.3\.conv_du\.2", r"body.\1.residual_group.\2.rcab.3.attention.3"),
        (r"body\.(\d)\.body\.(\d)\.body", r"body.\1.residual_group.\2.rcab"),
    ),
    ("edsr", "own"): (),
    ("edsr", "fakd"): tuple((rf"body\.{j}", q) for j, q in STRETCHES.items()) + ((r"body\.7", "body3.3"),),
    ("edsr", "basicsr"): (
        *BASICSR,
        (r"body\.7", "conv_after_body"),
        (r"body\.(\d)\.body\.0", r"body.\1.conv1"),
        (r"body\.(\d)\.body\.2", r"body.\1.conv2"),
    ),
    ("edsr", "oldest"): ((r"(sub|add)_mean", r"\1_mean.shifter"),),
    ("san", "own"): (),
}


# Origins, wrappers, formats


@pytest.mark.parametrize("name, origin", ORIGINS)
def test_every_projects_names_give_the_same_network(name, origin, tmp_path):
    net = small(name)
    torch.save(renamed(net.state_dict(), *ORIGINS[name, origin]), tmp_path / "weights.pt")
    sizes = {"res_scale": 1.0} if name == "edsr" else {}
    loaded = load_net(tmp_path / "weights.pt", **sizes)
    assert net_spec(loaded) == net_spec(net) and loaded.scale == 2
    with torch.inference_mode():
        assert torch.equal(loaded(images()), net(images()))
    assert load_weights(small(name, seed=1), tmp_path / "weights.pt")(images()).equal(net(images()))


@pytest.mark.parametrize("origin", ["fakd", "original", "basicsr"])
@pytest.mark.parametrize("name, sizes", [("rcan", {}), ("edsr", {"res_scale": 0.1})])
def test_names_written_by_the_projects_themselves(name, sizes, origin, shared):
    values = np.load(shared / "golden/keys/outputs.npz")
    net = load_net(shared / f"golden/keys/{name}_{origin}.safetensors", **sizes)
    assert net.scale == 2 and net.sizes["n_feats"] == 8 and net.assumptions == []
    same(net, values["lr"], values[f"{name}/sr"])


def test_a_trained_mean_is_kept(shared):
    values = np.load(shared / "golden/keys/outputs.npz")
    net = load_net(shared / "golden/keys/rcan_original_trained_mean.safetensors")
    same(net, values["lr"], values["rcan_trained_mean/sr"])
    assert np.abs(values["rcan_trained_mean/sr"] - values["rcan/sr"]).max() > 5


def test_the_original_san_has_narrower_projections(shared):
    values = np.load(shared / "golden/keys/outputs.npz")
    net = load_net(shared / "golden/keys/san_original_c8.safetensors")
    assert net.sizes["nonlocal_width"] == net.sizes["n_feats"] // 8
    same(net, values["lr"], values["san_original/sr"])


def test_basicsr_networks_of_range_0_to_1_are_ours_of_0_to_255(shared):
    values = np.load(shared / "golden/keys/outputs.npz")
    for name, sizes in (("rcan", {}), ("edsr", {"res_scale": 0.1})):
        net = load_net(shared / f"golden/keys/{name}_basicsr.safetensors", **sizes)
        same(net, values["lr"], 255 * values[f"{name}/sr_basicsr_01"])


def same(net, lr_imgs, wanted):
    with torch.inference_mode():
        found = net(torch.from_numpy(lr_imgs).float()).numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


WRAPPINGS = {
    "bare": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1e-4}},
    "model": lambda state: {"model": state, "step": torch.tensor(5)},
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "twice": lambda state: {"model": {"state_dict": {f"module.module.{k}": v for k, v in state.items()}}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "compiled parallel": lambda state: {"net": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "parallel compiled": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "a part compiled": lambda state: {k.replace("body.0.", "body.0._orig_mod."): v for k, v in state.items()},
    "tutorial": lambda state: {"epoch": 1, "loss": 0.5, "model_state_dict": state},
    "averaged": lambda state: {"n_averaged": torch.tensor(9)} | {f"module.{k}": v for k, v in state.items()},
    "averaged, compiled": lambda state: {"n_averaged": torch.tensor(9)}
    | {f"module._orig_mod.{k}": v for k, v in state.items()},
    "hyphen": lambda state: {"params-ema": state},
    "other order": lambda state: {"generator": {"state_dict": {"model": state}}, "discriminator": {}},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}
                                | {"loss_fn.vgg.weight": torch.zeros(2)}, "pytorch-lightning_version": "2.5"},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_and_formats_of_torch_files(wrapping, suffix, old, tmp_path):
    net, path = small("rcan"), tmp_path / f"weights{suffix}"
    torch.save(WRAPPINGS[wrapping](net.state_dict()), path, _use_new_zipfile_serialization=not old)
    assert net_digest(load_net(path)) == net_digest(net)


def test_safetensors_of_others(tmp_path):
    net = small("san")
    save_file({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "x.safetensors", {"format": "pt"})
    assert net_digest(load_net(tmp_path / "x.safetensors")) == net_digest(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_fp32(dtype, tmp_path):
    net = small("edsr").to(dtype)
    torch.save(net.state_dict(), tmp_path / "half.pt")
    loaded = load_net(tmp_path / "half.pt", res_scale=1.0)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert net_digest(loaded) == net_digest(net.float())
    assert net_digest(load_weights(small("edsr", seed=1), tmp_path / "half.pt")) == net_digest(net.float())


def test_averaged_weights_are_preferred_and_the_choice_is_said(tmp_path):
    net, averaged = small("rcan", seed=1), small("rcan", seed=2)
    torch.save({"params": net.state_dict(), "params_ema": averaged.state_dict()}, tmp_path / "both.pth")
    for fill in (load_net, lambda path: load_weights(small("rcan"), path)):
        with pytest.warns(UserWarning, match="params_ema taken, params of the same file passed over"):
            loaded = fill(tmp_path / "both.pth")
        assert net_digest(loaded) == net_digest(averaged)
        assert loaded.assumptions == ["weights: params_ema taken, params of the same file passed over"]


def test_published_averaged_weights_are_preferred(shared):
    path = shared / "weights/safmnpp_x4.pth"
    state, notes = read_state(path)
    inside = torch.load(path, map_location="cpu", weights_only=True)
    assert notes == {"unwrapped": "params_ema", "passed_over": "params"}
    assert all(torch.equal(v, inside["params_ema"][k]) for k, v in state.items())
    assert not all(torch.equal(v, inside["params"][k]) for k, v in state.items())


# res_scale of EDSR


def test_res_scale_comes_from_the_caller_then_our_metadata_then_habit(tmp_path):
    net = make_net("edsr(n_resblocks=1,n_feats=8,res_scale=0.2)", 2)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    save_weights(net, ours)
    torch.save(net.state_dict(), theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_net(ours, res_scale=0.3).sizes["res_scale"] == 0.3
        assert load_net(theirs, res_scale=0.3).sizes["res_scale"] == 0.3
        assert load_net(ours).sizes["res_scale"] == 0.2
        assert load_net(ours).assumptions == []
    with pytest.warns(UserWarning, match=r"res_scale=1\.0: no weights file tells it"):
        loaded = load_net(theirs)
    assert loaded.sizes["res_scale"] == 1.0
    assert loaded.assumptions == ["res_scale=1.0: no weights file tells it; the lineage's habit for this width"]


def test_an_assumption_stays_with_the_weights_until_it_is_settled(tmp_path):
    torch.save(small("edsr").state_dict(), tmp_path / "theirs.pth")
    with pytest.warns(UserWarning):
        first = load_net(tmp_path / "theirs.pth")
    save_weights(first, tmp_path / "ours.safetensors")
    with pytest.warns(UserWarning):
        assert load_net(tmp_path / "ours.safetensors").assumptions == first.assumptions
    assert load_net(tmp_path / "ours.safetensors", res_scale=1.0).assumptions == []


def test_the_habit_is_that_of_the_published_networks():
    for role in ("teacher", "student"):
        with torch.device("meta"):
            state = NETS["edsr"](4, **NETS["edsr"].SIZES[role]).state_dict()
        assert guess_net(state) == ("edsr", 4, NETS["edsr"].SIZES[role])


def test_weights_saved_for_another_res_scale_are_refused(tmp_path):
    save_weights(make_net("edsr(n_resblocks=1,n_feats=8,res_scale=0.2)", 2), tmp_path / "x.safetensors")
    with pytest.raises(FakdError, match=r"res_scale=0\.2\), the network has res_scale=1\.0"):
        load_weights(make_net("edsr(n_resblocks=1,n_feats=8,res_scale=1)", 2), tmp_path / "x.safetensors")


def test_unknown_sizes_are_named(tmp_path):
    save_weights(small("rcan"), tmp_path / "x.safetensors")
    with pytest.raises(FakdError, match='rcan has no size "res_scale"'):
        load_net(tmp_path / "x.safetensors", res_scale=0.1)


# What does not fit


def misfit(net, path):
    with pytest.raises(MisfitError) as caught:
        load_weights(net, path)
    return caught.value


@by_network
def test_another_scale_is_named(name, tmp_path):
    torch.save(small(name, 4).state_dict(), tmp_path / "x4.pt")
    fault = misfit(small(name, 3), tmp_path / "x4.pt")
    assert fault.missing == [] and fault.unexpected == ["tail.0.2.weight", "tail.0.2.bias"]
    assert fault.wrong[0].startswith("tail.0.0.weight is (")
    assert "the file is probably for another scale, x4" in str(fault)


@by_network
def test_other_sizes_are_named(name, tmp_path):
    spec = SPECS[name].replace("n_resblocks=2", "n_resblocks=3").replace("n_resblocks=7", "n_resblocks=8")
    torch.save(make_net(spec, 2).state_dict(), tmp_path / "deeper.pt")
    fault = misfit(small(name), tmp_path / "deeper.pt")
    assert fault.unexpected
    assert f"of the same network with other sizes, {spec} x2" in str(fault)


@pytest.mark.parametrize("name, other", [("rcan", "edsr"), ("edsr", "san"), ("san", "rcan")])
def test_another_network_is_named(name, other, tmp_path):
    torch.save(small(other).state_dict(), tmp_path / "other.pt")
    fault = misfit(small(name), tmp_path / "other.pt")
    assert fault.missing and fault.unexpected
    assert all(key in str(fault) for key in fault.missing[:4] + fault.unexpected[:4])
    assert f"the file is of another network, {SPECS[other]} x2" in str(fault)


def test_a_missing_a_surplus_and_a_doubled_key_are_refused(tmp_path):
    state = small("rcan").state_dict()
    less = {k: v for k, v in state.items() if k != "body.1.body.0.body.2.bias"}
    for changed, missing, unexpected in (
        (less, ["body.1.body.0.body.2.bias"], []),
        ({**state, "extra.weight": torch.zeros(2)}, [], ["extra.weight"]),
        ({**state, "conv_last.weight": torch.zeros(3, 8, 3, 3)}, [], ["conv_last.weight"]),  # tail.1 again
    ):
        torch.save(changed, tmp_path / "x.pt")
        fault = misfit(small("rcan"), tmp_path / "x.pt")
        assert (fault.missing, fault.unexpected, fault.wrong) == (missing, unexpected, [])
        assert "incomplete or holds more" in str(fault)
        with pytest.raises(FakdError, match=(missing + unexpected)[0]):
            load_net(tmp_path / "x.pt")


def test_a_part_of_the_means_is_refused():
    state = {k: v for k, v in small("edsr").state_dict().items() if k != "sub_mean.bias"}
    with pytest.raises(MisfitError, match=r"1 missing \(sub_mean\.bias\)"):
        fit_state(small("edsr"), state)


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path):
    net = small("rcan")
    before = net_digest(net)
    torch.save(small("rcan", 4).state_dict(), tmp_path / "x4.pt")
    misfit(net, tmp_path / "x4.pt")
    assert net_digest(net) == before


@pytest.mark.parametrize("file", ["dctlsa_x4.pt", "bsrn_x4.pth", "safmnpp_x4.pth", "carn_m_x234.pth"])
@by_network
def test_published_files_of_other_networks_are_refused_by_name(name, file, shared):
    path = shared / "weights" / file
    fault = misfit(small(name, 4), path)
    keys = set(read_state(path)[0])
    assert len(fault.missing) > 10 and set(fault.unexpected) <= keys and len(fault.unexpected) > 10
    assert all(key in str(fault) for key in fault.missing[:6] + fault.unexpected[:6])
    assert "the file is of another network, none of rcan, edsr, san" in str(fault)
    with pytest.raises(FakdError, match="no network of rcan, edsr, san has these names"):
        load_net(path)


# Files that are no weights


class Hostile:
    "Pickled, this is a call that makes a file."

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hostile_pickle_is_refused_and_does_not_run(old, wrapped, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "hostile.pt"
    payload = {"head.0.weight": Hostile(ran)}
    torch.save({"params": payload} if wrapped else payload, path, _use_new_zipfile_serialization=not old)
    for read in (read_state, load_net, lambda p: load_weights(small("rcan"), p)):
        with pytest.raises(FakdError, match="would run code"):
            read(path)
    assert not ran.exists()


def test_a_bare_hostile_pickle_is_refused_and_does_not_run(tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Hostile(ran), protocol=2))
    with pytest.raises(FakdError, match="would run code"):
        load_net(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert ran.exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_damaged_files_are_refused_wherever_they_break(kind, tmp_path):
    net, path = small("edsr"), tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_weights(net, path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for length in [0, 1, 7, 8, 9, 64, 500, 3000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FakdError):
            load_net(path, res_scale=1.0)
        path.write_bytes(random.bytes(length + 1))
        with pytest.raises(FakdError):
            load_net(path, res_scale=1.0)


def test_what_holds_no_tensors_is_named(tmp_path):
    path = tmp_path / "x.pt"
    for content in ({}, [1, 2], {"epoch": 3}, {"state_dict": {"a": "b"}}, torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(FakdError, match="holds no state dict"):
            load_net(path)
    with pytest.raises(FakdError, match="no such weights file"):
        load_net(tmp_path / "absent.pt")
    for odd in ({3: torch.zeros(2)}, {"head.0.weight": torch.tensor(1.0)}):
        torch.save(odd, path)
        with pytest.raises(FakdError, match="has these names"):
            load_net(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_do_not_load(value, tmp_path):
    state = small("rcan").state_dict()
    state["body.1.body.0.body.2.bias"][3] = value
    torch.save({"params": state}, tmp_path / "x.pth")
    save_file(state, tmp_path / "x.safetensors")
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors"):
        for read in (read_state, load_net, lambda p: load_weights(small("rcan"), p)):
            with pytest.raises(FakdError, match=r"body\.1\.body\.0\.body\.2\.bias holds values that are not finite"):
                read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content, called", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "a Git LFS pointer"),
    (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "a web page"),
    (b"<HTML>quota exceeded</HTML>", "a web page"),
])
def test_what_a_failed_download_leaves_is_called_what_it_is(content, called, suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(FakdError, match=called):
        load_net(path)


def test_a_whole_pickled_module_is_refused_with_what_to_do(tmp_path):
    torch.save(small("rcan"), tmp_path / "whole.pth")
    with pytest.raises(FakdError, match=r"would run code .* it holds .*save its state_dict\(\) instead"):
        load_net(tmp_path / "whole.pth")


# Saving


@by_network
def test_saved_weights_tell_sizes_scale_and_origin(name, tmp_path):
    net, path = small(name, 3), tmp_path / "net.safetensors"
    save_weights(net, path, run="demo", steps="400")
    metadata = read_state(path)[1]
    assert metadata == {"format": "fakd", "spec": net_spec(net), "scale": "3", "run": "demo", "steps": "400"}
    assert list(load_file(path)) and load_file(path).keys() == net.state_dict().keys()
    loaded = load_net(path)
    assert net_digest(loaded) == net_digest(net) and not loaded.training
    assert json.dumps(loaded.sizes) == json.dumps(net.sizes)


def test_half_precision_files_keep_the_means(tmp_path):
    net = small("san")
    save_weights(net, tmp_path / "half.safetensors", half=True)
    stored = load_file(tmp_path / "half.safetensors")
    assert {v.dtype for k, v in stored.items() if "_mean" not in k} == {torch.float16}
    assert torch.equal(stored["sub_mean.bias"], net.sub_mean.bias)
    with torch.inference_mode():
        assert (load_net(tmp_path / "half.safetensors")(images()) - net(images())).abs().max() < 0.5
