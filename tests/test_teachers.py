"Teachers of any kind: modules of other value ranges, foreign files, several at once; and where they are tapped."

import copy
import json
from dataclasses import replace
from itertools import product

import jsonschema
import numpy as np
import pytest
import skimage.data
import torch
from fixtures import prepared
from torch import nn

from fakd.core import FakdError, find_path, static
from fakd.distil.loss import DistillLoss
from fakd.distil.matching import find_places, suggest_taps
from fakd.distil.taps import tap_shapes
from fakd.distil.terms import Batch
from fakd.images import write_image
from fakd.look.results import result_table
from fakd.look.watchers import Progress
from fakd.measure.evaluate import evaluate
from fakd.nets.weights import load_net, read_state, save_weights
from fakd.nets.wrapped import as_net
from fakd.nets.zoo import NETS, make_net, net_spec
from fakd.report.finding import finding
from fakd.report.run import run_page
from fakd.rows import summarise
from fakd.runs import distill, train_teacher
from fakd.train.config import DistillConfig
from fakd.train.run import fit
from fakd.train.setup import prepare
from fakd.train.teacher import Lesson, Teacher, who_teaches

NARROW = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"
WIDE = "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)"
EDSR = "edsr(n_resblocks=3,n_feats=12,res_scale=1.0)"


class Plain(nn.Module):
    "A network that knows nothing of fakd: images of 0..1, names of its own, maps of the LR size and of half of it."

    def __init__(self, n_feats=6):
        super().__init__()
        self.first = nn.Conv2d(3, n_feats, 3, padding=1)
        self.trunk = nn.Sequential(*(nn.Conv2d(n_feats, n_feats, 3, padding=1) for _ in range(6)))
        self.small = nn.Conv2d(n_feats, n_feats, 3, 2, padding=1)
        self.up = nn.Sequential(nn.Conv2d(n_feats, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, imgs):
        maps = self.first(imgs)
        maps = maps + self.trunk(maps)
        near = nn.functional.interpolate(imgs, scale_factor=2)
        return near + 0.1 * self.up(maps + self.small(maps).mean((2, 3), keepdim=True))


class From01(nn.Module):
    "A network of 0..255 as one of 0..1."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, imgs):
        return self.net(imgs * 255) / 255


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "A folder with two small pieces of a photograph."
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        write_image(folder / f"{i}.png", skimage.data.astronaut()[60 * i : 60 * i + 48, 200:264])
    return str(folder)


@pytest.fixture
def small(tmp_path, pictures):
    "Parameters of a run that takes a second."
    return {"scale": 2, "data": pictures, "benchmarks": pictures, "steps": 3, "batch_size": 2, "patch_px": 8,
            "precision": "fp32", "device": "cpu", "student": NARROW, "compare": False,
            "out_dir": str(tmp_path / "runs")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Two teachers of different families."
    folder = tmp_path_factory.mktemp("teachers")
    for seed, (name, spec) in enumerate({"rcan": WIDE, "edsr": EDSR}.items()):
        save_weights(make_net(spec, 2, seed=seed), folder / f"{name}.safetensors")
    return [str(folder / f"{name}.safetensors") for name in ("rcan", "edsr")]


# Places


@pytest.mark.parametrize("ours, theirs", list(product(NETS, NETS)))
def test_suggested_places_match_whatever_the_depth(ours, theirs):
    student, teacher = (make_net(name, 2, role) for name, role in ((ours, "mini_student"), (theirs, "mini_teacher")))
    for n in (1, 2, 3):
        pairs = suggest_taps(teacher, student, n, patch_px=12)
        assert [len(pairs.student), len(pairs.teacher)] == [n, n]
        shapes = [tap_shapes(net, list(side), 12) for net, side in ((student, pairs.student), (teacher, pairs.teacher))]
        assert shapes == [pairs.student, pairs.teacher]
        assert {s[1:] for side in shapes for s in side.values()} == {(12, 12)}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_suggested_places_are_in_order_and_spread_over_the_body(n):
    net = make_net("rcan(n_resgroups=10,n_resblocks=1,n_feats=8,reduction=4)", 2)
    depths = {p.name: p.depth for p in find_places(net, 12)}
    found = list(suggest_taps(Plain(), net, n, 12).student)
    named = {"group2": "body.2", "group6": "body.6", "last": "tail.input"}
    reached = [depths[named.get(name, name)] for name in found]
    assert reached == sorted(reached) and len(set(found)) == n
    assert all(abs(d - k / n) <= 0.5 / n for k, d in enumerate(reached, 1))


def test_maps_of_another_size_are_not_suggested_and_refused_when_asked_for(small):
    sizes = {p.shape[1:] for p in find_places(Plain(), 8)}
    assert sizes == {(8, 8), (4, 4)}
    assert "small" not in suggest_taps(Plain(), make_net(NARROW, 2), 3, 8).teacher
    with pytest.raises(FakdError, match=r"taps last \(8x8\) and small \(4x4\) differ in height or width"):
        prepared(**small, taps="[last=small]", teacher=Teacher(Plain(), value_range=1))


def test_positions_that_do_not_fit_give_way_only_if_nobody_asked_for_them(small):
    setup = prepared(**small, teacher=Plain())
    assert setup.config.taps == ["group0=trunk.1", "group1=trunk.3", "last=up.input"]
    assert setup.config.origin()["taps"] == "chosen" and "taps" not in setup.given
    for text in (repr(setup), setup._repr_html_()):
        assert "trunk.3" in text and "(6, 8, 8)" in text and "needs at most" in text and "MB" in text
    with pytest.raises(FakdError, match="tap 1: plain has no numbered taps, only paths"):
        prepared(**small, taps=[1, 2, 3], teacher=Plain())
    assert prepared(**small, taps="[1=trunk.0, last=up.input]", teacher=Plain()).taps == [
        ("group0", "trunk.0"), ("last", "up.input")]


# Modules


def test_a_teacher_of_0_to_1_teaches_the_same_as_its_twin_of_0_to_255(small):
    net = make_net(WIDE, 2, seed=4)
    taps = [f"net.{place}" for place in ("body.0", "body.1", "tail.input")]
    lr_imgs = torch.randint(0, 256, (2, 3, 8, 8)).float()
    twin, plain = Teacher(From01(net), taps, value_range=1), Teacher(net, [1, 2, 3])
    for found, wanted in zip((twin(lr_imgs)[0], *twin(lr_imgs)[1][0], *twin.features(lr_imgs)),
                             (plain(lr_imgs)[0], *plain(lr_imgs)[1][0], *plain.features(lr_imgs)), strict=True):
        assert torch.allclose(found, wanted, atol=2e-3)
    loss = {"loss": "0.5*DS+0.5*TS+10*SA+FitNet"}
    runs = [distill(**small | loss, teacher=teacher) for teacher in (twin, net)]
    first, second = (read_state(run.dir / "weights/distilled.safetensors")[0] for run in runs)
    assert all(torch.allclose(value, second[name], atol=2e-4) for name, value in first.items())
    assert runs[0].record.digest != runs[1].record.digest
    about = runs[0].record.teacher
    assert (about["source"], about["network"]) == ("a Python object", "from01")
    assert about["taps"] == {name: [16, 8, 8] for name in taps}
    assert runs[0].record.resolved["taps"] == [f"{i}={tap}" for i, tap in enumerate(taps, 1)]
    assert runs[1].record.teacher["spec"] == net_spec(net)


def test_adapters_are_trained_and_left_out_of_the_weights(small):
    setup = prepared(**small, loss="DS+FitNet+VID", teacher=Teacher(Plain(), value_range=1))
    seen = []
    original = DistillLoss.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillLoss, "forward", lambda self, *a, **k: (seen.append(self), original(self, *a, **k))[1])
        fit(setup)
    fresh = DistillLoss("DS+FitNet+VID", tap_shapes(make_net(NARROW, 2), [1, 2, 3], 8),
                        [tap_shapes(as_net(Plain()), [p[1] for p in setup.taps], 8)])
    before, after = dict(fresh.named_parameters()), dict(seen[-1].named_parameters())
    assert before.keys() == after.keys() and before
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    saved = read_state(setup.run.dir / "weights/distilled.safetensors")[0]
    assert saved.keys() == make_net(NARROW, 2).state_dict().keys()


def test_a_student_may_be_a_module_too(small, files):
    student = Plain()
    before = copy.deepcopy(student.state_dict())
    run = distill(**small | {"student": as_net(student, value_range=1), "teacher": files[0], "ema": 0.5})
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    state = read_state(run.dir / "weights/distilled.safetensors")[0]
    assert state.keys() == before.keys() and not all(torch.equal(v, before[k]) for k, v in state.items())
    assert run.record.resolved["taps"] == ["trunk.1=group0", "trunk.3=group1", "up.input=last"]
    assert run.record.student["spec"] == "plain(value_range=1)" and run.id.startswith("distill-x2-plain-")
    again = Plain()
    again.load_state_dict(state)
    setup = prepared(**small, teacher=Plain())
    rows = evaluate({"distilled": as_net(again, 1)}, setup.sets, 2, progress=False)
    assert summarise(rows)["distilled"] == run.record.summary["distilled"]


@pytest.mark.parametrize("teacher, fault", [
    (["rcan.pt", Plain()], "expected a Teacher, an nn.Module or a list of them, got str, Plain"),
    ([nn.Identity()], r"Identity makes \(1, 3, 48, 48\)"),
    (make_net("rcan", 3, "mini_student"), r"teacher rcan\(.*\) is for scale 3, the run for scale 2"),
    ([Teacher(Plain(), ["first"]), Plain()], "3 taps of the student .* but the teachers have 1 and 0"),
])
def test_a_teacher_that_cannot_teach_is_refused(small, teacher, fault):
    with pytest.raises(FakdError, match=fault):
        prepared(**small, teacher=teacher)


def test_a_config_is_resolved_once_and_holds_the_networks_that_were_at_hand(small):
    asked = DistillConfig(**small, teacher=Plain())
    with pytest.raises(FakdError, match=r"has open choices. Give prepare\(config.resolve\(\)\)"):
        prepare(asked)
    config = asked.resolve()
    assert config.resolve() is config and prepare(config).config is prepare(config).config is config
    assert config.model_dump()["teacher"] == [{"module": "plain"}] and config.given()["teacher"] == asked.teacher


def test_a_teacher_is_frozen_and_leaves_no_graph():
    teacher, lr_imgs = Teacher(make_net(WIDE, 2), [0, 1]), torch.rand(1, 3, 8, 8).mul(255).requires_grad_()
    sr_imgs, maps = teacher(lr_imgs)
    assert not any(x.requires_grad for x in (sr_imgs, *maps, *teacher.net.parameters()))
    sum(m.sum() for m in teacher.features(lr_imgs)).backward()  # the way of terms that look at the student's image
    assert lr_imgs.grad.abs().sum() > 0 and all(p.grad is None for p in teacher.net.parameters())


def test_a_network_may_teach_itself_and_a_frozen_student_is_refused(small):
    net = make_net(NARROW, 2, seed=3)
    before = copy.deepcopy(net.state_dict())
    run = distill(**small | {"student": net, "teacher": net})
    after = read_state(run.dir / "weights/distilled.safetensors")[0]
    assert not all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(FakdError, match=r"student plain: none of its parameters is trained"):
        prepared(**small | {"teacher": Plain(), "student": as_net(Plain()).requires_grad_(False)})


def test_rows_of_maps_behind_the_upsampler_belong_to_the_query_pixel(small, files):
    run = distill(**small | {"teacher": files[0], "taps": "[last, tail.0]"})
    kept, past = (np.load(run.dir / f"snapshots/{name}.npz") for name in ("affinity", "progress-distilled"))
    for tap, factor in ((0, 1), (1, 2)):
        for k, (y, x) in enumerate(kept["queries"]):
            row = kept[f"distilled/{tap}"][k]
            assert row.shape == tuple(factor * side for side in kept["image"].shape[:2])
            assert row[int((y + 0.5) * factor), int((x + 0.5) * factor)] == pytest.approx(1, abs=1e-3)
        y, x = ((past["query"] + 0.5) * factor).astype(int)
        assert past[f"rows/{tap}"][:, y, x] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("student", [NARROW, EDSR, "san(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"])
@pytest.mark.parametrize("teacher", [0, 1])
def test_every_family_learns_from_every_other(small, files, student, teacher):
    "A spec with a point in it, such as res_scale=1.0, is no file."
    run = distill(**small | {"student": student, "teacher": files[teacher], "steps": 1})
    name = student.split("(")[0]
    assert run.id.startswith(f"distill-x2-{name}-ds-ts-sa-s0-") and run.record.student["network"] == name
    assert net_spec(load_net(run.dir / "weights/distilled.safetensors")) == run.record.student["spec"]


def test_a_teacher_of_every_family_can_be_trained_and_found_again(small, tmp_path):
    for name, net in (("edsr", EDSR), ("san", "san(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)")):
        asked = {k: v for k, v in small.items() if k not in ("student", "compare")} | {"steps": 1}
        run = train_teacher(**asked, net=net)
        assert run.id.startswith(f"teacher-x2-{name}-s0-")
        file = str(run.dir / "weights/teacher.safetensors")
        assert prepared(**small, teacher=file).teachers[0].net.scale == 2


# Several


def test_one_teacher_is_drawn_for_each_batch_and_only_that_one_runs():
    nets, asked = [make_net(WIDE, 2, seed=s) for s in (0, 1)], []
    for i, net in enumerate(nets):
        net.register_forward_pre_hook(lambda *_, i=i: asked.append(i))
    teachers = [Teacher(net, [1]) for net in nets]
    for step in range(20):
        Lesson(teachers, who_teaches(2, "random", 5, step))(torch.zeros(1, 3, 6, 6))
        assert len(asked) == step + 1
    assert set(asked) == {0, 1}
    assert [who_teaches(2, "random", 5, step) for step in range(20)] == [[i] for i in asked]


def test_the_mean_of_several_teachers_is_what_its_definition_says():
    "TS against the mean image; SA the mean of each teacher's; FitNet with an adapter for each."
    nets = [make_net(WIDE, 2, seed=0), make_net(EDSR, 2, seed=1)]
    student, lr_imgs, hr_imgs = make_net(NARROW, 2), *(torch.rand(2, 3, n, n) * 255 for n in (8, 16))
    lesson = Lesson([Teacher(net, [1, 2, 3]) for net in nets], who_teaches(2, "mean", 0, 0))
    shapes = [tap_shapes(net, [1, 2, 3], 8) for net in (student, *nets)]
    loss = DistillLoss("0.5*DS+0.5*TS+10*SA+FitNet", shapes[0], shapes[1:])
    sr_imgs, maps = Teacher(student, [1, 2, 3])(lr_imgs)
    mean, several = lesson(lr_imgs)
    batch = Batch(sr_imgs, hr_imgs, lr_imgs, mean, maps, several)
    _, terms = loss(batch)
    alone = [Teacher(net, [1, 2, 3])(lr_imgs) for net in nets]
    mean = (alone[0][0] + alone[1][0]) / 2
    assert terms["TS"].item() == pytest.approx(0.5 * (sr_imgs - mean).abs().mean().item(), rel=1e-5)
    for name, spec in (("SA", "DS+10*SA"), ("FitNet", "DS+FitNet")):
        each = [DistillLoss(spec, shapes[0], [of])(replace(batch, teachers_maps=[maps]))[1][name].item()
                for of, (_, maps) in zip(shapes[1:], alone, strict=True)]
        assert terms[name].item() == pytest.approx(sum(each) / 2, rel=1e-5)


@pytest.mark.parametrize("draw", ["random", "mean"])
def test_a_run_with_several_teachers_leaves_a_record_and_a_page_that_tell_them_apart(small, files, draw):
    loss = "DS+TS+10*SA+FitNet+0.1*CSD"
    run = distill(**small | {"teacher": "+".join(files), "teacher_draw": draw, "loss": loss})
    record = json.loads((run.dir / "record.json").read_text())
    jsonschema.validate(record, json.loads(static("record.schema.json")))
    assert list(record["summary"]) == ["bicubic", "teacher 1", "teacher 2", "teacher", "distilled"]
    about = record["teacher"]
    assert (about["network"], about["draw"], about["source"]) == ("rcan + edsr", draw, "+".join(files))
    assert about["params"] == sum(net["params"] for net in about["nets"].values())
    assert [net["source"] for net in about["nets"].values()] == files
    for method, file in zip(("teacher 1", "teacher 2"), files, strict=True):
        rows = evaluate({method: load_net(file)}, prepared(**small, teacher=Plain()).sets, 2, progress=False)
        found, wanted = (list(means[method].values())[0]["psnr_y"] for means in (summarise(rows), record["summary"]))
        assert found == pytest.approx(wanted, abs=1e-4)  # another memory layout may round a pixel the other way
    assert [row["title"] for row in result_table(run.record).rows] == [
        "Bicubic", "Teacher 1, RCAN", "Teacher 2, EDSR", "Mean of the teachers", "Student, distilled"]
    text = run_page(run).read_text(encoding="utf-8")
    for words in ("Teacher 1, RCAN", "Teacher 2, EDSR", "RCAN + EDSR", "mean of the maps of all teachers", *files):
        assert words in text, words
    assert "mean of the teachers\u2019 images" in finding(run.record).lower()
    with np.load(run.dir / "snapshots/affinity.npz") as kept:
        assert {name for name in kept if name.endswith("/0")} == {"teacher/0", "distilled/0"}


def test_several_teachers_at_once_need_the_memory_of_all(small, files):
    needs = {draw: prepared(**small, teacher="+".join(files), teacher_draw=draw) for draw in
             ("random", "mean")}
    text = {draw: repr(setup) for draw, setup in needs.items()}
    assert all("block0 (12, 8, 8)" in t and "group0 (16, 8, 8)" in t for t in text.values())
    assert needs["mean"].loss_bytes > needs["random"].loss_bytes


def test_places_of_several_teachers_may_differ(small, files):
    asked = small | {"teacher": "+".join(files)}
    assert prepared(**asked, taps="[1, last=group1+block1]").taps == [
        ("group0", "group0", "block0"), ("last", "group1", "block1")]
    with pytest.raises(FakdError, match="3 places for 2 teachers; give one for all or one for each"):
        prepared(**asked, taps="[last=1+2+3]")
    mixed = prepared(**small, teacher=[make_net(WIDE, 2), Plain()])
    assert mixed.config.taps == ["group0=group0+trunk.1", "group1=group1+trunk.3", "last=last+up.input"]
    assert mixed.config.model_dump()["teacher"] == [{"module": WIDE}, {"module": "plain"}]
    page = mixed._repr_html_()
    for words in ("teacher 1 tap", "teacher 2 tap", "One teacher is drawn for each batch.", "trunk.3", "needs at most"):
        assert words in page, words


@pytest.mark.parametrize("draw", ["random", "mean"])
def test_a_stopped_run_with_several_teachers_goes_on_bit_for_bit(small, files, draw, tmp_path, monkeypatch):
    asked = small | {"teacher": "+".join(files), "teacher_draw": draw, "steps": 7, "checkpoint_min": 0.0,
                     "loss": "DS+TS+10*SA+FitNet+MGD"}

    def weights(out_dir):
        setup = prepared(**asked | {"out_dir": str(out_dir)})
        return fit(setup), read_state(setup.run.dir / "weights/distilled.safetensors")[0]

    _, whole = weights(tmp_path / "whole")

    def stop(self, t):
        if t.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step", stop)  # comes before the one that saves: step 3 is the last that is kept
        with pytest.raises(KeyboardInterrupt):
            weights(tmp_path / "stopped")
    fitted, found = weights(tmp_path / "stopped")
    assert [line["step"] for line in fitted.sittings] == [0, 3]
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
    with pytest.raises(FakdError, match="teacher_draw: "):
        other = asked | {"out_dir": str(tmp_path / "third")}
        first = prepared(**other)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Progress, "on_step", stop)
            fit(first)
        change = {"teacher_draw": "mean" if draw == "random" else "random", "resume": str(first.run.dir)}
        fit(prepared(**other | change))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_teacher_of_a_run_is_of_its_scale(scale):
    path = DistillConfig(scale=scale, data="sample", benchmarks="sample-eval").resolve().teacher
    assert load_net(find_path(path)).scale == scale
