"The explorer without a browser: what is sent, what a page holds, and the networks of a run."
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from fakd.core import FakdError
from fakd.data.sets import image_set
from fakd.distil.affinity import affinity_row
from fakd.images import write_image
from fakd.look.exhibit import TOPS, middle_pair, run_pair
from fakd.look.explorer import ExploreConfig, _receive, explore, explore_run, open_explorer, still_picture
from fakd.look.maps import SHIPPED, read_affinity
from fakd.look.page import explorer_script, save_explorer
from fakd.look.training import progress_view, read_progress
from fakd.nets.weights import load_net
from fakd.nets.zoo import make_net
from fakd.report.pages import make_pages
from fakd.report.run import run_page
from fakd.run_folder import Run
from fakd.runs import distill, train_teacher

ROOT = Path(__file__).parents[1]
NARROW = "rcan(n_resgroups=3,n_resblocks=1,n_feats={},reduction=4)"


def nets(scale: int = 2) -> list[torch.nn.Module]:
    return [make_net(NARROW.format(f), scale, seed=f).eval() for f in (16, 8)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    "A teacher's run and a distillation from its weights, both tiny."
    small = {"scale": 4, "data": "sample", "benchmarks": "sample-eval", "batch_size": 2, "patch_px": 8, "steps": 2,
             "device": "cpu", "precision": "fp32", "out_dir": str(tmp_path_factory.mktemp("runs"))}
    teacher = train_teacher(**small, net=NARROW.format(16))
    weights = teacher.dir / "weights" / "teacher.safetensors"
    return teacher, distill(**small, student=NARROW.format(8), teacher=str(weights))


@pytest.mark.parametrize("channels", [8, 64])
def test_half_precision_costs_a_cosine_less_than_a_fourth_of_1_255(channels: int) -> None:
    net = make_net(NARROW.format(channels), 2, seed=3).eval()
    w = explore(net, image=skimage.data.coffee(), side=48)
    for tap in w.exhibit.features.taps:
        (sent,) = w.exhibit.unit_bytes(tap)
        unit = np.frombuffer(sent["unit"], "<f2").astype(np.float64).reshape(channels, -1)
        unit /= np.linalg.norm(unit, axis=0)
        maps = w.exhibit.features.maps["teacher"][w.exhibit.features.tap(tap)]
        for y, x in ((0, 0), (20, 31), (47, 47)):
            row = affinity_row(maps, y, x)[0].numpy().ravel()
            assert np.abs(unit[:, y * 48 + x] @ unit - row).max() < 0.25 / 255


def test_a_position_where_a_network_sees_nothing_stays_nothing() -> None:
    w = explore(nets()[0], image=skimage.data.coffee(), side=16)
    w.exhibit.features.maps["teacher"][0][0, :, 3, 4] = 0
    (sent,) = w.exhibit.unit_bytes("head")
    assert not np.frombuffer(sent["unit"], "<f2").reshape(16, 16, 16)[:, 3, 4].any()


def test_state_is_shared_by_traits_and_links(tmp_path: Path) -> None:
    teacher, student = nets()
    w = explore(teacher, {"no KD": student, "FAKD": student}, skimage.data.coffee(), side=32)
    assert [net["name"] for net in w._data["nets"]] == ["Teacher", "no KD", "FAKD"]
    before = w._data["nets"][0]["unit"]
    w.tap = "head"
    assert w._data["tap"] == "head" and w._data["nets"][0]["unit"] != before
    for name, value in {"query": (32, 0), "query2": (0, -1), "queries": [(1, 1), (99, 0)], "tap": "tail"}.items():
        with pytest.raises(FakdError, match="32 high|tap"):
            setattr(w, name, value)
    assert w.tap == "head" and w.queries == [] and w.query2 is None


def test_an_image_of_ones_own_replaces_the_first_and_a_broken_one_does_not(tmp_path: Path) -> None:
    w = explore(nets()[0], image=skimage.data.coffee(), side=32)
    w.query2, w.queries = (31, 31), [(31, 0)]
    write_image(tmp_path / "mine.png", skimage.data.chelsea()[:40, :50])
    said: list[str] = []
    w.observe(lambda change: said.append(change["new"]), "status")
    _receive(w, {"kind": "image", "name": "mine.png"}, [memoryview((tmp_path / "mine.png").read_bytes())])
    assert said[0] == "mine.png: computing its features in Teacher\u2026"
    assert said[-1] == "mine.png: the middle 50 \u00d7 40 of its 50 \u00d7 40 pixels, 25 \u00d7 20 positions."
    assert w._info["size"] == [20, 25] and w.query2 is None and w.queries == []
    _receive(w, {"kind": "image", "name": "notes.txt"}, [memoryview(b"no image")])
    assert w.status.startswith("notes.txt: not a readable image") and w._info["size"] == [20, 25]
    _receive(w, {"kind": "image", "name": "dot.png"}, [memoryview(_tiny(tmp_path))])
    assert "dot.png: 4 x 4 is too small" in w.status


def _tiny(folder: Path) -> bytes:
    write_image(folder / "dot.png", np.zeros((4, 4, 3), np.uint8))
    return (folder / "dot.png").read_bytes()


def check_page(path: Path) -> dict:
    "One file that names no other; returns the state in it."
    text = path.read_text(encoding="utf-8")
    code = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert not re.search(r"https?:|@import|<link|<iframe|src=\"|fetch\(|XMLHttp|WebSocket|import\(", code)
    assert re.search(r"in half precision \(fp16\): \d+\.\d MB, in this file \d+\.\d MB", text)
    return json.loads(re.search(r'id="explorer-state">(.*?)</script>', text, re.S)[1])


def test_a_page_holds_every_tap_and_the_state_of_the_view(tmp_path: Path) -> None:
    teacher, student = nets()
    w = explore(teacher, {"</script>": student}, skimage.data.coffee(), side=32)
    w.query, w.mode, w.shown = (3, 4), "difference", "teacher"
    page = check_page(w.to_html(tmp_path / "deep" / "page.html"))
    assert (page["state"]["query"], page["state"]["mode"], page["state"]["shown"]) == ([3, 4], "difference", "teacher")
    assert list(page["taps"]) == sorted(w.exhibit.features.taps)
    assert {net["name"] for nets in page["taps"].values() for net in nets} == {"Teacher", "</script>"}
    again = w.to_html(tmp_path / "again.html").read_bytes()
    assert again == (tmp_path / "deep" / "page.html").read_bytes()  # the same view, the same bytes


def test_every_run_leaves_an_explorer_that_its_report_links(runs: tuple[Run, Run]) -> None:
    for run, count in zip(runs, (1, 3), strict=True):
        (run.dir / "explorer.html").unlink()  # which the run has made itself
        assert "explorer.html" not in run_page(run).read_text()
        page = check_page(save_explorer(run))
        assert [len(nets) for nets in page["taps"].values()] == [count] * len(page["taps"])
        assert 'href="explorer.html"' in run_page(run).read_text()
    assert page["state"]["query"] in np.load(run.dir / "snapshots" / "affinity.npz")["queries"].tolist()
    past = page["state"]["_info"]["past"]  # the training can be stepped through
    kept = np.load(run.dir / "snapshots" / "progress-distilled.npz")
    assert (past["steps"], past["query"]) == ([1, 2], kept["query"].tolist())
    teacher_net, plain, distilled = page["taps"][list(page["taps"])[0]]
    place = page["state"]["_info"]["taps"].index(list(page["taps"])[0])
    assert "past" not in teacher_net and plain["steps"] == distilled["steps"] == [1, 2]
    sent = np.frombuffer(base64.b64decode(distilled["past"]), "<f2").reshape(kept[f"rows/{place}"].shape)
    assert np.array_equal(sent, kept[f"rows/{place}"])
    w = explore_run(run.dir)
    w.step = 2
    assert w.query == tuple(past["query"])
    w.query = (0, 0)
    assert w.step is None  # other queries were not followed
    with pytest.raises(FakdError, match="kept are 1, 2"):
        w.step = 7
    kept = np.load(run.dir / "snapshots" / "affinity.npz")
    y, x = kept["queries"][1]
    for method in ("teacher", "plain", "distilled"):  # what is shown is what the run kept
        row = affinity_row(w.exhibit.features.maps[method][1], int(y), int(x))[0].numpy()
        assert np.abs(row - kept[f"{method}/1"][1]).max() < 1e-3


def test_a_teacher_that_is_gone_or_changed_is_said_to_be_missing(runs: tuple[Run, Run], tmp_path: Path) -> None:
    teacher, run = runs
    weights = teacher.dir / "weights" / "teacher.safetensors"
    content = weights.read_bytes()
    try:
        weights.unlink()
        w = explore_run(run.dir)
        assert w.status.endswith("teacher.safetensors is not there.") and list(w.exhibit.nets) == ["plain", "distilled"]
        weights.write_bytes((run.dir / "weights" / "plain.safetensors").read_bytes())
        assert "has other weights now" in explore_run(run.dir).status
    finally:
        weights.write_bytes(content)


def edited(run: Run, folder: Path, **record: object) -> Run:
    "A copy of a run whose record says something else."
    without = shutil.ignore_patterns("explorer.html")
    copy = Run(Path(shutil.copytree(run.dir, folder / "copy", ignore=without, dirs_exist_ok=True)))
    text = json.loads((copy.dir / "record.json").read_text())
    (copy.dir / "record.json").write_text(json.dumps({**text, **record}))
    return copy


def refusal(run: Run) -> str:
    "Why a run gets no explorer."
    with pytest.raises(FakdError) as fault:
        save_explorer(run)
    return str(fault.value)


def test_save_explorer_says_why_it_made_nothing(runs: tuple[Run, Run], tmp_path: Path) -> None:
    run = runs[1]
    own = edited(run, tmp_path / "own", student={**run.record.student, "network": "mine.Net"}, teacher=None)
    assert "a module of your own" in refusal(own)
    bare = edited(run, tmp_path / "bare", teacher=None)
    shutil.rmtree(bare.dir / "weights")
    assert "holds no weights" in refusal(bare)
    broken = edited(run, tmp_path / "broken", teacher=None)
    for path in (broken.dir / "weights").iterdir():
        path.write_bytes(b"<html>")
    assert "plain network is missing" in refusal(broken)
    about = {**run.record.student, "network": "foreign"}
    gone = {**run.record.student, "source": str(tmp_path / "gone.safetensors")}
    evaluation = edited(run, tmp_path / "evaluation", student={"nets": {"a": about, "b": gone}, "ways": {}},
                        kind="evaluate")
    said = refusal(evaluation)
    assert "a (it names no taps); b (" in said and "gone.safetensors is not there" in said
    for failed in (own, bare, broken, evaluation):
        assert not (failed.dir / "explorer.html").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(make_pages(own).explorer).startswith("none. ")  # the end of a run survives it, without a fuss


def test_the_explorer_of_a_teacher_says_nothing_false(runs: tuple[Run, Run], tmp_path: Path) -> None:
    shown = explore_run(edited(runs[0], tmp_path).dir)
    assert list(shown.exhibit.nets) == ["teacher"] and shown.status == ""


def test_without_snapshots_it_is_said_why(runs: tuple[Run, Run], tmp_path: Path) -> None:
    teacher, run = runs
    assert "this is the run of a teacher, which has none of its own" in progress_view(teacher).why
    assert progress_view(run).why == ""
    assert len(progress_view(run)[0].axes) == len(read_progress(run)["plain"].taps)
    lone = edited(run, tmp_path, teacher=None)
    shutil.rmtree(lone.dir / "snapshots")
    assert "has no teacher to compare with" in progress_view(lone)._repr_html_()


def test_of_several_teachers_the_one_that_is_shown_is_named(runs: tuple[Run, Run], tmp_path: Path) -> None:
    teacher, run = runs
    about = run.record.teacher
    two = edited(run, tmp_path, teacher={"nets": {"teacher1": about, "teacher2": about}})
    page = check_page(save_explorer(two))
    assert "Of 2 teachers the first" in page["state"]["status"] and about["source"] in page["state"]["status"]


@pytest.mark.parametrize("name", ["affinity", "progress-distilled"])
def test_hostile_snapshots_are_refused_in_words(runs: tuple[Run, Run], tmp_path: Path, name: str) -> None:
    run = edited(runs[1], tmp_path)
    path = run.dir / "snapshots" / f"{name}.npz"
    good, content = dict(np.load(path)), path.read_bytes()

    def refused(why: str = "") -> None:
        with pytest.raises(FakdError, match=why):
            read_affinity(run) if name == "affinity" else read_progress(run)

    for junk in (b"", b"PK\x03\x04", content[:-40], content[:200] + b"\0" * 50 + content[250:], b"<html></html>"):
        path.write_bytes(junk)
        refused("not a readable")
    for key in good:
        if key == "sha256" or (key in ("teacher/0", "plain/0", "distilled/0") and name == "affinity"):
            continue  # a method that was not kept; the trainer's seal
        np.savez(path, **{k: v for k, v in good.items() if k != key})
        refused("has no array")
        np.savez(path, **{**good, key: np.array([{}], dtype=object)})
        refused("not a readable")
        np.savez(path, **{**good, key: np.zeros((0, 3))})
        refused()
    rows = next(key for key in good if key.endswith("/0"))
    np.savez(path, **{**good, rows: np.full_like(good[rows], np.nan)})
    refused("not finite")
    query = "queries" if name == "affinity" else "query"
    np.savez(path, **{**good, query: good[query] + 10_000})
    refused("quer")
    with zipfile.ZipFile(path, "w") as archive:  # an array that says it has 16 TB
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**41,)})
        archive.writestr("taps.npy", file.getvalue())
    refused("declares")
    if name != "affinity":
        assert "declares" in refusal(run)


def test_the_explorer_of_a_run_shows_the_image_whose_affinity_it_kept(runs: tuple[Run, Run], tmp_path: Path) -> None:
    run, names = runs[1], [pair.name for pair in image_set("sample-eval").pairs(4)]
    assert np.array_equal(run_pair(run, 4).lr_img, np.load(run.dir / "snapshots" / "affinity.npz")["image"])
    resolved = {**run.record.resolved, "affinity_image": f"sample-eval/{names[1]}"}
    chosen = edited(run, tmp_path / "chosen", resolved=resolved)
    assert run_pair(chosen, 4).name == names[1] and max(run_pair(chosen, 4).lr_img.shape) <= 96
    gone = edited(run, tmp_path / "gone", resolved={**resolved, "benchmarks": str(tmp_path / "nowhere")})
    assert run_pair(gone, 4).name == names[0]


def test_names_that_collide_stay_apart(tmp_path: Path) -> None:
    teacher, student = nets()
    w = explore(teacher, {"Teacher": student, "x": student}, skimage.data.coffee(), side=16)
    sent = w.exhibit.unit_bytes("last")
    assert [net["key"] for net in sent] == ["teacher", "Teacher", "x"] and w._info["teacher"] == "teacher"
    assert len({net["name"] for net in sent}) == 3
    with pytest.raises(FakdError, match="that name is the image's"):
        explore(teacher, {"lr": student}, skimage.data.coffee(), side=16)


def test_the_colour_bars_hold_what_the_maps_need() -> None:
    w = open_explorer(ExploreConfig())
    for tap, (below, top) in w._info["bars"].items():
        place = w.exhibit.features.tap(tap)
        grid = [(int((y + 0.5) * 64 / 5), int((x + 0.5) * 64 / 5)) for y in range(5) for x in range(5)]
        rows = {name: np.stack([affinity_row(maps[place], *at)[0].numpy() for at in grid])
                for name, maps in w.exhibit.features.maps.items()}
        gaps = np.stack([np.abs(rows[name] - rows["teacher"]) for name in ("plain", "distilled")])
        assert below == (min(float(row.min()) for row in rows.values()) < -0.05)
        assert (gaps <= top).mean() >= 0.99
        assert top == TOPS[0] or (gaps <= TOPS[TOPS.index(top) - 1]).mean() < 0.99


def test_a_cell_keeps_a_picture_of_what_the_view_shows() -> None:
    w = open_explorer(ExploreConfig(tap="group0", query=[5, 6]))
    first = still_picture(w.exhibit, "group0", [(5, 6), None])
    image = Image.open(io.BytesIO(first))
    assert image.info["Software"] == "fakd explorer" and image.size[0] > 600
    assert b"fakd explorer" in first[:600]  # where the live view looks for it
    one, two = (Image.open(io.BytesIO(still_picture(w.exhibit, tap, points))).size
                for tap, points in (("last", [(5, 6)]), ("last", [(5, 6), (7, 8)])))
    assert two[1] > one[1]  # a line a query
    assert still_picture(w.exhibit, "last", [(5, 6)]) != first


def test_the_notebook_opens_the_shipped_networks_and_any_run(runs: tuple[Run, Run]) -> None:
    w = open_explorer(ExploreConfig(tap="group0", query=[5, 6]))
    assert (w.tap, w.query, list(w.exhibit.nets)) == ("group0", (5, 6), list(SHIPPED))
    assert load_net(ROOT / SHIPPED["teacher"]).scale == 4
    assert open_explorer(ExploreConfig(run_dir=str(runs[1].dir), query=[7, 8])).query == (7, 8)
    assert ExploreConfig(query="[20, 30]").query == [20, 30]  # as papermill's -p gives it
    with pytest.raises(FakdError, match="query"):
        ExploreConfig(query="[20")
    with pytest.raises(FakdError, match='unknown setting "run_dri". Did you mean "run_dir"'):
        ExploreConfig(run_dri="x")
    with pytest.raises(FakdError, match="no such run folder"):
        open_explorer(ExploreConfig(run_dir="nowhere"))
    with pytest.raises(FakdError, match="give a row and a column"):
        open_explorer(ExploreConfig(query=[1]))
    with pytest.raises(FakdError, match="is too small"):
        middle_pair(np.zeros((9, 99, 3), np.uint8), 4)


def test_no_other_module_needs_anywidget() -> None:
    "Machines without a notebook can train."
    files = [p.relative_to(ROOT).with_suffix("") for p in sorted((ROOT / "fakd").rglob("[!_]*.py"))]
    names = [".".join(file.parts) for file in files if file.name != "explorer"]
    code = f"import importlib, sys; sys.modules['anywidget'] = None; [importlib.import_module(n) for n in {names}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_joined_script_is_its_modules_less_their_imports_of_one_another() -> None:
    lines = explorer_script().splitlines()
    parts = [(ROOT / "fakd" / "static" / f"explorer{part}.js").read_text("utf-8") for part in (".rows", ".frames", "")]
    left = [line for part in parts for line in part.splitlines() if line not in lines]
    assert len(left) == 5 and all(re.match(r"(/\*\* @)?import \{", line) for line in left)
    assert max(len(part.splitlines()) for part in parts) < 450
    names = re.findall(r"(?m)^(?:export )?(?:const|let|class|function) (\w+)", "\n".join(lines))
    assert len(names) == len(set(names)) > 30  # a name stands for one thing
