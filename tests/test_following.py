"A run can be followed from outside its process: its history grows, and a log gets lines of text."
import csv

import pytest

from fakd.look.watchers import Progress
from fakd.run_folder import read_history
from fakd.runs import distill
from fakd.train.config import DistillConfig
from fakd.train.run import fit
from fakd.train.setup import prepare

STUDENT = "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)"


def settings(folder, **more):
    return {"student": STUDENT, "steps": 6, "batch_size": 2, "patch_px": 16, "benchmarks": "sample-eval",
            "precision": "fp32", "out_dir": str(folder / "runs"), **more}


def lines(run):
    "Method and step of each line of the file as it is now."
    if not (run.dir / "history.csv").exists():
        return []
    with open(run.dir / "history.csv", newline="", encoding="utf-8") as file:
        return [(line["method"], int(line["step"])) for line in csv.DictReader(file)]


def test_the_history_grows_while_a_student_trains_and_stays_right_after_a_stop(tmp_path, monkeypatch):
    seen = []

    class Stop(Exception):
        "A process that dies."

    def look(progress, t):
        seen.append(lines(setup.run))
        if t.step == stop_at:
            raise Stop

    monkeypatch.setattr(Progress, "on_step", look)
    stop_at, config = 0, DistillConfig(**settings(tmp_path, loss="DS", checkpoint_min=0))
    setup = prepare(config.resolve())
    fit(setup)
    whole = [("plain", step) for step in range(1, 7)]
    assert seen == [whole[:n] for n in range(6)]  # a line a step, each before the next one is taken
    assert lines(setup.run) == whole

    stop_at, config = 4, DistillConfig(**settings(tmp_path, loss="DS", checkpoint_min=0, seed=1))
    setup = prepare(config.resolve())
    with pytest.raises(Stop):
        fit(setup)
    assert lines(setup.run) == whole[:3]
    stop_at, setup = 0, prepare(config.resolve())
    fit(setup)
    assert lines(setup.run) == whole
    assert [line["step"] for line in read_history(setup.run)] == [1, 2, 3, 4, 5, 6]


def test_a_run_from_python_says_how_it_ended_and_leaves_its_pages(tmp_path, capsys):
    run = distill(**settings(tmp_path, steps=2))
    out, log = capsys.readouterr()
    assert out.splitlines() == [f"Report: {run.dir / 'report.html'}", f"Explorer: {run.dir / 'explorer.html'}"]
    assert (run.dir / "report.html").is_file() and (run.dir / "explorer.html").is_file()
    ends = [line.split(" [")[0] for line in log.splitlines() if "2/2" in line]
    assert ends[0] == "plain: 100% 2/2" and ends[-1] == "distilled: 100% 2/2"
    assert "\r" not in log  # a log is not a terminal
