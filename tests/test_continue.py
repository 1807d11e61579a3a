"What a run may go on from: nothing that changed, nothing damaged, nothing that is over; and what it makes then."
import errno
import hashlib
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import prepared
from PIL import Image
from skimage import data as samples

import fakd.train.setup
import fakd.train.trainer
from fakd.core import FakdError
from fakd.files import read_arrays
from fakd.look.watchers import Moment, Snapshots
from fakd.nets.weights import read_state, save_weights
from fakd.nets.zoo import make_net
from fakd.runs import distill, train_teacher
from fakd.train.checkpoint import before, load_checkpoint, load_run, save_checkpoint
from fakd.train.config import DistillConfig, TeacherConfig
from fakd.train.run import finish, fit, score
from fakd.train.setup import prepare
from fakd.train.trainer import Diverged

NARROW = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"
WIDE = "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)"


class Killed(BaseException):
    "Stands for SIGKILL: nothing that the trainer catches."


def picture(path, top):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(samples.astronaut()[top:top + 48, 100:164]).save(path)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    "Parameters of a run of seconds, with images and a teacher of its own; one small crop is looked at for the curve."
    real = fakd.train.setup.middles
    monkeypatch.setattr(fakd.train.setup, "middles", lambda images, side: real(images[:1], 24))
    picture(tmp_path / "own/1.png", 40)
    picture(tmp_path / "test/1.png", 300)
    save_weights(make_net(WIDE, 2, seed=5), tmp_path / "teacher.safetensors")
    return dict(scale=2, data=str(tmp_path / "own"), benchmarks=str(tmp_path / "test"), steps=8, batch_size=2,
                patch_px=8, precision="fp32", device="cpu", student=NARROW, schedule="constant", compare=False,
                teacher=str(tmp_path / "teacher.safetensors"), checkpoint_min=0.0, out_dir=str(tmp_path / "runs"))


@pytest.fixture
def after_step(monkeypatch):
    "Do something to a trainer after its update number n."
    real = fakd.train.trainer.train_step

    def install(n, do):
        def step(t, *batch):
            real(t, *batch)
            if t.step == n:
                do(t)

        monkeypatch.setattr(fakd.train.trainer, "train_step", step)

    install.off = lambda: monkeypatch.setattr(fakd.train.trainer, "train_step", real)
    return install


def kill(t):
    t.tell("on_step")  # the step was looked at
    t.saver.step(t)    # and its checkpoint written
    raise Killed


def killed(asked, after_step, at=5):
    "The folder of a run that was killed after some steps."
    after_step(at, kill)
    setup = prepared(**asked)
    with pytest.raises(Killed):
        fit(setup)
    after_step.off()
    return setup.run.dir


def content(folder):
    "Every file of a folder with its digest."
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*") if p.is_file()}


def weights(run, method="distilled"):
    return read_state(run.dir / f"weights/{method}.safetensors")[0]


def equal(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


# What differs is named


def other_images(asked, monkeypatch):
    picture(Path(asked["data"]) / "1.png", 120)


def more_images(asked, monkeypatch):
    picture(Path(asked["data"]) / "2.png", 120)


def other_teacher(asked, monkeypatch):
    save_weights(make_net(WIDE, 2, seed=6), asked["teacher"])


def other_code(asked, monkeypatch):
    monkeypatch.setattr("fakd.train.setup.code_digest", lambda: "f" * 64)


@pytest.mark.parametrize("change, words", [
    (other_images, "training images: "), (more_images, "training images: "), (other_teacher, "teacher: "),
    (other_code, "code of fakd: "),
])
def test_a_run_does_not_go_on_with_what_has_changed(asked, after_step, monkeypatch, change, words):
    folder = killed(asked, after_step)
    kept = content(folder)
    change(asked, monkeypatch)
    with pytest.raises(FakdError, match=f"cannot be continued.*\n  {words}"):
        prepared(**asked, resume=str(folder))
    assert content(folder) == kept
    setup = prepared(**asked)  # asked without a folder it is another run
    assert setup.run.dir != folder


def test_a_student_from_a_file_that_changed_is_not_continued(asked, after_step, tmp_path):
    start = tmp_path / "start.safetensors"
    save_weights(make_net(NARROW, 2, seed=1), start)
    asked["student"] = str(start)
    folder = killed(asked, after_step)
    save_weights(make_net(NARROW, 2, seed=2), start)
    with pytest.raises(FakdError, match="start of the student: "):
        prepared(**asked, resume=str(folder))


def test_the_same_run_goes_on_bit_for_bit_and_another_thread_count_is_said(asked, after_step, monkeypatch, tmp_path):
    whole = distill(**asked | {"out_dir": str(tmp_path / "whole")})
    assert whole.record.resumed_from_step == {} and len(whole.record.sittings["distilled"]) == 1
    folder = killed(asked, after_step)
    again = prepared(**asked, resume=str(folder))
    fitted = fit(again)
    assert "continued at step 5" in repr(fitted) and "threads" not in repr(fitted)
    run = finish(again, [fitted], score(again, [fitted]))
    assert run.record.digest == whole.record.digest and run.record.resumed_from_step == {"distilled": [5]}
    assert equal(weights(whole), weights(run))
    (folder / "report.html").touch()
    folder = killed(asked, after_step)
    threads = torch.get_num_threads()
    monkeypatch.setenv("FAKD_THREADS", str(threads + 1))
    try:
        setup = prepared(**asked)
        assert setup.run.dir == folder
        fitted = fit(setup)
        assert f"continued at step 5 (threads {threads} -> {threads + 1})" in repr(fitted)
        record = finish(setup, [fitted], score(setup, [fitted])).record
    finally:
        torch.set_num_threads(threads)
    assert [s["threads"] for s in record.sittings["distilled"]] == [threads, threads + 1]


# Folders that are none to go on in


def test_resume_of_a_folder_that_is_no_unfinished_run_is_refused_and_nothing_is_written(asked, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "photo.png").touch()
    finished = distill(**asked)
    pupil = {k: v for k, v in asked.items() if k not in ("student", "teacher", "compare")}
    setup = prepare(TeacherConfig(**pupil, net=NARROW).resolve())
    fit(setup)
    for folder, words in ((photos, "no checkpoint lies there"), (finished.dir, "this run is finished"),
                          (setup.run.dir, "a run of another kind: teacher, not distill"),
                          (photos / "photo.png", "no such folder"), (tmp_path / "none", "no such folder")):
        kept = content(tmp_path)
        with pytest.raises(FakdError, match=words):
            prepared(**asked, resume=str(folder))
        assert content(tmp_path) == kept and list(photos.iterdir()) == [photos / "photo.png"]


# Damage


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_checkpoint_is_found(asked, after_step, tmp_path):
    folder = killed(asked, after_step)
    path = folder / "checkpoints/distilled.pt"
    whole, dice = path.read_bytes(), random.Random(3)
    bits = dice.sample(range(8 * len(whole)), 250) + list(range(8 * len(whole) - 8 * 75, 8 * len(whole), 7))
    for damaged in (*(flipped(whole, bit) for bit in bits), *(whole[:n] for n in (0, 1, 72, 5000, len(whole) - 1))):
        path.write_bytes(damaged)
        with pytest.raises(FakdError, match=r"distilled\.pt: (damaged|cut off|an empty file)"):
            load_checkpoint(path)
    kept = content(folder)
    for resume in ("auto", str(folder)):  # a whole run says so before it begins, and takes nothing away
        with pytest.raises(FakdError, match="goes on from the checkpoint before it"):
            prepared(**asked, resume=resume)
    assert content(folder) == kept
    path.unlink()  # what the message says
    assert load_run(before(path))["step"] == 4
    run = distill(**asked)
    assert run.record.resumed_from_step == {"distilled": [4]}
    whole = distill(**asked | {"out_dir": str(tmp_path / "whole")})
    assert equal(weights(run), weights(whole))


def test_a_sealed_file_that_is_no_checkpoint_of_this_run_is_one_clear_error(asked, after_step):
    folder = killed(asked, after_step)
    path = folder / "checkpoints/distilled.pt"
    state = load_run(path)
    state.pop("format")
    setup = prepared(**asked)
    narrower = make_net("rcan(n_resgroups=3,n_resblocks=1,n_feats=4,reduction=2)", 2).state_dict()
    memory = {k: dict(v, exp_avg=torch.zeros(2)) for k, v in state["optimiser"]["state"].items()}
    for change, words in (
        ({"step": "5"}, "step is str"), ({"history": None}, "history is NoneType"),
        ({"student": narrower}, "this checkpoint does not fit this run"),
        ({"step": 99}, "it is of distilled at step 99"), ({"method": "plain"}, "it is of plain at step 5"),
        ({"random": {}}, "it lacks 'python'"), ({"optimiser": {}}, "does not fit this run"),
        ({"optimiser": {**state["optimiser"], "state": memory}}, "the optimiser's memory is of another network"),
    ):
        save_checkpoint(path, state | change)
        with pytest.raises(FakdError, match=words):
            fit(setup)
    save_checkpoint(path, {k: v for k, v in state.items() if k != "adapters"})
    with pytest.raises(FakdError, match="adapters is missing"):
        prepared(**asked)
    torch.save(state, path)  # whole, but not sealed
    with pytest.raises(FakdError, match="cut off, or no checkpoint of this version"):
        fit(setup)


def test_damage_of_the_kept_snapshots_is_found_before_the_run_goes_on(asked, after_step):
    folder = killed(asked, after_step)
    path = folder / "snapshots/progress-distilled.npz"
    whole, dice, found = path.read_bytes(), random.Random(4), 0
    setup = prepared(**asked)
    watcher = Snapshots(path, setup.looked_at, setup.queries[0], [t.net for t in setup.teachers], setup.taps)
    moment = Moment("distilled", 5, 8, (), setup.student)
    watcher.on_start(moment)
    seen = str(watcher.seen)
    for bit in dice.sample(range(8 * len(whole)), 150):
        path.write_bytes(flipped(whole, bit))
        try:
            watcher.on_start(moment)
            assert str(watcher.seen) == seen, bit  # a bit that means nothing, such as a date of the archive
        except FakdError:
            found += 1
    assert found > 100
    path.write_bytes(flipped(whole, 8 * (len(whole) // 2)))
    with pytest.raises(FakdError, match="progress-distilled.npz"):
        fit(setup)
    path.unlink()
    fit(setup)
    assert read_arrays(path)["steps"].tolist() == [8]


# Divergence


def explode(t):
    "Finite weights whose next images are not."
    with torch.no_grad():
        for p in t.student.parameters():
            p.mul_(1e25)


def poison(t):
    with torch.no_grad():
        next(p for p in t.student.parameters() if p.requires_grad).fill_(float("nan"))


def test_the_checkpoint_that_is_kept_has_a_finite_next_step_and_the_remedy_can_be_applied(asked, after_step):
    after_step(5, explode)
    with pytest.raises(Diverged, match=r"distilled, .* not finite|distilled, step 5") as fault:
        distill(**asked)
    after_step.off()
    (folder,) = Path(asked["out_dir"]).iterdir()
    assert "Try a learn_rate below 0.001 or clip_norm=1." in str(fault.value) and str(folder) in str(fault.value)
    state = load_run(folder / "checkpoints/distilled.pt")
    assert state["step"] == 4 and all(v.isfinite().all() for v in state["student"].values())
    again = asked | {"resume": str(folder)}
    with pytest.raises(FakdError, match="batch_size: 2 -> 3"):
        prepared(**again | {"batch_size": 3, "learn_rate": 1e-4})
    run = distill(**again | {"learn_rate": 1e-4, "clip_norm": 1.0})
    record = run.record
    assert (record.state, record.error, run.dir) == ("finished", None, folder)
    assert [(s["step"], s["learn_rate"], s["clip_norm"]) for s in record.sittings["distilled"]] == [
        (0, 1e-3, 0.0), (4, 1e-4, 1.0)]
    of_one_setting = prepared(**asked | {"learn_rate": 1e-4, "clip_norm": 1.0})
    assert record.digest != of_one_setting.digest, "no run of one setting may be taken for it"


def test_a_run_that_did_not_diverge_keeps_its_rate(asked, after_step):
    folder = killed(asked, after_step)
    words = "learn_rate: 0.001 -> 0.0001\nOnly more steps.*where it diverged also learn_rate"
    with pytest.raises(FakdError, match=words):
        prepared(**asked | {"learn_rate": 1e-4, "resume": str(folder)})


def test_a_run_that_diverges_at_once_goes_back_to_its_start(asked):
    with pytest.raises(Diverged, match=r"Try a learn_rate below 1e\+12"):
        distill(**asked | {"learn_rate": 1e12})
    (folder,) = Path(asked["out_dir"]).iterdir()
    assert load_run(folder / "checkpoints/distilled.pt")["step"] == 0
    run = distill(**asked | {"resume": str(folder)})
    assert run.record.history["distilled"]["step"] == 8 and run.record.resumed_from_step == {"distilled": [0]}


def test_weights_that_are_not_finite_after_the_last_step_are_no_result(asked, after_step):
    after_step(8, poison)
    with pytest.raises(Diverged, match="distilled, its (weights|images)"):
        distill(**asked)
    (folder,) = Path(asked["out_dir"]).iterdir()
    assert load_run(folder / "checkpoints/distilled.pt")["step"] == 7 and not (folder / "weights").exists()


# What is missing is made


@pytest.fixture
def no_training(monkeypatch):
    def refuse():
        def step(*_):
            raise AssertionError("a step was trained")

        monkeypatch.setattr(fakd.train.trainer, "train_step", step)

    return refuse


def test_a_run_that_was_stopped_before_its_record_is_scored_and_not_trained_again(asked, no_training):
    asked |= {"compare": True, "equal_time": False}
    setup = prepared(**asked)
    fit(setup, earlier=[fit(setup, "plain")])
    folder = setup.run.dir
    (folder / "weights/plain.safetensors").unlink()  # stopped while it was written
    for name in ("weights/.plain-abcd1234.safetensors", "snapshots/.affinity-k_3vx9qa.npz", ".record-zzzz9999.json",
                 "history.csv.tmp"):
        (folder / name).touch()
    no_training()
    run = distill(**asked)
    assert run.dir == folder and sorted(run.record.summary) == ["bicubic", "distilled", "plain", "teacher"]
    left = [str(p.relative_to(folder)) for p in folder.rglob("*")]
    assert not [name for name in left if "/." in name or name.startswith(".") or name.endswith(".tmp")]
    assert "checkpoints" not in left
    assert {a.path for a in run.record.artefacts} <= set(left)


@pytest.mark.parametrize("kind", ["distill", "teacher"])
def test_a_run_that_lacks_only_its_page_is_handed_over(asked, no_training, kind):
    pupil = {k: v for k, v in asked.items() if k not in ("student", "teacher", "compare")} | {"net": NARROW}
    once = (lambda: train_teacher(**pupil)) if kind == "teacher" else lambda: distill(**asked)
    run = once()
    pages = {str(p.relative_to(run.dir)) for p in run.dir.rglob("*") if p.is_file()}
    (run.dir / "report.html").unlink()
    kept = {name: kept for name, kept in content(run.dir).items() if name == "record.json" or "/" in name}
    (run.dir / "checkpoints").mkdir()  # stopped before they were taken away
    (run.dir / "checkpoints/distilled.pt").touch()
    no_training()
    assert once().dir == run.dir
    again = content(run.dir)
    assert set(again) == pages and not (run.dir / "checkpoints").exists()
    assert {name: again[name] for name in kept if not name.startswith("figures/")} == {
        name: there for name, there in kept.items() if not name.startswith("figures/")}
    (run.dir / "report.html").unlink()
    setup = prepare((TeacherConfig(**pupil) if kind == "teacher" else DistillConfig(**asked)).resolve())
    fitted = fit(setup)
    assert repr(fitted).startswith(f"{'teacher' if kind == 'teacher' else 'distilled'}: 8 steps in ")
    assert equal(fitted.net.state_dict(), {k: v.float() for k, v in weights(run, fitted.method).items()})
    assert score(setup, [fitted]) == run.record.rows and finish(setup, [fitted], []).dir == run.dir


def test_a_run_with_its_page_or_without_one_of_its_files_is_asked_anew(asked):
    run = distill(**asked)
    assert (run.dir / "report.html").is_file()
    second = prepared(**asked)
    assert second.run.id == f"{run.id}-2" and second.record is None
    (run.dir / "report.html").unlink()
    (run.dir / "weights/distilled.safetensors").unlink()
    assert prepared(**asked).run.id == f"{run.id}-2"
    assert prepared(**asked, resume="never").run.id == f"{run.id}-3"


# A full disk


def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_the_earlier_one_stays(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        words = r"c\.pt could not be written: File too large\. What was there before is untouched"
        with pytest.raises(FakdError, match=words):
            save_checkpoint(path, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path)["step"] == 1
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_run_on_a_disk_that_fills_goes_on_when_there_is_room_again(asked, after_step, monkeypatch):
    real = os.fsync

    def full(t):
        def fsync(number):
            if "checkpoints" in os.readlink(f"/proc/self/fd/{number}"):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(number)

        monkeypatch.setattr(os, "fsync", fsync)

    after_step(6, full)
    with pytest.raises(FakdError, match="could not be written: No space left on device"):
        distill(**asked)
    after_step.off()
    monkeypatch.setattr(os, "fsync", real)
    run = distill(**asked)
    assert run.record.resumed_from_step == {"distilled": [5]}
    assert np.isfinite(run.record.history["distilled"]["psnr_y"])


@pytest.mark.parametrize("page", ["explorer.html", "report.html"])
def test_pages_that_did_not_fit_are_made_by_the_next_call_without_training(asked, page, monkeypatch, no_training):
    real = os.replace

    def replace(a, b):
        if Path(b).name == page:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    run = distill(**asked)
    assert run.finished and not (run.dir / "report.html").exists()
    monkeypatch.setattr(os, "replace", real)
    no_training()
    assert distill(**asked).dir == run.dir
    assert (run.dir / "report.html").exists() and (run.dir / "explorer.html").exists()


def test_a_record_is_not_written_without_one_of_the_students_that_it_compares(asked):
    setup = prepared(**asked | {"compare": True, "equal_time": False})
    plain = fit(setup, "plain")
    distilled = fit(setup, earlier=[plain])
    with pytest.raises(FakdError, match="finish: this run also trains plain. Give what fit returned for plain, distil"):
        finish(setup, [None, distilled], [])
    assert not (setup.run.dir / "record.json").exists() and list((setup.run.dir / "checkpoints").iterdir())
