"""The page of a run: self-contained, deterministic, well-formed, honest."""
from __future__ import annotations

import csv
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fixtures import make_run_fixture

from fakd.report.finding import finding
from fakd.report.pages import index_page
from fakd.report.run import run_page
from fakd.rows import Row, summarise
from fakd.run_folder import Run, write_record

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Tags(HTMLParser):
    "Checks that tags are balanced, and collects attributes, ids and text."

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.missing_alt: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        known = dict(attrs)
        self.ids += [known["id"]] if "id" in known else []
        self.links += [known[k] for k in ("href", "src", "srcset", "action", "poster", "data") if k in known]
        if tag == "img" and "alt" not in known:
            self.missing_alt.append(str(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()


def check_page(text: str) -> Tags:
    "Balanced, unique ids, no link that leaves the run's folder."
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.missing_alt == []
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe", re.sub(r"data:[^\"')]*", "", text), re.I)
    for link in tags.links:
        assert link.startswith(("data:", "#")) or re.fullmatch(r"[\w./%-]+", link), link
        if link.startswith("#"):
            assert link[1:] in tags.ids, link
    assert set(re.findall(r"url\((.)", text)) <= {"d", "#"}
    return tags


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run_fixture(tmp_path_factory.mktemp("reports") / "runs", longer=True)


def test_a_page_is_one_file_that_asks_nothing_of_the_network(full: Run) -> None:
    text = run_page(full).read_text(encoding="utf-8")
    check_page(text)
    assert len(text) < 5_000_000
    for part in ("results", "training", "images", "affinity", "settings", "environment", "data", "repeat", "files"):
        assert f'<section id="{part}">' in text
    assert 'class="missing"' not in text


def test_the_same_folder_gives_the_same_bytes(full: Run, tmp_path: Path) -> None:
    first = run_page(full).read_bytes()
    assert run_page(full).read_bytes() == first
    copy = shutil.copytree(full.dir, tmp_path / full.dir.name)  # elsewhere, with other times
    assert run_page(Run.open(copy)).read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_every_figure_lies_beside_the_page_as_pdf_and_png(full: Run) -> None:
    text = run_page(full).read_text(encoding="utf-8")
    files = sorted((full.dir / "figures").glob("*"))
    names = {p.stem for p in files}
    assert {"gain", "curves", "progress", "affinity-body.0", "affinity-body.4-body.2"} < names
    assert any(n.startswith("crops-sample-eval-") for n in names)
    assert [p.name for p in files] == sorted(f"{n}.{kind}" for n in names for kind in ("pdf", "png"))
    assert all(text.count(f'href="figures/{p.name}"') == 2 for p in files)  # under its caption and in the list


def test_a_page_holds_the_numbers_of_its_record(full: Run) -> None:
    text, record = run_page(full).read_text(encoding="utf-8"), full.record
    for method in ("bicubic", "teacher", "plain", "distilled"):
        for name in ("sample-eval", "Set5"):
            assert f"{record.summary[method][name]['psnr_y']:.2f}" in text
            assert f"{record.summary[method][name]['ssim_y']:.4f}" in text
    for artefact in record.artefacts:
        assert artefact.sha256 in text
    assert record.digest in text and record.run_id in text
    with open(full.dir / "report.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["psnr_y"]) for line in lines] == [r.psnr_y for r in record.rows]


@pytest.mark.parametrize("absent", [
    {"compare": False}, {"teacher": False}, {"compare": False, "teacher": False}, {"pictures": False},
    {"rows": [], "summary": {}, "history": {}, "data": [], "artefacts": []},
])
def test_what_a_folder_lacks_is_left_out(tmp_path: Path, absent: dict) -> None:
    run = make_run_fixture(tmp_path, **absent)
    text = run_page(run).read_text(encoding="utf-8")
    check_page(text)
    assert ("The run kept no images to compare." in text) == (absent.get("pictures") is False)
    assert ("there is no table of results" in text) == ("rows" in absent)
    if "compare" in absent:
        assert "Student, no distillation" not in text
        assert "cannot say what distillation changed" in text


@pytest.mark.parametrize("environment", [
    {}, {"git": None}, {"git": {}}, {"git": None, "no_git": "there is no git here"}, {"gpu": None, "versions": {}},
    {"git": {"commit": "0123abcd" * 5}, "python": "3.11"},
])
def test_any_part_of_the_environment_may_be_missing(tmp_path: Path, environment: dict) -> None:
    "A ZIP, a machine without git, a clone of another owner: the page is there, and says what is known."
    text = run_page(make_run_fixture(tmp_path, pictures=False, environment=environment)).read_text(encoding="utf-8")
    check_page(text)
    assert ("none: there is no git here" in text) == ("no_git" in environment)
    assert ("at commit 0123abcd0123" in text) == bool((environment.get("git") or {}).get("commit"))
    assert "papermill nbs/run_distill.ipynb" in text


def test_an_empty_snapshot_folder_and_a_failed_run_have_a_page(tmp_path: Path) -> None:
    run = make_run_fixture(tmp_path, pictures=False, state="failed", error="loss is nan at step 7 & <stopped>")
    (run.dir / "snapshots" / "images" / "Set5--baby").mkdir(parents=True)
    text = run_page(run).read_text(encoding="utf-8")
    check_page(text)
    assert "The run failed: loss is nan at step 7 &amp; &lt;stopped&gt;." in text


def test_a_run_without_distillation_has_a_page(tmp_path: Path) -> None:
    rows = [Row.of(m, "Set5", "baby", 4, p, 0.9) for m, p in (("bicubic", 28.4), ("teacher", 30.8))]
    run = make_run_fixture(tmp_path, kind="teacher", rows=rows, summary=summarise(rows), pictures=False, teacher=False)
    text = run_page(run).read_text(encoding="utf-8")
    check_page(text)
    said = "On Set5 (1 image) the network reaches 30.80 dB, +2.40 dB against bicubic interpolation."
    assert finding(run.record) == said
    assert "trained for ×4" in text and "Student" not in text.replace("Student less", "")


def test_a_student_without_a_teacher_is_not_called_distilled(tmp_path: Path) -> None:
    rows = [Row.of(m, "Set5", "baby", 4, p, 0.9) for m, p in (("bicubic", 28.4), ("plain", 28.9))]
    run = make_run_fixture(tmp_path, rows=rows, summary=summarise(rows), pictures=False, teacher=False,
                           resolved={"scale": 4, "loss": "DS", "teacher": None, "seed": 0})
    text = run_page(run).read_text(encoding="utf-8")
    check_page(text)
    assert finding(run.record).startswith("On Set5 (1 image) the network reaches 28.90 dB, +0.50 dB against bicubic")
    assert "trained for ×4</h1>" in text and "a network" not in text and "not scored" not in text


@pytest.mark.parametrize(("gain", "says", "says_not"), [
    (0.3, "+0.", "harm"), (-0.3, "Here distillation did harm.", "+0.3"), (0.0, "distillation changed nothing", "harm"),
])
def test_the_finding_follows_the_sign_of_the_difference(tmp_path: Path, gain: float, says: str, says_not: str) -> None:
    text = finding(make_run_fixture(tmp_path, gain=gain, pictures=False).record)
    assert says in text and says_not not in text
    assert "one seed (0), which proves little" in text
    better = int(re.search(r"better on (\d) of 5 images", text)[1])
    assert (better > 2) == (gain > 0) and (gain or better == 0)


def test_an_infinite_psnr_is_said_and_not_averaged(tmp_path: Path) -> None:
    rows = [Row.of(m, "Set5", i, 4, math.inf if (m, i) == ("distilled", "a") else 30.0, 1.0)
            for m in ("plain", "distilled") for i in "abc"]
    run = make_run_fixture(tmp_path, rows=rows, summary=summarise(rows), pictures=False)
    text = run_page(run).read_text(encoding="utf-8")
    check_page(text)
    assert "psnr_y is inf" in text and "better on 0 of 2 images" in text


def test_the_list_of_runs_names_every_finished_run(full: Run, tmp_path: Path) -> None:
    assert "no finished run" in index_page(tmp_path).read_text(encoding="utf-8")
    shutil.copytree(full.dir, tmp_path / "runs" / full.dir.name)
    run = Run.open(tmp_path / "runs" / full.dir.name)
    run_page(run)
    text = index_page(tmp_path).read_text(encoding="utf-8")
    check_page(text)
    assert f'href="runs/{run.id}/report.html"' in text and "+0." in text
    assert index_page(tmp_path).read_text(encoding="utf-8") == text
    write_record(run, run.record.model_copy(update={"state": "failed", "error": "stopped"}))
    assert run.id not in index_page(tmp_path).read_text(encoding="utf-8")
