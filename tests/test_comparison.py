"""The comparison of plain and distilled student: everything that a run claims is worked out a second time, plainly.

A small run is made with fakd. Its weights, curves, rows, pictures and affinities are then compared with what the
formulas of the paper give, written here with torch alone on the same batches.
"""
import copy
import math
import shutil
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fixtures import make_run_fixture, prepared
from torch import nn
from torch.nn import functional as F

from fakd.core import FakdError
from fakd.data.patches import Patches
from fakd.data.sets import image_set
from fakd.distil.loss import DistillLoss
from fakd.distil.taps import Taps
from fakd.images import read_image, write_image
from fakd.look.results import result_table
from fakd.look.watchers import Snapshots
from fakd.measure.metrics import psnr_y
from fakd.nets.weights import load_net, save_weights
from fakd.nets.zoo import make_net
from fakd.rows import Row, gains, summarise
from fakd.run_folder import write_record
from fakd.train.checkpoint import load_checkpoint
from fakd.train.run import Fitted, fit, score
from fakd.train.setup import Setup
from fakd.train.teacher import Teacher
from fakd.train.trainer import Diverged, Saver, Trainer, restore, train_step

STUDENT = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"
TEACHER = "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)"
STEPS, BATCH, RATE, WARMUP, FLOOR, DECAY, CLIP, SEED = 8, 2, 2e-3, 2, 0.5, 0.4, 40.0, 3
WEIGHTS = {"DS": 0.5, "TS": 0.4, "SA": 30.0}
METHODS = ("teacher", "plain", "distilled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Training images of smoothed noise and a teacher with weights of its own."
    folder, draws = tmp_path_factory.mktemp("comparison"), np.random.default_rng(0)
    for k in range(3):
        coarse = torch.from_numpy(draws.uniform(0, 255, (1, 3, 12, 12)))
        img = F.interpolate(coarse, size=(80, 80), mode="bicubic")[0].clamp(0, 255).permute(1, 2, 0)
        write_image(folder / "own" / f"{k}.png", img.numpy().astype(np.uint8))
    save_weights(make_net(TEACHER, 2, seed=5), folder / "teacher.safetensors")
    return folder


def settings(folder, **more):
    return dict(scale=2, data=str(folder / "own"), benchmarks="sample-eval", steps=STEPS, batch_size=BATCH, patch_px=12,
                learn_rate=RATE, schedule=f"cosine(warmup={WARMUP},floor={FLOOR})", ema=DECAY, clip_norm=CLIP,
                seed=SEED, precision="fp32", device="cpu", student=STUDENT, teacher=str(folder / "teacher.safetensors"),
                loss="+".join(f"{w}*{name}" for name, w in WEIGHTS.items()), out_dir=str(folder / "runs")) | more


@pytest.fixture(scope="module")
def ready(folder):
    "The prepared run."
    return prepared(**settings(folder))


@dataclass
class Trained:
    "A run and what its stages have found."

    setup: Setup
    fitted: list[Fitted]
    rows: list[Row] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.setup, name)

    @property
    def nets(self):
        return {one.method: one.net for one in self.fitted}

    @property
    def histories(self):
        return {one.method: one.history for one in self.fitted}


@pytest.fixture(scope="module")
def run(ready):
    "The run with both students trained, plain first, as a user has it."
    plain = fit(ready, "plain")
    return Trained(ready, [plain, fit(ready, earlier=[plain])])


@pytest.fixture(scope="module")
def scored(run):
    "The same with its rows, pictures and affinities."
    run.rows = score(run.setup, run.fitted)
    return run


def affinity(maps):
    "Cosines of the features of all pairs of positions, as FAKD's code has them."
    flat = maps.flatten(2)
    unit = flat / (flat.norm(dim=1, keepdim=True) + 1e-8)
    return unit.transpose(1, 2) @ unit


def rate(step):
    "Cosine down to FLOOR after a linear warm-up, from step 0."
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    down = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
    return RATE * (FLOOR + (1 - FLOOR) * down)


def trained(run, teacher=None):
    "Loop, loss, clipping and average by hand: last weights, averaged weights, and the loss of each step."
    student, patches = make_net(STUDENT, 2, seed=SEED).train(), Patches(run.images, 2, 12, SEED)
    weights = [p for p in student.parameters() if p.requires_grad]
    adam, average, losses = torch.optim.Adam(weights, betas=(0.9, 0.999), eps=1e-8), None, []
    for step in range(STEPS):
        lr_imgs, hr_imgs = patches.batch(step, BATCH)
        with Taps(student, [pair[0] for pair in run.taps]) as ours:
            sr_imgs = student(lr_imgs)
            loss = (sr_imgs - hr_imgs).abs().mean()
            if teacher is not None:
                with torch.no_grad(), Taps(teacher, [pair[1] for pair in run.taps]) as theirs:
                    target, wanted = teacher(lr_imgs), theirs.maps
                pairs = zip(ours.maps, wanted, strict=True)
                far = sum((affinity(s) - affinity(t)).abs().mean() for s, t in pairs)
                loss = WEIGHTS["DS"] * loss + WEIGHTS["TS"] * (sr_imgs - target).abs().mean() + WEIGHTS["SA"] * far
        adam.zero_grad()
        loss.backward()
        losses.append(loss.item())
        grads = [p.grad for p in weights]
        norm = torch.stack([g.norm() for g in grads]).norm()
        for grad in grads:
            grad.mul_(min(1.0, CLIP / float(norm)))
        adam.param_groups[0]["lr"] = rate(step)
        adam.step()
        now = {k: v.detach().clone() for k, v in student.state_dict().items()}
        decay = min(DECAY, (1 + step) / (10 + step))
        average = {k: decay * average[k] + (1 - decay) * v for k, v in now.items()} if average else now
    return now, average, losses


@pytest.fixture(scope="module")
def truth(run):
    "What the two students must be: method -> last weights, averaged weights, losses."
    teacher = load_net(run.run.dir.parents[1] / "teacher.safetensors")
    return {"plain": trained(run), "distilled": trained(run, teacher)}


def vector(state):
    return torch.cat([v.flatten().double() for v in state.values()])


@pytest.fixture(scope="module")
def kept(run):
    "The networks as their files hold them."
    nets = {m: load_net(run.run.dir / f"weights/{m}.safetensors") for m in ("plain", "distilled")}
    return {"teacher": load_net(run.run.dir.parents[1] / "teacher.safetensors"), **nets}


def pixels(net, lr_img):
    "What a network makes of an image, rounded half up to 8 bits."
    with torch.no_grad():
        sr_imgs = net(torch.from_numpy(lr_img.copy()).permute(2, 0, 1)[None].float())
    return (sr_imgs.clamp(0, 255) + 0.5).floor()[0].permute(1, 2, 0).numpy().astype(np.uint8)


# Training


@pytest.mark.parametrize("method", ["plain", "distilled"])
def test_a_student_is_the_average_of_the_formulas_steps_on_the_formulas_batches(run, truth, kept, method):
    "Start, batches, loss, clipping, schedule, Adam and average, in one number: the error of the way it went."
    start, (last, average, _) = vector(make_net(STUDENT, 2, seed=SEED).state_dict()), truth[method]
    found, wanted = vector(kept[method].state_dict()), vector(average)
    way = (wanted - start).norm()
    assert (found - wanted).norm() < 1e-3 * way
    assert (vector(last) - wanted).norm() > 0.02 * way, "the average must be told from the last weights"


def test_the_two_students_differ_by_what_they_are_taught(truth):
    "Else the tests of this file could not tell one from the other."
    start = vector(make_net(STUDENT, 2, seed=SEED).state_dict())
    plain, distilled = (vector(truth[m][1]) for m in ("plain", "distilled"))
    assert (plain - distilled).norm() > 0.05 * (plain - start).norm()


@pytest.mark.parametrize("method", ["plain", "distilled"])
def test_history_tells_the_losses_and_rates_of_the_steps(run, truth, method):
    history = run.histories[method]
    assert [line["step"] for line in history] == list(range(1, STEPS + 1))
    assert [line["learn_rate"] for line in history] == pytest.approx([rate(step) for step in range(STEPS)])
    assert [line["loss"] for line in history] == pytest.approx(truth[method][2], rel=1e-3)


def test_both_students_start_from_the_same_weights_and_see_the_same_batches(folder, monkeypatch, tmp_path):
    "The weights before the first step and every batch of both."
    starts, batches = [], []

    def watched(self, *args, **more):
        original(self, *args, **more)
        starts.append(vector(self.student.state_dict()).clone())

    def seen(t, lr_imgs, hr_imgs):
        batches.append((t.method, lr_imgs.clone(), hr_imgs.clone()))
        train_step(t, lr_imgs, hr_imgs)

    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", watched)
    monkeypatch.setattr("fakd.train.trainer.train_step", seen)
    setup = prepared(**settings(folder, steps=3, out_dir=str(tmp_path)))
    fit(setup, earlier=[fit(setup, "plain")])
    assert len(starts) == 2 and torch.equal(*starts)
    plain, distilled = ([b[1:] for b in batches if b[0] == method] for method in ("plain", "distilled"))
    assert len(plain) == len(distilled) == 3
    assert all(torch.equal(a, b) for one, other in zip(plain, distilled, strict=True)
               for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", ["plain", "distilled"])
def test_the_held_out_curve_ends_at_the_psnr_of_the_kept_weights_on_held_out_crops(run, kept, method):
    scores, unshaved = [], []
    for pair in image_set("sample-eval").pairs(2):
        (h, w), side = pair.lr_img.shape[:2], 128
        y, x = (max(0, n - side) // 2 for n in (h, w))
        lr_img, hr_img = pair.lr_img[y:y + side, x:x + side], pair.hr_img[2 * y:2 * (y + side), 2 * x:2 * (x + side)]
        scores.append(psnr_y(pixels(kept[method], lr_img), hr_img, 2))
        unshaved.append(psnr_y(pixels(kept[method], lr_img), hr_img, 0))
    last = run.histories[method][-1]["psnr_y"]
    assert last == pytest.approx(np.mean(scores), abs=2e-3)
    assert abs(last - np.mean(unshaved)) > 4e-3, "the border must matter, or it could not be missed"


# Scores and what is kept


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_the_scores_of_the_networks_in_the_files(scored, kept, method):
    found = {row.image: row.psnr_y for row in scored.rows if row.method == method}
    wanted = {p.name: psnr_y(pixels(kept[method], p.lr_img), p.hr_img, 2) for p in image_set("sample-eval").pairs(2)}
    assert found == pytest.approx(wanted, abs=1e-3)
    others = [{row.image: row.psnr_y for row in scored.rows if row.method == m} for m in METHODS if m != method]
    assert all(abs(found[image] - other[image]) > 2e-3 for other in others for image in found)


@pytest.mark.parametrize("method", METHODS)
def test_kept_images_are_what_the_networks_in_the_files_make(scored, kept, method):
    pairs = {p.name: p for p in image_set("sample-eval").pairs(2)}
    folders = sorted((scored.run.dir / "snapshots/images").iterdir())
    assert [f.name.split("--")[1] for f in folders] == sorted(pairs)
    for one in folders:
        img = read_image(one / f"{method}.png").astype(int)
        wanted = pixels(kept[method], pairs[one.name.split("--")[1]].lr_img)
        assert (img != wanted).mean() < 1e-4 and abs(img - wanted).max() <= 1  # batches round differently at .5
        other = read_image(one / f"{'plain' if method == 'distilled' else 'distilled'}.png")
        assert (img != other).mean() > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_kept_affinity_rows_are_those_of_the_networks_in_the_files(scored, kept, method):
    with np.load(scored.run.dir / "snapshots/affinity.npz") as file:
        arrays = dict(file)
    lr_img = arrays["image"]
    side = 1 if method == "teacher" else 0
    with torch.no_grad(), Taps(kept[method], [pair[side] for pair in scored.taps]) as taps:
        kept[method](torch.from_numpy(lr_img.copy()).permute(2, 0, 1)[None].float())
        found = taps.maps
    for k, maps in enumerate(found):
        (h, w), (map_h, map_w) = lr_img.shape[:2], maps.shape[2:]
        wanted = affinity(maps)[0].reshape(map_h, map_w, map_h, map_w)
        for query, row in zip(arrays["queries"], arrays[f"{method}/{k}"], strict=True):
            y, x = int((query[0] + 0.5) * map_h / h), int((query[1] + 0.5) * map_w / w)
            assert np.abs(row - wanted[y, x].numpy()).max() < 2e-3
    far = np.abs(arrays["plain/0"].astype(float) - arrays["distilled/0"].astype(float)).max()
    assert far > 4e-3, "the students must be told apart"


def test_the_result_table_gives_each_method_its_own_numbers(tmp_path):
    rows = [Row.of(method, "Set5", image, 4, psnr + k, 0.5 + psnr / 100)
            for method, psnr in (("bicubic", 20.0), ("teacher", 24.0), ("plain", 21.25), ("distilled", 22.0))
            for k, image in enumerate(("bird", "head"))]
    made = make_run_fixture(tmp_path, pictures=False, rows=rows, summary=summarise(rows))
    write_record(made, made.record)
    table = {line[0]: line for line in result_table(made.record).lines()}
    plain, distilled = table["Student, no distillation"], table["Student, distilled"]
    assert "21.75" in plain and "0.7125" in plain and "22.50" in distilled and "0.7200" in distilled
    assert "+0.75" in distilled and not any(cell.startswith(("+", "\u2212", "-0")) for cell in plain)
    assert gains(made.record.rows, "Set5")["bird"] == pytest.approx(0.75)


# A teacher that would be changed by looking at it


class Restless(nn.Module):
    "Enlarges by repetition; in training mode its dropout draws and its batch norm counts."

    scale = 2

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            nn.init.normal_(self.conv.weight, std=1e-3)

    def forward(self, lr_imgs):
        return F.interpolate(lr_imgs + 5 * self.drop(self.norm(self.conv(lr_imgs))), scale_factor=2)


def test_a_teacher_with_dropout_and_batch_norm_teaches_in_evaluation_mode_and_stays_as_it_was(folder, tmp_path):
    net = Restless().train()
    before = copy.deepcopy(net.state_dict())
    quiet = copy.deepcopy(net).eval()
    asked = settings(folder, steps=3, loss="TS", schedule="constant", ema=0, clip_norm=0, out_dir=str(tmp_path))
    del asked["teacher"]
    setup = prepared(**asked, teacher=Teacher(net, value_range=255))
    fitted = fit(setup)
    rows = score(setup, [fitted])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    patches, student = Patches(setup.images, 2, 12, SEED), make_net(STUDENT, 2, seed=SEED)
    lr_imgs, _ = patches.batch(0, BATCH)
    with torch.no_grad():
        first = (student(lr_imgs) - quiet(lr_imgs)).abs().mean().item()
    assert fitted.history[0]["loss"] == pytest.approx(first, rel=1e-5)
    found = {row.image: row.psnr_y for row in rows if row.method == "teacher"}
    wanted = {p.name: psnr_y(pixels(quiet, p.lr_img), p.hr_img, 2) for p in setup.sets[0].pairs(2)}
    assert found == pytest.approx(wanted, abs=1e-3)


# One step: clipping and the scaler of half precision, with plain gradient descent, whose way is rate times gradient


def stepped(ready, clip_norm=0.0, scaler=None, poison=False, learn_rate=1.0, accumulate=1):
    "A trainer after one step of gradient descent, and the way that its student went."
    config = ready.config.model_copy(update={"clip_norm": clip_norm, "ema": 0.0, "learn_rate": learn_rate,
                                           "schedule": "constant", "accumulate": accumulate})
    t = Trainer(make_net(STUDENT, 2, seed=SEED), DistillLoss("DS"), Patches(ready.images, 2, 12, SEED), config)
    weights = [p for p in t.student.parameters() if p.requires_grad]
    t.optimiser, t.scaler = torch.optim.SGD(weights, lr=1.0), scaler or t.scaler
    if poison:
        weights[0].register_hook(lambda grad: grad * math.inf)
    before = vector(t.student.state_dict())
    train_step(t, *t.patches.batch(0, BATCH))
    return t, vector(t.student.state_dict()) - before


def scaler(scale=2.0**12, every=1):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=every)


def test_the_gradient_is_clipped_to_clip_norm_and_keeps_its_direction(ready):
    _, free = stepped(ready)
    _, clipped = stepped(ready, clip_norm=float(free.norm()) / 4)
    _, loose = stepped(ready, clip_norm=float(free.norm()) * 4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-3, atol=1e-6)
    assert torch.equal(loose, free)


@pytest.mark.parametrize("share", [0.0, 0.25], ids=["free", "clipped"])
def test_a_scaled_loss_moves_the_student_as_an_unscaled_one(ready, share):
    _, free = stepped(ready)
    clip_norm = share * float(free.norm())
    _, wanted = stepped(ready, clip_norm=clip_norm)
    t, found = stepped(ready, clip_norm=clip_norm, scaler=scaler())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    assert t.scaler.get_scale() == 2.0**13, "grown after one good step"


def test_a_step_with_an_infinite_gradient_is_left_out_and_the_scale_shrinks(ready):
    t, way = stepped(ready, scaler=scaler(), poison=True)
    assert torch.equal(way, torch.zeros_like(way)) and t.scaler.get_scale() == 2.0**11


def test_the_scaler_goes_on_after_a_stop(ready, tmp_path):
    t, _ = stepped(ready, scaler=scaler(scale=2.0**9, every=5), learn_rate=1e-6)
    Saver(tmp_path / "x.pt").end(t)
    again = Trainer(make_net(STUDENT, 2, seed=1), DistillLoss("DS"), t.patches, t.config)
    again.optimiser = torch.optim.SGD([p for p in again.student.parameters() if p.requires_grad], lr=1.0)
    again.scaler = scaler(scale=2.0**16, every=5)
    restore(again, tmp_path / "x.pt")
    assert again.scaler.get_scale() == 2.0**9
    for other in (t, again):  # the count of good steps goes on too: 5 in all double the scale
        for step in range(1, 5):
            train_step(other, *other.patches.batch(step, BATCH))
    assert t.scaler.get_scale() == again.scaler.get_scale() == 2.0**10


def test_the_time_of_a_training_is_that_of_its_steps_without_looking(ready, monkeypatch):
    "On a clock that only a watcher and the loss move: 3 seconds a step, 100 a look."
    now = [0.0]

    class Slow(DistillLoss):
        def forward(self, *args, **more):
            now[0] += 3.0
            return super().forward(*args, **more)

    class Look:
        def on_step(self, t):
            now[0] += 100.0

    monkeypatch.setattr("fakd.train.trainer.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    short = ready.config.model_copy(update={"steps": 4})
    t = Trainer(make_net(STUDENT, 2, seed=SEED), Slow("DS"), Patches(ready.images, 2, 12, SEED), short,
                watchers=[Look()])
    t.fit()
    assert t.time_s == 4 * 3.0


def test_a_line_of_history_is_the_mean_of_the_steps_since_the_line_before(ready):
    seen = []

    class Kept(DistillLoss):
        def forward(self, *args, **more):
            total, terms = super().forward(*args, **more)
            seen.append(total.item())
            return total, terms

    config = ready.config.model_copy(update={"steps": 600})  # a line every third step
    t = Trainer(make_net(STUDENT, 2, seed=SEED), Kept("DS"), Patches(ready.images, 2, 12, SEED), config,
                validate=lambda net: 0.0)
    t.fit(6)
    assert [line["step"] for line in t.history] == [3, 6]
    assert [line["loss"] for line in t.history] == pytest.approx([np.mean(seen[:3]), np.mean(seen[3:])])


def test_a_batch_in_parts_moves_the_student_as_the_whole_batch(ready):
    whole = stepped(ready)[1]
    parts = stepped(ready, accumulate=2)[1]
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


# A stop in between


class Forgetful(nn.Module):
    "A student whose dropout draws from the global generator, and whose map a teacher looks at through an adapter."

    scale = 2

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, lr_imgs):
        maps = self.conv(lr_imgs / 255)
        return 255 * F.pixel_shuffle(self.tail(F.dropout(maps, 0.3, self.training)), 2)


def forgetful(ready):
    config = ready.config.model_copy(update={"clip_norm": 0.0, "learn_rate": 1e-2})
    loss = DistillLoss("DS+FitNet", {"conv": (8, 12, 12)}, [{"group0": (16, 12, 12)}], seed=SEED)
    return Trainer(Forgetful(), loss, Patches(ready.images, 2, 12, SEED), config,
                   [Teacher(ready.teachers[0].net, ["group0"])], ["conv"])


def everything(t):
    "Last and averaged weights, adapters, and what Adam remembers."
    memory = {f"{k}.{n}": v for k, one in t.optimiser.state_dict()["state"].items() for n, v in one.items()}
    return {part: {n: v.clone() for n, v in state.items()} for part, state in (
        ("student", t.student.state_dict()), ("average", t.net.state_dict()), ("adapters", t.loss.state_dict()),
        ("Adam", memory))}


def test_every_part_of_a_training_goes_on_bit_for_bit(ready, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        whole = forgetful(ready)
        whole.fit(6)
        torch.manual_seed(1)
        first = forgetful(ready)
        first.fit(3)
        Saver(tmp_path / "x.pt").end(first)
        torch.manual_seed(2)
        second = forgetful(ready)
        restore(second, tmp_path / "x.pt")
        second.fit(6)
    wanted, found = everything(whole), everything(second)
    assert wanted["adapters"] and wanted["Adam"]
    for part, state in wanted.items():
        assert state.keys() == found[part].keys()
        assert all(torch.equal(value, found[part][name]) for name, value in state.items()), part


def test_weights_that_the_last_update_made_infinite_are_no_result(ready):
    t, _ = stepped(ready)
    t.step, weights = 0, [p for p in t.student.parameters() if p.requires_grad]
    weights[0].register_hook(lambda grad: grad * math.inf)
    with pytest.raises(Diverged, match="its weights are not finite after the last update"):
        t.fit(1)


def test_after_divergence_the_checkpoint_is_the_one_from_which_the_run_can_go_on(ready, tmp_path):
    "The second step leaves weights that are finite, but so large that the third has no finite loss."
    short = ready.config.model_copy(update={"clip_norm": 0.0, "ema": 0.0, "checkpoint_min": 0.0})
    t = Trainer(make_net(STUDENT, 2, seed=SEED), DistillLoss("DS"), Patches(ready.images, 2, 12, SEED), short,
                saver=Saver(tmp_path / "x.pt"))
    weights = [p for p in t.student.parameters() if p.requires_grad]
    t.optimiser = torch.optim.SGD(weights, lr=1e-6)
    for weight in weights:
        weight.register_hook(lambda grad: torch.full_like(grad, 1e36) if t.step == 1 else grad)
    with pytest.raises(Diverged, match="step 2"):
        t.fit()
    assert load_checkpoint(tmp_path / "x.pt")["step"] == 1


def test_snapshots_that_were_changed_are_not_gone_on_with(run, kept, tmp_path):
    path = tmp_path / "progress.npz"
    shutil.copy(run.run.dir / "snapshots/progress-distilled.npz", path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["distances"][0] += 0.125
    np.savez_compressed(path, **arrays)
    lr_img = image_set("sample-eval").pairs(2)[0].lr_img[:96, :96]
    watcher = Snapshots(path, lr_img, (9, 9), [kept["teacher"]], run.taps)
    t, _ = stepped(run)
    with pytest.raises(FakdError, match="damaged"):
        watcher.on_start(t)
